// The emulator itself: the language it gives to kernels, its streams, and what it counts. The faults it
// finds are in the corpus, simt_faults_*_test.cpp.
#include <gmock/gmock.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <string>

#include "kernels/gpu/gpu.h"
#include "kernels/gpu/warp.h"
#include "tests/kernels/emulator_test.h"

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

// Plain accesses, each on a line of its own.
__global__ void copy_plainly(const float* in, float* out) {
  const float value = in[threadIdx.x];
  out[threadIdx.x] = value;
}
constexpr int plain_read_line = __LINE__ - 3, plain_write_line = __LINE__ - 2;

// One thread changes plainly what another one reads by a call.
__global__ void meet_in_one_word(int* out) {
  auto& shared = shared_storage<Exchange>();
  if (threadIdx.x == 0) shared.value[0] = 1;
  __syncthreads();
  if (threadIdx.x == 0) shared.value[0] = 2;
  if (threadIdx.x == 1) store(out, load_shared(shared.value));
}
constexpr int meeting_write_line = __LINE__ - 3, meeting_read_line = __LINE__ - 2;

// Who comes first gets the lowest number.
__global__ void draw_numbers(int* next, int* out) {
  store(out + threadIdx.x, atomicAdd(next, 1));
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

using ::testing::AnyOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

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

#ifdef ORCHARD_SIMT_PLAIN_ACCESSES
TEST_P(Emulator, PlainAccessesAreNamedWithTheirLines) {
  Values<float> one_warp(*device_, 32), more(*device_, 64);
  one_warp.upload(*stream_, std::vector<float>(32));
  more.upload(*stream_, std::vector<float>(64));
  const LaunchShape shape{.kernel = "copy_plainly", .block = {33}};
  EXPECT_THAT(fault(shape, simt::copy_plainly, one_warp.device(), more.device()),
              HasSubstr(fmt::format("thread (32, 0, 0): reads 4 bytes at simt_test.cpp:{}, at byte "
                                    "128 of an allocation of 128 bytes",
                                    simt::plain_read_line)));
  EXPECT_THAT(fault(shape, simt::copy_plainly, more.device(), one_warp.device()),
              HasSubstr(fmt::format("thread (32, 0, 0): writes 4 bytes at simt_test.cpp:{}, at "
                                    "byte 128 of an allocation of 128 bytes",
                                    simt::plain_write_line)));
}

TEST_P(Emulator, ARaceIsNamedWithBothLines) {
  Values<int> out(*device_, 1);
  const auto race = [](const char* first, int first_line, const char* second, int second_line) {
    return HasSubstr(
        fmt::format("race: thread {} 4 bytes at simt_test.cpp:{}, at byte 0 of shared "
                    "memory, which thread {} at simt_test.cpp:{}: nothing orders",
                    first, first_line, second, second_line));
  };
  EXPECT_THAT(
      fault({.kernel = "meet_in_one_word", .block = {64}, .shared_bytes = sizeof(simt::Exchange)},
            simt::meet_in_one_word, out.device()),
      AnyOf(race("(1, 0, 0) reads", simt::meeting_read_line, "(0, 0, 0) wrote",
                 simt::meeting_write_line),
            race("(0, 0, 0) writes", simt::meeting_write_line, "(1, 0, 0) read",
                 simt::meeting_read_line)));
}
#endif

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
  const auto older = make_simt_device({.order = GetParam(), .compute_capability = 80});
  const auto stream = older->make_stream();
  Values<int> older_out(*older, 2);
  simt::launch(*stream, {.kernel = "k", .grid = {2}, .block = {1}, .cluster = {2}},
               simt::write_position, older_out.device());
  EXPECT_THAT([&] { stream->synchronize(); },
              ThrowsMessage<Error>(HasSubstr("clusters need sm_90, the device is sm_80")));
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

TEST_P(Emulator, CountsWhatALaunchMustMoveToAndFromDram) {
  Values<float> in(*device_, 4096), out(*device_, 4096);
  in.upload(*stream_, std::vector<float>(4096));
  using simt::DramCounters;
  const auto copy = [&](unsigned blocks, const float* from, float* to, int begin, int end) {
    run({.kernel = "copy_floats", .grid = {blocks}, .block = {64}}, simt::copy_floats, from, to,
        begin, end);
  };
  // Whole sectors, however many warps share one, and again for each launch.
  device_->reset_counters();
  copy(2, in.device(), out.device(), 1, 129);
  EXPECT_EQ(device_->counters().dram, (DramCounters{17 * 32, 17 * 32}));
  copy(2, in.device(), out.device(), 1, 129);
  EXPECT_EQ(device_->counters().dram, (DramCounters{2 * 17 * 32, 2 * 17 * 32}));
  // Where all lanes read one float, one sector; the lanes that write are beside each other.
  device_->reset_counters();
  run({.kernel = "copy_strided", .block = {32}}, simt::copy_strided, in.device(), out.device(), 0);
  EXPECT_EQ(device_->counters().dram, (DramCounters{32, 128}));
}

}  // namespace
}  // namespace orchard::testing
