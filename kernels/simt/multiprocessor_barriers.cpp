// How the threads of a block, a cluster and a grid wait for each other.
#include <algorithm>
#include <bit>
#include <iterator>
#include <utility>

#include "kernels/simt/fault.h"
#include "kernels/simt/multiprocessor.h"

namespace orchard::simt {
namespace {

constexpr unsigned warp_size = 32;

std::string name_of(const BarrierUse& use, bool wait) {
  if (wait && use == BarrierUse{}) return "__syncthreads()";
  return fmt::format("bar.{} {}", wait ? "sync" : "arrive", use.number);
}

// "threads 0-15, 17"
std::string ranges(const std::vector<std::size_t>& numbers) {
  std::string out = numbers.size() == 1 ? "thread " : "threads ";
  for (std::size_t i = 0; i < numbers.size();) {
    std::size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    fmt::format_to(std::back_inserter(out), "{}{}", i ? ", " : "", numbers[i]);
    if (last > i) fmt::format_to(std::back_inserter(out), "-{}", numbers[last]);
    i = last + 1;
  }
  return out;
}

}  // namespace

// ---- the barriers of a block -------------------------------------------------------------------

void Multiprocessor::barrier(BarrierUse use, bool wait, Where where) {
  Thread& self = *current_;
  Block& block = *self.block;
  const auto refuse_use = [&](const std::string& reason) {
    fail("{}: {} at {}: {}", place(), name_of(use, wait), text(where), reason);
  };
  if (use.number >= block.barriers.size()) refuse_use("a block has barriers 0 to 15");
  if (use.threads % warp_size != 0) {
    refuse_use(fmt::format("{} threads are not a multiple of 32", use.threads));
  }
  if (!wait && use.threads == 0) refuse_use("needs a number of threads");
  BlockBarrier& barrier = block.barriers[use.number];
  if (barrier.arrived == 0) {
    barrier.expected = use.threads;
    barrier.warps.assign(block.warps.size(), {});
  }
  if (barrier.expected != use.threads) {
    refuse_use(
        fmt::format("{} threads, others who are there gave {}", use.threads, barrier.expected));
  }
  BlockBarrier::OfWarp& own = barrier.warps[warp_index()];
  if (own.lanes == 0) own.where = where;
  if (own.lanes >> self.lane & 1) refuse_use("the thread has arrived already");
  if (own.where != where) {
    fail("{}: divergent barrier: {} at {} while other lanes of its warp wait at {}", place(),
         name_of(use, wait), text(where), text(own.where));
  }
  own.lanes |= 1u << self.lane;
  ++barrier.arrived;
  announced_ = {};
  const bool is_last = barrier.arrived == (barrier.expected ? barrier.expected : block.live);
  if (wait) {
    barrier.waiting.push_back(&self);
    self.waiting = {.what = Waiting::For::barrier, .barrier = use, .where = where};
  } else if (races_) {
    races_->release(self.knowledge, barrier.signal);
  }
  if (is_last) {
    if (wait) barrier.waiting.pop_back();
    complete_barrier(block, use.number, wait ? &self : nullptr);
  } else if (wait) {
    this->wait();
  }
}

// `self` is the last that came and would have waited.
void Multiprocessor::complete_barrier(Block& block, unsigned number, Thread* self) {
  BlockBarrier& barrier = block.barriers[number];
  ++counters_.block_barriers;
  for (std::size_t w = 0; w < block.warps.size(); ++w) {
    Warp& warp = block.warps[w];
    const unsigned lanes = barrier.warps[w].lanes;
    if (lanes == 0) continue;
    if ((lanes & warp.live) != warp.live) {
      fail("{}: barrier {} at {} counts whole warps, and of warp {} come lanes {:#010x} alone",
           place_of(block), number, text(barrier.warps[w].where), w, lanes);
    }
    count_warp(warp);
  }
  if (races_) {
    std::vector<Participant*> participants;
    for (Thread* const thread : barrier.waiting) participants.push_back(&thread->knowledge);
    if (self) participants.push_back(&self->knowledge);
    RaceChecker::synchronise(participants, std::move(barrier.signal));
  }
  barrier.signal = {};
  barrier.arrived = 0;
  wake(barrier.waiting);
}

void Multiprocessor::returned() {
  Thread& self = *current_;
  Block& block = *self.block;
  check_end(self);
  self.bulk.leave_all();
  self.returned = true;
  --live_;
  --block.live;
  Warp& warp = *self.warp;
  warp.live &= ~(1u << self.lane);
  if (warp.live == 0) {
    check_end(warp);
    count_warp(warp);
  }
  // Nobody waits for a thread that has returned: it may be the last one that others waited for.
  for (std::size_t i = warp.collecting.size(); i-- > 0;) {
    const Collective& collective = warp.collecting[i];
    if (collective.arrived == (collective.mask & warp.live)) complete(warp, i);
  }
  for (unsigned number = 0; number < block.barriers.size(); ++number) {
    const BlockBarrier& barrier = block.barriers[number];
    if (barrier.arrived > 0 && barrier.expected == 0 && barrier.arrived == block.live) {
      complete_barrier(block, number, nullptr);
    }
  }
  if (block.live == 0) check_end(block);
  WideBarrier& cluster = block.cluster->barrier;
  ++cluster.returned;
  if (!(self.at_cluster_barrier && self.cluster_phase == cluster.phase)) ++cluster.arrived;
  complete_if_all_arrived(cluster);
}

// ---- wide barriers -----------------------------------------------------------------------------

void Multiprocessor::arrive(WideBarrier& barrier) {
  announced_ = {};
  ++barrier.arrived;
  if (races_) races_->release(current_->knowledge, barrier.arriving);
  complete_if_all_arrived(barrier);
}

void Multiprocessor::complete_if_all_arrived(WideBarrier& barrier) {
  if (barrier.arrived < barrier.threads) return;
  ++barrier.phase;
  barrier.arrived = barrier.returned;
  barrier.over = std::exchange(barrier.arriving, {});
  wake(barrier.waiting);
}

// Returns when the phase is over.
void Multiprocessor::wait_for_phase(WideBarrier& barrier, unsigned phase, Waiting::For what,
                                    Where where) {
  while (barrier.phase == phase) {
    barrier.waiting.push_back(current_);
    current_->waiting = {.what = what, .where = where};
    wait();
  }
  if (races_) RaceChecker::acquire(current_->knowledge, barrier.over);
}

void Multiprocessor::cluster_arrive(Where where) {
  Thread& self = *current_;
  WideBarrier& barrier = self.block->cluster->barrier;
  if (self.at_cluster_barrier) {
    fail("{}: barrier.cluster.arrive at {}: it has arrived already, and not waited", place(),
         text(where));
  }
  self.at_cluster_barrier = true;
  self.cluster_phase = barrier.phase;
  arrive(barrier);
}

void Multiprocessor::cluster_wait(Where where) {
  Thread& self = *current_;
  if (!self.at_cluster_barrier) {
    fail("{}: barrier.cluster.wait at {}: it has not arrived", place(), text(where));
  }
  wait_for_phase(self.block->cluster->barrier, self.cluster_phase, Waiting::For::cluster, where);
  self.at_cluster_barrier = false;
}

void Multiprocessor::grid_barrier(Where where) {
  if (shape_->residency != Residency::whole_grid) {
    fail("{}: grid barrier at {}: the launch did not ask for Residency::whole_grid", place(),
         text(where));
  }
  const unsigned phase = grid_barrier_.phase;
  arrive(grid_barrier_);
  wait_for_phase(grid_barrier_, phase, Waiting::For::grid, where);
}

void* Multiprocessor::map_to_rank(const void* address, unsigned rank, Where where) {
  const Block& block = *current_->block;
  if (rank >= cluster_blocks()) {
    fail("{}: mapa at {}: rank {} of a cluster of {} blocks", place(), text(where), rank,
         cluster_blocks());
  }
  if (!shared_.contains(address) || shared_.slot_of(address) != block.slot) {
    fail("{}: mapa at {}: the address is not in the block's own shared memory", place(),
         text(where));
  }
  return shared_.begin(block.slot - block.rank + rank) +
         shared_.offset_of(address) % SharedMemories::window;
}

// ---- warps -------------------------------------------------------------------------------------

void Multiprocessor::warp_collective(const WarpOperation& operation, unsigned mask, void* argument,
                                     Where where) {
  Thread& self = *current_;
  Warp& warp = *self.warp;
  if (!(mask >> self.lane & 1)) {
    fail("{}: {} at {} has mask {:#010x}, without its own lane {}", place(), operation.name,
         text(where), mask, self.lane);
  }
  std::size_t i = 0;
  while (i < warp.collecting.size() &&
         (warp.collecting[i].mask != mask || warp.collecting[i].operation != &operation)) {
    ++i;
  }
  if (i == warp.collecting.size()) warp.collecting.push_back({&operation, mask});
  Collective& collective = warp.collecting[i];
  collective.arrived |= 1u << self.lane;
  collective.arguments[self.lane] = argument;
  self.waiting = {
      .what = Waiting::For::warp_operation, .operation = &operation, .mask = mask, .where = where};
  announced_ = {};
  if (collective.arrived == (mask & warp.live)) return complete(warp, i);
  wait();
}

// Whoever can run goes on to where it waits. Of the lanes that then are here, the first to run again
// closes the group.
unsigned Multiprocessor::active_lanes(Where where) {
  Warp& warp = *current_->warp;
  const auto is_here = [&](const ActiveLanes& group) { return group.where == where; };
  auto group = std::find_if(warp.active.begin(), warp.active.end(), is_here);
  if (group == warp.active.end()) {
    group = warp.active.insert(group, {where, std::make_shared<unsigned>(0)});
  }
  const std::shared_ptr<unsigned> lanes = group->lanes;
  *lanes |= 1u << current_->lane;
  queue_.push(current_);
  wait();
  std::erase_if(warp.active, [&](const ActiveLanes& open) { return open.lanes == lanes; });
  return *lanes;
}

void Multiprocessor::complete(Warp& warp, std::size_t index) {
  const Collective collective = warp.collecting[index];
  warp.collecting.erase(warp.collecting.begin() + static_cast<std::ptrdiff_t>(index));
  if ((collective.mask & warp.live) == warp.live) count_warp(warp);
  ++counters_.warp_collectives;
  std::vector<Participant*> participants;
  for (unsigned lanes = collective.arrived; lanes; lanes &= lanes - 1) {
    Thread* const thread = warp.lanes[static_cast<std::size_t>(std::countr_zero(lanes))];
    if (thread != current_) queue_.push(thread);
    if (races_) participants.push_back(&thread->knowledge);
  }
  // Of the warp's operations only this one orders accesses to memory.
  if (races_ && collective.operation == &syncwarp_operation) {
    RaceChecker::synchronise(participants, {});
  }
  try {
    collective.operation->execute(collective.arguments);
  } catch (const Fault&) {
    throw;
  } catch (const Error& error) {
    const auto first = static_cast<std::size_t>(std::countr_zero(collective.arrived));
    fail("{}: {} at {}: {}", place(), collective.operation->name,
         text(warp.lanes[first]->waiting.where), error.what());
  }
}

void Multiprocessor::change_registers(unsigned count, bool grow) {
  Warp& warp = *current_->warp;
  require(count >= 24 && count <= 256 && count % 8 == 0,
          "{} registers are not a multiple of 8 within 24 .. 256", count);
  require(warp.wanted_registers == 0, "the warp still waits for registers");
  warp.wgmma.note({{count}, warp.lanes[0]->waiting.where});
  if (grow) {
    require(count >= warp.registers, "the warp has {} registers each thread, more than {}",
            warp.registers, count);
    warp.wanted_registers = count;
  } else {
    require(count <= warp.registers, "the warp has {} registers each thread, less than {}",
            warp.registers, count);
    current_->block->free_registers += warp_size * (warp.registers - count);
    warp.registers = count;
  }
  grant_registers(*current_->block);
}

void Multiprocessor::grant_registers(Block& block) {
  for (Warp& warp : block.warps) {
    if (warp.wanted_registers == 0) continue;
    const unsigned more = warp_size * (warp.wanted_registers - warp.registers);
    if (more > block.free_registers) continue;
    block.free_registers -= more;
    warp.registers = std::exchange(warp.wanted_registers, 0);
    for (Thread* const thread : warp.lanes) {
      const auto waiting =
          std::find(block.waiting_for_registers.begin(), block.waiting_for_registers.end(), thread);
      if (waiting == block.waiting_for_registers.end()) continue;
      queue_.push(thread);
      block.waiting_for_registers.erase(waiting);
    }
  }
}

void Multiprocessor::wait_for_registers(Where where) {
  while (current_->warp->wanted_registers != 0) {
    current_->block->waiting_for_registers.push_back(current_);
    current_->waiting = {.what = Waiting::For::registers, .where = where};
    wait();
  }
}

// ---- messages --------------------------------------------------------------------------------

void Multiprocessor::refuse(std::size_t bytes, Access kind, Site site,
                            const std::string& reason) const {
  throw Fault(fmt::format("{}: {} {} bytes at {}, {}", place(),
                          kind == Access::read ? "reads" : "writes", bytes, site.text(), reason));
}

std::string Multiprocessor::place_of(const Block& block) const {
  return fmt::format("kernel {}, block ({}, {}, {})", shape_->kernel, block.index.x, block.index.y,
                     block.index.z);
}

std::string Multiprocessor::place_of(const Thread& thread) const {
  const uint3& t = thread.index;
  return fmt::format("{}, thread ({}, {}, {})", place_of(*thread.block), t.x, t.y, t.z);
}

std::string Multiprocessor::place() const {
  return place_of(*current_);
}

std::string Multiprocessor::state_of(const Thread& thread) {
  if (thread.returned) return "returned";
  const Waiting& waiting = thread.waiting;
  const std::string where = text(waiting.where);
  switch (waiting.what) {
    case Waiting::For::warp_operation:
      return fmt::format("in {} of lanes {:#010x} at {}", waiting.operation->name, waiting.mask,
                         where);
    case Waiting::For::mbarrier:
      return fmt::format("in mbarrier.try_wait at {}, for byte {} of shared memory, which {}",
                         where, shared_.offset_of(waiting.mbarrier) % SharedMemories::window,
                         mbarriers_.state(waiting.mbarrier));
    case Waiting::For::barrier:
      if (waiting.barrier.threads == 0) {
        return fmt::format("in {} at {}", name_of(waiting.barrier, true), where);
      }
      return fmt::format("in {} at {}, where {} of {} threads are", name_of(waiting.barrier, true),
                         where, thread.block->barriers[waiting.barrier.number].arrived,
                         waiting.barrier.threads);
    case Waiting::For::cluster:
      return fmt::format("in barrier.cluster.wait at {}", where);
    case Waiting::For::grid:
      return fmt::format("in a grid barrier at {}", where);
    case Waiting::For::registers:
      return fmt::format("in setmaxnreg.inc {} at {}, and {} registers are free",
                         thread.warp->wanted_registers, where, thread.block->free_registers);
  }
  return {};
}

std::string Multiprocessor::deadlock() {
  std::string out;
  for (const Block& block : blocks_) {
    // Threads that wait for the same thing, in the order of their first.
    std::vector<std::pair<std::string, std::vector<std::size_t>>> groups;
    for (const Thread& thread : block.threads) {
      const std::string state = state_of(thread);
      auto group = std::find_if(groups.begin(), groups.end(),
                                [&](const auto& known) { return known.first == state; });
      if (group == groups.end()) group = groups.insert(group, {state, {}});
      group->second.push_back(thread.number);
    }
    fmt::format_to(std::back_inserter(out), "{}{}{}", out.empty() ? "" : "\n", place_of(block),
                   out.empty() ? ": deadlock, no thread can go on" : "");
    for (const auto& [state, members] : groups) {
      fmt::format_to(std::back_inserter(out), "\n  {}: {}", ranges(members), state);
    }
  }
  return out;
}

}  // namespace orchard::simt
