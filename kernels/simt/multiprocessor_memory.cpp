// What the threads of a block do to memory.
#include <cstring>

#include "kernels/core/error.h"
#include "kernels/simt/multiprocessor.h"

namespace orchard::simt {
namespace {

constexpr int poison = 0xff;
constexpr const char* misaligned = "at an address not aligned to them";

}  // namespace

void Multiprocessor::access(const void* address, std::size_t bytes, Access kind, Where where) {
  if (!heap_.contains(address, bytes)) {
    const std::ptrdiff_t offset = shared_offset(address);
    if (offset < 0 || offset >= static_cast<std::ptrdiff_t>(shared_.size())) {
      refuse(bytes, kind, where, heap_.locate(address));
    }
    return shared_access(address, bytes, kind, where);
  }
  if (reinterpret_cast<std::uintptr_t>(address) % bytes) refuse(bytes, kind, where, misaligned);
  log_access(address, bytes, kind, Space::global, where);
}

void Multiprocessor::shared_access(const void* address, std::size_t bytes, Access kind,
                                   Where where) {
  const std::ptrdiff_t offset = shared_offset(address);
  const auto shared_bytes = static_cast<std::ptrdiff_t>(shape_->shared_bytes);
  if (offset < 0 || offset >= static_cast<std::ptrdiff_t>(shared_.size())) {
    refuse(bytes, kind, where, "which are not shared memory");
  }
  if (offset + static_cast<std::ptrdiff_t>(bytes) > shared_bytes) {
    refuse(bytes, kind, where,
           fmt::format("at byte {} of {} bytes of shared memory", offset, shared_bytes));
  }
  if (reinterpret_cast<std::uintptr_t>(address) % bytes) refuse(bytes, kind, where, misaligned);
  log_access(address, bytes, kind, Space::shared, where);
}

void Multiprocessor::issue_async_copy(const AsyncCopy& copy, Where where) {
  if (copy.source_bytes > copy.bytes) {
    fail("{}: cp.async at {} of {} bytes reads {}", place(), text(where), copy.bytes,
         copy.source_bytes);
  }
  shared_access(copy.shared, copy.bytes, Access::write, where);
  if (reinterpret_cast<std::uintptr_t>(copy.global) % copy.bytes) {
    refuse(copy.bytes, Access::read, where, misaligned);
  }
  if (copy.source_bytes > 0) {
    if (!heap_.contains(copy.global, copy.source_bytes)) {
      refuse(copy.source_bytes, Access::read, where, heap_.locate(copy.global));
    }
    log_access(copy.global, copy.source_bytes, Access::read, Space::global, where);
  }
  current_->copies.issue(copy, options_.completion);
}

void Multiprocessor::log_access(const void* address, std::size_t bytes, Access kind, Space space,
                                Where where) {
  if (options_.counting == Counting::off) return;
  current_->log.push_back({reinterpret_cast<std::uintptr_t>(address),
                           static_cast<std::uint32_t>(bytes), kind, space,
                           static_cast<std::uint8_t>(current_->lane), where});
}

void* Multiprocessor::shared_memory(std::size_t bytes, Where where) {
  if (bytes > shape_->shared_bytes) {
    fail("{}: {} bytes of shared memory at {}, the launch asked for {}", place(), bytes,
         text(where), shape_->shared_bytes);
  }
  return shared_begin_;
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

// ---- mbarriers and the copy engine ------------------------------------------------------------

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

void Multiprocessor::wake(const std::vector<Thread*>& threads) {
  for (Thread* const thread : threads) queue_.push(thread);
}

void Multiprocessor::initialise_mbarrier(std::uint64_t* barrier, unsigned arrivals, Where where) {
  shared_access(barrier, sizeof *barrier, Access::write, where);
  naming("mbarrier.init", where, [&] { mbarriers_.initialise(barrier, arrivals); });
}

void Multiprocessor::arrive_at_mbarrier(std::uint64_t* barrier, unsigned expected_bytes,
                                        Where where) {
  wake(
      naming("mbarrier.arrive", where, [&] { return mbarriers_.arrive(barrier, expected_bytes); }));
}

void Multiprocessor::wait_for_mbarrier(std::uint64_t* barrier, unsigned parity, Where where) {
  const auto is_over = [&] {
    return naming("mbarrier.try_wait", where, [&] { return mbarriers_.is_over(barrier, parity); });
  };
  while (!is_over()) {
    mbarriers_.add_waiter(barrier, current_);
    current_->operation = nullptr;
    current_->mbarrier = barrier;
    current_->where = where;
    wait();
  }
}

void Multiprocessor::issue_tensor_load(const TensorLoad& load, Where where) {
  naming("cp.async.bulk.tensor", where, [&] {
    const auto shared = static_cast<std::size_t>(shared_offset(load.shared));
    require(shared < shape_->shared_bytes && shared + load.bytes() <= shape_->shared_bytes,
            "the destination, {} bytes at byte {}, is not in the {} bytes of shared memory",
            load.bytes(), static_cast<std::ptrdiff_t>(shared), shape_->shared_bytes);
    require(shared % 128 == 0, "the destination is not aligned to 128 bytes");
    const TensorBox& box = load.box;
    const auto bytes = static_cast<std::size_t>(2 * box.cols * box.rows * box.matrices);
    require(heap_.contains(box.data, bytes), "the tensor of {} bytes is {}", bytes,
            heap_.locate(box.data));
    static_cast<void>(mbarriers_.is_over(load.barrier, 0));  // it exists
    std::memset(load.shared, poison, load.bytes());
  });
  counters_.tensor_load_bytes += load.bytes();
  tensor_loads_.push_back({load, where});
  if (options_.completion == AsyncCompletion::eager) complete_tensor_load();
}

bool Multiprocessor::complete_tensor_load() {
  if (tensor_loads_done_ == tensor_loads_.size()) return false;
  const auto [load, where] = tensor_loads_[tensor_loads_done_++];
  perform(load, shared_begin_);
  wake(naming("the end of cp.async.bulk.tensor", where, [&, &own = load] {
    return mbarriers_.complete(own.barrier, static_cast<unsigned>(own.bytes()));
  }));
  return true;
}

}  // namespace orchard::simt
