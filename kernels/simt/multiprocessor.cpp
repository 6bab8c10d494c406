#include "kernels/simt/multiprocessor.h"

#include <bit>
#include <cstring>
#include <iterator>
#include <utility>

#include "kernels/core/error.h"

namespace orchard::simt {
namespace {

constexpr std::size_t warp_size = 32;
constexpr std::size_t shared_alignment = 1024;
constexpr std::size_t shared_red_zone = 256;
constexpr int poison = 0xff;
constexpr int red = 0xa5;

// Thrown in a waiting thread to unwind the kernel's stack. Not a std::exception, which would be a
// fault.
struct Unwinding {};

// The multiprocessor whose kernel this host thread executes.
thread_local Multiprocessor* active = nullptr;

// "threads 0-15, 17"
std::string ranges(const std::vector<std::size_t>& numbers) {
  std::string out = numbers.size() == 1 ? "thread " : "threads ";
  for (std::size_t i = 0; i < numbers.size();) {
    std::size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    fmt::format_to(std::back_inserter(out), "{}{}", i ? ", " : "", numbers[i]);
    if (last > i) fmt::format_to(std::back_inserter(out), "-{}", numbers[last]);
    i = last + 1;
  }
  return out;
}

}  // namespace

Multiprocessor& running(std::string_view call) {
  require(active != nullptr, "{} was called outside a kernel", call);
  return *active;
}

std::string text(const Where& where) {
  std::string_view file = where.file;
  file.remove_prefix(file.rfind('/') + 1);  // npos + 1 is 0
  return fmt::format("{}:{}", file, where.line);
}

Multiprocessor::Multiprocessor(const SimtOptions& options, const Heap& heap, Counters& counters)
    : options_(options),
      heap_(heap),
      counters_(counters),
      queue_(options.order, options.seed),
      shared_(options.shared_bytes_limit + shared_red_zone + shared_alignment) {
  const auto begin = reinterpret_cast<std::uintptr_t>(shared_.data());
  shared_begin_ = shared_.data() + (shared_alignment - begin % shared_alignment);
}

Multiprocessor::~Multiprocessor() = default;

// ---- the grid --------------------------------------------------------------------------------

void Multiprocessor::check_limits(const LaunchShape& shape) const {
  const Extent3& grid = shape.grid;
  const Extent3& block = shape.block;
  require(grid.volume() > 0 && grid.x < (1u << 31) && grid.y < (1u << 16) && grid.z < (1u << 16),
          "launch of {}: grid ({}, {}, {}) is not within 1 .. (2^31 - 1, 65535, 65535)",
          shape.kernel, grid.x, grid.y, grid.z);
  require(block.volume() > 0 && block.volume() <= 1024 && block.z <= 64,
          "launch of {}: block ({}, {}, {}) is not within 1 .. 1024 threads, 64 of them along z",
          shape.kernel, block.x, block.y, block.z);
  require(shape.shared_bytes <= options_.shared_bytes_limit,
          "launch of {}: {} bytes of shared memory, a block has at most {}", shape.kernel,
          shape.shared_bytes, options_.shared_bytes_limit);
}

void Multiprocessor::run(const LaunchShape& shape, const std::function<void()>& thread) {
  check_limits(shape);
  lay_out_block(shape);
  shape_ = &shape;
  body_ = &thread;
  blockDim = {shape.block.x, shape.block.y, shape.block.z};
  gridDim = {shape.grid.x, shape.grid.y, shape.grid.z};
  ++counters_.launches;
  struct Activation {
    explicit Activation(Multiprocessor* m) { active = m; }
    ~Activation() { active = nullptr; }
  } const activation(this);
  const std::size_t blocks = shape.grid.volume();
  for (std::size_t i = 0; i < blocks; ++i) run_block(queue_.block_number(i, blocks));
}

void Multiprocessor::lay_out_block(const LaunchShape& shape) {
  const Extent3& block = shape.block;
  threads_.resize(block.volume());
  warps_.resize((threads_.size() + warp_size - 1) / warp_size);
  stacks_.grow_to(threads_.size());
  for (std::size_t i = 0; i < threads_.size(); ++i) {
    const auto number = static_cast<unsigned>(i);
    Thread& thread = threads_[i];
    thread.index = {number % block.x, number / block.x % block.y, number / (block.x * block.y)};
    thread.lane = number % warp_size;
    thread.warp = &warps_[i / warp_size];
    thread.warp->lanes[thread.lane] = &thread;
  }
}

void Multiprocessor::run_block(std::size_t number) {
  const Extent3& grid = shape_->grid;
  const auto n = static_cast<unsigned>(number % (std::size_t{grid.x} * grid.y));
  blockIdx = {n % grid.x, n / grid.x,
              static_cast<unsigned>(number / (std::size_t{grid.x} * grid.y))};
  ++counters_.blocks;
  std::memset(shared_begin_, poison, shape_->shared_bytes);
  std::memset(shared_begin_ + shape_->shared_bytes, red, shared_red_zone);
  live_ = threads_.size();
  at_barrier_ = 0;
  for (Warp& warp : warps_) {
    warp.live = 0;
    warp.at_barrier = 0;
    warp.collecting.clear();
    warp.wgmma.reset();
  }
  mbarriers_.reset();
  tensor_loads_.clear();
  tensor_loads_done_ = 0;
  queue_.reset(threads_.size());
  for (std::size_t i = 0; i < threads_.size(); ++i) {
    Thread& thread = threads_[i];
    thread.returned = false;
    thread.log.clear();
    thread.copies.reset();
    thread.warp->live |= 1u << thread.lane;
    const StackPool::Slot stack = stacks_.slot(i);
    thread.stack = stack.bounds();
    renew_stack(thread.stack);
    thread.fiber = make_fiber(stack);
    queue_.push(&thread);
  }

  run_from_host(*queue_.pop());
  if (fault_) {
    unwinding_ = true;
    for (Thread& thread : threads_) {
      if (thread.fiber) run_from_host(thread);
    }
    unwinding_ = false;
    std::rethrow_exception(std::exchange(fault_, nullptr));
  }
  check_block_end();
}

void Multiprocessor::check_block_end() {
  const auto block = [&] {
    return fmt::format("kernel {}, block ({}, {}, {})", shape_->kernel, blockIdx.x, blockIdx.y,
                       blockIdx.z);
  };
  require(tensor_loads_done_ == tensor_loads_.size(),
          "{}: {} copies of the copy engine are in flight when the block ends", block(),
          tensor_loads_.size() - tensor_loads_done_);
  for (std::size_t warp = 0; warp < warps_.size(); ++warp) {
    require(warps_[warp].wgmma.in_flight() == 0,
            "{}: warp {} returns with {} wgmma that it has not waited for", block(), warp,
            warps_[warp].wgmma.in_flight());
    require(warps_[warp].wgmma.fingerprint() == warps_[warp / 4 * 4].wgmma.fingerprint(),
            "{}: warps {} and {} of one warpgroup executed different wgmma", block(), warp / 4 * 4,
            warp);
  }
  for (std::size_t i = 0; i < shared_red_zone; ++i) {
    require(shared_begin_[shape_->shared_bytes + i] == std::byte{red},
            "kernel {}, block ({}, {}, {}) wrote at byte {} of its {} bytes of shared memory",
            shape_->kernel, blockIdx.x, blockIdx.y, blockIdx.z, shape_->shared_bytes + i,
            shape_->shared_bytes);
  }
}

// ---- fibers ----------------------------------------------------------------------------------

boost::context::fiber Multiprocessor::make_fiber(StackPool::Slot stack) {
  return {std::allocator_arg, stack, [this](boost::context::fiber&& previous) {
            const StackBounds from = enter_stack();
            if (!previous_) host_stack_ = from;
            arrived_from(std::move(previous));
            try {
              if (!unwinding_) {
                (*body_)();
                returned();
              }
            } catch (const Unwinding&) {
            } catch (const std::exception&) {
              fault_ = std::current_exception();
            }
            return next_after_return();
          }};
}

// Where the processor goes when the current thread is done with it for good.
boost::context::fiber Multiprocessor::next_after_return() {
  Thread* next = nullptr;
  try {
    if (!fault_ && live_ > 0) next = next_runnable();
  } catch (const Error&) {
    fault_ = std::current_exception();
  }
  if (!next) {
    if (!fault_ && live_ > 0) fault_ = std::make_exception_ptr(Error(deadlock()));
    leave_stack(host_stack_);
    return std::move(host_);
  }
  previous_ = current_;
  make_current(*next);
  leave_stack(next->stack);
  return std::move(next->fiber);
}

void Multiprocessor::run_from_host(Thread& thread) {
  previous_ = nullptr;
  make_current(thread);
  const StackSwitch stack_switch(thread.stack);
  std::move(thread.fiber).resume();
}

// Asynchronous copies take as long as they may: until nobody can run without them.
Thread* Multiprocessor::next_runnable() {
  Thread* next = queue_.pop();
  while (!next && complete_tensor_load()) next = queue_.pop();
  return next;
}

void Multiprocessor::wait() {
  Thread* const next = next_runnable();
  if (!next) fail("{}", deadlock());
  if (next == current_) return;
  previous_ = current_;
  make_current(*next);
  {
    const StackSwitch stack_switch(next->stack);
    boost::context::fiber previous = std::move(next->fiber).resume();
    arrived_from(std::move(previous));
  }
  if (unwinding_) throw Unwinding();
}

void Multiprocessor::make_current(Thread& thread) {
  current_ = &thread;
  threadIdx = thread.index;
}

void Multiprocessor::arrived_from(boost::context::fiber&& previous) {
  (previous_ ? previous_->fiber : host_) = std::move(previous);
}

// ---- waiting for each other ------------------------------------------------------------------

void Multiprocessor::returned() {
  if (const std::size_t count = current_->copies.in_flight()) {
    fail("{}: returns with {} asynchronous copies that it has not waited for", place(), count);
  }
  current_->returned = true;
  --live_;
  Warp& warp = *current_->warp;
  warp.live &= ~(1u << current_->lane);
  if (warp.live == 0) count_warp(warp);
  // Nobody waits for a thread that has returned: it may be the last one that others waited for.
  for (std::size_t i = warp.collecting.size(); i-- > 0;) {
    const Collective& collective = warp.collecting[i];
    if (collective.arrived == (collective.mask & warp.live)) complete(warp, i);
  }
  if (live_ > 0 && at_barrier_ == live_) complete_barrier();
}

void Multiprocessor::block_barrier(Where where) {
  Thread& self = *current_;
  Warp& warp = *self.warp;
  if (warp.at_barrier == 0) warp.barrier = where;
  if (warp.barrier != where) {
    fail("{}: divergent barrier: __syncthreads() at {} while other lanes of its warp wait at {}",
         place(), text(where), text(warp.barrier));
  }
  warp.at_barrier |= 1u << self.lane;
  ++at_barrier_;
  self.operation = nullptr;
  self.mbarrier = nullptr;
  self.where = where;
  if (at_barrier_ == live_) return complete_barrier();
  wait();
}

void Multiprocessor::complete_barrier() {
  ++counters_.block_barriers;
  at_barrier_ = 0;
  for (Warp& warp : warps_) {
    count_warp(warp);
    for (unsigned lanes = std::exchange(warp.at_barrier, 0); lanes; lanes &= lanes - 1) {
      Thread* const thread = warp.lanes[static_cast<std::size_t>(std::countr_zero(lanes))];
      if (thread != current_) queue_.push(thread);
    }
  }
}

void Multiprocessor::warp_collective(const WarpOperation& operation, unsigned mask, void* argument,
                                     Where where) {
  Thread& self = *current_;
  Warp& warp = *self.warp;
  if (!(mask >> self.lane & 1)) {
    fail("{}: {} at {} has mask {:#010x}, without its own lane {}", place(), operation.name,
         text(where), mask, self.lane);
  }
  std::size_t i = 0;
  while (i < warp.collecting.size() &&
         (warp.collecting[i].mask != mask || warp.collecting[i].operation != &operation)) {
    ++i;
  }
  if (i == warp.collecting.size()) warp.collecting.push_back({&operation, mask});
  Collective& collective = warp.collecting[i];
  collective.arrived |= 1u << self.lane;
  collective.arguments[self.lane] = argument;
  self.operation = &operation;
  self.mbarrier = nullptr;
  self.mask = mask;
  self.where = where;
  if (collective.arrived == (mask & warp.live)) return complete(warp, i);
  wait();
}

void Multiprocessor::complete(Warp& warp, std::size_t index) {
  const Collective collective = warp.collecting[index];
  warp.collecting.erase(warp.collecting.begin() + static_cast<std::ptrdiff_t>(index));
  if ((collective.mask & warp.live) == warp.live) count_warp(warp);
  ++counters_.warp_collectives;
  try {
    collective.operation->execute(collective.arguments);
  } catch (const Error& error) {
    fail("{}: {} at {}: {}", place(), collective.operation->name, text(current_->where),
         error.what());
  }
  for (unsigned lanes = collective.arrived; lanes; lanes &= lanes - 1) {
    Thread* const thread = warp.lanes[static_cast<std::size_t>(std::countr_zero(lanes))];
    if (thread != current_) queue_.push(thread);
  }
}

// ---- messages --------------------------------------------------------------------------------

void Multiprocessor::refuse(std::size_t bytes, Access kind, Where where,
                            const std::string& reason) const {
  fail("{}: {} {} bytes at {}, {}", place(), kind == Access::read ? "reads" : "writes", bytes,
       text(where), reason);
}

std::string Multiprocessor::place() const {
  const uint3& t = current_->index;
  return fmt::format("kernel {}, block ({}, {}, {}), thread ({}, {}, {})", shape_->kernel,
                     blockIdx.x, blockIdx.y, blockIdx.z, t.x, t.y, t.z);
}

std::string Multiprocessor::deadlock() {
  // Threads that wait for the same thing, in the order of their first.
  std::vector<std::pair<std::string, std::vector<std::size_t>>> groups;
  for (std::size_t i = 0; i < threads_.size(); ++i) {
    const Thread& thread = threads_[i];
    const std::string state =
        thread.returned    ? "returned"
        : thread.operation ? fmt::format("in {} of lanes {:#010x} at {}", thread.operation->name,
                                         thread.mask, text(thread.where))
        : thread.mbarrier
            ? fmt::format("in mbarrier.try_wait at {}, for byte {} of shared memory, which {}",
                          text(thread.where), shared_offset(thread.mbarrier),
                          mbarriers_.state(thread.mbarrier))
            : fmt::format("in __syncthreads() at {}", text(thread.where));
    auto group = groups.begin();
    while (group != groups.end() && group->first != state) ++group;
    if (group == groups.end()) group = groups.insert(group, {state, {}});
    group->second.push_back(i);
  }
  std::string out = fmt::format("kernel {}, block ({}, {}, {}): deadlock, no thread can go on",
                                shape_->kernel, blockIdx.x, blockIdx.y, blockIdx.z);
  for (const auto& [state, members] : groups) {
    fmt::format_to(std::back_inserter(out), "\n  {}: {}", ranges(members), state);
  }
  return out;
}

}  // namespace orchard::simt
