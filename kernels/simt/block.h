// The threads, warps, blocks and clusters that are resident at one time.
#pragma once

#include <array>
#include <boost/context/fiber.hpp>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/simt/access_log.h"
#include "kernels/simt/async_copies.h"
#include "kernels/simt/bulk_copies.h"
#include "kernels/simt/race_checker.h"
#include "kernels/simt/runtime.h"
#include "kernels/simt/stack_switch.h"
#include "kernels/simt/types.h"
#include "kernels/simt/wgmma_queue.h"

namespace orchard::simt {

struct Warp;
struct Block;
struct Thread;

// What a thread waits for, and where it called.
struct Waiting {
  enum class For : std::uint8_t { warp_operation, barrier, mbarrier, cluster, grid, registers };
  For what = For::barrier;
  const WarpOperation* operation = nullptr;
  unsigned mask = 0;  // of `operation`
  std::uint64_t* mbarrier = nullptr;
  BarrierUse barrier;
  Where where;
};

struct Thread {
  boost::context::fiber fiber;  // where it stopped; empty while it runs and after it returned
  StackBounds stack;
  uint3 index;
  unsigned number = 0;  // in its block
  unsigned lane = 0;
  Warp* warp = nullptr;
  Block* block = nullptr;
  bool returned = false;
  bool at_cluster_barrier = false;                 // it has arrived, and not waited
  unsigned cluster_phase = 0;                      // in which it has
  std::vector<std::uint64_t*> unfenced_mbarriers;  // that it has initialised
  Waiting waiting;
  AccessLog log;
  AsyncCopies copies;
  BulkGroups bulk;
  Participant knowledge;
};

// Lanes gathering for one operation.
struct Collective {
  const WarpOperation* operation;
  unsigned mask;
  unsigned arrived = 0;
  std::array<void*, 32> arguments{};
};

// Lanes that have come to one __activemask together.
struct ActiveLanes {
  Where where;
  std::shared_ptr<unsigned> lanes;
};

struct Warp {
  std::array<Thread*, 32> lanes{};
  unsigned live = 0;  // lanes that exist and have not returned
  std::vector<Collective> collecting;
  std::vector<ActiveLanes> active;
  WgmmaQueue wgmma;
  OperationGroups products;  // of wgmma, for the race checker
  unsigned registers = 0;    // of each thread
  unsigned wanted_registers = 0;
};

// One of the sixteen barriers of a block.
struct BlockBarrier {
  struct OfWarp {
    unsigned lanes = 0;  // that have arrived
    Where where;         // of the first of them
  };
  unsigned expected = 0;  // threads; 0: all that have not returned
  unsigned arrived = 0;
  std::vector<OfWarp> warps;
  std::vector<Thread*> waiting;
  Signal signal;  // of those that arrived and do not wait
};

// A barrier of a cluster or of the grid.
struct WideBarrier {
  std::size_t threads = 0;
  std::size_t arrived = 0;
  std::size_t returned = 0;  // count as arrived in every phase
  unsigned phase = 0;
  std::vector<Thread*> waiting;
  Signal arriving, over;
};

struct Cluster {
  WideBarrier barrier;
};

struct Block {
  uint3 index;
  std::uint32_t number = 0;  // in the grid
  unsigned slot = 0;         // among the resident blocks
  unsigned rank = 0;         // in its cluster
  Cluster* cluster = nullptr;
  std::span<Thread> threads;
  std::span<Warp> warps;
  std::size_t live = 0;  // threads that have not returned
  std::array<BlockBarrier, 16> barriers;
  unsigned mbarriers = 0;       // initialised so far
  unsigned free_registers = 0;  // of the multiprocessor's
  std::vector<Thread*> waiting_for_registers;
};

}  // namespace orchard::simt
