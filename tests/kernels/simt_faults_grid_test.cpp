// Blocks of a grid and of a cluster that do not wait for each other as they must.
#include "kernels/gpu/grid_barrier.h"
#include "kernels/ptx/cluster.h"
#include "tests/kernels/fault_corpus.h"

namespace orchard::simt {
namespace {

constexpr unsigned threads = 64;

struct Words {
  int word[threads];
};

// ---- blocks of a grid ------------------------------------------------------------------------

__global__ void write_from_every_block(int* out, bool fault) {
  if (threadIdx.x == 0) store(out + (fault ? 0 : blockIdx.x), 1);
}

__global__ void read_other_block(int* words, int* out, bool fault) {
  if (threadIdx.x != 0) return;
  store(words + blockIdx.x, 1);
  store(out + blockIdx.x, load(words + (blockIdx.x + (fault ? 1 : 0)) % gridDim.x));
}

enum class LastBlock : std::uint8_t { correct, no_fence_before, no_fence_after, no_barrier };

// The block that comes last adds what all have left.
__global__ void sum_in_last_block(int* words, unsigned* arrived, int* sum, LastBlock fault) {
  auto& shared = shared_storage<Words>();
  store(words + blockIdx.x * threads + threadIdx.x, 1);
  if (fault != LastBlock::no_barrier) __syncthreads();
  if (threadIdx.x == 0) {
    if (fault != LastBlock::no_fence_before) __threadfence();
    const unsigned before = atomicAdd(arrived, 1);
    if (fault != LastBlock::no_fence_after) __threadfence();
    store_shared(shared.word, static_cast<int>(before));
  }
  __syncthreads();
  if (load_shared(shared.word) != static_cast<int>(gridDim.x) - 1 || threadIdx.x != 0) return;
  int total = 0;
  for (unsigned i = 0; i < gridDim.x * threads; ++i) total += load(words + i);
  store(sum, total);
}

__global__ void exchange_over_grid(int* words, int* out, bool fault) {
  if (threadIdx.x == 0) store(words + blockIdx.x, 1);
  if (!fault) grid_sync();
  if (threadIdx.x == 0) store(out + blockIdx.x, load(words + (blockIdx.x + 1) % gridDim.x));
}

// ---- clusters --------------------------------------------------------------------------------

enum class InCluster : std::uint8_t {
  correct,
  no_barrier,
  ends_early,
  waits_unasked,
  arrives_twice,
  rank_too_high,
  address_is_the_peers,
};

// Each block takes the words of the next one.
__global__ void read_peer(int* out, InCluster fault) {
  auto& shared = shared_storage<Words>();
  const unsigned i = threadIdx.x, rank = cluster_rank();
  store_shared(shared.word + i, static_cast<int>(rank));
  if (fault == InCluster::waits_unasked) cluster_barrier_wait();
  if (fault != InCluster::no_barrier) {
    cluster_barrier_arrive();
    if (fault == InCluster::arrives_twice) cluster_barrier_arrive();
    cluster_barrier_wait();
  }
  const unsigned peer =
      fault == InCluster::rank_too_high ? rank + 1 : (rank + 1) % cluster_blocks();
  // Rank 0 ends while the last one still wants its words.
  if (fault == InCluster::ends_early) {
    if (rank == 0) return;
    cluster_barrier_arrive();
    cluster_barrier_wait();
  }
  int* own = shared.word + i;
  if (fault == InCluster::address_is_the_peers) own = in_block(own, peer);
  store(out + blockIdx.x * threads + i, load_shared(in_block(own, peer)));
  cluster_barrier_arrive();
  cluster_barrier_wait();
}

// ---- addresses that leave their cluster --------------------------------------------------------

// Each block leaves the address of its words, and reads those of a neighbour.
__global__ void exchange_addresses(const int** addresses, int* out, unsigned distance) {
  auto& shared = shared_storage<Words>();
  const unsigned i = threadIdx.x;
  store_shared(shared.word + i, 1);
  if (i == 0) store(addresses + blockIdx.x, shared.word);
  grid_sync();
  const int* const there = load(addresses + (blockIdx.x ^ distance));
  store(out + blockIdx.x * threads + i, load_shared(there + i));
  grid_sync();
}

// A single block, after those.
__global__ void read_at_address(const int* const* address, int* out) {
  auto& shared = shared_storage<Words>();
  const unsigned i = threadIdx.x;
  store_shared(shared.word + i, 1);
  store(out + i, load_shared(load(address) + i));
}

}  // namespace
}  // namespace orchard::simt

namespace orchard::testing {
namespace {

using simt::InCluster;
using simt::LastBlock;
using simt::threads;

constexpr LaunchShape blocks{
    .kernel = "k", .grid = {4}, .block = {threads}, .shared_bytes = sizeof(simt::Words)};
constexpr LaunchShape cluster{.kernel = "k",
                              .grid = {6},
                              .block = {threads},
                              .shared_bytes = sizeof(simt::Words),
                              .cluster = {3}};
// Resident together, two a cluster.
constexpr LaunchShape pairs{.kernel = "k",
                            .grid = {4},
                            .block = {threads},
                            .shared_bytes = sizeof(simt::Words),
                            .cluster = {2},
                            .residency = Residency::whole_grid};
const std::string nothing = ": nothing orders the two";

template <LastBlock last>
void run_last_block(FaultBench& b, bool fault) {
  b.run(blocks, simt::sum_in_last_block, b.fresh<int>(4 * threads), b.zeros<unsigned>(1),
        b.fresh<int>(1), fault ? last : LastBlock::correct);
}
template <InCluster in_cluster>
void run_cluster(FaultBench& b, bool fault) {
  b.run(cluster, simt::read_peer, b.fresh<int>(6 * threads),
        fault ? in_cluster : InCluster::correct);
}
const SeededFault faults[] = {
    {"BlocksWriteOneWord",
     FoundBy::races,
     [](FaultBench& b, bool fault) {
       b.run(blocks, simt::write_from_every_block, b.fresh<int>(4), fault);
     },
     {"race: thread (0, 0, 0) writes 4 bytes at *, at byte 0 of an allocation of 16 bytes, which "
      "thread (0, 0, 0) of block (*) wrote at *" +
      nothing}},
    {"ReadsWhatAnotherBlockWrites",
     FoundBy::races,
     [](FaultBench& b, bool fault) {
       b.run(blocks, simt::read_other_block, b.zeros<int>(4), b.fresh<int>(4), fault);
     },
     {"race: thread (0, 0, 0) reads 4 bytes at *, which thread (0, 0, 0) of block (*) wrote at *" +
          nothing,
      "race: thread (0, 0, 0) writes 4 bytes at *, which thread (0, 0, 0) of block (*) read at *" +
          nothing}},
    {"LastBlockWithoutAFenceBefore",
     FoundBy::races,
     run_last_block<LastBlock::no_fence_before>,
     {"race: thread (0, 0, 0) reads 4 bytes at *, which thread (*) of block (*) wrote at *"}},
    {"LastBlockWithoutAFenceAfter",
     FoundBy::races,
     run_last_block<LastBlock::no_fence_after>,
     {"race: thread (0, 0, 0) reads 4 bytes at *, which thread (*) of block (*) wrote at *"}},
    {"LastBlockWithoutABarrier",
     FoundBy::races,
     run_last_block<LastBlock::no_barrier>,
     {"race: thread (0, 0, 0) reads 4 bytes at *, which thread (*) of block (*) wrote at *"}},
    {"NoGridBarrier",
     FoundBy::races,
     [](FaultBench& b, bool fault) {
       LaunchShape shape = blocks;
       shape.residency = Residency::whole_grid;
       b.run(shape, simt::exchange_over_grid, b.zeros<int>(4), b.fresh<int>(4), fault);
     },
     {"race: thread (0, 0, 0) reads 4 bytes at *, which thread (0, 0, 0) of block (*) wrote at *",
      "race: thread (0, 0, 0) writes 4 bytes at *, which thread (0, 0, 0) of block (*) read at *"}},
    {"GridBarrierOfAnOrdinaryLaunch",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       LaunchShape shape = blocks;
       shape.residency = fault ? Residency::cluster : Residency::whole_grid;
       b.run(shape, simt::exchange_over_grid, b.zeros<int>(4), b.fresh<int>(4), false);
     },
     {"grid barrier at *: the launch did not ask for Residency::whole_grid"}},
    {"GridThatDoesNotFit",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       const unsigned count = fault ? 65 : 64;
       b.run(
           {.kernel = "k", .grid = {count}, .block = {threads}, .residency = Residency::whole_grid},
           simt::exchange_over_grid, b.zeros<int>(count), b.fresh<int>(count), false);
     },
     {"65 blocks cannot be resident together on 2 multiprocessors that hold 32 each"}},

    {"NoClusterBarrier",
     FoundBy::races,
     run_cluster<InCluster::no_barrier>,
     {"race: thread (*) reads 4 bytes at *, which thread (*) of block (*) wrote at *" + nothing,
      "race: thread (*) writes 4 bytes at *, which thread (*) of block (*) read at *" + nothing,
      "where nothing has been written"}},
    {"BlockEndsWhileItsPeersRead",
     FoundBy::calls,
     run_cluster<InCluster::ends_early>,
     {"in the shared memory of the cluster's block 0, which has ended"}},
    {"WaitsForAClusterUnasked",
     FoundBy::calls,
     run_cluster<InCluster::waits_unasked>,
     {"barrier.cluster.wait at *: it has not arrived"}},
    {"ArrivesTwiceInACluster",
     FoundBy::calls,
     run_cluster<InCluster::arrives_twice>,
     {"barrier.cluster.arrive at *: it has arrived already, and not waited"}},
    {"RankTooHigh",
     FoundBy::calls,
     run_cluster<InCluster::rank_too_high>,
     {"mapa at *: rank 3 of a cluster of 3 blocks"}},
    {"MapsAPeersAddress",
     FoundBy::calls,
     run_cluster<InCluster::address_is_the_peers>,
     {"mapa at simt_faults_grid_test.cpp:*: the address is not in the block's own shared memory"}},

    {"ReadsAnotherCluster",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       b.run(pairs, simt::exchange_addresses, b.fresh<const int*>(4), b.fresh<int>(4 * threads),
             fault ? 2u : 1u);
     },
     {"reads 4 bytes at simt_faults_grid_test.cpp:*, in the shared memory of a block of another "
      "cluster"}},
    {"ReadsSharedMemoryOfAnEarlierLaunch",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       const auto addresses = b.fresh<const int*>(4);
       const auto out = b.fresh<int>(4 * threads);
       b.run(pairs, simt::exchange_addresses, addresses, out, 1u);
       LaunchShape shape = blocks;
       shape.grid = {1};
       b.run(shape, simt::read_at_address, addresses + fault, out);
     },
     {"reads 4 bytes at simt_faults_grid_test.cpp:*, which are not shared memory"}},
};

INSTANTIATE_TEST_SUITE_P(Grid, FaultCorpus, ::testing::ValuesIn(faults), fault_name);

}  // namespace
}  // namespace orchard::testing
