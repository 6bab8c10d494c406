// Threads that lose count of an mbarrier's phases, arrivals or bytes, or take another block's for theirs.
#include "kernels/ptx/bulk_copy.h"
#include "kernels/ptx/cluster.h"
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

__global__ void take_laps(bool fault) {
  Meeting& meeting = meeting_of(1);
  for (unsigned lap = 0; threadIdx.x == 0 && lap < 3; ++lap) {
    mbarrier_arrive(&meeting.barrier);
    mbarrier_wait(&meeting.barrier, fault ? lap : lap % 2);
  }
}

__global__ void initialise(unsigned arrivals) {
  static_cast<void>(meeting_of(arrivals));
}

struct Delivery {
  alignas(128) std::uint8_t bytes[1 << 16];
  std::uint64_t arrived;
};

enum class InDelivery : std::uint8_t { correct, announces_too_much, brings_too_much };

// More than a phase can count, in pieces of a phase each; with the last fault all of it in one phase.
__global__ void deliver(const std::uint8_t* in, InDelivery fault) {
  auto& shared = shared_storage<Delivery>();
  if (threadIdx.x != 0) return;
  const bool by_phases = fault != InDelivery::brings_too_much;
  mbarrier_init(&shared.arrived, 1);
  mbarrier_fence_init();
  for (unsigned piece = 0; piece < 17; ++piece) {
    const unsigned bytes = sizeof shared.bytes;
    if (by_phases) {
      mbarrier_arrive_expect(&shared.arrived,
                             fault == InDelivery::announces_too_much ? 16 * bytes : bytes);
    }
    bulk_load(shared.bytes, in, bytes, &shared.arrived);
    if (by_phases) mbarrier_wait(&shared.arrived, piece % 2);
  }
  if (!by_phases) mbarrier_wait(&shared.arrived, 0);
}

enum class InPair : std::uint8_t { correct, initialises_the_peers, waits_for_the_peers };

// Two blocks tell each other that they are there.
__global__ void greet_peer(InPair fault) {
  auto& meeting = shared_storage<Meeting>();
  const unsigned peer = cluster_rank() ^ 1;
  const auto meet = [] {
    cluster_barrier_arrive();
    cluster_barrier_wait();
  };
  const auto barrier = [&](bool is_peers) {
    return is_peers ? in_block(&meeting.barrier, peer) : &meeting.barrier;
  };
  if (threadIdx.x == 0) mbarrier_init(barrier(fault == InPair::initialises_the_peers), 1);
  meet();
  if (threadIdx.x == 0) {
    mbarrier_arrive_in_block(&meeting.barrier, peer);
    mbarrier_wait(barrier(fault == InPair::waits_for_the_peers), 0);
  }
  meet();
}

}  // namespace
}  // namespace orchard::simt

namespace orchard::testing {
namespace {

using simt::InDelivery;
using simt::InPair;

const LaunchShape two_warps{.kernel = "k", .block = {64}, .shared_bytes = sizeof(simt::Meeting)};

template <InDelivery delivery>
void run_delivery(FaultBench& b, bool fault) {
  b.run({.kernel = "k", .block = {32}, .shared_bytes = sizeof(simt::Delivery)}, simt::deliver,
        b.zeros<std::uint8_t>(sizeof simt::Delivery::bytes),
        fault ? delivery : InDelivery::correct);
}
template <InPair pair>
void run_pair(FaultBench& b, bool fault) {
  b.run({.kernel = "k",
         .grid = {2},
         .block = {32},
         .shared_bytes = sizeof(simt::Meeting),
         .cluster = {2}},
        simt::greet_peer, fault ? pair : InPair::correct);
}

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
    {"TakesALapForAParity",
     FoundBy::calls,
     [](FaultBench& b, bool fault) { b.run(two_warps, simt::take_laps, fault); },
     {"mbarrier.try_wait at simt_faults_mbarrier_test.cpp:*: a parity is 0 or 1, not 2"}},
    {"ExpectsNobody",
     FoundBy::calls,
     [](FaultBench& b, bool fault) { b.run(two_warps, simt::initialise, fault ? 0u : 1u); },
     {"mbarrier.init at simt_faults_mbarrier_test.cpp:*: 0 arrivals are not within 1 .. 2^20 - 1"}},
    {"AnnouncesMoreThanAPhaseCounts",
     FoundBy::calls,
     run_delivery<InDelivery::announces_too_much>,
     {"mbarrier.arrive at simt_faults_mbarrier_test.cpp:*: a phase counts 1048575 bytes at most"}},
    {"BringsMoreThanAPhaseCounts",
     FoundBy::calls,
     run_delivery<InDelivery::brings_too_much>,
     // A block's memory holds less, so that some copies go to one place, which is a race.
     {"the end of cp.async.bulk at simt_faults_mbarrier_test.cpp:*: copies bring more bytes than "
      "the "
      "phase counts",
      "race: an asynchronous operation issued by thread (0, 0, 0) writes 65536 bytes at *, which "
      "an "
      "asynchronous operation issued by thread (0, 0, 0) wrote at *"}},
    {"InitialisesAPeersMbarrier",
     FoundBy::calls,
     run_pair<InPair::initialises_the_peers>,
     {"mbarrier.init at simt_faults_mbarrier_test.cpp:*: the mbarrier is in another block's "
      "memory"}},
    {"WaitsForAPeersMbarrier",
     FoundBy::calls,
     run_pair<InPair::waits_for_the_peers>,
     {"mbarrier.try_wait at simt_faults_mbarrier_test.cpp:*: a block waits for its own mbarriers "
      "alone"}},
};

INSTANTIATE_TEST_SUITE_P(Mbarrier, FaultCorpus, ::testing::ValuesIn(faults), fault_name);

}  // namespace
}  // namespace orchard::testing
