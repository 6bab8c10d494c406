// Accesses that go astray, and reads of what nobody has written.
#include "tests/kernels/fault_corpus.h"

namespace orchard::simt {
namespace {

// out[i] = in[i] for `count` elements from `first` on, one thread each.
template <class T>
__global__ void copy_elements(const T* in, T* out, int first, int count) {
  const auto i = static_cast<int>(threadIdx.x);
  if (i < count) store(out + first + i, load(in + first + i));
}

__global__ void write_plainly(float* out, int i) {
  out[i] = 1;
}

__global__ void read_plainly(const float* in, float* out, int i) {
  store(out, in[i]);
}

__global__ void load_word(const int* in, int* out, bool as_shared) {
  store(out, as_shared ? load_shared(in) : load(in));
}

__global__ void add_atomically(int* count, int i) {
  atomicAdd(count + i, 1);
}

struct Pair {
  int first[7];
  alignas(64) int second[8];
};

// The last element of `first` and what lies `more` elements behind it.
__global__ void read_behind_first(int* out, int more) {
  auto& shared = shared_storage<Pair>();
  if (threadIdx.x == 0) {
    for (int i = 0; i < 7; ++i) store_shared(shared.first + i, i);
    for (int i = 0; i < 8; ++i) store_shared(shared.second + i, i);
    store(out, load_shared(shared.first + 6 + more));
  }
}

__global__ void write_shared(int i) {
  auto& shared = shared_storage<Pair>();
  store_shared(shared.second + i, 1);
}

__global__ void write_shared_plainly(int i) {
  auto& shared = shared_storage<Pair>();
  const_cast<volatile int*>(shared.second)[i] = 1;
}

// Reads one element, of which `written` says whether it has been set.
__global__ void read_element(int* out, bool written, bool plainly) {
  auto& shared = shared_storage<Pair>();
  if (written) shared.first[2] = 3;
  store(out, plainly ? shared.first[2] : load_shared(shared.first + 2));
}

}  // namespace
}  // namespace orchard::simt

namespace orchard::testing {
namespace {

constexpr LaunchShape one_warp{.kernel = "k", .block = {32}, .shared_bytes = sizeof(simt::Pair)};
constexpr LaunchShape one_thread{.kernel = "k", .block = {1}, .shared_bytes = sizeof(simt::Pair)};
constexpr int n = 24;

const SeededFault faults[] = {
    {"LoadsOnePastTheEnd",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       b.run(one_warp, simt::copy_elements<float>, b.zeros<float>(n), b.fresh<float>(n + 1), 0,
             n + fault);
     },
     {"block (0, 0, 0), thread (24, 0, 0): reads 4 bytes at simt_faults_memory_test.cpp:*, at "
      "byte 96 of an allocation of 96 bytes"}},
    {"StoresOnePastTheEnd",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       b.run(one_warp, simt::copy_elements<float>, b.zeros<float>(n + 1), b.fresh<float>(n), 0,
             n + fault);
     },
     {"thread (24, 0, 0): writes 4 bytes at simt_faults_memory_test.cpp:*, at byte 96 of an "
      "allocation of 96 bytes"}},
    {"LoadsOneBeforeTheStart",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       b.zeros<float>(n);
       b.run(one_warp, simt::copy_elements<float>, b.zeros<float>(n), b.fresh<float>(n),
             fault ? -1 : 0, n);
     },
     {"thread (0, 0, 0): reads 4 bytes at simt_faults_memory_test.cpp:*, 4 bytes before the start "
      "of an allocation of 96 bytes"}},
    {"LoadsFreedMemory",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       b.run(one_warp, simt::copy_elements<float>, fault ? b.freed<float>(n) : b.zeros<float>(n),
             b.fresh<float>(n), 0, n);
     },
     {"of a freed allocation of 96 bytes"}},
    {"LoadsHostMemory",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       static const float host[n] = {};
       b.run(one_warp, simt::copy_elements<float>, fault ? host : b.zeros<float>(n),
             b.fresh<float>(n), 0, n);
     },
     {"not an address of this device"}},
    {"LoadsGlobalMemoryAsShared",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       b.run(one_thread, simt::load_word, b.zeros<int>(1), b.fresh<int>(1), fault);
     },
     {"reads 4 bytes at simt_faults_memory_test.cpp:*, which are not shared memory"}},
    {"LoadsAMisalignedVector",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       const float* const in = b.zeros<float>(n) + (fault ? 1 : 0);
       b.run(one_warp, simt::copy_elements<simt::uint4>, reinterpret_cast<const simt::uint4*>(in),
             b.fresh<simt::uint4>(5), 0, 5);
     },
     {"reads 16 bytes at simt_faults_memory_test.cpp:*, at an address not aligned to them"}},
    {"WritesPlainlyPastTheEnd",
     FoundBy::calls,  // where plain accesses are not announced, by the red zone
     [](FaultBench& b, bool fault) {
       b.run(one_thread, simt::write_plainly, b.fresh<float>(n), fault ? n : n - 1);
     },
     {"writes 4 bytes at simt_faults_memory_test.cpp:*, at byte 96 of an allocation of 96 bytes",
      "kernel k wrote, without store(), at byte 96 of an allocation of 96 bytes"}},
    {"ReadsPlainlyPastTheEnd",
     FoundBy::plain_accesses,
     [](FaultBench& b, bool fault) {
       b.run(one_thread, simt::read_plainly, b.zeros<float>(n), b.fresh<float>(1),
             fault ? n : n - 1);
     },
     {"reads 4 bytes at simt_faults_memory_test.cpp:*, at byte 96 of an allocation of 96 bytes"}},
    {"AddsAtomicallyPastTheEnd",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       b.run(one_warp, simt::add_atomically, b.zeros<int>(n), fault ? n : n - 1);
     },
     {"writes 4 bytes at simt_faults_memory_test.cpp:*, at byte 96 of an allocation of 96 bytes"}},
    {"LoadsWhatNobodyWrote",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       b.run(one_warp, simt::copy_elements<float>, fault ? b.fresh<float>(n) : b.zeros<float>(n),
             b.fresh<float>(n), 0, n);
     },
     {"reads 4 bytes at simt_faults_memory_test.cpp:*, at byte "}},
    {"LoadsACopyOfWhatNobodyWrote",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       float* const from = fault ? b.fresh<float>(n) : b.zeros<float>(n);
       float* const to = b.zeros<float>(n);
       b.stream().copy(FaultBench::bytes(to, n), FaultBench::bytes(from, n));
       b.run(one_warp, simt::copy_elements<float>, to, b.fresh<float>(n), 0, n);
     },
     {"of an allocation of 96 bytes, where nothing has been written"}},
    {"CountsFromWhatNobodyWrote",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       b.run(one_warp, simt::add_atomically, fault ? b.fresh<int>(n) : b.zeros<int>(n), 3);
     },
     {"at byte 12 of an allocation of 96 bytes, where nothing has been written"}},
    {"ReadsBetweenTwoMembers",
     FoundBy::plain_accesses,
     [](FaultBench& b, bool fault) {
       b.run(one_warp, simt::read_behind_first, b.fresh<int>(1), fault ? 1 : 0);
     },
     {"reads 4 bytes at simt_faults_memory_test.cpp:*, at byte 28 of shared memory, where nothing "
      "has been written"}},
    {"StoresPastSharedMemory",
     FoundBy::calls,
     [](FaultBench& b, bool fault) { b.run(one_thread, simt::write_shared, fault ? 16 : 7); },
     {"writes 4 bytes at simt_faults_memory_test.cpp:*, at byte 128 of 128 bytes of shared"}},
    {"WritesPlainlyPastSharedMemory",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       b.run(one_thread, simt::write_shared_plainly, fault ? 16 : 7);
     },
     {"writes 4 bytes at simt_faults_memory_test.cpp:*, at byte 128 of 128 bytes of shared",
      "block (0, 0, 0) wrote at byte 128 of its 128 bytes of shared memory"}},
    {"AsksForMoreSharedMemoryThanItsLaunch",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       b.run({.kernel = "k", .block = {1}, .shared_bytes = sizeof(simt::Pair) - (fault ? 1u : 0u)},
             simt::write_shared, 0);
     },
     {"128 bytes of shared memory at simt_faults_memory_test.cpp:*, the launch asked for 127"}},
    {"LoadsSharedMemoryThatNobodyWrote",
     FoundBy::plain_accesses,
     [](FaultBench& b, bool fault) {
       b.run(one_thread, simt::read_element, b.fresh<int>(1), !fault, false);
     },
     {"at byte 8 of shared memory, where nothing has been written"}},
    {"ReadsPlainlySharedMemoryThatNobodyWrote",
     FoundBy::plain_accesses,
     [](FaultBench& b, bool fault) {
       b.run(one_thread, simt::read_element, b.fresh<int>(1), !fault, true);
     },
     {"reads 4 bytes at simt_faults_memory_test.cpp:*, at byte 8 of shared memory, where nothing "
      "has been written"}},
};

INSTANTIATE_TEST_SUITE_P(Memory, FaultCorpus, ::testing::ValuesIn(faults), fault_name);

}  // namespace
}  // namespace orchard::testing
