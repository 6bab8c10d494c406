// Threads that lose count of an mbarrier's phases.
#include "kernels/ptx/mbarrier.h"
#include "tests/kernels/fault_corpus.h"

namespace orchard::simt {
namespace {

struct Meeting {
  std::uint64_t barrier;
};

Meeting& meeting_of(unsigned arrivals) {
  auto& meeting = shared_storage<Meeting>();
  if (threadIdx.x == 0) mbarrier_init(&meeting.barrier, arrivals);
  __syncthreads();
  return meeting;
}

// The first threads of two warps meet twice. With the fault the second is not counted, so the first goes
// on without it.
__global__ void meet_twice(bool fault) {
  Meeting& meeting = meeting_of(fault ? 1 : 2);
  if (threadIdx.x % 32 != 0) return;
  for (unsigned phase = 0; phase < 2; ++phase) {
    if (!fault || threadIdx.x == 0) mbarrier_arrive(&meeting.barrier);
    mbarrier_wait(&meeting.barrier, phase);
  }
}

// The first warp goes through three phases, in which the second has no part. That asks for the last of
// them, after a barrier; with the fault without one, when it knows of none.
__global__ void join_late(bool fault) {
  Meeting& meeting = meeting_of(1);
  for (unsigned phase = 0; threadIdx.x == 0 && phase < 3; ++phase) {
    mbarrier_arrive(&meeting.barrier);
    mbarrier_wait(&meeting.barrier, phase % 2);
  }
  if (!fault) __syncthreads();
  if (threadIdx.x == 32) mbarrier_wait(&meeting.barrier, 0);
}

__global__ void arrive_twice(bool fault) {
  Meeting& meeting = meeting_of(1);
  if (threadIdx.x != 0) return;
  mbarrier_arrive(&meeting.barrier);
  if (!fault) mbarrier_wait(&meeting.barrier, 0);
  mbarrier_arrive(&meeting.barrier);
  mbarrier_wait(&meeting.barrier, 1);
}

}  // namespace
}  // namespace orchard::simt

namespace orchard::testing {
namespace {

const LaunchShape two_warps{.kernel = "k", .block = {64}, .shared_bytes = sizeof(simt::Meeting)};

const SeededFault faults[] = {
    {"WaitsForAPhaseThatHasPassedTwice",
     FoundBy::races,
     [](FaultBench& b, bool fault) { b.run(two_warps, simt::meet_twice, fault); },
     {"mbarrier.try_wait at simt_faults_mbarrier_test.cpp:*: the wait for phase 1 comes when phase "
      "3 "
      "has begun: a parity tells the current phase from the one before, and no others"}},
    {"WaitsForAPhaseThatItCannotTell",
     FoundBy::races,
     [](FaultBench& b, bool fault) { b.run(two_warps, simt::join_late, fault); },
     {"mbarrier.try_wait at *: the wait for phase 1 comes when phase 4 has begun"}},
    {"ArrivesAfterAPhaseThatNobodySaw",
     FoundBy::calls,
     [](FaultBench& b, bool fault) { b.run(two_warps, simt::arrive_twice, fault); },
     {"mbarrier.arrive at *: phase 1 is over, and nobody has waited for it before the arrival in "
      "the "
      "next"}},
};

INSTANTIATE_TEST_SUITE_P(Mbarrier, FaultCorpus, ::testing::ValuesIn(faults), fault_name);

}  // namespace
}  // namespace orchard::testing
