// mbarriers and the copy engine.
#include <cstring>
#include <memory>
#include <type_traits>

#include "kernels/core/dtype.h"
#include "kernels/core/error.h"
#include "kernels/simt/multiprocessor.h"

namespace orchard::simt {
namespace {

constexpr int poison = 0xff;

// to[i] += from[i], each rounded to T.
template <class T>
void add_elements(std::byte* to, const std::byte* from, int count) {
  for (int i = 0; i < count; ++i, to += sizeof(T), from += sizeof(T)) {
    T old, more;
    std::memcpy(&old, to, sizeof(T));
    std::memcpy(&more, from, sizeof(T));
    T sum;
    if constexpr (std::is_same_v<T, float>) {
      sum = old + more;
    } else {
      sum = to_bf16(to_float(old) + to_float(more));
    }
    std::memcpy(to, &sum, sizeof(T));
  }
}

}  // namespace

// Runs `action`, and says in its Error who called what, where.
template <class Action>
auto Multiprocessor::naming(std::string_view call, Where where, const Action& action)
    -> decltype(action()) {
  try {
    return action();
  } catch (const Error& error) {
    fail("{}: {} at {}: {}", place(), call, text(where), error.what());
  }
}

// ---- what copies do to the checkers' books ---------------------------------------------------

void Multiprocessor::track(Operation operation, const void* address, std::size_t bytes,
                           AccessMode mode, Proxy proxy, Site site) {
  const bool is_shared = memory_of(address) == Memory::shared;
  const Bytes at = is_shared ? Bytes{Space::shared, shared_.slot_of(address),
                                     shared_.offset_of(address) % SharedMemories::window, bytes}
                             : Bytes{Space::global, 0, heap_.offset_of(address), bytes};
  races_->access(current_->knowledge, operation, at, mode, proxy, site);
}

Multiprocessor::InitialisedBytes Multiprocessor::initialised_at(const void* address) {
  if (memory_of(address) == Memory::global) {
    return {&heap_.initialised(), heap_.offset_of(address)};
  }
  return {&shared_.initialised(shared_.slot_of(address)),
          shared_.offset_of(address) % SharedMemories::window};
}

void Multiprocessor::copy_initialised(void* to, const void* from, std::size_t bytes) {
  if (bytes == 0) return;
  const InitialisedBytes target = initialised_at(to), source = initialised_at(from);
  target.map->copy(target.offset, *source.map, source.offset, bytes);
}

void Multiprocessor::mark_initialised(const void* address, std::size_t bytes) {
  if (bytes == 0) return;
  const InitialisedBytes target = initialised_at(address);
  target.map->mark(target.offset, bytes);
}

void Multiprocessor::forget_initialised(const void* address, std::size_t bytes) {
  const InitialisedBytes target = initialised_at(address);
  target.map->forget(target.offset, bytes);
}

// ---- mbarriers -------------------------------------------------------------------------------

// An operation on an mbarrier is an atomic one to the race checker.
void Multiprocessor::touch_mbarrier(const std::uint64_t* barrier, Where where) {
  const Block& owner = check_shared(barrier, sizeof *barrier, Access::write, where);
  announced_ = {};
  if (!races_) return;
  const Bytes at{Space::shared, owner.slot, shared_.offset_of(barrier) % SharedMemories::window,
                 sizeof *barrier};
  races_->access(current_->knowledge, at, AccessMode::atomic, where);
}

void Multiprocessor::initialise_mbarrier(std::uint64_t* barrier, unsigned arrivals, Where where) {
  shared_access(barrier, sizeof *barrier, Access::write, where, sizeof *barrier);
  Block& block = *current_->block;
  naming("mbarrier.init", where, [&] {
    require(shared_.slot_of(barrier) == block.slot, "the mbarrier is in another block's memory");
    const auto actor =
        static_cast<std::uint32_t>(block.threads.size() + block.warps.size() + block.mbarriers++);
    mbarriers_.initialise(barrier, arrivals, {block.number, actor});
  });
  current_->unfenced_mbarriers.push_back(barrier);
}

void Multiprocessor::fence_mbarrier_init() {
  for (std::uint64_t* const barrier : current_->unfenced_mbarriers) mbarriers_.fence(barrier);
  current_->unfenced_mbarriers.clear();
}

void Multiprocessor::fence_proxy() {
  announced_ = {};
  fence_mbarrier_init();
  if (races_) RaceChecker::fence_proxy(current_->knowledge);
}

void Multiprocessor::arrive_at_mbarrier(std::uint64_t* barrier, unsigned expected_bytes,
                                        Where where) {
  touch_mbarrier(barrier, where);
  std::vector<Thread*> woken = naming("mbarrier.arrive", where, [&] {
    if (races_) races_->release(current_->knowledge, mbarriers_.arriving(barrier));
    return mbarriers_.arrive(barrier, expected_bytes);
  });
  wake(woken);
}

void Multiprocessor::wait_for_mbarrier(std::uint64_t* barrier, unsigned parity, Where where) {
  touch_mbarrier(barrier, where);
  const auto is_over = [&] {
    return naming("mbarrier.try_wait", where, [&] {
      require(shared_.slot_of(barrier) == current_->block->slot,
              "a block waits for its own mbarriers alone");
      const bool over = mbarriers_.is_over(barrier, parity);
      if (races_) mbarriers_.require_near(barrier, parity, current_->knowledge.known);
      return over;
    });
  };
  while (!is_over()) {
    mbarriers_.add_waiter(barrier, current_);
    current_->waiting = {.what = Waiting::For::mbarrier, .mbarrier = barrier, .where = where};
    wait();
  }
  if (races_) RaceChecker::acquire(current_->knowledge, mbarriers_.over(barrier));
  std::erase_if(unseen_loads_, [&, phase = mbarriers_.phase(barrier)](const BulkLoad& load) {
    return load.barrier == barrier && load.phase < phase;
  });
}

// ---- copies into shared memory ---------------------------------------------------------------

void Multiprocessor::check_box(const TensorBox& box, const void* shared, std::size_t bytes) const {
  const std::size_t at = shared_.contains(shared)
                             ? shared_.offset_of(shared) % SharedMemories::window
                             : shape_->shared_bytes;
  require(at + bytes <= shape_->shared_bytes,
          "{} bytes at byte {} are not in the {} bytes of shared memory", bytes, at,
          shape_->shared_bytes);
  require(at % 128 == 0, "byte {} of shared memory is not aligned to 128 bytes", at);
  const auto tensor_bytes =
      size_of(box.dtype) * static_cast<std::size_t>(box.cols * box.rows * box.matrices);
  require(heap_.contains(box.data, tensor_bytes), "the tensor of {} bytes is {}", tensor_bytes,
          heap_.locate(box.data));
}

void Multiprocessor::track_box(Operation operation, const TensorBox& box, BoxStart start,
                               AccessMode mode, Site site) {
  const auto* const data = static_cast<const std::byte*>(box.data);
  const auto size = static_cast<std::int64_t>(size_of(box.dtype));
  for_each_chunk(box, start, [&](const BoxChunk& chunk) {
    if (chunk.count == 0) return;
    track(operation, data + size * chunk.number, static_cast<std::size_t>(size * chunk.count), mode,
          Proxy::async, site);
  });
}

void Multiprocessor::issue_tensor_load(const TensorLoad& load, Where where) {
  naming("cp.async.bulk.tensor", where, [&] {
    check_box(load.box, load.shared, load.bytes());
    require(load.ranks >> cluster_blocks() == 0, "ranks {:#x} of a cluster of {} blocks",
            load.ranks, cluster_blocks());
  });
  const unsigned ranks = load.ranks ? load.ranks : 1u << cluster_rank();
  for (unsigned rank = 0; rank < cluster_blocks(); ++rank) {
    if (!(ranks >> rank & 1)) continue;
    auto* const shared = static_cast<std::byte*>(map_to_rank(load.shared, rank, where));
    auto* const barrier = static_cast<std::uint64_t*>(map_to_rank(load.barrier, rank, where));
    check_shared(shared, load.bytes(), Access::write, where);
    const TensorBox box = load.box;
    const BoxStart start{load.col, load.row, load.matrix};
    BulkLoad copy{.barrier = barrier,
                  .bytes = static_cast<unsigned>(load.bytes()),
                  .operation = races_ ? races_->begin_operation() : 0,
                  .where = where};
    copy.perform = [this, box, start, shared] {
      std::byte* const begin = shared_.begin(shared_.slot_of(shared));
      const auto* const data = static_cast<const std::byte*>(box.data);
      const auto size = static_cast<std::int64_t>(size_of(box.dtype));
      for_each_chunk(box, start, [&](const BoxChunk& chunk) {
        std::byte* const to =
            begin + swizzled(static_cast<std::size_t>(shared - begin) + chunk.place, box.swizzle);
        std::memset(to, 0, 16);
        mark_initialised(to, 16);
        if (chunk.count == 0) return;
        const auto bytes = static_cast<std::size_t>(size * chunk.count);
        count_dram(data + size * chunk.number, bytes, Access::read);
        // Written, whatever it brings: a tile may reach beyond its group of rows into memory that nobody
        // wrote, and its products there are not stored. Were they, the poison would show.
        std::memcpy(to + size * chunk.skip, data + size * chunk.number, bytes);
      });
    };
    if (races_) {
      track(copy.operation, shared, load.bytes(), AccessMode::write, Proxy::async, where);
      track_box(copy.operation, box, start, AccessMode::read, where);
    }
    issue_load(shared, std::move(copy));
  }
}

void Multiprocessor::issue_bulk_load(void* shared, const void* global, unsigned bytes,
                                     std::uint64_t* barrier, Where where) {
  check_bulk(shared, global, bytes, Access::read, where);
  BulkLoad copy{.perform =
                    [this, shared, global, bytes] {
                      std::memcpy(shared, global, bytes);
                      count_dram(global, bytes, Access::read);
                      copy_initialised(shared, global, bytes);
                    },
                .barrier = barrier,
                .bytes = bytes,
                .operation = races_ ? races_->begin_operation() : 0,
                .where = where};
  if (races_) {
    track(copy.operation, shared, bytes, AccessMode::write, Proxy::async, where);
    track(copy.operation, global, bytes, AccessMode::read, Proxy::async, where);
  }
  issue_load(shared, std::move(copy));
}

void Multiprocessor::check_bulk(const void* shared, const void* global, unsigned bytes,
                                Access global_kind, Where where) {
  constexpr unsigned unit = 16;
  const bool reads = global_kind == Access::read;
  check_shared(shared, bytes, reads ? Access::write : Access::read, where);
  check_global(global, bytes, global_kind, where);
  naming("cp.async.bulk", where, [&] {
    require(bytes % unit == 0, "{} bytes are not a multiple of 16", bytes);
    for (const void* const address : {shared, global}) {
      require(reinterpret_cast<std::uintptr_t>(address) % unit == 0,
              "an address is not aligned to 16 bytes");
    }
  });
}

void Multiprocessor::issue_load(void* shared, BulkLoad load) {
  naming("cp.async.bulk", load.where, [&] {
    require(mbarriers_.is_fenced(load.barrier),
            "the mbarrier was initialised, and no fence made that visible to the copy engine");
  });
  std::memset(shared, poison, load.bytes);
  forget_initialised(shared, load.bytes);
  counters_.tensor_load_bytes += load.bytes;
  load.issuer = current_;
  loads_.push_back(std::move(load));
  if (options_.completion == AsyncCompletion::eager) complete_load(loads_.size() - 1);
}

bool Multiprocessor::complete_some_load() {
  if (loads_.empty()) return false;
  complete_load(options_.completion == AsyncCompletion::random ? random_() % loads_.size() : 0);
  return true;
}

void Multiprocessor::complete_load(std::size_t index) {
  BulkLoad& load = unseen_loads_.emplace_back(std::move(loads_[index]));
  loads_.erase(loads_.begin() + static_cast<std::ptrdiff_t>(index));
  load.perform();
  std::vector<Thread*> woken = naming("the end of cp.async.bulk", load.where, [&] {
    load.phase = mbarriers_.phase(load.barrier);
    if (races_) {
      const auto [block, actor] = mbarriers_.actor(load.barrier);
      races_->end_operation(load.operation, block, actor, load.phase);
    }
    return mbarriers_.complete(load.barrier, load.bytes);
  });
  wake(woken);
}

// ---- copies out of shared memory -------------------------------------------------------------

void Multiprocessor::issue_tensor_store(const TensorStore& store, Where where) {
  naming("cp.async.bulk.tensor", where, [&] { check_box(store.box, store.shared, store.bytes()); });
  const TensorBox box = store.box;
  const BoxStart start{store.col, store.row, store.matrix};
  const auto* const shared = static_cast<const std::byte*>(store.shared);
  const bool adds = store.combine == Combine::add;
  const auto taken = std::make_shared<std::vector<std::byte>>(store.bytes());
  BulkCopy copy{.where = where};
  copy.read = [this, shared, taken, swizzle = box.swizzle] {
    const std::byte* const begin = shared_.begin(shared_.slot_of(shared));
    for (std::size_t at = 0; at < taken->size(); at += 16) {
      const std::size_t from = swizzled(static_cast<std::size_t>(shared - begin) + at, swizzle);
      std::memcpy(taken->data() + at, begin + from, 16);
    }
  };
  copy.write = [this, box, start, taken, adds] {
    auto* const data = static_cast<std::byte*>(const_cast<void*>(box.data));
    const auto size = static_cast<std::int64_t>(size_of(box.dtype));
    for_each_chunk(box, start, [&](const BoxChunk& chunk) {
      if (chunk.count == 0) return;
      std::byte* const to = data + size * chunk.number;
      const std::byte* const from = taken->data() + chunk.place + size * chunk.skip;
      const auto bytes = static_cast<std::size_t>(size * chunk.count);
      if (!adds) {
        std::memcpy(to, from, bytes);
      } else if (box.dtype == DType::f32) {
        add_elements<float>(to, from, chunk.count);
      } else {
        add_elements<bf16>(to, from, chunk.count);
      }
      mark_initialised(to, bytes);
      counters_.tensor_store_bytes += bytes;
      if (adds) count_dram(to, bytes, Access::read);
      count_dram(to, bytes, Access::write);
    });
  };
  check_initialised(shared, store.bytes(), where);
  if (races_) {
    copy.reading = races_->begin_operation();
    copy.writing = races_->begin_operation();
    track(copy.reading, shared, store.bytes(), AccessMode::read, Proxy::async, where);
    track_box(copy.writing, box, start, adds ? AccessMode::atomic : AccessMode::write, where);
  }
  issue_store(std::move(copy));
}

void Multiprocessor::issue_bulk_store(void* global, const void* shared, unsigned bytes,
                                      Where where) {
  check_bulk(shared, global, bytes, Access::write, where);
  const auto taken = std::make_shared<std::vector<std::byte>>(bytes);
  BulkCopy copy{.where = where};
  copy.read = [shared, taken] { std::memcpy(taken->data(), shared, taken->size()); };
  copy.write = [this, global, taken] {
    std::memcpy(global, taken->data(), taken->size());
    mark_initialised(global, taken->size());
    counters_.tensor_store_bytes += taken->size();
    count_dram(global, taken->size(), Access::write);
  };
  check_initialised(shared, bytes, where);
  if (races_) {
    copy.reading = races_->begin_operation();
    copy.writing = races_->begin_operation();
    track(copy.reading, shared, bytes, AccessMode::read, Proxy::async, where);
    track(copy.writing, global, bytes, AccessMode::write, Proxy::async, where);
  }
  issue_store(std::move(copy));
}

void Multiprocessor::issue_store(BulkCopy copy) {
  if (happens_at_once()) {
    copy.take();
    copy.leave();
  }
  current_->bulk.issue(std::move(copy));
}

void Multiprocessor::wait_bulk(unsigned pending_groups, bool only_read) {
  announced_ = {};
  Participant& self = current_->knowledge;
  if (races_) ++self.epoch;
  for (BulkCopy& copy : current_->bulk.before(pending_groups)) {
    copy.waited_for = true;
    copy.take();
    if (!only_read) copy.leave();
    if (!races_) continue;
    races_->end_operation(copy.reading, self.block, self.thread, self.epoch);
    if (!only_read) races_->end_operation(copy.writing, self.block, self.thread, self.epoch);
  }
}

}  // namespace orchard::simt
