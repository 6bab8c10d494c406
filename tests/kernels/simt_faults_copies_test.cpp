// cp.async, and the warp's matrix instructions.
#include "kernels/ptx/cp_async.h"
#include "kernels/ptx/ldmatrix.h"
#include "kernels/ptx/mma.h"
#include "kernels/ptx/stmatrix.h"
#include "tests/kernels/device_test.h"
#include "tests/kernels/fault_corpus.h"

namespace orchard::simt {
namespace {

constexpr int stages = 3;

struct Ring {
  alignas(16) float value[stages][32 * 4];
};

enum class InRing : std::uint8_t { correct, wait_too_weak, no_barrier, refilled_too_early };

// Adds up `steps` pieces of [32, 4] floats through a ring of shared memory that runs ahead by two.
__global__ void sum_pieces(const float* in, float* out, int steps, InRing fault) {
  auto& ring = shared_storage<Ring>();
  const unsigned lane = threadIdx.x;
  const auto fetch = [&](int step) {
    if (step < steps) {
      cp_async_16(ring.value[step % stages] + 4 * lane, in + (32 * step + lane) * 4);
    }
    cp_async_commit();
  };
  fetch(0);
  fetch(1);
  float sum = 0;
  for (int step = 0; step < steps; ++step) {
    if (fault == InRing::wait_too_weak) {
      cp_async_wait<2>();
    } else {
      cp_async_wait<1>();
    }
    if (fault == InRing::refilled_too_early) fetch(step + 2);
    if (fault != InRing::no_barrier) __syncthreads();
    if (fault != InRing::refilled_too_early) fetch(step + 2);
    // Another lane's, so that the barrier matters.
    sum += load_shared(ring.value[step % stages] + (lane * 4 + 4) % 128);
  }
  cp_async_wait_all();
  store(out + lane, sum);
}

enum class OneCopy : std::uint8_t {
  correct,
  left_in_flight,
  source_outside,
  source_misaligned,
  source_too_long,
  target_outside,
  target_misaligned,
  twice_to_one_place,
  source_overwritten,
};

__global__ void copy_once(float* in, OneCopy fault) {
  auto& ring = shared_storage<Ring>();
  float* const to = ring.value[0] + 4 * threadIdx.x;
  const float* from = in + 4 * threadIdx.x;
  if (fault == OneCopy::source_outside) from += 4;
  if (fault == OneCopy::source_misaligned) from += 1;
  const int shift = fault == OneCopy::target_outside ? 4 * 65 : fault == OneCopy::target_misaligned;
  cp_async_16(to + shift, from, fault == OneCopy::source_too_long ? 17 : 16);
  if (fault == OneCopy::twice_to_one_place) cp_async_16(to, from);
  if (fault == OneCopy::source_overwritten) store(in + 4 * threadIdx.x, 1.0f);
  if (fault != OneCopy::left_in_flight) cp_async_wait_all();
}

enum class Matrix : std::uint8_t { correct, misaligned, outside, unwritten, no_syncwarp };

// Each lane stores a row of 16 bytes, of which ldmatrix gives it others.
__global__ void load_rows(Matrix fault) {
  auto& ring = shared_storage<Ring>();
  const unsigned lane = threadIdx.x;
  if (fault != Matrix::unwritten || lane != 5) {
    store_shared(reinterpret_cast<uint4*>(ring.value[0] + 4 * lane), uint4{});
  }
  if (fault != Matrix::no_syncwarp) __syncwarp();
  const float* row = ring.value[0] + 4 * ((lane + 8) % 32);
  if (fault == Matrix::misaligned) row += 2;
  if (fault == Matrix::outside) row = ring.value[0] + sizeof(ring.value) / sizeof(float) + 4 * lane;
  unsigned registers[4];
  ldmatrix(registers, row);
}

__global__ void store_rows(Matrix fault) {
  auto& ring = shared_storage<Ring>();
  const unsigned lane = threadIdx.x;
  float* row = ring.value[0] + 4 * lane;
  if (fault == Matrix::misaligned) row += 2;
  if (fault == Matrix::outside) row = ring.value[0] + sizeof(ring.value) / sizeof(float) + 4 * lane;
  const unsigned registers[4] = {lane, lane, lane, lane};
  stmatrix(row, registers);
  if (fault != Matrix::no_syncwarp) __syncwarp();
  load_shared(ring.value[0] + 4 * ((lane + 1) % 32));
}

// Lanes from `first` on are elsewhere: they have returned, or wait at a barrier.
__global__ void multiply_with_some(unsigned first, bool returned) {
  if (threadIdx.x >= first) {
    if (!returned) __syncthreads();
    return;
  }
  float d[4] = {};
  const unsigned a[4] = {};
  mma_m16n8k16_bf16(d, a, 0, 0);
}

}  // namespace
}  // namespace orchard::simt

namespace orchard::testing {
namespace {

using simt::InRing;
using simt::Matrix;
using simt::OneCopy;

constexpr LaunchShape one_warp{.kernel = "k", .block = {32}, .shared_bytes = sizeof(simt::Ring)};

template <InRing in_ring>
void run_ring(FaultBench& b, bool fault) {
  b.run(one_warp, simt::sum_pieces, b.zeros<float>(7 * 128), b.fresh<float>(32), 7,
        fault ? in_ring : InRing::correct);
}
template <OneCopy one_copy>
void run_copy(FaultBench& b, bool fault) {
  b.run(one_warp, simt::copy_once, b.zeros<float>(128), fault ? one_copy : OneCopy::correct);
}
template <Matrix matrix>
void run_load(FaultBench& b, bool fault) {
  b.run(one_warp, simt::load_rows, fault ? matrix : Matrix::correct);
}
template <Matrix matrix>
void run_store(FaultBench& b, bool fault) {
  b.run(one_warp, simt::store_rows, fault ? matrix : Matrix::correct);
}

const SeededFault faults[] = {
    {"WaitsForOneGroupTooFew",
     FoundBy::races,
     run_ring<InRing::wait_too_weak>,
     {"race: thread (*) reads 4 bytes at *, which an asynchronous operation issued by thread (*) "
      "wrote at *: it has not been waited for",
      "where nothing has been written"}},
    {"NoBarrierAfterTheWait",
     FoundBy::races,
     run_ring<InRing::no_barrier>,
     {"race: thread (*) reads 4 bytes at *, which an asynchronous operation issued by thread (*) "
      "wrote at *: nothing orders the two",
      "wrote at *: it has not been waited for",
      "race: an asynchronous operation issued by thread (*) writes 16 bytes at *, which thread (*) "
      "read at *",
      "where nothing has been written"}},
    {"RefillsBeforeTheBarrier",
     FoundBy::races,
     run_ring<InRing::refilled_too_early>,
     {"race: an asynchronous operation issued by thread (*) writes 16 bytes at *, which thread (*) "
      "read at *: nothing orders the two"}},
    {"LeavesACopyInFlight",
     FoundBy::calls,
     run_copy<OneCopy::left_in_flight>,
     {"thread (*): returns with 1 asynchronous copies that it has not waited for, the first of "
      "them at simt_faults_copies_test.cpp:*"}},
    {"CopiesFromOutside",
     FoundBy::calls,
     run_copy<OneCopy::source_outside>,
     {"thread (31, 0, 0): reads 16 bytes at simt_faults_copies_test.cpp:*, at byte 512 of an "
      "allocation of 512 bytes"}},
    {"CopiesFromAMisalignedAddress",
     FoundBy::calls,
     run_copy<OneCopy::source_misaligned>,
     {"reads 16 bytes at simt_faults_copies_test.cpp:*, at an address not aligned to them"}},
    {"CopiesMoreThanItsSize",
     FoundBy::calls,
     run_copy<OneCopy::source_too_long>,
     {"cp.async at simt_faults_copies_test.cpp:* of 16 bytes reads 17"}},
    {"CopiesPastSharedMemory",
     FoundBy::calls,
     run_copy<OneCopy::target_outside>,
     {"writes 16 bytes at simt_faults_copies_test.cpp:*, at byte * of 1536 bytes of shared "
      "memory"}},
    {"CopiesToAMisalignedAddress",
     FoundBy::calls,
     run_copy<OneCopy::target_misaligned>,
     {"writes 16 bytes at simt_faults_copies_test.cpp:*, at an address not aligned to them"}},
    {"CopiesTwiceToOnePlace",
     FoundBy::races,
     run_copy<OneCopy::twice_to_one_place>,
     {"race: an asynchronous operation issued by thread (*) writes 16 bytes at *, which an "
      "asynchronous operation issued by thread (*) wrote at *: it has not been waited for"}},
    {"OverwritesTheSourceOfACopy",
     FoundBy::races,
     run_copy<OneCopy::source_overwritten>,
     {"race: thread (*) writes 4 bytes at *, which an asynchronous operation issued by thread (*) "
      "read at *: it has not been waited for"}},

    {"LoadsAMisalignedMatrix",
     FoundBy::calls,
     run_load<Matrix::misaligned>,
     {"reads 16 bytes at simt_faults_copies_test.cpp:*, at an address not aligned to them"}},
    {"LoadsAMatrixPastSharedMemory",
     FoundBy::calls,
     run_load<Matrix::outside>,
     {"reads 16 bytes at *, at byte * of 1536 bytes of shared memory"}},
    {"LoadsAMatrixThatNobodyWrote",
     FoundBy::plain_accesses,
     run_load<Matrix::unwritten>,
     {"reads 16 bytes at *, at byte 80 of shared memory, where nothing has been written"}},
    {"LoadsAMatrixWithoutSyncwarp",
     FoundBy::races,
     run_load<Matrix::no_syncwarp>,
     {"race: thread (*) reads 16 bytes at *, which thread (*) wrote at *",
      "race: thread (*) writes 16 bytes at *, which thread (*) read at *",
      "where nothing has been written"}},
    {"StoresAMisalignedMatrix",
     FoundBy::calls,
     run_store<Matrix::misaligned>,
     {"writes 16 bytes at simt_faults_copies_test.cpp:*, at an address not aligned to them"}},
    {"StoresAMatrixPastSharedMemory",
     FoundBy::calls,
     run_store<Matrix::outside>,
     {"writes 16 bytes at *, at byte * of 1536 bytes of shared memory"}},
    {"StoresAMatrixWithoutSyncwarp",
     FoundBy::races,
     run_store<Matrix::no_syncwarp>,
     {"race: thread (*) reads 4 bytes at *, which thread (*) wrote at *"}},
    {"MultipliesWithoutLanesThatReturned",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       b.run(one_warp, simt::multiply_with_some, fault ? 30u : 32u, true);
     },
     {"mma.m16n8k16 at simt_faults_copies_test.cpp:*: lane 30 is not there, and all 32 must take "
      "part"}},
    {"MultipliesWithoutLanesThatWait",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       b.run(one_warp, simt::multiply_with_some, fault ? 16u : 32u, false);
     },
     {"threads 0-15: in mma.m16n8k16*threads 16-31: in __syncthreads()"}},
};

INSTANTIATE_TEST_SUITE_P(Copies, FaultCorpus, ::testing::ValuesIn(faults), fault_name);

// Without the race checker, a wait that is too weak shows only where copies come late.
TEST(AsyncCopies, CompletionDecidesWhetherAWeakWaitShows) {
  using simt::AsyncCompletion;
  constexpr int steps = 7;
  const auto sum = [&](AsyncCompletion completion, InRing fault) {
    const auto device = make_simt_device({.seed = 3, .completion = completion});
    const auto stream = device->make_stream();
    Guarded in(DType::f32, {steps, 32, 4}), out(DType::f32, {32});
    for (int i = 0; i < in.size(); ++i) in.set(i, i);
    OnDevice in_d(*stream, in), out_d(*stream, out);
    simt::launch(*stream, one_warp, simt::sum_pieces, in_d.tensor().data<float>(),
                 out_d.tensor().data<float>(), steps, fault);
    out_d.download();
    stream->synchronize();
    return out.values();
  };
  std::vector<double> expected(32);
  for (int lane = 0; lane < 32; ++lane) {
    for (int step = 0; step < steps; ++step) {
      expected[static_cast<std::size_t>(lane)] += 128 * step + (4 * lane + 4) % 128;
    }
  }
  for (const AsyncCompletion completion :
       {AsyncCompletion::eager, AsyncCompletion::lazy, AsyncCompletion::random}) {
    EXPECT_EQ(sum(completion, InRing::correct), expected);
  }
  EXPECT_EQ(sum(AsyncCompletion::eager, InRing::wait_too_weak), expected);
#ifdef ORCHARD_SIMT_PLAIN_ACCESSES
  EXPECT_THROW(sum(AsyncCompletion::lazy, InRing::wait_too_weak), Error);
  EXPECT_THROW(sum(AsyncCompletion::random, InRing::wait_too_weak), Error);
#endif
}

}  // namespace
}  // namespace orchard::testing
