// Finds pairs of accesses to the same bytes, one of them a write, that nothing orders: by
// happens-before, so that one run finds what any run with the same accesses could suffer from, in
// whatever order the threads happened to run.
//
// Each thread has a clock (clock.h). Barriers, mbarriers, and atomic operations between two
// __threadfence join clocks; shuffles and votes do not. A recorded access is ordered before what a
// thread does now when the thread's clock has come to its epoch. An asynchronous operation is an
// access of its own that is over once somebody has waited for it: until then it is ordered before
// nothing.
//
// Two proxies reach memory: the generic one of ordinary accesses and cp.async, and the async one of the
// copy engine and wgmma. What was written through the generic proxy and is read or written through
// the async one must also have passed a fence.proxy.async, which a second clock keeps track of.
//
// Of what blocks that have ended did to a piece of global memory, the last write and one read are
// kept, not all reads. The order of accesses of one thread is that of its program.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels/gpu/launch_shape.h"
#include "kernels/simt/clock.h"
#include "kernels/simt/heap.h"
#include "kernels/simt/race_cells.h"
#include "kernels/simt/runtime.h"

namespace orchard::simt {

using Operation = std::uint32_t;  // number of an asynchronous one; 0: none

// Operations in the groups that they were committed in: the members of one end together.
struct OperationGroups {
  Operation open = 0;
  std::deque<Operation> committed;
};

// What a thread knows.
struct Participant {
  std::uint32_t block = 0;   // number in the grid
  std::uint16_t thread = 0;  // number in the block: as an actor, too
  std::uint32_t warp_actor = 0;
  Epoch epoch = 1;
  Epoch fenced = 0;      // of its own, up to which the async proxy sees its writes
  Epoch warp_epoch = 0;  // of its warp's asynchronous operations, that have been waited for
  Clock known, proxied;  // of others; proxied: seen by the async proxy
  Clock heard;           // through atomic operations; known after the next __threadfence
  Clock released;        // at the last __threadfence
  OperationGroups copies;
};

// What is handed over at a synchronisation whose sides do not meet at once.
struct Signal {
  Clock known, proxied;
};

// Bytes of global memory (offset in the heap), or of a resident block's shared memory.
struct Bytes {
  Space space;
  unsigned rank;
  std::size_t offset, size;
};

enum class AccessMode : std::uint8_t { read, write, atomic };

class RaceChecker {
 public:
  explicit RaceChecker(const Heap& heap) : heap_(heap) {}

  void begin_launch(const LaunchShape& shape);
  // Blocks become resident together; `shared_memories` of them.
  void begin_blocks(unsigned shared_memories);
  void end_block(std::uint32_t block) { ended_[block] = true; }

  // Throw Error when nothing orders this access after an earlier one.
  void access(Participant& self, const Bytes& bytes, AccessMode mode, Site site);
  // By an asynchronous operation that `self` issues now.
  void access(Participant& self, Operation operation, const Bytes& bytes, AccessMode mode,
              Proxy proxy, Site site);

  // An atomic operation hands on what was fenced before it, and hears what others handed on.
  void exchange(Participant& self, const Bytes& bytes);

  Operation begin_operation();
  // It is over for those who know that `actor` of `block` has come to `epoch`.
  void end_operation(Operation operation, std::uint32_t block, std::uint32_t actor, Epoch epoch);

  // The operation of the group that is open.
  Operation open(OperationGroups& groups) {
    return groups.open ? groups.open : groups.open = begin_operation();
  }
  static void commit(OperationGroups& groups) {
    groups.committed.push_back(groups.open);
    groups.open = 0;
  }
  // `self` has waited until at most `pending` groups are in flight.
  void end_groups(OperationGroups& groups, std::size_t pending, Participant& self);
  // The same of a warp's groups: all its lanes have.
  void end_groups(OperationGroups& groups, std::size_t pending,
                  std::span<Participant* const> lanes);

  // All wait for all, and for those that have left a signal.
  static void synchronise(std::span<Participant* const> participants, Signal all);
  static void release(Participant& self, Signal& to);
  static void acquire(Participant& self, const Signal& from) {
    self.known.join(from.known);
    self.proxied.join(from.proxied);
  }
  static void fence_proxy(Participant& self);
  static void fence_memory(Participant& self);

  // "thread (1, 0, 0)", of block (0, 1, 0) if that is not `self`'s.
  std::string name(const Participant& self, std::uint32_t block, unsigned thread) const;

 private:
  struct Ended {
    std::uint32_t block = 0;
    std::uint32_t actor = 0;
    Epoch epoch = 0;  // 0: not yet
  };

  bool is_before(const RecordedAccess& earlier, const Participant& self, bool fenced) const;
  void check(RaceCells& cells, Participant& self, const Bytes& bytes, AccessMode mode,
             const RecordedAccess& access);
  [[noreturn]] void report(const Participant& self, const Bytes& bytes, AccessMode mode,
                           const RecordedAccess& access, const RecordedAccess& earlier,
                           AccessMode earlier_mode) const;
  static void publish(const Participant& self, Signal& to);

  const Heap& heap_;
  LaunchShape shape_{};
  std::vector<bool> ended_;  // blocks
  std::vector<Ended> operations_;
  RaceCells global_;
  std::vector<RaceCells> shared_;                       // by rank
  std::unordered_map<std::uint64_t, Clock> published_;  // by address of an atomic operation
};

}  // namespace orchard::simt
