// The emulator itself: the language it gives to kernels, its streams, and what it counts. The faults it
// finds are in the corpus, simt_faults_*_test.cpp.
#include <gmock/gmock.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <string>

#include "kernels/gpu/gpu.h"
#include "kernels/gpu/grid_barrier.h"
#include "kernels/gpu/warp.h"
#include "kernels/ptx/barrier.h"
#include "kernels/ptx/cluster.h"
#include "kernels/ptx/elect.h"
#include "kernels/ptx/ldmatrix.h"
#include "kernels/ptx/stmatrix.h"
#include "kernels/simt/simt_device.h"
#include "tests/kernels/op_test.h"

// The kernels, each small enough to be seen through.
namespace orchard::simt {
namespace {

__global__ void write_position(int* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  store(out + block * threads + thread,
        static_cast<int>(threadIdx.x + 10 * threadIdx.y + 100 * threadIdx.z +
                         1000 * (blockIdx.x + 10 * blockIdx.y + 100 * blockIdx.z)));
}

struct Exchange {
  int value[256];
};

// Every thread adds its own value and its right neighbour's.
__global__ void add_neighbour(int* out) {
  auto& shared = shared_storage<Exchange>();
  const unsigned i = threadIdx.x;
  shared.value[i] = static_cast<int>(i);
  __syncthreads();
  store(out + i, shared.value[i] + shared.value[(i + 1) % blockDim.x]);
}

// Who comes first gets the lowest number.
__global__ void draw_numbers(int* next, int* out) {
  store(out + threadIdx.x, atomicAdd(next, 1));
}

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

struct Shuffled {
  int* from_lane;  // all: [32]
  int* exclusive_or;
  int* down;
  int* up;
};

__global__ void shuffle_sections(Shuffled out, int argument, int width) {
  const auto lane = static_cast<int>(threadIdx.x);
  const auto distance = static_cast<unsigned>(argument);
  store(out.from_lane + lane, __shfl_sync(all_lanes, lane, argument, width));
  store(out.exclusive_or + lane, __shfl_xor_sync(all_lanes, lane, argument, width));
  store(out.down + lane, __shfl_down_sync(all_lanes, lane, distance, width));
  store(out.up + lane, __shfl_up_sync(all_lanes, lane, distance, width));
}

// Each half of the warp votes on its own, while the other half may be elsewhere.
__global__ void vote_in_halves(int* ballot, int* any, int* all) {
  const unsigned lane = threadIdx.x;
  const unsigned mask = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  const bool odd = lane % 2 == 1 || lane >= 16;
  store(ballot + lane, static_cast<int>(__ballot_sync(mask, odd)));
  store(any + lane, static_cast<int>(__any_sync(mask, lane == 3)));
  store(all + lane, static_cast<int>(__all_sync(mask, odd)));
}

__global__ void copy_floats(const float* in, float* out, int begin, int end) {
  const int i = begin + static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < end) store(out + i, load(in + i));
}
constexpr int copy_floats_line = __LINE__ - 2;

__global__ void copy_vectors(const uint4* in, uint4* out, int first) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  store(out + i, load(in + first + i));
}

__global__ void copy_strided(const float* in, float* out, int stride) {
  const auto i = static_cast<int>(threadIdx.x);
  store(out + i, load(in + i * stride));
}

// Lanes loop different numbers of times over one load: its k-th execution is one request.
__global__ void triangle(const float* in, float* out) {
  const auto lane = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int i = 0; i <= lane; ++i) sum += load(in + i);
  store(out + lane, sum);
}

}  // namespace
}  // namespace orchard::simt

namespace orchard::testing {
namespace {

using simt::ThreadOrder;
using ::testing::Each;
using ::testing::HasSubstr;

// Device memory for `n` elements and, after a download, their values.
template <class T>
class Values {
 public:
  Values(Device& device, std::int64_t n)
      : host_(static_cast<std::size_t>(n)), buffer_(device, host_.size() * sizeof(T)) {}
  T* device() { return reinterpret_cast<T*>(buffer_.data()); }
  const std::vector<T>& download(Stream& stream) {
    stream.copy(host_tensor(), tensor());
    stream.synchronize();
    return host_;
  }
  void upload(Stream& stream, std::vector<T> values) {
    host_ = std::move(values);
    stream.copy(tensor(), host_tensor());
    stream.synchronize();
  }
  Tensor tensor() { return buffer_.tensor(dtype_of<T>, {static_cast<std::int64_t>(host_.size())}); }
  Tensor host_tensor() {
    return {host_.data(), dtype_of<T>, {static_cast<std::int64_t>(host_.size())}, DeviceKind::cpu};
  }

 private:
  std::vector<T> host_;
  Buffer buffer_;
};

class Emulator : public ::testing::TestWithParam<ThreadOrder> {
 protected:
  const std::unique_ptr<SimtDevice> device_ = make_simt_device({.order = GetParam(),
                                                                .seed = 5,
                                                                .counting = simt::Counting::on,
                                                                .races = simt::Races::find,
                                                                .compute_capability = 90});
  const std::unique_ptr<Stream> stream_ = device_->make_stream();

  template <class... Parameters, class... Arguments>
  void run(const LaunchShape& shape, void (*kernel)(Parameters...), Arguments... arguments) {
    simt::launch(*stream_, shape, kernel, arguments...);
    stream_->synchronize();
  }

  // The message of the fault that a launch must end in.
  template <class... Parameters, class... Arguments>
  std::string fault(const LaunchShape& shape, void (*kernel)(Parameters...),
                    Arguments... arguments) {
    try {
      run(shape, kernel, arguments...);
    } catch (const Error& error) {
      return error.what();
    }
    return "no fault was found";
  }
};

std::string order_name(const ::testing::TestParamInfo<ThreadOrder>& test) {
  constexpr std::array names{"fifo", "reverse", "random"};
  return names[static_cast<std::size_t>(test.param)];
}

INSTANTIATE_TEST_SUITE_P(Orders, Emulator,
                         ::testing::Values(ThreadOrder::fifo, ThreadOrder::reverse,
                                           ThreadOrder::random),
                         order_name);

TEST_P(Emulator, EveryThreadKnowsItsPlaceInGridAndBlock) {
  Values<int> out(*device_, 3 * 2 * 2 * 5 * 3 * 2);
  run({.kernel = "write_position", .grid = {3, 2, 2}, .block = {5, 3, 2}}, simt::write_position,
      out.device());
  std::vector<int> expected;
  for (int bz = 0; bz < 2; ++bz)
    for (int by = 0; by < 2; ++by)
      for (int bx = 0; bx < 3; ++bx)
        for (int z = 0; z < 2; ++z)
          for (int y = 0; y < 3; ++y)
            for (int x = 0; x < 5; ++x)
              expected.push_back(x + 10 * y + 100 * z + 1000 * (bx + 10 * by + 100 * bz));
  EXPECT_EQ(out.download(*stream_), expected);
}

TEST_P(Emulator, BarrierOrdersSharedMemory) {
  Values<int> out(*device_, 256);
  run({.kernel = "add_neighbour", .block = {256}, .shared_bytes = sizeof(simt::Exchange)},
      simt::add_neighbour, out.device());
  const std::vector<int>& sums = out.download(*stream_);
  for (int i = 0; i < 256; ++i) EXPECT_EQ(sums[static_cast<std::size_t>(i)], i + (i + 1) % 256);
  EXPECT_EQ(device_->counters().block_barriers, 1u);
}

TEST(EmulatorOrders, RandomIsReproducibleFromItsSeed) {
  const auto run = [](ThreadOrder order, std::uint64_t seed) {
    const auto device = make_simt_device({.order = order, .seed = seed});
    const auto stream = device->make_stream();
    Values<int> next(*device, 1), out(*device, 256);
    next.upload(*stream, {0});
    simt::launch(*stream, {.kernel = "draw_numbers", .block = {256}}, simt::draw_numbers,
                 next.device(), out.device());
    return out.download(*stream);
  };
  std::vector<int> rising(256), falling;
  std::iota(rising.begin(), rising.end(), 0);
  falling.assign(rising.rbegin(), rising.rend());
  EXPECT_EQ(run(ThreadOrder::fifo, 0), rising);
  EXPECT_EQ(run(ThreadOrder::reverse, 0), falling);
  EXPECT_EQ(run(ThreadOrder::random, 1), run(ThreadOrder::random, 1));
  EXPECT_NE(run(ThreadOrder::random, 1), run(ThreadOrder::random, 2));
}

TEST_P(Emulator, ShufflesFollowCudaInEverySection) {
  Values<int> from_lane(*device_, 32), exclusive_or(*device_, 32), down(*device_, 32),
      up(*device_, 32);
  for (const int width : {32, 16, 8, 2}) {
    for (const int argument : {0, 1, 5, 16, 31}) {
      run({.kernel = "shuffle_sections", .block = {32}}, simt::shuffle_sections,
          simt::Shuffled{from_lane.device(), exclusive_or.device(), down.device(), up.device()},
          argument, width);
      std::vector<int> expected_from, expected_xor, expected_down, expected_up;
      for (int lane = 0; lane < 32; ++lane) {
        const int section = lane / width * width;
        expected_from.push_back(section + argument % width);
        expected_xor.push_back((lane ^ argument) >= section + width ? lane : lane ^ argument);
        expected_down.push_back(lane + argument >= section + width ? lane : lane + argument);
        expected_up.push_back(lane - argument < section ? lane : lane - argument);
      }
      EXPECT_EQ(from_lane.download(*stream_), expected_from) << width << " " << argument;
      EXPECT_EQ(exclusive_or.download(*stream_), expected_xor) << width << " " << argument;
      EXPECT_EQ(down.download(*stream_), expected_down) << width << " " << argument;
      EXPECT_EQ(up.download(*stream_), expected_up) << width << " " << argument;
    }
  }
}

TEST_P(Emulator, VotesCountOnlyTheLanesOfTheMask) {
  Values<int> ballot(*device_, 32), any(*device_, 32), all(*device_, 32);
  run({.kernel = "vote_in_halves", .block = {32}}, simt::vote_in_halves, ballot.device(),
      any.device(), all.device());
  for (std::size_t lane = 0; lane < 32; ++lane) {
    const bool low = lane < 16;
    EXPECT_EQ(ballot.download(*stream_)[lane], static_cast<int>(low ? 0x0000aaaau : 0xffff0000u));
    EXPECT_EQ(any.download(*stream_)[lane], low);
    EXPECT_EQ(all.download(*stream_)[lane], !low);
  }
}

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

TEST_P(Emulator, AtomicOperationsOnSharedMemory) {
  Values<float> sum(*device_, 1);
  Values<int> most(*device_, 1), taken(*device_, 1);
  run({.kernel = "change_atomically_by_all", .block = {96}, .shared_bytes = sizeof(simt::Atomics)},
      simt::change_atomically_by_all, sum.device(), most.device(), taken.device());
  EXPECT_EQ(sum.download(*stream_)[0], 0.5f + 95 * 96 / 2);
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

// ---- faults ----------------------------------------------------------------------------------

TEST_P(Emulator, TheDeviceGoesOnAfterAFault) {
  Values<float> in(*device_, 64), out(*device_, 64);
  in.upload(*stream_, std::vector<float>(64, 7));
  const LaunchShape shape{.kernel = "copy_floats", .block = {96}};
  EXPECT_THAT(fault(shape, simt::copy_floats, in.device(), out.device(), 0, 65),
              HasSubstr(fmt::format("thread (64, 0, 0): reads 4 bytes at simt_test.cpp:{}, at byte "
                                    "256 of an allocation of 256 bytes",
                                    simt::copy_floats_line)));
  run(shape, simt::copy_floats, in.device(), out.device(), 0, 64);
  EXPECT_THAT(out.download(*stream_), Each(7));
}

TEST_P(Emulator, LaunchesBeyondTheLimitsAreRefused) {
  Values<int> out(*device_, 2048);
  EXPECT_THAT(fault({.kernel = "k", .block = {1025}}, simt::write_position, out.device()),
              HasSubstr("block (1025, 1, 1) is not within 1 .. 1024 threads"));
  EXPECT_THAT(fault({.kernel = "k", .grid = {0}, .block = {1}}, simt::write_position, out.device()),
              HasSubstr("grid (0, 1, 1)"));
  EXPECT_THAT(fault({.kernel = "k", .block = {1}, .shared_bytes = 1 << 20}, simt::write_position,
                    out.device()),
              HasSubstr("1048576 bytes of shared memory, a block has at most"));
  EXPECT_THAT(fault({.kernel = "k", .grid = {3}, .block = {1}, .cluster = {2}},
                    simt::write_position, out.device()),
              HasSubstr("clusters of (2, 1, 1) blocks, at most 8, do not divide a grid of (3, 1"));
}

// ---- streams ---------------------------------------------------------------------------------

TEST(EmulatorStream, DoesNothingBeforeSynchronize) {
  const auto device = make_simt_device();
  const auto stream = device->make_stream();
  Values<int> out(*device, 32);
  simt::launch(*stream, {.kernel = "write_position", .block = {32}}, simt::write_position,
               out.device());
  std::vector<int> host(32, -7);
  stream->copy(Tensor(host.data(), DType::i32, {32}, DeviceKind::cpu), out.tensor());
  EXPECT_THAT(host, Each(-7)) << "a missing synchronize must show";
  stream->synchronize();
  EXPECT_EQ(host[31], 1 + 30 + 0 * 100);
}

TEST(EmulatorStream, RunsInOrderAndFreshMemoryIsPoison) {
  const auto device = make_simt_device();
  const auto stream = device->make_stream();
  Values<int> values(*device, 8);
  EXPECT_THAT(values.download(*stream), Each(-1));
  std::vector<int> first(8), second(8);
  const auto host = [](std::vector<int>& v) {
    return Tensor(v.data(), DType::i32, {8}, DeviceKind::cpu);
  };
  std::iota(first.begin(), first.end(), 0);
  stream->copy(values.tensor(), host(first));
  stream->copy(host(second), values.tensor());
  stream->fill_zero(values.tensor());
  stream->synchronize();
  EXPECT_EQ(second, first);
  EXPECT_THAT(values.download(*stream), Each(0));
}

using EmulatorStreamDeathTest = ::testing::Test;

TEST(EmulatorStreamDeathTest, HostCodeThatFollowsADevicePointerCrashes) {
  const auto device = make_simt_device();
  const auto stream = device->make_stream();
  Values<int> values(*device, 8);
  EXPECT_THAT(values.download(*stream), Each(-1));
  EXPECT_DEATH(static_cast<void>(*const_cast<volatile int*>(values.device())), "");
}

// ---- counters --------------------------------------------------------------------------------

TEST_P(Emulator, CountsRequestsSectorsAndBytesExactly) {
  Values<float> in(*device_, 4096), out(*device_, 4096);
  in.upload(*stream_, std::vector<float>(4096));
  device_->reset_counters();
  const auto loads_and_stores = [&] {
    return std::pair{device_->counters().loads, device_->counters().stores};
  };
  using simt::AccessCounters;
  // Two blocks of two warps, a float a lane: 128 bytes, 4 sectors a request.
  run({.kernel = "copy_floats", .grid = {2}, .block = {64}}, simt::copy_floats, in.device(),
      out.device(), 0, 128);
  const AccessCounters coalesced{.requests = 4, .sectors = 16, .ideal_sectors = 16, .bytes = 512};
  EXPECT_EQ(loads_and_stores(), (std::pair{coalesced, coalesced}));
  EXPECT_EQ(device_->counters().loads.sectors_per_request(), 4.0);
  // Shifted by one float, each request touches a fifth sector.
  device_->reset_counters();
  run({.kernel = "copy_floats", .grid = {2}, .block = {64}}, simt::copy_floats, in.device(),
      out.device(), 1, 129);
  const AccessCounters shifted{.requests = 4, .sectors = 20, .ideal_sectors = 16, .bytes = 512};
  EXPECT_EQ(loads_and_stores(), (std::pair{shifted, shifted}));
  // Sixteen bytes a lane: 512 bytes, 16 sectors a request.
  device_->reset_counters();
  run({.kernel = "copy_vectors", .grid = {2}, .block = {64}}, simt::copy_vectors,
      reinterpret_cast<const simt::uint4*>(in.device()),
      reinterpret_cast<simt::uint4*>(out.device()), 0);
  const AccessCounters vectors{.requests = 4, .sectors = 64, .ideal_sectors = 64, .bytes = 2048};
  EXPECT_EQ(loads_and_stores(), (std::pair{vectors, vectors}));
  // A column of a matrix of 64 floats a row: one sector for each lane.
  device_->reset_counters();
  run({.kernel = "copy_strided", .block = {32}}, simt::copy_strided, in.device(), out.device(), 64);
  EXPECT_EQ(
      loads_and_stores(),
      (std::pair{AccessCounters{.requests = 1, .sectors = 32, .ideal_sectors = 4, .bytes = 128},
                 AccessCounters{.requests = 1, .sectors = 4, .ideal_sectors = 4, .bytes = 128}}));
  // A broadcast: all lanes one address. Then lanes that leave a loop one by one.
  device_->reset_counters();
  run({.kernel = "copy_strided", .block = {32}}, simt::copy_strided, in.device(), out.device(), 0);
  EXPECT_EQ(device_->counters().loads,
            (AccessCounters{.requests = 1, .sectors = 1, .ideal_sectors = 4, .bytes = 128}));
  device_->reset_counters();
  run({.kernel = "triangle", .block = {32}}, simt::triangle, in.device(), out.device());
  EXPECT_EQ(device_->counters().loads.requests, 32u);
  EXPECT_EQ(device_->counters().loads.sectors, 32u);
  EXPECT_EQ(device_->counters().loads.bytes, 4u * (32 * 33) / 2);
}

}  // namespace
}  // namespace orchard::testing
