// Faults around the instructions of sm_90a that the emulator finds, in a small matrix product that is
// correct but for one of them.
#include <gmock/gmock.h>

#include "kernels/gpu/gpu.h"
#include "kernels/ptx/mbarrier.h"
#include "kernels/ptx/tma.h"
#include "kernels/ptx/wgmma.h"
#include "kernels/simt/simt_device.h"
#include "tests/kernels/device_test.h"

namespace orchard::simt {
namespace {

enum class Fault : std::uint8_t {
  none,
  producer_ignores_empty,
  consumer_ignores_full,
  expects_too_few_bytes,
  expects_too_many_bytes,
  released_before_wait,
  no_wgmma_fence,
  sums_touched_in_flight,
  no_wgmma_wait,
  one_warp_multiplies_less,
  barrier_not_initialised,
  barrier_initialised_twice,
  barrier_overwritten,
  arrives_twice,
  destination_misaligned,
  destination_outside,
};

constexpr int stages = 2, steps = 5, depth = 64, n = 128;

struct Ring {
  alignas(1024) bf16 a[stages][64 * depth];
  alignas(1024) bf16 b[stages][n * depth];
  std::uint64_t full[stages], empty[stages];
};

// d [64, n] = a [64, steps · depth] · b [n, steps · depth]^T by a warpgroup and a producer warp.
__global__ void multiply(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                         float* d, Fault fault) {
  auto& ring = shared_storage<Ring>();
  const unsigned thread = threadIdx.x;
  if (thread == 0) {
    for (int stage = 0; stage < stages; ++stage) {
      if (fault != Fault::barrier_not_initialised) mbarrier_init(&ring.full[stage], 1);
      mbarrier_init(&ring.empty[stage], 4);
    }
    if (fault == Fault::barrier_initialised_twice) mbarrier_init(&ring.full[0], 1);
    if (fault == Fault::barrier_overwritten) ring.full[1] = 0;
    mbarrier_fence_init();
  }
  __syncthreads();
  if (thread >= 128) {
    if (thread > 128) return;
    for (int step = 0; step < steps; ++step) {
      const int stage = step % stages;
      const unsigned parity = step / stages % 2;
      if (fault != Fault::producer_ignores_empty) mbarrier_wait(&ring.empty[stage], parity ^ 1);
      unsigned bytes = sizeof ring.a[0] + sizeof ring.b[0];
      if (fault == Fault::expects_too_few_bytes) bytes -= sizeof ring.a[0];
      if (fault == Fault::expects_too_many_bytes) bytes += 16;
      mbarrier_arrive_expect(&ring.full[stage], bytes);
      if (fault == Fault::arrives_twice) mbarrier_arrive(&ring.full[stage]);
      bf16* to = ring.b[stage];
      if (fault == Fault::destination_misaligned) to += 8;
      if (fault == Fault::destination_outside) to += sizeof ring.b / sizeof(bf16);
      tma_load(ring.a[stage], a, step * depth, 0, 0, &ring.full[stage]);
      tma_load(to, b, step * depth, 0, 0, &ring.full[stage]);
    }
    return;
  }
  float sums[n / 2];
  for (int step = 0; step < steps; ++step) {
    const int stage = step % stages;
    if (fault != Fault::consumer_ignores_full) mbarrier_wait(&ring.full[stage], step / stages % 2);
    if (fault != Fault::no_wgmma_fence) wgmma_fence();
    for (int k = 0; k < 4; ++k) {
      if (fault == Fault::one_warp_multiplies_less && thread >= 96 && k == 3) continue;
      const unsigned offset = 32 * static_cast<unsigned>(k);
      wgmma_m64k16<Transposed::no, Transposed::no>(
          sums, wgmma_descriptor(shared_address(ring.a[stage]) + offset, 0),
          wgmma_descriptor(shared_address(ring.b[stage]) + offset, 0), step + k > 0);
    }
    wgmma_commit();
    if (fault == Fault::sums_touched_in_flight) sums[3] += 1;
    const bool leader = thread % 32 == 0;
    if (fault == Fault::released_before_wait) {
      if (leader) mbarrier_arrive(&ring.empty[stage]);
      __syncwarp();
    }
    if (fault != Fault::no_wgmma_wait) wgmma_wait<0>();
    if (fault != Fault::released_before_wait && leader) mbarrier_arrive(&ring.empty[stage]);
  }
  for (unsigned i = 0; i < n / 2; ++i) {
    const unsigned row = thread / 32 * 16 + thread % 32 / 4 + 8 * (i / 2 % 2);
    store(d + row * n + 8 * (i / 4) + 2 * (thread % 4) + i % 2, sums[i]);
  }
}

}  // namespace
}  // namespace orchard::simt

namespace orchard::testing {
namespace {

using simt::AsyncCompletion;
using simt::Fault;
using simt::ThreadOrder;
using ::testing::AnyOf;
using ::testing::HasSubstr;

class PtxSm90 : public ::testing::TestWithParam<std::tuple<AsyncCompletion, ThreadOrder>> {
 protected:
  // "correct", "wrong result", or the message of the fault.
  static std::string outcome(Fault fault) {
    const auto device = make_simt_device(
        {.order = std::get<1>(GetParam()), .seed = 11, .completion = std::get<0>(GetParam())});
    const auto stream = device->make_stream();
    constexpr std::int64_t m = 64, n = simt::n, k = simt::steps * simt::depth;
    Guarded a = random_normal(DType::bf16, {m, k}, 1), b = random_normal(DType::bf16, {n, k}, 2);
    for (Guarded* const x : {&a, &b}) {
      for (std::int64_t i = 0; i < x->size(); ++i) x->set(i, std::round(2 * x->at(i)));
    }
    Guarded d(DType::f32, {m, n});
    OnDevice a_d(*stream, a), b_d(*stream, b), d_d(*stream, d);
    const auto map = [](const Tensor& x, int rows) {
      return simt::make_tensor_map({x.raw(), x.dim(1), x.dim(0), 1, simt::depth, rows});
    };
    simt::launch(*stream,
                 {.kernel = "multiply", .block = {160}, .shared_bytes = sizeof(simt::Ring)},
                 simt::multiply, map(a_d, m), map(b_d, n), d_d.tensor().data<float>(), fault);
    d_d.download();
    try {
      stream->synchronize();
    } catch (const Error& error) {
      return error.what();
    }
    for (std::int64_t i = 0; i < m * n; ++i) {
      double expected = 0;
      for (std::int64_t l = 0; l < k; ++l) expected += a.at(i / n * k + l) * b.at(i % n * k + l);
      if (d.at(i) != expected) return "wrong result";
    }
    return "correct";
  }

  static bool lazy() { return std::get<0>(GetParam()) == AsyncCompletion::lazy; }
};

INSTANTIATE_TEST_SUITE_P(
    Policies, PtxSm90,
    ::testing::Combine(::testing::Values(AsyncCompletion::eager, AsyncCompletion::lazy),
                       ::testing::Values(ThreadOrder::fifo, ThreadOrder::reverse,
                                         ThreadOrder::random)));

TEST_P(PtxSm90, TheCorrectProductIsClean) {
  EXPECT_EQ(outcome(Fault::none), "correct");
}

// The engine's copies come late: what was not waited for is poison, or an arrival too many.
TEST_P(PtxSm90, RingsWhoseSidesDoNotWaitAreFound) {
  EXPECT_THAT(outcome(Fault::producer_ignores_empty),
              AnyOf("wrong result", HasSubstr("more arrivals than the 1 that the phase expects"),
                    HasSubstr("deadlock")));
  if (lazy()) {
    EXPECT_THAT(outcome(Fault::consumer_ignores_full),
                AnyOf("wrong result", HasSubstr("more arrivals")));
  }
  // Seen where the producer happens to run before the wait.
  if (lazy() && std::get<1>(GetParam()) == ThreadOrder::fifo) {
    EXPECT_EQ(outcome(Fault::released_before_wait), "wrong result");
  }
}

TEST_P(PtxSm90, BytesThatDoNotAddUpAreFound) {
  EXPECT_THAT(outcome(Fault::expects_too_few_bytes),
              AnyOf("wrong result", HasSubstr("deadlock"), HasSubstr("are in flight")));
  EXPECT_THAT(outcome(Fault::expects_too_many_bytes),
              HasSubstr("which expects 0 of 1 arrivals and 16 bytes"));
}

TEST_P(PtxSm90, MisusedBarriersAreNamed) {
  EXPECT_THAT(outcome(Fault::barrier_not_initialised),
              AnyOf(HasSubstr("mbarrier.arrive at ptx_sm90_test.cpp:"),
                    HasSubstr("mbarrier.try_wait at ptx_sm90_test.cpp:")));
  EXPECT_THAT(outcome(Fault::barrier_not_initialised),
              HasSubstr("there is no initialised mbarrier"));
  EXPECT_THAT(outcome(Fault::barrier_initialised_twice), HasSubstr("is initialised already"));
  EXPECT_THAT(outcome(Fault::barrier_overwritten), HasSubstr("memory was overwritten"));
  EXPECT_THAT(outcome(Fault::arrives_twice), HasSubstr("more arrivals than the 1"));
}

TEST_P(PtxSm90, CopiesThatGoAstrayAreNamed) {
  EXPECT_THAT(outcome(Fault::destination_misaligned), HasSubstr("not aligned to 128 bytes"));
  EXPECT_THAT(outcome(Fault::destination_outside), HasSubstr("is not in the"));
}

TEST_P(PtxSm90, MisusedWgmmaIsNamed) {
  EXPECT_THAT(outcome(Fault::no_wgmma_fence), HasSubstr("no wgmma_fence since the last commit"));
  EXPECT_THAT(outcome(Fault::sums_touched_in_flight),
              HasSubstr("accumulator 3 of lane 0 was touched while a wgmma was in flight"));
  EXPECT_THAT(outcome(Fault::no_wgmma_wait), HasSubstr("wgmma that it has not waited for"));
  EXPECT_THAT(outcome(Fault::one_warp_multiplies_less),
              HasSubstr("warps 0 and 3 of one warpgroup executed different wgmma"));
}

TEST(TensorMaps, RefuseWhatTheDriverWould) {
  alignas(16) static const bf16 data[64 * 8] = {};
  EXPECT_NO_THROW(simt::make_tensor_map({data, 64, 8, 1, 64, 8}));
  EXPECT_THROW(simt::make_tensor_map({data + 1, 56, 8, 1, 64, 8}), Error);
  EXPECT_THROW(simt::make_tensor_map({data, 63, 8, 1, 64, 8}), Error);
  EXPECT_THROW(simt::make_tensor_map({data, 64, 8, 1, 72, 8}), Error);
  EXPECT_THROW(simt::make_tensor_map({data, 64, 8, 1, 64, 257}), Error);
  EXPECT_THROW(simt::make_tensor_map({data, 64, 0, 1, 64, 8}), Error);
}

}  // namespace
}  // namespace orchard::testing
