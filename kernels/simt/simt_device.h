// A GPU emulated on the CPU: runs the CUDA kernels that the host compiler compiled from the same
// sources as nvcc, checks what they do, and counts what they move. For correctness, not for speed:
// it says nothing about time. docs/simt.md shows how to run a kernel of one's own.
//
// Work is deferred: launches, copies and fills run, in order, inside Stream::synchronize. So a
// missing wait, for a stream or between two, shows as data that is not there. What was queued and
// never waited for does not run. A fault throws Error from synchronize and drops the rest of that
// stream's queue.
//
// Device memory is not the host's: between synchronizes it is unmapped, and host code that touches
// it crashes. Fresh memory is filled with 0xff bytes (NaN, or -1), which a read of uninitialised
// memory brings to light. Freed addresses are never used again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "kernels/device/device.h"
#include "kernels/gpu/gpu_properties.h"
#include "kernels/simt/counters.h"

namespace orchard {

namespace simt {

class FrontEnd;
class Heap;
class Multiprocessor;
class WorkQueues;

// Which of the threads that can run runs next, and the order of blocks. A correct kernel does not
// depend on it.
enum class ThreadOrder : std::uint8_t { fifo, reverse, random };

enum class Counting : std::uint8_t { off, on };

// When an asynchronous copy happens: as early as a GPU may do it, where it is issued, or as late,
// where it is waited for, or now so, now so. Until then its destination is poison (0xff bytes). A
// correct kernel does not depend on it.
enum class AsyncCompletion : std::uint8_t { eager, lazy, random };

// Whether accesses to the same memory are looked at that nothing orders; race_checker.h says how.
enum class Races : std::uint8_t { ignore, find };

void register_operations(OperationTable&);

// Queues work that needs other ranks to act, too: called again and again, while somebody waits for
// the stream, until it returns true. In a graph it begins anew then.
void enqueue_polled(Stream& stream, std::function<bool()> poll);

}  // namespace simt

struct SimtOptions {
  simt::ThreadOrder order = simt::ThreadOrder::fifo;
  std::uint64_t seed = 0;                         // of both kinds of random
  simt::Counting counting = simt::Counting::off;  // of accesses
  simt::AsyncCompletion completion = simt::AsyncCompletion::lazy;
  simt::Races races = simt::Races::ignore;
  int compute_capability = 80;                  // which kernels are chosen: 90 for those of sm_90a
  int multiprocessors = 2;                      // that persistent kernels fill
  int clusters_at_once = 1;                     // of an ordinary launch, whose blocks mix then
  std::size_t shared_bytes_limit = 227 * 1024;  // per block (gpu_properties.h)
  simt::FrontEnd* front_end = nullptr;          // that outlives the device; none: compiled kernels
};

// The GPU for which kernels of this architecture are chosen, with its shared memory.
constexpr SimtOptions simt_options(GpuArch arch) {
  if (arch == GpuArch::sm_90a) return {.compute_capability = 90, .shared_bytes_limit = 227 * 1024};
  return {.compute_capability = 80, .shared_bytes_limit = 163 * 1024};
}

class SimtDevice final : public Device {
 public:
  explicit SimtDevice(const SimtOptions& options);
  ~SimtDevice() override;
  std::unique_ptr<Stream> make_stream() override;
  std::unique_ptr<Event> make_event() override;
  std::unique_ptr<Graph> capture(Stream& stream, std::function<void()> work) override;
  void advance() override;

  // For what moves data to and from the device by itself, in queued work. Throws Error unless all of
  // the device's bytes lie in one live allocation.
  void read(void* host, const void* device, std::size_t bytes) const;
  void write(void* device, const void* host, std::size_t bytes);

  // Of all launches since the last reset. Accesses are counted with Counting::on.
  const simt::Counters& counters() const { return counters_; }
  void reset_counters() { counters_ = {}; }

 private:
  std::byte* allocate_bytes(std::size_t bytes) override;
  void free_bytes(std::byte* data, std::size_t bytes) noexcept override;

  simt::Counters counters_;
  std::unique_ptr<simt::Heap> heap_;
  std::unique_ptr<simt::Multiprocessor> multiprocessor_;
  std::unique_ptr<simt::WorkQueues> queues_;
};

// The emulated GPU with every CUDA operation registered.
std::unique_ptr<SimtDevice> make_simt_device(const SimtOptions& options = {});

}  // namespace orchard
