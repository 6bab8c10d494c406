// The emulator's atomics: they count right, and are checked like other accesses.
#include <gmock/gmock.h>

#include "kernels/gpu/gpu.h"
#include "kernels/simt/simt_device.h"
#include "tests/kernels/op_test.h"
#include "tests/message_of.h"

namespace orchard::GPU_NAMESPACE {

struct Tally {
  unsigned odd;
};

// counts[i % 3] += i for each thread i, and in counts[3] the number of odd threads, by way of
// shared memory; `shift` moves counts.
__global__ void count_threads(int* counts, int shift) {
  auto& shared = shared_storage<Tally>();
  const int i = static_cast<int>(threadIdx.x);
  if (i == 0) shared.odd = 0;
  __syncthreads();
  atomicAdd(counts + shift + i % 3, i);
  if (i % 2 == 1) atomicAdd(&shared.odd, 1);
  __syncthreads();
  if (i == 0) atomicAdd(counts + shift + 3, static_cast<int>(shared.odd));
}

}  // namespace orchard::GPU_NAMESPACE

namespace orchard::testing {
namespace {

std::vector<double> count(SimtDevice& device, int shift) {
  const auto stream = device.make_stream();
  const Buffer buffer = device.allocate(4 * sizeof(int));
  const Tensor on_device = buffer.tensor(DType::i32, {4});
  Guarded counts = integers({4}, std::vector<int>{1, 2, 3, 4});
  stream->copy(on_device, counts);
  simt::launch(*stream,
               {.kernel = "count_threads", .block = {70}, .shared_bytes = sizeof(simt::Tally)},
               simt::count_threads, on_device.data<int>(), shift);
  stream->copy(counts, on_device);
  stream->synchronize();
  return counts.values();
}

TEST(SimtAtomics, AddInEveryOrderOfThreads) {
  for (const simt::ThreadOrder order :
       {simt::ThreadOrder::fifo, simt::ThreadOrder::reverse, simt::ThreadOrder::random}) {
    const auto device = make_simt_device({.order = order});
    // 0 + 3 + ... + 69, 1 + 4 + ... + 67, 2 + 5 + ... + 68, and 35 odd threads.
    EXPECT_EQ(count(*device, 0), (std::vector<double>{1 + 828, 2 + 782, 3 + 805, 4 + 35}));
  }
}

TEST(SimtAtomics, OutOfBoundsIsNamed) {
  const auto device = make_simt_device();
  EXPECT_THAT(message_of([&] { count(*device, 2); }),
              ::testing::HasSubstr("at byte 16 of an allocation of 16 bytes"));
}

}  // namespace
}  // namespace orchard::testing
