// Threads and warps of a block that do not wait for each other as they must.
#include "kernels/gpu/warp.h"
#include "kernels/ptx/barrier.h"
#include "kernels/ptx/wgmma.h"
#include "tests/kernels/fault_corpus.h"

namespace orchard::simt {
namespace {

constexpr unsigned threads = 64;

struct Words {
  int word[threads];
};

// ---- blocks and warps ------------------------------------------------------------------------

__global__ void add_neighbour(int* out, bool fault) {
  auto& shared = shared_storage<Words>();
  const unsigned i = threadIdx.x;
  store_shared(shared.word + (i + 1) % threads, static_cast<int>(i));
  // Written before anybody reads; the values are not the question.
  if (!fault) __syncthreads();
  store(out + i, load_shared(shared.word + (i + 2) % threads));
}

__global__ void add_neighbour_plainly(int* out, bool fault) {
  auto& shared = shared_storage<Words>();
  const unsigned i = threadIdx.x;
  shared.word[i] = static_cast<int>(i);
  if (!fault) __syncthreads();
  store(out + i, shared.word[(i + 1) % threads]);
}

// Thread 0 changes what the others have read.
__global__ void change_after_read(int* out, bool fault) {
  auto& shared = shared_storage<Words>();
  if (threadIdx.x == 0) store_shared(shared.word, 1);
  __syncthreads();
  store(out + threadIdx.x, load_shared(shared.word));
  if (!fault) __syncthreads();
  if (threadIdx.x == 0) store_shared(shared.word, 2);
}

__global__ void write_one_word(bool fault) {
  auto& shared = shared_storage<Words>();
  store_shared(shared.word + (fault ? 0 : threadIdx.x), 1);
}

// Neighbours in one word, each to its own byte.
__global__ void write_bytes(bool fault) {
  auto* const byte = reinterpret_cast<std::uint8_t*>(shared_storage<Words>().word);
  store_shared(byte + threadIdx.x / (fault ? 2 : 1), std::uint8_t{1});
}

enum class WarpExchange : std::uint8_t { with_syncwarp, with_shuffle, with_nothing };

__global__ void exchange_in_warp(int* out, WarpExchange how) {
  auto& shared = shared_storage<Words>();
  const unsigned lane = threadIdx.x;
  store_shared(shared.word + lane, static_cast<int>(lane));
  if (how == WarpExchange::with_syncwarp) __syncwarp();
  if (how == WarpExchange::with_shuffle) static_cast<void>(__shfl_xor_sync(all_lanes, 0, 1));
  store(out + lane, load_shared(shared.word + lane / 2));
}

__global__ void count_and_read(int* out, bool fault) {
  auto& shared = shared_storage<Words>();
  if (threadIdx.x == 0) store_shared(shared.word, 0);
  __syncthreads();
  atomicAdd(shared.word, 1);
  if (!fault) __syncthreads();
  if (threadIdx.x == 0) store(out, load_shared(shared.word));
}

__global__ void reset_while_counting(bool fault) {
  auto& shared = shared_storage<Words>();
  if (threadIdx.x == 0) store_shared(shared.word, 0);
  if (!fault) __syncthreads();
  atomicMax(shared.word, 1);
}

__global__ void diverge(bool fault) {
  // Two barriers in the source are the fault. NOLINTNEXTLINE(bugprone-branch-clone)
  if (fault && threadIdx.x % 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void wait_for_ever(bool fault) {
  if (fault && threadIdx.x >= 48) return;
  if (fault && threadIdx.x >= 40) {
    __ballot_sync(all_lanes, true);
  } else {
    __syncthreads();
  }
}

__global__ void shuffle_from_returned_lane(int* out, bool fault) {
  if (threadIdx.x == 31) return;
  store(out + threadIdx.x, __shfl_sync(all_lanes, 1, fault ? 31 : 30));
}

__global__ void leave_itself_out(bool fault) {
  __syncwarp(fault ? 1 : all_lanes);
}

__global__ void reduce_differently(bool fault) {
  if (fault && threadIdx.x % 2) {
    __reduce_max_sync(all_lanes, 1);
  } else {
    __reduce_add_sync(all_lanes, 1);
  }
}

// ---- named barriers --------------------------------------------------------------------------

enum class Named : std::uint8_t {
  correct,
  arrives_instead_of_waiting,
  counts_differ,
  too_few,
  half_a_warp,
  odd_count,
  arrives_twice,
  number_too_high,
  no_count,
  nobody_waits,
};

// The second warp takes what the first one wrote.
__global__ void hand_over(int* out, Named fault) {
  auto& shared = shared_storage<Words>();
  const unsigned i = threadIdx.x;
  const unsigned number = fault == Named::number_too_high ? 16 : 1;
  unsigned count = fault == Named::odd_count ? 63 : fault == Named::too_few ? 96 : threads;
  if (fault == Named::no_count) count = 0;
  if (i < 32) {
    store_shared(shared.word + i, 1);
    bar_arrive(number, count);
    if (fault == Named::arrives_twice) bar_arrive(number, count);
    return;
  }
  if (fault == Named::nobody_waits) return;
  if (fault == Named::counts_differ) count = 32;
  if (fault == Named::half_a_warp && i >= 48) return __syncwarp(0xffff0000u);
  if (fault == Named::arrives_instead_of_waiting) {
    bar_arrive(number, count);
  } else {
    bar_sync(number, count);
  }
  store(out + i - 32, load_shared(shared.word + i - 32));
}

// Two of four warps meet; with the fault half of each of the four.
__global__ void meet_in_halves(bool fault) {
  const unsigned i = threadIdx.x;
  if (fault ? i % 32 < 16 : i < 64) bar_sync(1, 64);
  __syncthreads();
}

// ---- registers -------------------------------------------------------------------------------

enum class Registers : std::uint8_t { correct, nothing_given_back, gives_back_more, other_warps };

// Three warpgroups, with 168 registers each thread to begin with: the first one gives to the others.
__global__ void share_registers(Registers fault) {
  if (threadIdx.x < 128) {
    if (fault == Registers::gives_back_more) {
      grow_registers<24>();
    } else if (fault == Registers::other_warps && threadIdx.x >= 96) {
      shrink_registers<48>();
    } else if (fault != Registers::nothing_given_back) {
      shrink_registers<40>();
    }
  } else {
    grow_registers<232>();
  }
}

}  // namespace
}  // namespace orchard::simt

namespace orchard::testing {
namespace {

using simt::Named;
using simt::Registers;
using simt::threads;
using simt::WarpExchange;

constexpr LaunchShape one_block{
    .kernel = "k", .block = {threads}, .shared_bytes = sizeof(simt::Words)};
constexpr LaunchShape one_warp{.kernel = "k", .block = {32}, .shared_bytes = sizeof(simt::Words)};
const std::string nothing = ": nothing orders the two";

template <Named named>
void run_named(FaultBench& b, bool fault) {
  b.run(one_block, simt::hand_over, b.fresh<int>(32), fault ? named : Named::correct);
}
template <Registers registers>
void run_registers(FaultBench& b, bool fault) {
  b.run({.kernel = "k", .block = {384}}, simt::share_registers,
        fault ? registers : Registers::correct);
}

const SeededFault faults[] = {
    {"NoBarrierBeforeReading",
     FoundBy::races,
     [](FaultBench& b, bool fault) {
       b.run(one_block, simt::add_neighbour, b.fresh<int>(threads), fault);
     },
     {"race: thread (*) reads 4 bytes at simt_faults_threads_test.cpp:*, at byte * of shared "
      "memory, which thread (*) wrote at simt_faults_threads_test.cpp:*" +
          nothing,
      "race: thread (*) writes 4 bytes at *, which thread (*) read at *" + nothing,
      "where nothing has been written"}},
    {"NoBarrierBeforeReadingPlainly",
     FoundBy::plain_accesses,
     [](FaultBench& b, bool fault) {
       b.run(one_block, simt::add_neighbour_plainly, b.fresh<int>(threads), fault);
     },
     {"race: thread (*) reads 4 bytes at simt_faults_threads_test.cpp:*, which thread (*) wrote at "
      "simt_faults_threads_test.cpp:*" +
          nothing,
      "where nothing has been written"}},
    {"NoBarrierBeforeWritingAgain",
     FoundBy::races,
     [](FaultBench& b, bool fault) {
       b.run(one_block, simt::change_after_read, b.fresh<int>(threads), fault);
     },
     {"race: thread (0, 0, 0) writes 4 bytes at *, at byte 0 of shared memory, which thread (*) "
      "read at *" +
          nothing,
      "race: thread (*) reads 4 bytes at *, which thread (0, 0, 0) wrote at *" + nothing}},
    {"TwoThreadsWriteOneWord",
     FoundBy::races,
     [](FaultBench& b, bool fault) { b.run(one_block, simt::write_one_word, fault); },
     {"race: thread (*) writes 4 bytes at *, at byte 0 of shared memory, which thread (*) wrote"}},
    {"TwoThreadsWriteOneByte",
     FoundBy::races,
     [](FaultBench& b, bool fault) { b.run(one_block, simt::write_bytes, fault); },
     {"race: thread (*) writes 1 bytes at *, which thread (*) wrote"}},
    {"NoSyncwarp",
     FoundBy::races,
     [](FaultBench& b, bool fault) {
       b.run(one_warp, simt::exchange_in_warp, b.fresh<int>(32),
             fault ? WarpExchange::with_nothing : WarpExchange::with_syncwarp);
     },
     {"race: thread (*) reads 4 bytes at *, which thread (*) wrote at *" + nothing,
      "race: thread (*) writes 4 bytes at *, which thread (*) read at *" + nothing,
      "where nothing has been written"}},
    {"AShuffleOrdersNoMemory",
     FoundBy::races,
     [](FaultBench& b, bool fault) {
       b.run(one_warp, simt::exchange_in_warp, b.fresh<int>(32),
             fault ? WarpExchange::with_shuffle : WarpExchange::with_syncwarp);
     },
     {"race: thread (*) reads 4 bytes at *, which thread (*) wrote at *" + nothing}},
    {"ReadsACountTooEarly",
     FoundBy::races,
     [](FaultBench& b, bool fault) {
       b.run(one_block, simt::count_and_read, b.fresh<int>(1), fault);
     },
     {"race: thread (0, 0, 0) reads 4 bytes at *, which thread (*) changed atomically at *",
      "race: thread (*) changes atomically 4 bytes at *, which thread (0, 0, 0) read at *"}},
    {"ResetsACountTooLate",
     FoundBy::races,
     [](FaultBench& b, bool fault) { b.run(one_block, simt::reset_while_counting, fault); },
     {"race: thread (*) changes atomically 4 bytes at *, which thread (0, 0, 0) wrote at *",
      "race: thread (0, 0, 0) writes 4 bytes at *, which thread (*) changed atomically",
      "where nothing has been written"}},
    {"LanesAtTwoBarriers",
     FoundBy::calls,
     [](FaultBench& b, bool fault) { b.run(one_block, simt::diverge, fault); },
     {"divergent barrier: __syncthreads() at simt_faults_threads_test.cpp:* while other lanes of "
      "its warp wait at simt_faults_threads_test.cpp:*"}},
    {"ThreadsWaitForEver",
     FoundBy::calls,
     [](FaultBench& b, bool fault) { b.run(one_block, simt::wait_for_ever, fault); },
     {"kernel k, block (0, 0, 0): deadlock, no thread can go on\n  threads 0-39: in "
      "__syncthreads() at simt_faults_threads_test.cpp:*\n  threads 40-47: in a warp vote of lanes "
      "0xffffffff at simt_faults_threads_test.cpp:*\n  threads 48-63: returned"}},
    {"ShufflesFromALaneThatIsNotThere",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       b.run(one_warp, simt::shuffle_from_returned_lane, b.fresh<int>(32), fault);
     },
     {"a warp shuffle at *: lane 0 reads lane 31, which is not there"}},
    {"LeavesItselfOut",
     FoundBy::calls,
     [](FaultBench& b, bool fault) { b.run(one_warp, simt::leave_itself_out, fault); },
     {"has mask 0x00000001, without its own lane"}},
    {"ReducesDifferently",
     FoundBy::calls,
     [](FaultBench& b, bool fault) { b.run(one_warp, simt::reduce_differently, fault); },
     {"the lanes ask for different reductions"}},

    {"ArrivesInsteadOfWaiting",
     FoundBy::races,
     run_named<Named::arrives_instead_of_waiting>,
     {"race: thread (*) reads 4 bytes at *, which thread (*) wrote at *" + nothing,
      "race: thread (*) writes 4 bytes at *, which thread (*) read at *" + nothing,
      "where nothing has been written"}},
    {"BarrierCountsDiffer",
     FoundBy::calls,
     run_named<Named::counts_differ>,
     {"race: thread (*) writes 4 bytes at *, which thread (*) read at *" + nothing,
      "bar.sync 1 at *: 32 threads, others who are there gave 64",
      "bar.arrive 1 at *: 64 threads, others who are there gave 32", "left with 32 of 64 threads",
      "where nothing has been written"}},
    {"BarrierWaitsForThreadsThatAreNotThere",
     FoundBy::calls,
     run_named<Named::too_few>,
     {"threads 32-63: in bar.sync 1 at *, where 64 of 96 threads are"}},
    {"HalfAWarpAtABarrier",
     FoundBy::calls,
     run_named<Named::half_a_warp>,
     {"threads 32-47: in bar.sync 1 at *, where 48 of 64 threads are"}},
    {"BarrierOfAnOddCount",
     FoundBy::calls,
     run_named<Named::odd_count>,
     {"63 threads are not a multiple of 32"}},
    {"ArrivesTwiceAtABarrier",
     FoundBy::calls,
     run_named<Named::arrives_twice>,
     {"bar.arrive 1 at *: the thread has arrived already"}},
    {"BarrierNumberTooHigh",
     FoundBy::calls,
     run_named<Named::number_too_high>,
     {"a block has barriers 0 to 15"}},
    {"ArrivesWithoutACount",
     FoundBy::calls,
     run_named<Named::no_count>,
     {"bar.arrive 1 at simt_faults_threads_test.cpp:*: needs a number of threads"}},
    {"LeavesABarrierHalfFull",
     FoundBy::calls,
     run_named<Named::nobody_waits>,
     {"block (0, 0, 0), thread (0, 0, 0): bar.arrive 1 at simt_faults_threads_test.cpp:*: left "
      "with 32 of 64 threads when the block ends"}},
    {"HalfOfEachWarpAtABarrier",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       b.run({.kernel = "k", .block = {128}}, simt::meet_in_halves, fault);
     },
     {"barrier 1 at simt_faults_threads_test.cpp:* counts whole warps, and of warp 0 come lanes "
      "0x0000ffff alone"}},

    {"NoRegistersToGrow",
     FoundBy::calls,
     run_registers<Registers::nothing_given_back>,
     {"in setmaxnreg.inc 232 at *, and * registers are free"}},
    {"GrowsToFewerRegisters",
     FoundBy::calls,
     run_registers<Registers::gives_back_more>,
     {"setmaxnreg at *: the warp has 168 registers each thread, more than 24"}},
    {"OneWarpKeepsOtherRegisters",
     FoundBy::calls,
     run_registers<Registers::other_warps>,
     {"block (0, 0, 0), thread (96, 0, 0): warps 0 and 3 of one warpgroup executed different wgmma "
      "or setmaxnreg: at simt_faults_threads_test.cpp:*, and at simt_faults_threads_test.cpp:*"}},
};

INSTANTIATE_TEST_SUITE_P(Threads, FaultCorpus, ::testing::ValuesIn(faults), fault_name);

}  // namespace
}  // namespace orchard::testing
