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

void warp_collective(const WarpOperation& operation, unsigned mask, void* argument, Where where);
void block_barrier(Where where);

// [address, address + bytes) lies in one live allocation or in the block's shared memory and is
// aligned to `bytes`. Counted.
void access(const void* address, std::size_t bytes, Access kind, Where where);

// As access, in shared memory alone.
void shared_access(const void* address, std::size_t bytes, Access kind, Where where);

// cp.async, cp.async.commit_group, cp.async.wait_group of the running thread.
void issue_async_copy(const AsyncCopy& copy, Where where);
void commit_async_copies();
void wait_async_copies(unsigned pending_groups);

// The block's shared memory, of which the launch must have asked for at least `bytes`.
void* shared_memory(std::size_t bytes, Where where);

// mbarriers, of the running thread's block.
void initialise_mbarrier(std::uint64_t* barrier, unsigned arrivals, Where where);
void arrive_at_mbarrier(std::uint64_t* barrier, unsigned expected_bytes, Where where);
void wait_for_mbarrier(std::uint64_t* barrier, unsigned parity, Where where);

// cp.async.bulk.tensor.
void issue_tensor_load(const TensorLoad& load, Where where);

// For operations of a warp: of the block and the warp that run.
std::span<std::byte> block_shared_memory();
WgmmaQueue& wgmma_queue();
unsigned warp_index();

// Of the device that runs.
Counters& counters();
const SimtOptions& options();

// Queues a launch on a stream of a SIMT device.
void enqueue(Stream& stream, const LaunchShape& shape, KernelCall call);

}  // namespace simt
}  // namespace orchard
