// The calls behind the emulated language (language.h). Each acts for the emulated thread that runs
// now and throws Error, naming kernel, block, thread and source line, where a GPU would fault, hang
// or misbehave silently.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/gpu/launch_shape.h"

namespace orchard {

class Stream;
struct SimtOptions;

namespace simt {

struct Counters;
struct KernelCall;
struct TensorLoad;
struct TensorStore;
class WgmmaQueue;

// A line of a kernel's source. Taken as a default argument, `current()` is the caller's line.
// (std::source_location in a form that clang-tidy 14 can read.)
struct Where {
  const char* file = "";
  unsigned line = 0;
  static constexpr Where current(const char* file = __builtin_FILE(),
                                 unsigned line = __builtin_LINE()) {
    return {file, line};
  }
  bool operator==(const Where&) const = default;
};

// What the lanes of a warp do together. The lanes named in a mask each bring a pointer to their
// arguments; when the last one has come, `execute` runs once for all of them. Lanes outside the
// mask have a null pointer. Two operations are the same when they are the same object.
struct WarpOperation {
  std::string_view name;
  void (*execute)(const std::array<void*, 32>& arguments);
};

// __syncwarp: the one that also orders the lanes' accesses to memory.
extern const WarpOperation syncwarp_operation;

enum class Access : std::uint8_t { read, write };
enum class Space : std::uint8_t { global, shared };

// One cp.async: `bytes` (4, 8 or 16) from global to shared memory, of which the first
// `source_bytes` are read and the rest become zero.
struct AsyncCopy {
  void* shared;
  const void* global;
  unsigned bytes;
  unsigned source_bytes;
};

// One of a block's sixteen barriers, of `threads` threads; 0: of all that have not returned.
struct BarrierUse {
  unsigned number = 0;
  unsigned threads = 0;
  bool operator==(const BarrierUse&) const = default;
};

void warp_collective(const WarpOperation& operation, unsigned mask, void* argument, Where where);
// The lanes of the warp that are at `where` together.
unsigned active_lanes(Where where);
void block_barrier(Where where);

// bar.sync and bar.arrive. The threads of a warp come together; those that only arrive go on.
void barrier_sync(BarrierUse use, Where where);
void barrier_arrive(BarrierUse use, Where where);

// barrier.cluster; and the barrier of a cooperative launch's whole grid.
void cluster_arrive(Where where);
void cluster_wait(Where where);
void grid_barrier(Where where);

// In its cluster. Its own shared memory's `address` becomes that of the block of this rank.
unsigned cluster_rank();
unsigned cluster_blocks();
void* map_to_rank(const void* address, unsigned rank, Where where);

// [address, address + bytes) lies in one live allocation or in the block's shared memory and is
// aligned to `bytes`. Counted.
void access(const void* address, std::size_t bytes, Access kind, Where where);

// As access, in shared memory alone: of the block, or of another of its cluster.
void shared_access(const void* address, std::size_t bytes, Access kind, Where where);
// The same where only the first `used_bytes` matter: the others come along, written or not.
void shared_access(const void* address, std::size_t bytes, Access kind, Where where,
                   std::size_t used_bytes);

// What one instruction moves, in registers.
struct Bits128 {
  std::uint64_t low, high;
};

// The checked access and the movement itself, in one call: the movement needs no look of its own.
template <class Bits>
Bits load_bits(const void* address, Where where);
template <class Bits>
void store_bits(void* address, Bits bits, Where where);
template <class Bits>
Bits load_shared_bits(const void* address, Where where);
template <class Bits>
void store_shared_bits(void* address, Bits bits, Where where);

// As access, by an atomic operation that reads and writes.
void atomic_access(const void* address, std::size_t bytes, Where where);

// __threadfence, fence.proxy.async, fence.mbarrier_init.
void fence_memory();
void fence_proxy();
void fence_mbarrier_init();

// cp.async, cp.async.commit_group, cp.async.wait_group of the running thread.
void issue_async_copy(const AsyncCopy& copy, Where where);
void commit_async_copies();
void wait_async_copies(unsigned pending_groups);

// The block's shared memory, of which the launch must have asked for at least `bytes`.
void* shared_memory(std::size_t bytes, Where where);

// mbarriers: initialised and waited for by threads of their block, arrived at by its cluster.
void initialise_mbarrier(std::uint64_t* barrier, unsigned arrivals, Where where);
void arrive_at_mbarrier(std::uint64_t* barrier, unsigned expected_bytes, Where where);
void wait_for_mbarrier(std::uint64_t* barrier, unsigned parity, Where where);

// cp.async.bulk(.tensor) into shared memory: a box, or `bytes` as they are.
void issue_tensor_load(const TensorLoad& load, Where where);
void issue_bulk_load(void* shared, const void* global, unsigned bytes, std::uint64_t* barrier,
                     Where where);

// cp.async.bulk(.tensor) and cp.reduce.async.bulk.tensor out of shared memory, by groups. wait_bulk
// with `only_read` returns when the sources have been read.
void issue_tensor_store(const TensorStore& store, Where where);
void issue_bulk_store(void* global, const void* shared, unsigned bytes, Where where);
void commit_bulk();
void wait_bulk(unsigned pending_groups, bool only_read);

// setmaxnreg, of the running warp; a warp that grows then waits, each lane, until it may have them.
void change_registers(unsigned count, bool grow);
void wait_for_registers(Where where);

// For operations of a warp: of the block and the warp that run.
std::span<std::byte> block_shared_memory();
unsigned shared_address_of(const void* pointer);
WgmmaQueue& wgmma_queue();
unsigned warp_index();
// The warp's wgmma will read 16 bytes at an offset of shared memory, and commits, and waits.
void record_wgmma_read(std::size_t offset);
void commit_wgmma();
void wait_wgmma(std::size_t pending_groups);
// Whether an asynchronous operation that is issued now happens now, as AsyncCompletion has it.
bool happens_at_once();

// Of the device that runs.
Counters& counters();
const SimtOptions& options();

// Queues a launch on a stream of a SIMT device.
void enqueue(Stream& stream, const LaunchShape& shape, KernelCall call);

}  // namespace simt
}  // namespace orchard
