// wgmma on what the copy engine brings: rings of shared memory, mbarriers, and the two proxies.
#include "kernels/ptx/convert.h"
#include "kernels/ptx/mbarrier.h"
#include "kernels/ptx/tma.h"
#include "kernels/ptx/wgmma.h"
#include "tests/kernels/device_test.h"
#include "tests/kernels/fault_corpus.h"

namespace orchard::simt {
namespace {

enum class InProduct : std::uint8_t {
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
                         float* d, InProduct fault) {
  auto& ring = shared_storage<Ring>();
  const unsigned thread = threadIdx.x;
  if (thread == 0) {
    for (int stage = 0; stage < stages; ++stage) {
      if (fault != InProduct::barrier_not_initialised) mbarrier_init(&ring.full[stage], 1);
      mbarrier_init(&ring.empty[stage], 4);
    }
    if (fault == InProduct::barrier_initialised_twice) mbarrier_init(&ring.full[0], 1);
    if (fault == InProduct::barrier_overwritten) ring.full[1] = 0;
    mbarrier_fence_init();
  }
  __syncthreads();
  if (thread >= 128) {
    if (thread > 128) return;
    for (int step = 0; step < steps; ++step) {
      const int stage = step % stages;
      const unsigned parity = step / stages % 2;
      if (fault != InProduct::producer_ignores_empty) mbarrier_wait(&ring.empty[stage], parity ^ 1);
      unsigned bytes = sizeof ring.a[0] + sizeof ring.b[0];
      if (fault == InProduct::expects_too_few_bytes) bytes -= sizeof ring.a[0];
      if (fault == InProduct::expects_too_many_bytes) bytes += 16;
      mbarrier_arrive_expect(&ring.full[stage], bytes);
      if (fault == InProduct::arrives_twice) mbarrier_arrive(&ring.full[stage]);
      bf16* to = ring.b[stage];
      if (fault == InProduct::destination_misaligned) to += 8;
      if (fault == InProduct::destination_outside) to += sizeof ring.b / sizeof(bf16);
      tma_load(ring.a[stage], a, step * depth, 0, 0, &ring.full[stage]);
      tma_load(to, b, step * depth, 0, 0, &ring.full[stage]);
    }
    return;
  }
  float sums[n / 2];
  for (int step = 0; step < steps; ++step) {
    const int stage = step % stages;
    if (fault != InProduct::consumer_ignores_full)
      mbarrier_wait(&ring.full[stage], step / stages % 2);
    if (fault != InProduct::no_wgmma_fence) wgmma_fence();
    for (int k = 0; k < 4; ++k) {
      if (fault == InProduct::one_warp_multiplies_less && thread >= 96 && k == 3) continue;
      const unsigned offset = 32 * static_cast<unsigned>(k);
      wgmma_m64k16<Transposed::no, Transposed::no>(
          sums, wgmma_descriptor(shared_address(ring.a[stage]) + offset, 0),
          wgmma_descriptor(shared_address(ring.b[stage]) + offset, 0), step + k > 0);
    }
    wgmma_commit();
    if (fault == InProduct::sums_touched_in_flight) sums[3] += 1;
    const bool leader = thread % 32 == 0;
    if (fault == InProduct::released_before_wait) {
      if (leader) mbarrier_arrive(&ring.empty[stage]);
      __syncwarp();
    }
    if (fault != InProduct::no_wgmma_wait) wgmma_wait<0>();
    if (fault != InProduct::released_before_wait && leader) mbarrier_arrive(&ring.empty[stage]);
  }
  for (unsigned i = 0; i < n / 2; ++i) {
    const unsigned row = thread / 32 * 16 + thread % 32 / 4 + 8 * (i / 2 % 2);
    store(d + row * n + 8 * (i / 4) + 2 * (thread % 4) + i % 2, sums[i]);
  }
}

// ---- generic writes that wgmma reads ---------------------------------------------------------

struct Tiles {
  alignas(1024) bf16 a[64 * depth];
  alignas(1024) bf16 b[n * depth];
};

enum class InOwn : std::uint8_t {
  correct,
  not_fenced,
  lanes_differ,
  operand_outside,
  base_offset,
};

// The operands are written by the threads themselves.
__global__ void __launch_bounds__(128) multiply_own(float* d, InOwn fault) {
  auto& tiles = shared_storage<Tiles>();
  for (unsigned i = threadIdx.x; i < sizeof(Tiles) / 16; i += 128) {
    store_shared(reinterpret_cast<uint4*>(&tiles) + i, uint4{});
  }
  if (fault != InOwn::not_fenced) fence_proxy_async();
  __syncthreads();
  float sums[n / 2];
  unsigned address = shared_address(tiles.b);
  if (fault == InOwn::operand_outside) address += 8 * 128;
  if (fault == InOwn::lanes_differ && threadIdx.x % 32 == 5) address += 32;
  std::uint64_t b = wgmma_descriptor(address, 0);
  if (fault == InOwn::base_offset) b |= std::uint64_t{1} << 49;
  wgmma_fence();
  wgmma_m64k16<Transposed::no, Transposed::no>(sums, wgmma_descriptor(shared_address(tiles.a), 0),
                                               b, false);
  wgmma_commit();
  wgmma_wait<0>();
  store(d + threadIdx.x, sums[0]);
}

// The left operand is in registers, and changes after the wait; with the fault before.
__global__ void __launch_bounds__(128) multiply_registers(float* d, bool fault) {
  auto& tiles = shared_storage<Tiles>();
  for (unsigned i = threadIdx.x; i < sizeof(Tiles) / 16; i += 128) {
    store_shared(reinterpret_cast<uint4*>(&tiles) + i, uint4{});
  }
  fence_proxy_async();
  __syncthreads();
  float sums[n / 2];
  unsigned left[4] = {};
  wgmma_fence();
  wgmma_m64k16<Transposed::no>(sums, left, wgmma_descriptor(shared_address(tiles.b), 0), false);
  wgmma_commit();
  if (fault) left[2] = pack_bf16x2(1, static_cast<float>(threadIdx.x));
  wgmma_wait<0>();
  if (!fault) left[2] = 1;
  store(d + threadIdx.x, sums[0] + static_cast<float>(left[2]));
}

}  // namespace
}  // namespace orchard::simt

namespace orchard::testing {
namespace {

using simt::InOwn;
using simt::InProduct;

simt::TensorMap map_of(const void* data, std::int64_t rows, std::int64_t cols, int box_rows) {
  return simt::make_tensor_map({data, cols, rows, 1, simt::depth, box_rows});
}

template <InProduct product>
void run_product(FaultBench& b, bool fault) {
  constexpr std::int64_t m = 64, n = simt::n, k = simt::steps * simt::depth;
  b.run({.kernel = "multiply", .block = {160}, .shared_bytes = sizeof(simt::Ring)}, simt::multiply,
        map_of(b.zeros<bf16>(m * k), m, k, m), map_of(b.zeros<bf16>(n * k), n, k, n),
        b.fresh<float>(m * n), fault ? product : InProduct::none);
}
template <InOwn own>
void run_own(FaultBench& b, bool fault) {
  b.run({.kernel = "k", .block = {128}, .shared_bytes = sizeof(simt::Tiles)}, simt::multiply_own,
        b.fresh<float>(128), fault ? own : InOwn::correct);
}
const std::string in_flight = ": it has not been waited for";
const std::string unordered = ": nothing orders the two";
const std::string operation = "an asynchronous operation issued by thread ";

const SeededFault faults[] = {
    {"ProducerIgnoresEmpty",
     FoundBy::races,
     run_product<InProduct::producer_ignores_empty>,
     {"race: " + operation + "(*) writes 8192 bytes at *, which " + operation + "(*) wrote at *",
      "race: " + operation + "(*) writes 8192 bytes at *, which " + operation + "(*) read at *",
      "more arrivals than the 1 that the phase expects",
      "phase 1 is over, and nobody has waited for it before the arrival in the next"}},
    {"ConsumerIgnoresFull",
     FoundBy::races,
     run_product<InProduct::consumer_ignores_full>,
     {"race: " + operation + "(*) reads 16 bytes at *, which " + operation + "(*) wrote at *",
      "race: " + operation + "(*) writes 8192 bytes at *, which " + operation + "(*) read at *",
      "where nothing has been written",
      // Where plain accesses are not announced, so that nobody knows what has been written.
      "the wait for phase * comes when phase * has begun",
      "phase * is over, and nobody has waited for it before the arrival in the next"}},
    {"ExpectsTooFewBytes",
     FoundBy::races,
     run_product<InProduct::expects_too_few_bytes>,
     {"race: " + operation + "(*) writes *", "race: " + operation + "(*) reads *",
      "where nothing has been written", "deadlock", "nobody has waited for it when block"}},
    {"ExpectsTooManyBytes",
     FoundBy::calls,
     run_product<InProduct::expects_too_many_bytes>,
     {"which expects 0 of 1 arrivals and 16 bytes"}},
    {"ReleasesBeforeTheWait",
     FoundBy::races,
     run_product<InProduct::released_before_wait>,
     {"race: " + operation + "(128, 0, 0) writes 8192 bytes at *, which " + operation +
          "(*) read at *" + unordered,
      "race: " + operation + "(128, 0, 0) writes 8192 bytes at *, which " + operation +
          "(*) read at *" + in_flight}},
    {"NoWgmmaFence",
     FoundBy::calls,
     run_product<InProduct::no_wgmma_fence>,
     {"no wgmma_fence since the last commit"}},
    {"TouchesSumsInFlight",
     FoundBy::calls,
     run_product<InProduct::sums_touched_in_flight>,
     {"accumulator 3 of lane 0 was touched while a wgmma was in flight"}},
    {"ChangesTheLeftOperandInFlight",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       b.run({.kernel = "k", .block = {128}, .shared_bytes = sizeof(simt::Tiles)},
             simt::multiply_registers, b.fresh<float>(128), fault);
     },
     {"register 2 of lane 0's left operand was changed while a wgmma was in flight"}},
    {"NoWgmmaWait",
     FoundBy::calls,
     run_product<InProduct::no_wgmma_wait>,
     {"thread (*): its warp returns with * wgmma that it has not waited for, the first of them at "
      "simt_faults_wgmma_test.cpp:*",
      "race: " + operation + "(128, 0, 0) writes"}},
    {"OneWarpMultipliesLess",
     FoundBy::calls,
     run_product<InProduct::one_warp_multiplies_less>,
     {"block (0, 0, 0), thread (96, 0, 0): warps 0 and 3 of one warpgroup executed different wgmma "
      "or setmaxnreg: at simt_faults_wgmma_test.cpp:*, and at simt_faults_wgmma_test.cpp:*"}},
    {"MbarrierNotInitialised",
     FoundBy::calls,
     run_product<InProduct::barrier_not_initialised>,
     {"mbarrier.arrive at simt_faults_wgmma_test.cpp:*: there is no initialised mbarrier",
      "mbarrier.try_wait at simt_faults_wgmma_test.cpp:*: there is no initialised mbarrier"}},
    {"MbarrierInitialisedTwice",
     FoundBy::calls,
     run_product<InProduct::barrier_initialised_twice>,
     {"mbarrier.init at *: the mbarrier is initialised already"}},
    {"MbarrierOverwritten",
     FoundBy::calls,
     run_product<InProduct::barrier_overwritten>,
     {"the mbarrier's memory was overwritten"}},
    {"ArrivesTwice",
     FoundBy::calls,
     run_product<InProduct::arrives_twice>,
     {"more arrivals than the 1 that the phase expects"}},
    {"BoxMisaligned",
     FoundBy::calls,
     run_product<InProduct::destination_misaligned>,
     {"cp.async.bulk.tensor at *: byte * of shared memory is not aligned to 128 bytes"}},
    {"BoxOutsideSharedMemory",
     FoundBy::calls,
     run_product<InProduct::destination_outside>,
     {"cp.async.bulk.tensor at *: 16384 bytes at byte * are not in the * bytes of shared memory"}},

    {"LanesBringDifferentDescriptors",
     FoundBy::calls,
     run_own<InOwn::lanes_differ>,
     {"wgmma at simt_faults_wgmma_test.cpp:*: the lanes of a warp bring different descriptors"}},
    {"OperandOutsideSharedMemory",
     FoundBy::calls,
     run_own<InOwn::operand_outside>,
     {"wgmma at simt_faults_wgmma_test.cpp:*: an operand lies at byte 24576 of 24576 bytes of "
      "shared memory"}},
    {"DescriptorWithABaseOffset",
     FoundBy::calls,
     run_own<InOwn::base_offset>,
     {"wgmma at simt_faults_wgmma_test.cpp:*: the descriptor's base offset must be 0"}},

    {"NoProxyFenceBeforeWgmma",
     FoundBy::races,
     run_own<InOwn::not_fenced>,
     {"race between proxies: " + operation +
      "(*) reads 16 bytes at *, which thread (*) wrote at *: fence.proxy.async is missing between "
      "them"}},

};

INSTANTIATE_TEST_SUITE_P(Wgmma, FaultCorpus, ::testing::ValuesIn(faults), fault_name);

// ---- results ---------------------------------------------------------------------------------

class WgmmaResults : public ::testing::TestWithParam<simt::AsyncCompletion> {
 protected:
  const std::unique_ptr<SimtDevice> device_ = make_simt_device({.order = simt::ThreadOrder::random,
                                                                .seed = 11,
                                                                .completion = GetParam(),
                                                                .races = simt::Races::find,
                                                                .compute_capability = 90});
  const std::unique_ptr<Stream> stream_ = device_->make_stream();
};

INSTANTIATE_TEST_SUITE_P(Completions, WgmmaResults,
                         ::testing::Values(simt::AsyncCompletion::eager,
                                           simt::AsyncCompletion::lazy,
                                           simt::AsyncCompletion::random));

TEST_P(WgmmaResults, ProductOfIntegersIsExact) {
  constexpr std::int64_t m = 64, n = simt::n, k = simt::steps * simt::depth;
  Guarded a = random_normal(DType::bf16, {m, k}, 1), b = random_normal(DType::bf16, {n, k}, 2);
  for (Guarded* const x : {&a, &b}) {
    for (std::int64_t i = 0; i < x->size(); ++i) x->set(i, std::round(2 * x->at(i)));
  }
  Guarded d(DType::f32, {m, n});
  OnDevice a_d(*stream_, a), b_d(*stream_, b), d_d(*stream_, d);
  simt::launch(*stream_, {.kernel = "multiply", .block = {160}, .shared_bytes = sizeof(simt::Ring)},
               simt::multiply, map_of(a_d.tensor().raw(), m, k, m),
               map_of(b_d.tensor().raw(), n, k, n), d_d.tensor().data<float>(), InProduct::none);
  d_d.download();
  stream_->synchronize();
  int wrong = 0;
  for (std::int64_t i = 0; i < m * n; ++i) {
    double expected = 0;
    for (std::int64_t l = 0; l < k; ++l) expected += a.at(i / n * k + l) * b.at(i % n * k + l);
    wrong += d.at(i) != expected;
  }
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(device_->counters().wgmma_instructions, 4u * k / 16);  // of four warps
  EXPECT_EQ(device_->counters().tensor_flops, 2u * m * n * k);
}

}  // namespace
}  // namespace orchard::testing
