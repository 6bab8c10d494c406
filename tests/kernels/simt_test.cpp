// The emulator itself: the language it gives to kernels, the faults it finds (each beside a correct
// twin that passes), and what it counts.
#include <gmock/gmock.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <string>

#include "kernels/gpu/gpu.h"
#include "kernels/gpu/warp.h"
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
__global__ void add_neighbour(int* out, bool with_barrier) {
  auto& shared = shared_storage<Exchange>();
  const unsigned i = threadIdx.x;
  shared.value[i] = static_cast<int>(i);
  if (with_barrier) __syncthreads();
  store(out + i, shared.value[i] + shared.value[(i + 1) % blockDim.x]);
}

// Thread 0 sets what the others read: without the barrier it works if thread 0 happens to be first.
__global__ void read_leader(int* out, bool with_barrier) {
  auto& shared = shared_storage<Exchange>();
  if (threadIdx.x == 0) shared.value[0] = 7;
  if (with_barrier) __syncthreads();
  store(out + threadIdx.x, shared.value[0]);
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

__global__ void write_past_end_without_store(float* out, int n) {
  out[n] = 1;
}

__global__ void write_past_shared() {
  auto& shared = shared_storage<Exchange>();
  const_cast<volatile int*>(shared.value)[256] = 1;
}

__global__ void diverge(bool fault) {
  if (fault && threadIdx.x >= 48) return;
  if (fault && threadIdx.x >= 40) {
    __ballot_sync(all_lanes, true);
  } else {
    __syncthreads();
  }
}

__global__ void two_barriers_in_one_warp(bool fault) {
  if (fault && threadIdx.x % 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void shuffle_from_returned_lane(int* out, unsigned source) {
  if (threadIdx.x == 31) return;
  store(out, __shfl_sync(all_lanes, 1, static_cast<int>(source)));
}

__global__ void mask_without_own_lane() {
  __syncwarp(1);
}

}  // namespace
}  // namespace orchard::simt

namespace orchard::testing {
namespace {

using simt::ThreadOrder;
using ::testing::AllOf;
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
  const std::unique_ptr<SimtDevice> device_ =
      make_simt_device({.order = GetParam(), .seed = 5, .counting = simt::Counting::on});
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
      simt::add_neighbour, out.device(), true);
  const std::vector<int>& sums = out.download(*stream_);
  for (int i = 0; i < 256; ++i) EXPECT_EQ(sums[static_cast<std::size_t>(i)], i + (i + 1) % 256);
  EXPECT_EQ(device_->counters().block_barriers, 1u);
}

TEST_P(Emulator, UninitialisedSharedMemoryIsPoisonAndShowsAMissingBarrier) {
  Values<int> out(*device_, 256);
  run({.kernel = "add_neighbour", .block = {256}, .shared_bytes = sizeof(simt::Exchange)},
      simt::add_neighbour, out.device(), false);
  const std::vector<int>& sums = out.download(*stream_);
  int wrong = 0;
  for (int i = 0; i < 256; ++i) wrong += sums[static_cast<std::size_t>(i)] != i + (i + 1) % 256;
  EXPECT_GT(wrong, 0) << "some thread must have read before its neighbour wrote";
}

// The same fault may hide in one order: that is why there are several.
TEST(EmulatorOrders, ShowAMissingBarrierThatOneOrderHides) {
  const auto run = [](ThreadOrder order, bool with_barrier) {
    const auto device = make_simt_device({.order = order});
    const auto stream = device->make_stream();
    Values<int> out(*device, 64);
    simt::launch(*stream,
                 {.kernel = "read_leader", .block = {64}, .shared_bytes = sizeof(simt::Exchange)},
                 simt::read_leader, out.device(), with_barrier);
    return out.download(*stream);
  };
  EXPECT_THAT(run(ThreadOrder::fifo, true), Each(7));
  EXPECT_THAT(run(ThreadOrder::reverse, true), Each(7));
  EXPECT_THAT(run(ThreadOrder::fifo, false), Each(7));
  const std::vector<int> reverse = run(ThreadOrder::reverse, false);
  EXPECT_EQ(std::count(reverse.begin(), reverse.end(), -1), 63);
}

TEST(EmulatorOrders, RandomIsReproducibleFromItsSeed) {
  const auto run = [](std::uint64_t seed) {
    const auto device = make_simt_device({.order = ThreadOrder::random, .seed = seed});
    const auto stream = device->make_stream();
    Values<int> out(*device, 256);
    simt::launch(
        *stream,
        {.kernel = "add_neighbour", .block = {256}, .shared_bytes = sizeof(simt::Exchange)},
        simt::add_neighbour, out.device(), false);
    return out.download(*stream);
  };
  EXPECT_EQ(run(1), run(1));
  EXPECT_NE(run(1), run(2));
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

TEST_P(Emulator, AccessOneOutOfBoundsIsNamed) {
  Values<float> in(*device_, 64), out(*device_, 65);
  const LaunchShape shape{.kernel = "copy_floats", .block = {96}};
  run(shape, simt::copy_floats, in.device(), out.device(), 0, 64);
  EXPECT_THAT(fault(shape, simt::copy_floats, in.device(), out.device(), 0, 65),
              AllOf(HasSubstr("kernel copy_floats, block (0, 0, 0), thread (64, 0, 0): reads 4 "
                              "bytes at simt_test.cpp:"),
                    HasSubstr("at byte 256 of an allocation of 256 bytes")));
  EXPECT_THAT(fault(shape, simt::copy_floats, out.device(), in.device(), 0, 65),
              AllOf(HasSubstr("thread (64, 0, 0): writes 4 bytes at simt_test.cpp:"),
                    HasSubstr("at byte 256 of an allocation of 256 bytes")));
  EXPECT_THAT(fault(shape, simt::copy_floats, out.device(), out.device(), -1, 64),
              HasSubstr("4 bytes before the start of an allocation of 260 bytes"));
}

TEST_P(Emulator, WhatIsNotTheDevicesMemoryIsNamed) {
  Values<float> out(*device_, 64);
  const LaunchShape shape{.kernel = "copy_floats", .block = {64}};
  const std::vector<float> host(64);
  EXPECT_THAT(fault(shape, simt::copy_floats, host.data(), out.device(), 0, 64),
              HasSubstr("not an address of this device"));
  float* stale = nullptr;
  {
    Values<float> gone(*device_, 64);
    stale = gone.device();
  }
  EXPECT_THAT(fault(shape, simt::copy_floats, stale, out.device(), 0, 64),
              HasSubstr(" of a freed allocation of 256 bytes"));
}

TEST_P(Emulator, MisalignedVectorIsNamed) {
  Values<float> in(*device_, 132), out(*device_, 128);
  EXPECT_THAT(fault({.kernel = "copy_vectors", .block = {32}}, simt::copy_vectors,
                    reinterpret_cast<const simt::uint4*>(in.device() + 1),
                    reinterpret_cast<simt::uint4*>(out.device()), 0),
              HasSubstr("reads 16 bytes at simt_test.cpp:"));
}

TEST_P(Emulator, WriteThatBypassesStoreIsFoundByTheRedZone) {
  Values<float> out(*device_, 64);
  const LaunchShape shape{.kernel = "write_past_end", .block = {1}};
  EXPECT_THAT(
      fault(shape, simt::write_past_end_without_store, out.device(), 64),
      HasSubstr("kernel write_past_end wrote, without store(), at byte 256 of an allocation "
                "of 256 bytes"));
  run(shape, simt::write_past_end_without_store, out.device(), 63);
}

TEST_P(Emulator, SharedMemoryHasTheSizeOfTheLaunch) {
  Values<int> out(*device_, 256);
  EXPECT_THAT(fault({.kernel = "add_neighbour", .block = {32}, .shared_bytes = 512},
                    simt::add_neighbour, out.device(), true),
              HasSubstr("1024 bytes of shared memory at simt_test.cpp:"));
  EXPECT_THAT(fault({.kernel = "write_past_shared", .block = {1}, .shared_bytes = 1024},
                    simt::write_past_shared),
              HasSubstr("kernel write_past_shared, block (0, 0, 0) wrote at byte 1024 of its 1024 "
                        "bytes of shared memory"));
}

TEST_P(Emulator, DeadlockSaysWhoWaitsWhere) {
  const LaunchShape shape{.kernel = "diverge", .block = {64}};
  run(shape, simt::diverge, false);
  const std::string message = fault(shape, simt::diverge, true);
  EXPECT_THAT(message, HasSubstr("kernel diverge, block (0, 0, 0): deadlock"));
  EXPECT_THAT(message, HasSubstr("\n  threads 0-39: in __syncthreads() at simt_test.cpp:"));
  EXPECT_THAT(message, HasSubstr("\n  threads 40-47: in a warp vote of lanes 0xffffffff at "
                                 "simt_test.cpp:"));
  EXPECT_THAT(message, HasSubstr("\n  threads 48-63: returned"));
  run(shape, simt::diverge, false);  // the device goes on after a fault
}

TEST_P(Emulator, LanesOfOneWarpAtTwoBarriersAreNamed) {
  const LaunchShape shape{.kernel = "two_barriers", .block = {32}};
  run(shape, simt::two_barriers_in_one_warp, false);
  EXPECT_THAT(fault(shape, simt::two_barriers_in_one_warp, true), HasSubstr("divergent barrier"));
}

TEST_P(Emulator, ShuffleFromAMissingLaneIsNamed) {
  Values<int> out(*device_, 1);
  const LaunchShape shape{.kernel = "shuffle_from_returned_lane", .block = {32}};
  run(shape, simt::shuffle_from_returned_lane, out.device(), 30u);
  EXPECT_THAT(fault(shape, simt::shuffle_from_returned_lane, out.device(), 31u),
              HasSubstr("reads lane 31, which is not there"));
  EXPECT_THAT(
      fault({.kernel = "mask_without_own_lane", .block = {32}}, simt::mask_without_own_lane),
      HasSubstr("without its own lane"));
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
