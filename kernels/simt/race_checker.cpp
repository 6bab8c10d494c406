#include "kernels/simt/race_checker.h"

#include <utility>

#include "kernels/simt/fault.h"

namespace orchard::simt {
namespace {

std::string position(unsigned number, const Extent3& extent) {
  return fmt::format("({}, {}, {})", number % extent.x, number / extent.x % extent.y,
                     number / extent.x / extent.y);
}

}  // namespace

void RaceChecker::begin_launch(const LaunchShape& shape) {
  shape_ = shape;
  ended_.assign(shape.grid.volume(), false);
  operations_.assign(1, {});
  global_.clear();
  published_.clear();
}

void RaceChecker::begin_blocks(unsigned shared_memories) {
  shared_.resize(shared_memories);
  for (RaceCells& cells : shared_) cells.clear();
}

// ---- accesses --------------------------------------------------------------------------------

// Whether what was recorded comes before what `self` does now; `fenced`: for the async proxy, after
// an access through the generic one.
bool RaceChecker::is_before(const RecordedAccess& earlier, const Participant& self,
                            bool fenced) const {
  std::uint32_t block = earlier.block;
  std::uint32_t actor = earlier.thread;
  Epoch epoch = earlier.when;
  if (earlier.is_operation) {
    const Ended& ended = operations_[earlier.when];
    if (ended.epoch == 0) return false;
    block = ended.block;
    actor = ended.actor;
    epoch = ended.epoch;
  }
  if (block == self.block) {
    if (actor == self.thread) return epoch <= (fenced ? self.fenced : self.epoch);
    if (actor == self.warp_actor) return epoch <= self.warp_epoch;
  }
  return (fenced ? self.proxied : self.known).of(block, actor) >= epoch;
}

void RaceChecker::access(Participant& self, const Bytes& bytes, AccessMode mode, Site site) {
  const RecordedAccess access{.site = site,
                              .block = self.block,
                              .when = self.epoch,
                              .thread = self.thread,
                              .is_operation = false,
                              .proxy = Proxy::generic};
  check(bytes.space == Space::global ? global_ : shared_[bytes.rank], self, bytes, mode, access);
}

void RaceChecker::access(Participant& self, Operation operation, const Bytes& bytes,
                         AccessMode mode, Proxy proxy, Site site) {
  const RecordedAccess access{.site = site,
                              .block = self.block,
                              .when = operation,
                              .thread = self.thread,
                              .is_operation = true,
                              .proxy = proxy};
  check(bytes.space == Space::global ? global_ : shared_[bytes.rank], self, bytes, mode, access);
}

void RaceChecker::check(RaceCells& cells, Participant& self, const Bytes& bytes, AccessMode mode,
                        const RecordedAccess& access) {
  const auto collides = [&](const RecordedAccess& earlier) {
    return !is_before(earlier, self, false);
  };
  // A read through the generic proxy needs no fence before a write through the async one.
  const auto written_collides = [&](const RecordedAccess& earlier) {
    const bool fenced = access.proxy == Proxy::async && earlier.proxy == Proxy::generic;
    return !is_before(earlier, self, fenced);
  };
  const auto is_superseded = [&](const RecordedAccess& earlier) {
    return (ended_[earlier.block] && earlier.block != self.block) || !collides(earlier);
  };
  cells.visit(bytes.offset, bytes.size, [&](RaceCell& cell, std::size_t offset) {
    const Bytes at{bytes.space, bytes.rank, offset, bytes.size};
    if (cell.write && written_collides(cell.write)) {
      report(self, at, mode, access, cell.write, AccessMode::write);
    }
    if (mode != AccessMode::atomic) {
      if (const auto* const earlier = cell.atomics.find(written_collides)) {
        report(self, at, mode, access, *earlier, AccessMode::atomic);
      }
    }
    if (mode != AccessMode::read) {
      if (const auto* const earlier = cell.reads.find(collides)) {
        report(self, at, mode, access, *earlier, AccessMode::read);
      }
    }
    switch (mode) {
      case AccessMode::read:
        cell.reads.add(access, is_superseded);
        break;
      case AccessMode::atomic:
        cell.atomics.add(access, is_superseded);
        break;
      case AccessMode::write:
        cell.write = access;
        cell.reads.clear();
        cell.atomics.clear();
        break;
    }
  });
}

void RaceChecker::exchange(Participant& self, const Bytes& bytes) {
  const std::uint64_t shared_address = bytes.offset | std::uint64_t{bytes.rank + 1} << 48;
  Clock& published = published_[bytes.space == Space::global ? bytes.offset : shared_address];
  self.heard.join(published);
  published.join(self.released);
}

// ---- asynchronous operations -----------------------------------------------------------------

Operation RaceChecker::begin_operation() {
  operations_.emplace_back();
  return static_cast<Operation>(operations_.size() - 1);
}

void RaceChecker::end_operation(Operation operation, std::uint32_t block, std::uint32_t actor,
                                Epoch epoch) {
  if (operation != 0) operations_[operation] = {block, actor, epoch};
}

void RaceChecker::end_groups(OperationGroups& groups, std::size_t pending, Participant& self) {
  if (groups.committed.size() <= pending) return;
  ++self.epoch;
  for (; groups.committed.size() > pending; groups.committed.pop_front()) {
    end_operation(groups.committed.front(), self.block, self.thread, self.epoch);
  }
}

void RaceChecker::end_groups(OperationGroups& groups, std::size_t pending,
                             std::span<Participant* const> lanes) {
  if (groups.committed.size() <= pending) return;
  const Epoch epoch = lanes.front()->warp_epoch + 1;
  for (; groups.committed.size() > pending; groups.committed.pop_front()) {
    end_operation(groups.committed.front(), lanes.front()->block, lanes.front()->warp_actor, epoch);
  }
  for (Participant* const lane : lanes) lane->warp_epoch = epoch;
}

// ---- synchronisation -------------------------------------------------------------------------

// What `self` has done, apart from what it knows.
void RaceChecker::publish(const Participant& self, Signal& to) {
  to.known.raise(self.block, self.thread, self.epoch);
  if (self.warp_epoch != 0) to.known.raise(self.block, self.warp_actor, self.warp_epoch);
  if (self.fenced != 0) to.proxied.raise(self.block, self.thread, self.fenced);
}

void RaceChecker::release(Participant& self, Signal& to) {
  to.known.join(self.known);
  to.proxied.join(self.proxied);
  publish(self, to);
  ++self.epoch;
}

void RaceChecker::synchronise(std::span<Participant* const> participants, Signal all) {
  const Participant* previous = nullptr;
  for (const Participant* const self : participants) {
    if (!previous || !self->known.same_as(previous->known)) all.known.join(self->known);
    if (!previous || !self->proxied.same_as(previous->proxied)) all.proxied.join(self->proxied);
    previous = self;
  }
  for (const Participant* const self : participants) publish(*self, all);
  for (Participant* const self : participants) {
    self->known = all.known;
    self->proxied = all.proxied;
    ++self->epoch;
  }
}

void RaceChecker::fence_proxy(Participant& self) {
  self.proxied = self.known;
  self.fenced = self.epoch++;
}

void RaceChecker::fence_memory(Participant& self) {
  self.known.join(std::exchange(self.heard, {}));
  self.released = self.known;
  self.released.raise(self.block, self.thread, self.epoch++);
}

// ---- messages --------------------------------------------------------------------------------

std::string RaceChecker::name(const Participant& self, std::uint32_t block, unsigned thread) const {
  std::string out = fmt::format("thread {}", position(thread, shape_.block));
  if (block != self.block) out += fmt::format(" of block {}", position(block, shape_.grid));
  return out;
}

void RaceChecker::report(const Participant& self, const Bytes& bytes, AccessMode mode,
                         const RecordedAccess& access, const RecordedAccess& earlier,
                         AccessMode earlier_mode) const {
  constexpr const char* does[] = {"reads", "writes", "changes atomically"};
  constexpr const char* did[] = {"read", "wrote", "changed atomically"};
  const char* const operation = "an asynchronous operation issued by ";
  const bool fence_is_missing = is_before(earlier, self, false);
  const bool in_flight = earlier.is_operation && operations_[earlier.when].epoch == 0;
  const std::string place =
      bytes.space == Space::shared
          ? fmt::format("at byte {} of shared memory{}", bytes.offset,
                        bytes.rank ? fmt::format(" of the cluster's block {}", bytes.rank) : "")
          : heap_.locate(heap_.address(bytes.offset));
  throw Fault(fmt::format(
      "kernel {}, block {}: {}: {}{} {} {} bytes at {}, {}, which {}{} {} at {}: {}", shape_.kernel,
      position(self.block, shape_.grid), fence_is_missing ? "race between proxies" : "race",
      access.is_operation ? operation : "", name(self, self.block, self.thread),
      does[static_cast<int>(mode)], bytes.size, access.site.text(), place,
      earlier.is_operation ? operation : "", name(self, earlier.block, earlier.thread),
      did[static_cast<int>(earlier_mode)], earlier.site.text(),
      fence_is_missing ? "fence.proxy.async is missing between them"
      : in_flight      ? "it has not been waited for"
                       : "nothing orders the two"));
}

}  // namespace orchard::simt
