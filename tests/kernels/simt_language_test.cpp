// What the emulator gives to kernels beyond threads and shuffles: reductions, elections, matches, atomic
// operations, stmatrix, named barriers, clusters, and barriers of a whole grid.
#include <algorithm>
#include <bit>
#include <numeric>

#include "kernels/gpu/grid_barrier.h"
#include "kernels/ptx/barrier.h"
#include "kernels/ptx/cluster.h"
#include "kernels/ptx/elect.h"
#include "kernels/ptx/ldmatrix.h"
#include "kernels/ptx/stmatrix.h"
#include "tests/kernels/emulator_test.h"

namespace orchard::simt {
namespace {

struct Exchange {
  int value[256];
};

// Each lane's bit of `lanes` says whether it takes part.
__global__ void reduce_lanes_of(unsigned lanes, int* sum, int* least, int* most, int* bits) {
  const auto lane = static_cast<int>(threadIdx.x);
  if (!(lanes >> lane & 1)) return;
  store(sum + lane, __reduce_add_sync(lanes, lane - 5));
  store(least + lane, __reduce_min_sync(lanes, lane - 5));
  store(most + lane, __reduce_max_sync(lanes, static_cast<unsigned>(lane - 5)) == ~0u);
  store(bits + lane, static_cast<int>(__reduce_or_sync(lanes, 1u << lane) +
                                      __reduce_xor_sync(lanes, 3u) + __reduce_and_sync(lanes, 6u)));
}

__global__ void elect_leader(int* elected) {
  store(elected + threadIdx.x, elect_one());
}

// The lanes of `lanes` compare 4 bytes of five kinds, and 8 bytes that differ in their upper half alone.
__global__ void match_lanes_of(unsigned lanes, int* any, int* all) {
  const unsigned lane = threadIdx.x;
  if (!(lanes >> lane & 1)) return;
  const std::uint64_t wide = std::uint64_t{lane % 2} << 32;
  store(any + lane, static_cast<int>(__match_any_sync(lanes, lane % 5)));
  store(any + 32 + lane, static_cast<int>(__match_any_sync(lanes, wide)));
  int same = -1, differ = -1;
  store(all + lane, static_cast<int>(__match_all_sync(lanes, 1.5f, &same)));
  store(all + 32 + lane, static_cast<int>(__match_all_sync(lanes, wide, &differ)));
  store(all + 64 + lane, 10 * same + differ);
}

// Those lanes that are together here send one of them to count them all.
__global__ void count_together(unsigned lanes, int* active, int* count) {
  const unsigned lane = threadIdx.x;
  if (!(lanes >> lane & 1)) return;
  const unsigned together = __activemask();
  const int leader = __ffs(static_cast<int>(together)) - 1;
  int before = 0;
  if (static_cast<int>(lane) == leader) before = atomicAdd(count, __popc(together));
  before = __shfl_sync(together, before, leader);
  store(active + lane, static_cast<int>(together));
  store(active + 32 + lane, before + __popc(together & ((1u << lane) - 1)));
}

// Every atomic operation once by each thread, on shared memory.
struct Atomics {
  float sum;
  int most;
  unsigned swapped, taken;
};
__global__ void change_atomically_by_all(float* sum, int* most, int* taken) {
  auto& shared = shared_storage<Atomics>();
  const auto i = static_cast<int>(threadIdx.x);
  if (i == 0) {
    shared.sum = 0.5f;
    shared.most = -100;
    shared.swapped = shared.taken = 0;
  }
  __syncthreads();
  atomicAdd(&shared.sum, static_cast<float>(i));
  atomicMax(&shared.most, i % 50 - 70);
  if (atomicCAS(&shared.taken, 0, 1) == 0) atomicExch(&shared.swapped, 9u);
  __syncthreads();
  if (i == 0) {
    store(sum, shared.sum);
    store(most, shared.most);
    store(taken, static_cast<int>(shared.swapped));
  }
}

// A matrix of its own index goes to shared memory by stmatrix and comes back by ldmatrix.
template <bool transposed>
__global__ void store_and_load_matrices(int* out) {
  struct Tile {
    alignas(16) std::uint16_t element[32][8];
  };
  auto& tile = shared_storage<Tile>();
  const unsigned lane = threadIdx.x;
  unsigned registers[4], back[4];
  for (unsigned i = 0; i < 4; ++i) registers[i] = (8 * lane + 2 * i) | (8 * lane + 2 * i + 1) << 16;
  if (transposed) {
    stmatrix_trans(tile.element[lane], registers);
  } else {
    stmatrix(tile.element[lane], registers);
  }
  __syncwarp();
  // By its definition: lane l holds [l / 4][2 (l % 4)] and the next, or of the transposed.
  for (unsigned i = 0; i < 4; ++i) {
    for (unsigned half = 0; half < 2; ++half) {
      const unsigned row = lane / 4, col = 2 * (lane % 4) + half;
      const unsigned there =
          transposed ? tile.element[8 * i + col][row] : tile.element[8 * i + row][col];
      store(out + 8 * lane + 2 * i + half, static_cast<int>(there));
    }
  }
  if (transposed) {
    ldmatrix_trans(back, tile.element[lane]);
  } else {
    ldmatrix(back, tile.element[lane]);
  }
  for (unsigned i = 0; i < 4; ++i) store(out + 256 + 4 * lane + i, back[i] == registers[i]);
}

// Warps 1 .. 3 wait for warp 0 at a barrier of their own each.
__global__ void hand_out(int* out) {
  auto& shared = shared_storage<Exchange>();
  const unsigned i = threadIdx.x, warp = i / 32;
  if (warp == 0) {
    for (unsigned w = 1; w < 4; ++w) {
      store_shared(shared.value + 32 * w + i, static_cast<int>(100 * w + i));
      bar_arrive(w, 64);
    }
  } else {
    bar_sync(warp, 64);
    store(out + i, load_shared(shared.value + i));
  }
}

// The blocks of a cluster pass their numbers around a ring, through each other's shared memory.
__global__ void pass_around(int* out) {
  auto& shared = shared_storage<Exchange>();
  const unsigned rank = cluster_rank(), blocks = cluster_blocks();
  if (threadIdx.x == 0)
    store_shared(in_block(shared.value, (rank + 1) % blocks), static_cast<int>(blockIdx.x));
  cluster_barrier_arrive();
  cluster_barrier_wait();
  if (threadIdx.x == 0) store(out + blockIdx.x, load_shared(shared.value));
}

// The sum of what all blocks wrote, in every block, twice over.
__global__ void sum_over_grid(int* words, int* out) {
  for (int round = 1; round <= 2; ++round) {
    if (threadIdx.x == 0) store(words + blockIdx.x, round * static_cast<int>(blockIdx.x + 1));
    grid_sync();
    int sum = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) sum += load(words + i);
    store(out + 32 * blockIdx.x + threadIdx.x, sum);
    grid_sync();
  }
}

}  // namespace
}  // namespace orchard::simt

namespace orchard::testing {
namespace {

using ::testing::Each;

INSTANTIATE_TEST_SUITE_P(Orders, Emulator,
                         ::testing::Values(ThreadOrder::fifo, ThreadOrder::reverse,
                                           ThreadOrder::random),
                         order_name);

TEST_P(Emulator, LanesReduceAndElect) {
  Values<int> sum(*device_, 32), least(*device_, 32), most(*device_, 32), bits(*device_, 32);
  run({.kernel = "reduce_lanes_of", .block = {32}}, simt::reduce_lanes_of, 0x0000010eu,
      sum.device(), least.device(), most.device(), bits.device());
  for (const std::size_t lane : {1, 2, 3, 8}) {
    EXPECT_EQ(sum.download(*stream_)[lane], 1 + 2 + 3 + 8 - 4 * 5);
    EXPECT_EQ(least.download(*stream_)[lane], -4);
    EXPECT_EQ(most.download(*stream_)[lane], 0) << "unsigned, -2 is the most";
    EXPECT_EQ(bits.download(*stream_)[lane], 0x10e + 0 + 6);
  }
  Values<int> elected(*device_, 64);
  run({.kernel = "elect_leader", .block = {64}}, simt::elect_leader, elected.device());
  const std::vector<int>& leaders = elected.download(*stream_);
  for (const int warp : {0, 32}) {
    EXPECT_EQ(std::accumulate(leaders.begin() + warp, leaders.begin() + warp + 32, 0), 1);
  }
}

TEST_P(Emulator, LanesMatch) {
  for (const unsigned lanes : {0xffffffffu, 0x8421c30fu, 0x10u}) {
    Values<int> any(*device_, 64), all(*device_, 96);
    run({.kernel = "match_lanes_of", .block = {32}}, simt::match_lanes_of, lanes, any.device(),
        all.device());
    const std::vector<int>&any_of = any.download(*stream_), &all_of = all.download(*stream_);
    for (unsigned lane = 0; lane < 32; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      unsigned of_five = 0, of_two = 0;
      for (unsigned other = 0; other < 32; ++other) {
        if (other % 5 == lane % 5) of_five |= lanes & 1u << other;
        if (other % 2 == lane % 2) of_two |= lanes & 1u << other;
      }
      EXPECT_EQ(any_of[lane], static_cast<int>(of_five));
      EXPECT_EQ(any_of[32 + lane], static_cast<int>(of_two));
      EXPECT_EQ(all_of[lane], static_cast<int>(lanes));
      EXPECT_EQ(all_of[32 + lane], of_two == lanes ? static_cast<int>(lanes) : 0);
      EXPECT_EQ(all_of[64 + lane], of_two == lanes ? 11 : 10);
    }
  }
}

// Which lanes come together is left open; that each is in one group, whose members all say the same, is not.
TEST_P(Emulator, ActiveLanesAreThoseOfOneCall) {
  for (const unsigned lanes : {0xffffffffu, 0x55555555u, 0x8000u}) {
    Values<int> active(*device_, 64), count(*device_, 1);
    count.upload(*stream_, {0});
    run({.kernel = "count_together", .block = {32}}, simt::count_together, lanes, active.device(),
        count.device());
    const std::vector<int>& out = active.download(*stream_);
    std::vector<int> places;
    for (unsigned lane = 0; lane < 32; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      const auto together = static_cast<unsigned>(out[lane]);
      EXPECT_TRUE(together >> lane & 1);
      EXPECT_EQ(together & ~lanes, 0u);
      for (unsigned other = 0; other < 32; ++other) {
        if (together >> other & 1) {
          EXPECT_EQ(out[other], out[lane]);
        }
      }
      if (GetParam() == ThreadOrder::fifo) {
        EXPECT_EQ(together, lanes);
      }
      places.push_back(out[32 + lane]);
    }
    EXPECT_EQ(count.download(*stream_)[0], std::popcount(lanes));
    std::sort(places.begin(), places.end());
    for (std::size_t i = 0; i < places.size(); ++i) EXPECT_EQ(places[i], static_cast<int>(i));
  }
}

TEST_P(Emulator, AtomicOperationsOnSharedMemory) {
  Values<float> sum(*device_, 1);
  Values<int> most(*device_, 1), taken(*device_, 1);
  run({.kernel = "change_atomically_by_all", .block = {96}, .shared_bytes = sizeof(simt::Atomics)},
      simt::change_atomically_by_all, sum.device(), most.device(), taken.device());
  EXPECT_EQ(sum.download(*stream_)[0], 0.5f + 4560);
  EXPECT_EQ(most.download(*stream_)[0], -21);
  EXPECT_EQ(taken.download(*stream_)[0], 9);
}

TEST_P(Emulator, MatricesAreStoredAsTheyAreLoaded) {
  for (const auto& kernel :
       {simt::store_and_load_matrices<false>, simt::store_and_load_matrices<true>}) {
    Values<int> out(*device_, 256 + 128);
    run({.kernel = "store_and_load_matrices", .block = {32}, .shared_bytes = 512}, kernel,
        out.device());
    const std::vector<int>& there = out.download(*stream_);
    for (int i = 0; i < 256; ++i) EXPECT_EQ(there[static_cast<std::size_t>(i)], i);
    EXPECT_THAT(std::vector<int>(there.begin() + 256, there.end()), Each(1));
  }
}

TEST_P(Emulator, NamedBarriersOrderSomeWarps) {
  Values<int> out(*device_, 128);
  run({.kernel = "hand_out", .block = {128}, .shared_bytes = sizeof(simt::Exchange)},
      simt::hand_out, out.device());
  for (int i = 32; i < 128; ++i) {
    EXPECT_EQ(out.download(*stream_)[static_cast<std::size_t>(i)], 100 * (i / 32) + i % 32);
  }
}

TEST_P(Emulator, BlocksOfAClusterReachEachOther) {
  Values<int> out(*device_, 8);
  run({.kernel = "pass_around",
       .grid = {8},
       .block = {33},
       .shared_bytes = sizeof(simt::Exchange),
       .cluster = {4}},
      simt::pass_around, out.device());
  EXPECT_EQ(out.download(*stream_), (std::vector<int>{3, 0, 1, 2, 7, 4, 5, 6}));
}

TEST_P(Emulator, AGridWaitsForItself) {
  Values<int> words(*device_, 5), out(*device_, 5 * 32);
  run({.kernel = "sum_over_grid", .grid = {5}, .block = {32}, .residency = Residency::whole_grid},
      simt::sum_over_grid, words.device(), out.device());
  EXPECT_THAT(out.download(*stream_), Each(2 * 15));
}

}  // namespace
}  // namespace orchard::testing
