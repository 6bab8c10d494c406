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

// taken[1 + b]: how many of `items`, which the blocks count in taken[0], block b takes.
__global__ void share_out(int* taken, int items) {
  auto& shared = shared_storage<Tally>();
  for (;;) {
    if (threadIdx.x == 0) shared.odd = static_cast<unsigned>(atomicAdd(taken, 1));
    __syncthreads();
    const bool none_is_left = static_cast<int>(shared.odd) >= items;
    __syncthreads();
    if (none_is_left) return;
    if (threadIdx.x == 0) atomicAdd(taken + 1 + blockIdx.x, 1);
  }
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

// Of 20, by five blocks.
std::vector<double> share_out(int at_once) {
  const auto device = make_simt_device({.clusters_at_once = at_once});
  const auto stream = device->make_stream();
  const Buffer buffer = device->allocate(6 * sizeof(int));
  const Tensor on_device = buffer.tensor(DType::i32, {6});
  Guarded taken = integers({6}, std::vector<int>(6));
  stream->copy(on_device, taken);
  simt::launch(
      *stream,
      {.kernel = "share_out", .grid = {5}, .block = {64}, .shared_bytes = sizeof(simt::Tally)},
      simt::share_out, on_device.data<int>(), 20);
  stream->copy(taken, on_device);
  stream->synchronize();
  return taken.values();
}

TEST(SimtAtomics, BlocksThatRunBesideEachOtherShareOutTheirWork) {
  EXPECT_EQ(share_out(1), (std::vector<double>{25, 20, 0, 0, 0, 0}));
  EXPECT_EQ(share_out(2), (std::vector<double>{25, 10, 10, 0, 0, 0}));
  EXPECT_EQ(share_out(5), (std::vector<double>{25, 4, 4, 4, 4, 4}));
  EXPECT_EQ(share_out(9), share_out(5));
}

TEST(SimtAtomics, OutOfBoundsIsNamed) {
  const auto device = make_simt_device();
  EXPECT_THAT(message_of([&] { count(*device, 2); }),
              ::testing::HasSubstr("at byte 16 of an allocation of 16 bytes"));
}

}  // namespace
}  // namespace orchard::testing
