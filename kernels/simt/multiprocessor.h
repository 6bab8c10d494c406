// Executes the blocks of a grid on one host thread: one after the other, or those together that can
// wait for each other, the blocks of a cluster or of a cooperative launch, or as many as a test asks for.
//
// Each thread of a resident block is a fiber that runs until it waits: for other threads, or for a
// copy. It then switches straight to the next thread that can run. When none can and some have not
// returned, they are deadlocked, and the error says who waits where. Nothing is assumed of warps but
// what CUDA promises since Volta: lanes progress on their own.
#pragma once

#include <boost/context/fiber.hpp>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/gpu/launch_shape.h"
#include "kernels/simt/block.h"
#include "kernels/simt/first_touches.h"
#include "kernels/simt/heap.h"
#include "kernels/simt/mbarriers.h"
#include "kernels/simt/race_checker.h"
#include "kernels/simt/run_queue.h"
#include "kernels/simt/runtime.h"
#include "kernels/simt/shared_memories.h"
#include "kernels/simt/simt_device.h"
#include "kernels/simt/site.h"
#include "kernels/simt/stack_pool.h"
#include "kernels/simt/tensor_map.h"

namespace orchard::simt {

// A copy of the copy engine into shared memory.
struct BulkLoad {
  std::function<void()> perform;
  std::uint64_t* barrier;  // that counts its bytes
  unsigned bytes;
  Operation operation;
  const Thread* issuer;
  Where where;
  Epoch phase = 0;  // of the barrier, that has counted them
};

class Multiprocessor {
 public:
  Multiprocessor(const SimtOptions& options, Heap& heap, Counters& counters);
  ~Multiprocessor();

  // Runs `thread` once per thread of the launch. Throws Error at the first fault, with the rest of
  // the grid not run.
  void run(const LaunchShape& shape, const std::function<void()>& thread);

  // What runtime.h declares, for the thread that runs now.
  void warp_collective(const WarpOperation& operation, unsigned mask, void* argument, Where where);
  unsigned active_lanes(Where where);
  void barrier(BarrierUse use, bool wait, Where where);
  void cluster_arrive(Where where);
  void cluster_wait(Where where);
  void grid_barrier(Where where);
  unsigned cluster_rank() const { return current_->block->rank; }
  unsigned cluster_blocks() const { return static_cast<unsigned>(shape_->cluster.volume()); }
  void* map_to_rank(const void* address, unsigned rank, Where where);

  void access(const void* address, std::size_t bytes, Access kind, Where where);
  void shared_access(const void* address, std::size_t bytes, Access kind, Where where,
                     std::size_t used_bytes);
  void atomic_access(const void* address, std::size_t bytes, Where where);
  // Most of both, whole; false: not this one.
  bool usual_shared_access(const void* address, std::size_t bytes, Access kind,
                           std::size_t alignment);
  bool usual_global_access(const void* address, std::size_t bytes, Access kind,
                           std::size_t alignment);
  // An access to a watched address that the compiler announces.
  void plain_access(const void* address, std::size_t bytes, Access kind,
                    const void* return_address);
  void fence_memory();
  void fence_proxy();
  void fence_mbarrier_init();

  void issue_async_copy(const AsyncCopy& copy, Where where);
  void commit_async_copies();
  void wait_async_copies(unsigned pending_groups);

  void initialise_mbarrier(std::uint64_t* barrier, unsigned arrivals, Where where);
  void arrive_at_mbarrier(std::uint64_t* barrier, unsigned expected_bytes, Where where);
  void wait_for_mbarrier(std::uint64_t* barrier, unsigned parity, Where where);

  void issue_tensor_load(const TensorLoad& load, Where where);
  void issue_bulk_load(void* shared, const void* global, unsigned bytes, std::uint64_t* barrier,
                       Where where);
  void issue_tensor_store(const TensorStore& store, Where where);
  void issue_bulk_store(void* global, const void* shared, unsigned bytes, Where where);
  void commit_bulk() { current_->bulk.commit(); }
  void wait_bulk(unsigned pending_groups, bool only_read);

  void change_registers(unsigned count, bool grow);  // of the warp
  void wait_for_registers(Where where);

  void* shared_memory(std::size_t bytes, Where where);
  std::span<std::byte> block_shared_memory() {
    return {shared_.begin(current_->block->slot), shape_->shared_bytes};
  }
  unsigned shared_address_of(const void* pointer) const;
  WgmmaQueue& wgmma_queue() { return current_->warp->wgmma; }
  unsigned warp_index() const {
    return static_cast<unsigned>(current_->warp - current_->block->warps.data());
  }
  void record_wgmma_read(std::size_t offset);
  void commit_wgmma();
  void wait_wgmma(std::size_t pending_groups);
  bool happens_at_once() {
    return options_.completion == AsyncCompletion::eager ||
           (options_.completion == AsyncCompletion::random && toss());
  }
  const SimtOptions& options() const { return options_; }
  Counters& counters() { return counters_; }

 private:
  enum class Memory : std::uint8_t { host, global, shared };
  bool toss() { return random_() % 2 == 0; }

  // The grid (multiprocessor.cpp).
  void check_limits(const LaunchShape& shape) const;
  void lay_out(const LaunchShape& shape, std::size_t clusters);
  void place_block(Block& block, std::size_t number);
  void reset_block(Block& block);
  void run_blocks();

  // What nobody may leave behind (multiprocessor_ends.cpp).
  void check_end(const Thread& thread) const;
  void check_end(const Warp& warp) const;
  void check_end(const Block& block) const;
  void check_red_zone(const Block& block) const;

  // Fibers.
  boost::context::fiber make_fiber(StackPool::Slot stack);
  boost::context::fiber next_after_return();
  void run_from_host(Thread& thread);  // comes back when all have returned, or at a fault
  void wait();  // until another thread has pushed the current one into the queue
  Thread* next_runnable();
  void make_current(Thread& thread);
  void arrived_from(boost::context::fiber&& previous);
  void wake(std::vector<Thread*>& threads);

  // Waiting for each other (multiprocessor_barriers.cpp).
  void returned();
  void complete_barrier(Block& block, unsigned number, Thread* self);
  void complete_if_all_arrived(WideBarrier& barrier);
  void arrive(WideBarrier& barrier);
  void wait_for_phase(WideBarrier& barrier, unsigned phase, Waiting::For what, Where where);
  void complete(Warp& warp, std::size_t collective);
  void grant_registers(Block& block);

  // Memory (multiprocessor_memory.cpp).
  Memory memory_of(const void* address) const {
    if (heap_.offset_of(address) < heap_.size()) return Memory::global;
    return shared_.contains(address) ? Memory::shared : Memory::host;
  }
  void check_global(const void* address, std::size_t bytes, Access kind, Site site) const;
  // The resident block whose memory it is.
  Block& check_shared(const void* address, std::size_t bytes, Access kind, Site site);
  void check_alignment(const void* address, std::size_t bytes, Access kind, Site site) const;
  void touch_global(const void* address, std::size_t bytes, Access kind, AccessMode mode,
                    Site site);
  void touch_shared(Block& block, const void* address, std::size_t bytes, Access kind,
                    AccessMode mode, Site site);
  void count_warp(Warp& warp);
  void count_dram(const void* global, std::size_t bytes, Access kind);
  void log_access(const void* address, std::size_t bytes, Access kind, Space space, Where where) {
    if (options_.counting != Counting::off) count_access(address, bytes, kind, space, where);
  }
  void count_access(const void* address, std::size_t bytes, Access kind, Space space, Where where);

  // Copies (multiprocessor_copies.cpp).
  struct InitialisedBytes {
    Initialised* map;
    std::size_t offset;
  };
  void perform(const AsyncCopy& copy);
  void touch_mbarrier(const std::uint64_t* barrier, Where where);
  void check_box(const TensorBox& box, const void* shared, std::size_t bytes) const;
  void check_bulk(const void* shared, const void* global, unsigned bytes, Access global_kind,
                  Where where);
  void issue_load(void* shared, BulkLoad load);
  void complete_load(std::size_t index);
  bool complete_some_load();  // false: there is none
  void issue_store(BulkCopy copy);
  void track(Operation operation, const void* address, std::size_t bytes, AccessMode mode,
             Proxy proxy, Site site);
  void track_box(Operation operation, const TensorBox& box, BoxStart start, AccessMode mode,
                 Site site);
  InitialisedBytes initialised_at(const void* address);
  void copy_initialised(void* to, const void* from, std::size_t bytes);
  void mark_initialised(const void* address, std::size_t bytes);
  void forget_initialised(const void* address, std::size_t bytes);
  void check_initialised(const void* shared, std::size_t bytes, Site site);
  template <class Action>
  auto naming(std::string_view call, Where where, const Action& action) -> decltype(action());

  // Messages.
  [[noreturn, gnu::cold]] void refuse(std::size_t bytes, Access kind, Site site,
                                      const std::string& reason) const;
  std::string place() const;  // "kernel k, block (0, 0, 0), thread (1, 0, 0)"
  std::string place_of(const Block& block) const;
  std::string place_of(const Thread& thread) const;
  std::string state_of(const Thread& thread);
  std::string deadlock();

  const SimtOptions options_;
  Heap& heap_;
  Counters& counters_;
  RunQueue queue_;
  std::mt19937_64 random_;  // of AsyncCompletion::random
  StackPool stacks_;
  SharedMemories shared_;
  std::unique_ptr<RaceChecker> races_;  // nullptr: they are not looked for
  const bool is_observed_;              // accesses are counted, or remembered for races
  FirstTouches first_touches_;

  // The launch.
  const LaunchShape* shape_ = nullptr;
  const std::function<void()>* body_ = nullptr;

  // What is resident.
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<Block> blocks_;
  std::vector<Cluster> clusters_;
  std::size_t live_ = 0;  // threads that have not returned
  WideBarrier grid_barrier_;
  Mbarriers mbarriers_;
  std::vector<BulkLoad> loads_;         // in flight, oldest first
  std::vector<BulkLoad> unseen_loads_;  // done, and no wait has found their phase over
  Thread* current_ = nullptr;
  Thread* previous_ = nullptr;  // the thread that switched to the current one; nullptr: host
  // What the current thread has just announced by a call: the access itself follows.
  struct Announced {
    std::uintptr_t begin = 0;
    std::size_t bytes = 0;
    AccessMode mode = AccessMode::read;  // atomic: it reads and writes
  } announced_;
  boost::context::fiber host_;
  StackBounds host_stack_;
  std::exception_ptr fault_;
  bool unwinding_ = false;  // after a fault, the threads that are left only unwind their stacks
};

// The one whose kernel this host thread executes. (Of the model initial-exec: position-independent
// code would call a function for its address.)
[[gnu::tls_model("initial-exec")]] extern thread_local constinit Multiprocessor* active;
[[noreturn, gnu::cold]] void refuse_outside_kernel(std::string_view call);
// The same; throws Error, naming the call, outside a kernel.
inline Multiprocessor& running(std::string_view call) {
  if (!active) [[unlikely]]
    refuse_outside_kernel(call);
  return *active;
}
// The addresses of the device whose kernel this host thread executes, for a quick look: most plain
// accesses are to a kernel's own variables.
struct WatchedAddresses {
  std::uintptr_t heap_begin = 0, heap_bytes = 0;
  std::uintptr_t shared_begin = 0, shared_bytes = 0;
  bool contains(const void* pointer) const {
    const auto address = reinterpret_cast<std::uintptr_t>(pointer);
    return address - heap_begin < heap_bytes || address - shared_begin < shared_bytes;
  }
};
[[gnu::tls_model("initial-exec")]] extern thread_local constinit WatchedAddresses watched;

// "file.cu:12"
std::string text(const Where& where);

}  // namespace orchard::simt
