// What the threads of a block do to memory.
#include <bit>
#include <cstring>

#include "kernels/core/error.h"
#include "kernels/simt/multiprocessor.h"

namespace orchard::simt {
namespace {

constexpr int poison = 0xff;
constexpr const char* misaligned = "at an address not aligned to them";

// Where the compiler announces plain accesses (plain_accesses.cpp), all writes of shared memory are
// seen. Elsewhere what seems never written may have been.
#ifdef ORCHARD_SIMT_PLAIN_ACCESSES
constexpr bool sees_all_writes = true;
#else
constexpr bool sees_all_writes = false;
#endif

AccessMode mode_of(Access kind) {
  return kind == Access::read ? AccessMode::read : AccessMode::write;
}

bool is_aligned(const void* address, std::size_t power_of_two) {
  return (reinterpret_cast<std::uintptr_t>(address) & (power_of_two - 1)) == 0;
}

}  // namespace

// ---- checks ----------------------------------------------------------------------------------

void Multiprocessor::check_alignment(const void* address, std::size_t bytes, Access kind,
                                     Site site) const {
  if (reinterpret_cast<std::uintptr_t>(address) % bytes) refuse(bytes, kind, site, misaligned);
}

void Multiprocessor::check_global(const void* address, std::size_t bytes, Access kind,
                                  Site site) const {
  if (!heap_.contains(address, bytes)) refuse(bytes, kind, site, heap_.locate(address));
}

Block& Multiprocessor::check_shared(const void* address, std::size_t bytes, Access kind,
                                    Site site) {
  // More windows may be mapped than blocks are resident: those of an earlier launch.
  if (!shared_.contains(address) || shared_.slot_of(address) >= blocks_.size()) {
    refuse(bytes, kind, site, "which are not shared memory");
  }
  Block& owner = blocks_[shared_.slot_of(address)];
  const std::size_t offset = shared_.offset_of(address) % SharedMemories::window;
  if (offset + bytes > shape_->shared_bytes) {
    // In the window before, if it is closer.
    const bool is_before = offset > SharedMemories::window / 2;
    refuse(bytes, kind, site,
           fmt::format("at byte {} of {} bytes of shared memory",
                       static_cast<std::ptrdiff_t>(offset) -
                           (is_before ? static_cast<std::ptrdiff_t>(SharedMemories::window) : 0),
                       shape_->shared_bytes));
  }
  if (&owner != current_->block) {
    if (owner.cluster != current_->block->cluster) {
      refuse(bytes, kind, site, "in the shared memory of a block of another cluster");
    }
    if (owner.live == 0) {
      refuse(bytes, kind, site,
             fmt::format("in the shared memory of the cluster's block {}, which has ended",
                         owner.rank));
    }
  }
  return owner;
}

void Multiprocessor::check_initialised(const void* shared, std::size_t bytes, Site site) {
  const std::size_t offset = shared_.offset_of(shared) % SharedMemories::window;
  if (!sees_all_writes || shared_.initialised(shared_.slot_of(shared)).covers(offset, bytes))
    return;
  refuse(bytes, Access::read, site,
         fmt::format("at byte {} of shared memory, where nothing has been written", offset));
}

// ---- accesses --------------------------------------------------------------------------------

// All of an access as nearly all are: in order, to shared memory of the block itself, and neither
// counted nor remembered. False: it is another, and nothing has been done. On the way through there
// is no call, so it costs a few instructions where it is inlined.
inline bool Multiprocessor::usual_shared_access(const void* address, std::size_t bytes, Access kind,
                                                std::size_t alignment) {
  if (is_observed_ || !is_aligned(address, alignment)) return false;
  const unsigned slot = current_->block->slot;
  const std::size_t offset = shared_.offset_of(address) - slot * SharedMemories::window;
  // Below the window it wraps around to far behind its end.
  if (offset >= SharedMemories::window || offset + bytes > shape_->shared_bytes) return false;
  if (kind == Access::write) {
    shared_.initialised(slot).mark(offset, bytes);
  } else if (sees_all_writes && !shared_.initialised(slot).covers(offset, bytes)) {
    return false;
  }
  announced_ = {reinterpret_cast<std::uintptr_t>(address), bytes, mode_of(kind)};
  return true;
}

// The same of global memory.
inline bool Multiprocessor::usual_global_access(const void* address, std::size_t bytes, Access kind,
                                                std::size_t alignment) {
  if (is_observed_ || !is_aligned(address, alignment) || !heap_.contains(address, bytes)) {
    return false;
  }
  const std::size_t offset = heap_.offset_of(address);
  if (kind == Access::write) {
    heap_.initialised().mark(offset, bytes);
  } else if (!heap_.initialised().covers(offset, bytes)) {
    return false;
  }
  announced_ = {reinterpret_cast<std::uintptr_t>(address), bytes, mode_of(kind)};
  return true;
}

void Multiprocessor::access(const void* address, std::size_t bytes, Access kind, Where where) {
  if (memory_of(address) == Memory::shared)
    return shared_access(address, bytes, kind, where, bytes);
  check_global(address, bytes, kind, where);
  check_alignment(address, bytes, kind, where);
  touch_global(address, bytes, kind, mode_of(kind), where);
  log_access(address, bytes, kind, Space::global, where);
}

void Multiprocessor::shared_access(const void* address, std::size_t bytes, Access kind, Where where,
                                   std::size_t used_bytes) {
  Block& owner = check_shared(address, bytes, kind, where);
  check_alignment(address, bytes, kind, where);
  touch_shared(owner, address, used_bytes, kind, mode_of(kind), where);
  log_access(address, bytes, kind, Space::shared, where);
}

void Multiprocessor::atomic_access(const void* address, std::size_t bytes, Where where) {
  const bool is_shared = memory_of(address) == Memory::shared;
  const Space space = is_shared ? Space::shared : Space::global;
  if (is_shared) {
    Block& owner = check_shared(address, bytes, Access::write, where);
    check_alignment(address, bytes, Access::write, where);
    touch_shared(owner, address, bytes, Access::read, AccessMode::atomic, where);
  } else {
    check_global(address, bytes, Access::write, where);
    check_alignment(address, bytes, Access::write, where);
    touch_global(address, bytes, Access::read, AccessMode::atomic, where);
  }
  log_access(address, bytes, Access::read, space, where);
  log_access(address, bytes, Access::write, space, where);
}

void Multiprocessor::plain_access(const void* address, std::size_t bytes, Access kind,
                                  const void* return_address) {
  const auto begin = reinterpret_cast<std::uintptr_t>(address);
  if (begin - announced_.begin < announced_.bytes &&
      (announced_.mode == AccessMode::atomic || announced_.mode == mode_of(kind))) {
    return;
  }
  if (usual_shared_access(address, bytes, kind, 1) ||
      usual_global_access(address, bytes, kind, 1)) {
    return;
  }
  const Site site = Site::of_code(return_address);
  if (memory_of(address) == Memory::global) {
    check_global(address, bytes, kind, site);
    touch_global(address, bytes, kind, mode_of(kind), site);
  } else {
    Block& owner = check_shared(address, bytes, kind, site);
    touch_shared(owner, address, bytes, kind, mode_of(kind), site);
  }
}

void Multiprocessor::touch_global(const void* address, std::size_t bytes, Access kind,
                                  AccessMode mode, Site site) {
  const std::size_t offset = heap_.offset_of(address);
  if (kind == Access::write) {
    heap_.initialised().mark(offset, bytes);
  } else if (!heap_.initialised().covers(offset, bytes)) {
    refuse(bytes, kind, site, heap_.locate(address) + ", where nothing has been written");
  }
  announced_ = {reinterpret_cast<std::uintptr_t>(address), bytes, mode};
  if (!races_) return;
  const Bytes at{Space::global, 0, offset, bytes};
  if (mode == AccessMode::atomic) races_->exchange(current_->knowledge, at);
  races_->access(current_->knowledge, at, mode, site);
}

void Multiprocessor::touch_shared(Block& block, const void* address, std::size_t bytes, Access kind,
                                  AccessMode mode, Site site) {
  const std::size_t offset = shared_.offset_of(address) % SharedMemories::window;
  if (kind == Access::write) {
    shared_.initialised(block.slot).mark(offset, bytes);
  } else {
    check_initialised(address, bytes, site);
  }
  announced_ = {reinterpret_cast<std::uintptr_t>(address), bytes, mode};
  if (!races_) return;
  const Bytes at{Space::shared, block.slot, offset, bytes};
  if (mode == AccessMode::atomic) races_->exchange(current_->knowledge, at);
  races_->access(current_->knowledge, at, mode, site);
}

void Multiprocessor::fence_memory() {
  announced_ = {};
  if (races_) RaceChecker::fence_memory(current_->knowledge);
}

void* Multiprocessor::shared_memory(std::size_t bytes, Where where) {
  if (bytes > shape_->shared_bytes) {
    fail("{}: {} bytes of shared memory at {}, the launch asked for {}", place(), bytes,
         text(where), shape_->shared_bytes);
  }
  return shared_.begin(current_->block->slot);
}

unsigned Multiprocessor::shared_address_of(const void* pointer) const {
  const Block& own = *current_->block;
  return static_cast<unsigned>(shared_.offset_of(pointer) -
                               (own.slot - own.rank) * SharedMemories::window);
}

// ---- counters --------------------------------------------------------------------------------

void Multiprocessor::count_access(const void* address, std::size_t bytes, Access kind, Space space,
                                  Where where) {
  if (space == Space::global) count_dram(address, bytes, kind);
  current_->log.push_back({reinterpret_cast<std::uintptr_t>(address),
                           static_cast<std::uint32_t>(bytes), kind, space,
                           static_cast<std::uint8_t>(current_->lane), where});
}

void Multiprocessor::count_dram(const void* global, std::size_t bytes, Access kind) {
  if (options_.counting == Counting::off || bytes == 0) return;
  const std::size_t begin = heap_.offset_of(global);
  if (kind == Access::read) {
    first_touches_.read(begin, bytes, counters_.dram);
  } else {
    first_touches_.write(begin, bytes, counters_.dram);
  }
}

void Multiprocessor::count_warp(Warp& warp) {
  if (options_.counting == Counting::off) return;
  std::array<AccessLog*, 32> logs;
  std::size_t count = 0;
  for (Thread* const thread : warp.lanes) {
    if (thread) logs[count++] = &thread->log;
  }
  count_requests({logs.data(), count}, counters_);
}

// ---- cp.async --------------------------------------------------------------------------------

void Multiprocessor::issue_async_copy(const AsyncCopy& copy, Where where) {
  if (copy.source_bytes > copy.bytes) {
    fail("{}: cp.async at {} of {} bytes reads {}", place(), text(where), copy.bytes,
         copy.source_bytes);
  }
  static_cast<void>(check_shared(copy.shared, copy.bytes, Access::write, where));
  check_alignment(copy.shared, copy.bytes, Access::write, where);
  log_access(copy.shared, copy.bytes, Access::write, Space::shared, where);
  check_alignment(copy.global, copy.bytes, Access::read, where);
  if (copy.source_bytes > 0) {
    check_global(copy.global, copy.source_bytes, Access::read, where);
    log_access(copy.global, copy.source_bytes, Access::read, Space::global, where);
  }
  if (races_) {
    const Operation operation = races_->open(current_->knowledge.copies);
    track(operation, copy.shared, copy.bytes, AccessMode::write, Proxy::generic, where);
    if (copy.source_bytes > 0) {
      track(operation, copy.global, copy.source_bytes, AccessMode::read, Proxy::generic, where);
    }
  }
  const bool at_once = happens_at_once();
  if (at_once) {
    perform(copy);
  } else {
    std::memset(copy.shared, poison, copy.bytes);
    forget_initialised(copy.shared, copy.bytes);
  }
  counters_.async_copy_bytes += copy.source_bytes;
  current_->copies.issue({copy, where, at_once});
}

void Multiprocessor::perform(const AsyncCopy& copy) {
  std::memcpy(copy.shared, copy.global, copy.source_bytes);
  copy_initialised(copy.shared, copy.global, copy.source_bytes);
  std::byte* const rest = static_cast<std::byte*>(copy.shared) + copy.source_bytes;
  std::memset(rest, 0, copy.bytes - copy.source_bytes);
  mark_initialised(rest, copy.bytes - copy.source_bytes);
}

void Multiprocessor::commit_async_copies() {
  current_->copies.commit();
  if (races_) RaceChecker::commit(current_->knowledge.copies);
}

void Multiprocessor::wait_async_copies(unsigned pending_groups) {
  announced_ = {};
  current_->copies.wait(pending_groups, [this](const AsyncCopy& copy) { perform(copy); });
  if (races_) {
    races_->end_groups(current_->knowledge.copies, pending_groups, current_->knowledge);
  }
}

// ---- wgmma -----------------------------------------------------------------------------------

void Multiprocessor::record_wgmma_read(std::size_t offset) {
  constexpr std::size_t chunk = 16;
  Warp& warp = *current_->warp;
  const Block& block = *current_->block;
  const Where where = warp.lanes[0]->waiting.where;
  check_initialised(shared_.begin(block.slot) + offset, chunk, where);
  if (!races_) return;
  races_->access(warp.lanes[0]->knowledge, races_->open(warp.products),
                 {Space::shared, block.slot, offset, chunk}, AccessMode::read, Proxy::async, where);
}

void Multiprocessor::commit_wgmma() {
  wgmma_queue().commit();
  if (races_) RaceChecker::commit(current_->warp->products);
}

void Multiprocessor::wait_wgmma(std::size_t pending_groups) {
  Warp& warp = *current_->warp;
  wgmma_queue().wait(pending_groups, block_shared_memory());
  if (!races_) return;
  std::array<Participant*, 32> lanes;
  for (std::size_t i = 0; i < lanes.size(); ++i) lanes[i] = &warp.lanes[i]->knowledge;
  races_->end_groups(warp.products, pending_groups, lanes);
}

// ---- the calls of runtime.h: here, where the usual way can be inlined into them -----------------

void access(const void* address, std::size_t bytes, Access kind, Where where) {
  running(kind == Access::read ? "load()" : "store()").access(address, bytes, kind, where);
}

void shared_access(const void* address, std::size_t bytes, Access kind, Where where) {
  Multiprocessor& self = running("an access to shared memory");
  if (self.usual_shared_access(address, bytes, kind, bytes)) [[likely]]
    return;
  self.shared_access(address, bytes, kind, where, bytes);
}

void shared_access(const void* address, std::size_t bytes, Access kind, Where where,
                   std::size_t used_bytes) {
  running("an access to shared memory").shared_access(address, bytes, kind, where, used_bytes);
}

void atomic_access(const void* address, std::size_t bytes, Where where) {
  running("an atomic operation").atomic_access(address, bytes, where);
}

template <class Bits>
Bits load_bits(const void* address, Where where) {
  Multiprocessor& self = running("load()");
  if (!self.usual_global_access(address, sizeof(Bits), Access::read, sizeof(Bits))) [[unlikely]] {
    self.access(address, sizeof(Bits), Access::read, where);
  }
  Bits bits;
  std::memcpy(&bits, address, sizeof bits);
  return bits;
}

template <class Bits>
void store_bits(void* address, Bits bits, Where where) {
  Multiprocessor& self = running("store()");
  if (!self.usual_global_access(address, sizeof bits, Access::write, sizeof bits)) [[unlikely]] {
    self.access(address, sizeof bits, Access::write, where);
  }
  std::memcpy(address, &bits, sizeof bits);
}

template <class Bits>
Bits load_shared_bits(const void* address, Where where) {
  Multiprocessor& self = running("an access to shared memory");
  if (!self.usual_shared_access(address, sizeof(Bits), Access::read, sizeof(Bits))) [[unlikely]] {
    self.shared_access(address, sizeof(Bits), Access::read, where, sizeof(Bits));
  }
  Bits bits;
  std::memcpy(&bits, address, sizeof bits);
  return bits;
}

template <class Bits>
void store_shared_bits(void* address, Bits bits, Where where) {
  Multiprocessor& self = running("an access to shared memory");
  if (!self.usual_shared_access(address, sizeof bits, Access::write, sizeof bits)) [[unlikely]] {
    self.shared_access(address, sizeof bits, Access::write, where, sizeof bits);
  }
  std::memcpy(address, &bits, sizeof bits);
}

template std::uint8_t load_bits(const void*, Where);
template std::uint16_t load_bits(const void*, Where);
template std::uint32_t load_bits(const void*, Where);
template std::uint64_t load_bits(const void*, Where);
template Bits128 load_bits(const void*, Where);
template void store_bits(void*, std::uint8_t, Where);
template void store_bits(void*, std::uint16_t, Where);
template void store_bits(void*, std::uint32_t, Where);
template void store_bits(void*, std::uint64_t, Where);
template void store_bits(void*, Bits128, Where);
template std::uint8_t load_shared_bits(const void*, Where);
template std::uint16_t load_shared_bits(const void*, Where);
template std::uint32_t load_shared_bits(const void*, Where);
template std::uint64_t load_shared_bits(const void*, Where);
template Bits128 load_shared_bits(const void*, Where);
template void store_shared_bits(void*, std::uint8_t, Where);
template void store_shared_bits(void*, std::uint16_t, Where);
template void store_shared_bits(void*, std::uint32_t, Where);
template void store_shared_bits(void*, std::uint64_t, Where);
template void store_shared_bits(void*, Bits128, Where);

}  // namespace orchard::simt
