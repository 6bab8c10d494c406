// Where the copy engine's boxes land: a box makes its way from a tensor to shared memory and back into
// another one, wherever in them it begins, and reaches exactly the blocks of a cluster that it is sent to.
#include "kernels/ptx/bulk_copy.h"
#include "kernels/ptx/cluster.h"
#include "kernels/ptx/fence.h"
#include "kernels/ptx/mbarrier.h"
#include "kernels/ptx/tma.h"
#include "tests/kernels/device_test.h"

namespace orchard::simt {
namespace {

// Of a box: [matrix, row, col].
struct Place {
  int col, row, matrix;
};

struct BoxStorage {
  alignas(1024) std::byte box[64 * 128];
  std::uint64_t full;
};

__global__ void move_box(const __grid_constant__ TensorMap from, Place begin,
                         const __grid_constant__ TensorMap to, Place end) {
  auto& shared = shared_storage<BoxStorage>();
  if (threadIdx.x != 0) return;
  mbarrier_init(&shared.full, 1);
  mbarrier_fence_init();
  mbarrier_arrive_expect(&shared.full, static_cast<unsigned>(from.box.box_bytes()));
  tma_load(shared.box, from, begin.col, begin.row, begin.matrix, &shared.full);
  mbarrier_wait(&shared.full, 0);
  tma_store(to, shared.box, end.col, end.row, end.matrix);
  bulk_commit();
  bulk_wait<0>();
}

// The first of the cluster's blocks sends a box to those of `ranks`.
__global__ void send_box(const __grid_constant__ TensorMap map, unsigned ranks, int* out) {
  auto& shared = shared_storage<BoxStorage>();
  const unsigned rank = cluster_rank();
  auto* const words = reinterpret_cast<int*>(shared.box);
  for (unsigned i = threadIdx.x; i < sizeof shared.box / 4; i += 32) store_shared(words + i, -1);
  fence_proxy_async();
  if (threadIdx.x == 0) {
    mbarrier_init(&shared.full, 1);
    mbarrier_fence_init();
    mbarrier_arrive_expect(&shared.full, ranks >> rank & 1 ? sizeof shared.box : 0);
  }
  cluster_barrier_arrive();
  cluster_barrier_wait();
  if (threadIdx.x == 0 && rank == 0) {
    tma_load_multicast(shared.box, map, 0, 0, 0, &shared.full, ranks);
  }
  mbarrier_wait(&shared.full, 0);
  for (unsigned i = threadIdx.x; i < 32; i += 32) {
    store(out + 32 * blockIdx.x + i, load_shared(words + i));
  }
  cluster_barrier_arrive();
  cluster_barrier_wait();
}

}  // namespace
}  // namespace orchard::simt

namespace orchard::testing {
namespace {

using simt::AsyncCompletion;
using simt::Place;

class CopyEngine : public ::testing::TestWithParam<AsyncCompletion> {
 protected:
  const std::unique_ptr<SimtDevice> device_ = make_simt_device({.order = simt::ThreadOrder::random,
                                                                .seed = 5,
                                                                .completion = GetParam(),
                                                                .races = simt::Races::find,
                                                                .compute_capability = 90});
  const std::unique_ptr<Stream> stream_ = device_->make_stream();

  void expect_round_trips(DType dtype, Swizzle swizzle, int row_bytes);
};

INSTANTIATE_TEST_SUITE_P(Completions, CopyEngine,
                         ::testing::Values(AsyncCompletion::eager, AsyncCompletion::lazy,
                                           AsyncCompletion::random));

// Tensors of no whole number of boxes; starts before them, beyond them and between the chunks of 16 bytes
// that the swizzle moves. What is outside the one tensor comes as zeros, what is outside the other stays
// out, and all that the box does not cover stays as it was.
// A row of the box has `row_bytes` bytes.
void CopyEngine::expect_round_trips(DType dtype, Swizzle swizzle, int row_bytes) {
  constexpr std::int64_t matrices = 3, rows = 37, cols = 72;
  constexpr int box_rows = 64;
  const int box_cols = row_bytes / static_cast<int>(size_of(dtype));
  const Place begins[] = {{0, 0, 1},   {-8, -5, 0}, {-3, 30, 2}, {61, -63, 1}, {5, 36, 0},
                          {0, -64, 1}, {-64, 0, 1}, {0, 0, 3},   {0, 0, -1}};
  const Place ends[] = {{0, 0, 2}, {-16, -7, 1}, {13, 20, 0}};
  Guarded in(dtype, {matrices, rows, cols});
  for (std::int64_t i = 0; i < in.size(); ++i) in.set(i, static_cast<double>(i * 37 % 251 + 1));
  OnDevice in_d(*stream_, in);
  const auto map_of = [&](const Tensor& x) {
    return simt::make_tensor_map(
        {x.raw(), cols, rows, matrices, box_cols, box_rows, dtype, swizzle});
  };
  for (const Place& begin : begins) {
    for (const Place& end : ends) {
      SCOPED_TRACE(fmt::format("{} in rows of {} bytes from [{}, {}, {}] to [{}, {}, {}]",
                               name_of(dtype), row_bytes, begin.matrix, begin.row, begin.col,
                               end.matrix, end.row, end.col));
      Guarded out(dtype, {matrices, rows, cols});
      for (std::int64_t i = 0; i < out.size(); ++i) out.set(i, -2);
      OnDevice out_d(*stream_, out);
      simt::launch(*stream_,
                   {.kernel = "move_box", .block = {32}, .shared_bytes = sizeof(simt::BoxStorage)},
                   simt::move_box, map_of(in_d), begin, map_of(out_d), end);
      out_d.download();
      stream_->synchronize();
      const auto inside = [](std::int64_t matrix, std::int64_t row, std::int64_t col) {
        return matrix >= 0 && matrix < matrices && row >= 0 && row < rows && col >= 0 && col < cols;
      };
      for (std::int64_t i = 0; i < out.size(); ++i) {
        const std::int64_t m = i / (rows * cols), r = i / cols % rows - end.row,
                           c = i % cols - end.col;
        const bool in_box = m == end.matrix && r >= 0 && r < box_rows && c >= 0 && c < box_cols;
        double expected = -2;
        if (in_box) {
          expected = inside(begin.matrix, begin.row + r, begin.col + c)
                         ? in.at((begin.matrix * rows + begin.row + r) * cols + begin.col + c)
                         : 0;
        }
        ASSERT_EQ(out.at(i), expected) << "element " << i;
      }
    }
  }
}

TEST_P(CopyEngine, BoxesMakeARoundTrip) {
  for (const DType dtype : {DType::bf16, DType::f32}) {
    // Lines of 128 bytes end between two of these rows and within one.
    expect_round_trips(dtype, Swizzle::none, 48);
    expect_round_trips(dtype, Swizzle::bytes_32, 32);
    expect_round_trips(dtype, Swizzle::bytes_64, 64);
    expect_round_trips(dtype, Swizzle::bytes_128, 128);
  }
}

TEST_P(CopyEngine, MulticastReachesTheBlocksThatItNamesAlone) {
  constexpr int blocks = 4;
  Guarded in(DType::f32, {64, 32});
  for (std::int64_t i = 0; i < in.size(); ++i) in.set(i, static_cast<double>(i + 1));
  OnDevice in_d(*stream_, in);
  for (const unsigned ranks : {1u, 2u, 5u, 8u, 10u, 14u, 15u}) {
    Guarded out(DType::i32, {blocks, 32});
    OnDevice out_d(*stream_, out);
    simt::launch(*stream_,
                 {.kernel = "send_box",
                  .grid = {blocks},
                  .block = {32},
                  .shared_bytes = sizeof(simt::BoxStorage),
                  .cluster = {blocks}},
                 simt::send_box,
                 simt::make_tensor_map({in_d.tensor().raw(), 32, 64, 1, 32, 64, DType::f32}), ranks,
                 out_d.tensor().data<int>());
    out_d.download();
    stream_->synchronize();
    for (unsigned rank = 0; rank < blocks; ++rank) {
      for (int i = 0; i < 32; ++i) {  // the first row, which the swizzle leaves alone
        const int expected = ranks >> rank & 1 ? std::bit_cast<int>(static_cast<float>(i + 1)) : -1;
        ASSERT_EQ(out.at(32 * rank + i), expected) << "ranks " << ranks << ", block " << rank;
      }
    }
  }
}

}  // namespace
}  // namespace orchard::testing
