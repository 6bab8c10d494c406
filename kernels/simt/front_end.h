// Who executes a launch's threads: by default the kernel that the host compiler compiled, else a front
// end of SimtOptions, such as the one for PTX text (ptx_text/program.h).
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "kernels/gpu/launch_shape.h"
#include "kernels/simt/heap.h"

namespace orchard::simt {

struct Counters;

// A compiled kernel with its arguments.
struct KernelCall {
  std::function<void()> thread;  // runs it, for one thread
  const void* kernel = nullptr;  // its address
  std::vector<std::span<const std::byte>> parameters;  // their bytes; they live as long as `thread`
};

// What a front end executes one launch on.
class LaunchSite {
 public:
  virtual ~LaunchSite() = default;
  // Runs `thread` once per thread of the launch; throws Error at a fault.
  virtual void run(const std::function<void()>& thread) = 0;
  // The device's memory.
  virtual HeapImage save_memory() const = 0;
  virtual void restore_memory(const HeapImage& saved) = 0;
  virtual const Counters& counters() const = 0;
};

class FrontEnd {
 public:
  virtual ~FrontEnd() = default;
  virtual void launch(const LaunchShape& shape, const KernelCall& call, LaunchSite& site) = 0;
};

}  // namespace orchard::simt
