// Executes the blocks of a grid, one after the other, on one host thread.
//
// Each thread of a block is a fiber that runs until it waits: for the other threads of its block,
// or of its warp. It then switches straight to the next thread that can run. When none can and some
// have not returned, the block is deadlocked, and the error says who waits where. Nothing is
// assumed of warps but what CUDA promises since Volta: lanes progress on their own.
#pragma once

#include <array>
#include <boost/context/fiber.hpp>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/gpu/launch_shape.h"
#include "kernels/simt/access_log.h"
#include "kernels/simt/async_copies.h"
#include "kernels/simt/heap.h"
#include "kernels/simt/mbarriers.h"
#include "kernels/simt/run_queue.h"
#include "kernels/simt/runtime.h"
#include "kernels/simt/stack_pool.h"
#include "kernels/simt/stack_switch.h"
#include "kernels/simt/tensor_map.h"
#include "kernels/simt/types.h"
#include "kernels/simt/wgmma_queue.h"

namespace orchard::simt {

struct Warp;

struct Thread {
  boost::context::fiber fiber;  // where it stopped; empty while it runs and after it returned
  StackBounds stack;
  uint3 index;
  unsigned lane = 0;
  Warp* warp = nullptr;
  bool returned = false;
  // What it waits for: a warp's operation, an mbarrier, or else the block barrier.
  const WarpOperation* operation = nullptr;
  unsigned mask = 0;  // of `operation`
  std::uint64_t* mbarrier = nullptr;
  Where where;  // of the call that it waits in
  AccessLog log;
  AsyncCopies copies;
};

// Lanes gathering for one operation.
struct Collective {
  const WarpOperation* operation;
  unsigned mask;
  unsigned arrived = 0;
  std::array<void*, 32> arguments{};
};

struct Warp {
  std::array<Thread*, 32> lanes{};
  unsigned live = 0;  // lanes that exist and have not returned
  std::vector<Collective> collecting;
  // The lanes at the block barrier, and where the first of them called it.
  unsigned at_barrier = 0;
  Where barrier;
  WgmmaQueue wgmma;
};

struct IssuedLoad {
  TensorLoad load;
  Where where;
};

class Multiprocessor {
 public:
  Multiprocessor(const SimtOptions& options, const Heap& heap, Counters& counters);
  ~Multiprocessor();

  // Runs `thread` once per thread of the launch. Throws Error at the first fault, with the rest of
  // the grid not run.
  void run(const LaunchShape& shape, const std::function<void()>& thread);

  // What runtime.h declares, for the thread that runs now.
  void warp_collective(const WarpOperation& operation, unsigned mask, void* argument, Where where);
  void block_barrier(Where where);
  void access(const void* address, std::size_t bytes, Access kind, Where where);
  void shared_access(const void* address, std::size_t bytes, Access kind, Where where);
  void issue_async_copy(const AsyncCopy& copy, Where where);
  AsyncCopies& async_copies() { return current_->copies; }
  void initialise_mbarrier(std::uint64_t* barrier, unsigned arrivals, Where where);
  void arrive_at_mbarrier(std::uint64_t* barrier, unsigned expected_bytes, Where where);
  void wait_for_mbarrier(std::uint64_t* barrier, unsigned parity, Where where);
  void issue_tensor_load(const TensorLoad& load, Where where);
  void* shared_memory(std::size_t bytes, Where where);
  std::span<std::byte> block_shared_memory() { return {shared_begin_, shape_->shared_bytes}; }
  WgmmaQueue& wgmma_queue() { return current_->warp->wgmma; }
  unsigned warp_index() const { return static_cast<unsigned>(current_->warp - warps_.data()); }
  const SimtOptions& options() const { return options_; }
  Counters& counters() { return counters_; }

 private:
  void check_limits(const LaunchShape& shape) const;
  void lay_out_block(const LaunchShape& shape);
  void run_block(std::size_t number);

  boost::context::fiber make_fiber(StackPool::Slot stack);
  boost::context::fiber next_after_return();
  void run_from_host(Thread& thread);  // comes back when all have returned, or at a fault
  void wait();  // until another thread has pushed the current one into the queue
  Thread* next_runnable();
  void make_current(Thread& thread);
  void arrived_from(boost::context::fiber&& previous);

  bool complete_tensor_load();  // the oldest; false: there is none
  void wake(const std::vector<Thread*>& threads);
  template <class Action>
  auto naming(std::string_view call, Where where, const Action& action) -> decltype(action());

  void returned();
  void check_block_end();
  void complete_barrier();
  void complete(Warp& warp, std::size_t collective);
  void count_warp(Warp& warp);
  void log_access(const void* address, std::size_t bytes, Access kind, Space space, Where where);
  std::ptrdiff_t shared_offset(const void* address) const {
    return static_cast<const std::byte*>(address) - shared_begin_;
  }

  [[noreturn]] void refuse(std::size_t bytes, Access kind, Where where,
                           const std::string& reason) const;
  std::string place() const;  // "kernel k, block (0, 0, 0), thread (1, 0, 0)"
  std::string deadlock();

  const SimtOptions options_;
  const Heap& heap_;
  Counters& counters_;
  RunQueue queue_;
  StackPool stacks_;
  std::vector<std::byte> shared_;  // with alignment slack and a red zone behind
  std::byte* shared_begin_ = nullptr;

  // The launch.
  const LaunchShape* shape_ = nullptr;
  const std::function<void()>* body_ = nullptr;

  // The block.
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::size_t live_ = 0;        // threads that have not returned
  std::size_t at_barrier_ = 0;  // of them, waiting at the block barrier
  Mbarriers mbarriers_;
  std::vector<IssuedLoad> tensor_loads_;  // the first of them have happened
  std::size_t tensor_loads_done_ = 0;
  Thread* current_ = nullptr;
  Thread* previous_ = nullptr;  // the thread that switched to the current one; nullptr: host
  boost::context::fiber host_;
  StackBounds host_stack_;
  std::exception_ptr fault_;
  bool unwinding_ = false;  // after a fault, the threads that are left only unwind their stacks
};

// The one whose kernel this host thread executes; throws Error, naming the call, outside a kernel.
Multiprocessor& running(std::string_view call);

// "file.cu:12"
std::string text(const Where& where);

}  // namespace orchard::simt
