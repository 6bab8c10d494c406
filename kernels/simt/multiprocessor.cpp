#include "kernels/simt/multiprocessor.h"

#include <utility>

#include "kernels/core/error.h"

namespace orchard::simt {
namespace {

constexpr std::size_t warp_size = 32;
constexpr unsigned all_registers = 64 * 1024;

// Thrown in a waiting thread to unwind the kernel's stack. Not a std::exception, which would be a
// fault.
struct Unwinding {};

// Registers of each thread, as nvcc gives them out to a kernel whose launch bounds are its block.
unsigned registers_of(std::size_t threads) {
  constexpr unsigned most = 255;
  return std::min(static_cast<unsigned>(all_registers / threads) / 8 * 8, most);
}

}  // namespace

thread_local constinit Multiprocessor* active = nullptr;
thread_local constinit WatchedAddresses watched;

void refuse_outside_kernel(std::string_view call) {
  fail("{} was called outside a kernel", call);
}

std::string text(const Where& where) {
  return Site(where).text();
}

Multiprocessor::Multiprocessor(const SimtOptions& options, Heap& heap, Counters& counters)
    : options_(options),
      heap_(heap),
      counters_(counters),
      queue_(options.order, options.seed),
      random_(~options.seed),
      races_(options.races == Races::find ? std::make_unique<RaceChecker>(heap) : nullptr),
      is_observed_(races_ || options.counting != Counting::off) {}

Multiprocessor::~Multiprocessor() = default;

// ---- the grid --------------------------------------------------------------------------------

void Multiprocessor::check_limits(const LaunchShape& shape) const {
  const Extent3& grid = shape.grid;
  const Extent3& block = shape.block;
  const Extent3& cluster = shape.cluster;
  require(grid.volume() > 0 && grid.x < (1u << 31) && grid.y < (1u << 16) && grid.z < (1u << 16),
          "launch of {}: grid ({}, {}, {}) is not within 1 .. (2^31 - 1, 65535, 65535)",
          shape.kernel, grid.x, grid.y, grid.z);
  require(block.volume() > 0 && block.volume() <= 1024 && block.z <= 64,
          "launch of {}: block ({}, {}, {}) is not within 1 .. 1024 threads, 64 of them along z",
          shape.kernel, block.x, block.y, block.z);
  require(shape.shared_bytes <= options_.shared_bytes_limit,
          "launch of {}: {} bytes of shared memory, a block has at most {}", shape.kernel,
          shape.shared_bytes, options_.shared_bytes_limit);
  constexpr std::size_t portable_cluster = 8;
  require(cluster.volume() > 0 && cluster.volume() <= portable_cluster && grid.x % cluster.x == 0 &&
              grid.y % cluster.y == 0 && grid.z % cluster.z == 0,
          "launch of {}: clusters of ({}, {}, {}) blocks, at most {}, do not divide a grid of "
          "({}, {}, {})",
          shape.kernel, cluster.x, cluster.y, cluster.z, portable_cluster, grid.x, grid.y, grid.z);
  require(cluster.volume() == 1 || options_.compute_capability >= 90,
          "launch of {}: clusters need sm_90, the device is sm_{}", shape.kernel,
          options_.compute_capability);
  if (shape.residency != Residency::whole_grid) return;
  constexpr std::size_t threads_at_once = 2048, shared_at_once = 228 * 1024, reserved = 1024;
  const std::size_t blocks_at_once =
      std::min(threads_at_once / ((block.volume() + warp_size - 1) / warp_size * warp_size),
               shared_at_once / (shape.shared_bytes + reserved));
  require(grid.volume() <= blocks_at_once * static_cast<std::size_t>(options_.multiprocessors),
          "launch of {}: {} blocks cannot be resident together on {} multiprocessors that hold {} "
          "each",
          shape.kernel, grid.volume(), options_.multiprocessors, blocks_at_once);
}

void Multiprocessor::run(const LaunchShape& shape, const std::function<void()>& thread) {
  check_limits(shape);
  shape_ = &shape;
  body_ = &thread;
  const Extent3 cluster = shape.cluster;
  const Extent3 clusters{shape.grid.x / cluster.x, shape.grid.y / cluster.y,
                         shape.grid.z / cluster.z};
  const bool whole_grid = shape.residency == Residency::whole_grid;
  const std::size_t at_once =
      whole_grid ? clusters.volume()
                 : std::min<std::size_t>(static_cast<std::size_t>(options_.clusters_at_once),
                                         clusters.volume());
  lay_out(shape, at_once);
  blockDim = {shape.block.x, shape.block.y, shape.block.z};
  gridDim = {shape.grid.x, shape.grid.y, shape.grid.z};
  ++counters_.launches;
  first_touches_.begin_launch();
  if (races_) races_->begin_launch(shape);
  struct Activation {
    explicit Activation(Multiprocessor* m, const WatchedAddresses& addresses) {
      active = m;
      watched = addresses;
    }
    ~Activation() {
      active = nullptr;
      watched = {};
    }
  } const activation(this, {.heap_begin = reinterpret_cast<std::uintptr_t>(heap_.address(0)),
                            .heap_bytes = heap_.size(),
                            .shared_begin = reinterpret_cast<std::uintptr_t>(shared_.begin(0)),
                            .shared_bytes = blocks_.size() * SharedMemories::window});

  const std::size_t cluster_blocks = cluster.volume();
  // The blocks of a cluster stand together in blocks_.
  const auto place_cluster = [&](std::size_t first_slot, std::size_t number) {
    const std::size_t x = number % clusters.x * cluster.x,
                      y = number / clusters.x % clusters.y * cluster.y,
                      z = number / clusters.x / clusters.y * cluster.z;
    for (std::size_t rank = 0; rank < cluster_blocks; ++rank) {
      const std::size_t bx = x + rank % cluster.x, by = y + rank / cluster.x % cluster.y,
                        bz = z + rank / cluster.x / cluster.y;
      place_block(blocks_[first_slot + rank], bx + shape.grid.x * (by + shape.grid.y * bz));
    }
  };
  for (std::size_t first = 0; first < clusters.volume(); first += at_once) {
    const std::size_t count = std::min(at_once, clusters.volume() - first);
    if (count < at_once) lay_out(shape, count);
    for (std::size_t i = 0; i < count; ++i) {
      place_cluster(i * cluster_blocks,
                    whole_grid ? i : queue_.block_number(first + i, clusters.volume()));
    }
    run_blocks();
  }
}

// Makes what is resident at once, and links it.
void Multiprocessor::lay_out(const LaunchShape& shape, std::size_t clusters) {
  const std::size_t cluster_blocks = shape.cluster.volume();
  const std::size_t block_count = clusters * cluster_blocks;
  const std::size_t block_threads = shape.block.volume();
  const std::size_t block_warps = (block_threads + warp_size - 1) / warp_size;
  threads_.resize(block_count * block_threads);
  warps_.resize(block_count * block_warps);
  blocks_.resize(block_count);
  clusters_.resize(block_count / cluster_blocks);
  stacks_.grow_to(threads_.size());
  shared_.resize(block_count);
  for (Warp& warp : warps_) warp.lanes = {};
  for (std::size_t b = 0; b < block_count; ++b) {
    Block& block = blocks_[b];
    block.slot = static_cast<unsigned>(b);
    block.rank = static_cast<unsigned>(b % cluster_blocks);
    block.cluster = &clusters_[b / cluster_blocks];
    block.threads = {threads_.data() + b * block_threads, block_threads};
    block.warps = {warps_.data() + b * block_warps, block_warps};
    for (std::size_t i = 0; i < block_threads; ++i) {
      Thread& thread = block.threads[i];
      const auto number = static_cast<unsigned>(i);
      thread.number = number;
      thread.index = {number % shape.block.x, number / shape.block.x % shape.block.y,
                      number / (shape.block.x * shape.block.y)};
      thread.lane = number % warp_size;
      thread.warp = &block.warps[i / warp_size];
      thread.block = &block;
      thread.warp->lanes[thread.lane] = &thread;
    }
  }
}

void Multiprocessor::place_block(Block& block, std::size_t number) {
  const Extent3& grid = shape_->grid;
  const auto n = static_cast<unsigned>(number % (std::size_t{grid.x} * grid.y));
  block.number = static_cast<std::uint32_t>(number);
  block.index = {n % grid.x, n / grid.x,
                 static_cast<unsigned>(number / (std::size_t{grid.x} * grid.y))};
}

void Multiprocessor::reset_block(Block& block) {
  ++counters_.blocks;
  shared_.renew(block.slot, shape_->shared_bytes);
  block.live = block.threads.size();
  block.mbarriers = 0;
  const unsigned registers = registers_of(block.threads.size());
  block.free_registers =
      all_registers - registers * static_cast<unsigned>(block.warps.size() * warp_size);
  block.waiting_for_registers.clear();
  for (BlockBarrier& barrier : block.barriers) barrier = {};
  for (Warp& warp : block.warps) {
    warp.live = 0;
    warp.collecting.clear();
    warp.active.clear();
    warp.wgmma.reset();
    warp.products = {};
    warp.registers = registers;
    warp.wanted_registers = 0;
  }
  for (std::size_t i = 0; i < block.threads.size(); ++i) {
    Thread& thread = block.threads[i];
    thread.returned = false;
    thread.at_cluster_barrier = false;
    thread.unfenced_mbarriers.clear();
    thread.log.clear();
    thread.copies.reset();
    thread.bulk.reset();
    thread.warp->live |= 1u << thread.lane;
    if (races_) {
      thread.knowledge = {};
      thread.knowledge.block = block.number;
      thread.knowledge.thread = static_cast<std::uint16_t>(i);
      thread.knowledge.warp_actor =
          static_cast<std::uint32_t>(block.threads.size() + (thread.warp - block.warps.data()));
    }
    const StackPool::Slot stack = stacks_.slot(static_cast<std::size_t>(&thread - threads_.data()));
    thread.stack = stack.bounds();
    renew_stack(thread.stack);
    thread.fiber = make_fiber(stack);
    queue_.push(&thread);
  }
}

void Multiprocessor::run_blocks() {
  mbarriers_.reset();
  loads_.clear();
  unseen_loads_.clear();
  grid_barrier_ = {.threads = threads_.size()};
  live_ = threads_.size();
  queue_.reset(threads_.size());
  if (races_) races_->begin_blocks(static_cast<unsigned>(blocks_.size()));
  for (Cluster& cluster : clusters_) {
    cluster.barrier = {.threads = threads_.size() / clusters_.size()};
  }
  for (Block& block : blocks_) reset_block(block);

  run_from_host(*queue_.pop());
  if (fault_) {
    unwinding_ = true;
    for (Thread& thread : threads_) {
      if (thread.fiber) run_from_host(thread);
    }
    unwinding_ = false;
    std::rethrow_exception(std::exchange(fault_, nullptr));
  }
  for (const Block& block : blocks_) {
    check_red_zone(block);
    if (races_) races_->end_block(block.number);
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

// Asynchronous copies take as long as they may: until nobody can run without them. With
// AsyncCompletion::random, some come earlier.
Thread* Multiprocessor::next_runnable() {
  if (options_.completion == AsyncCompletion::random && toss() && toss()) complete_some_load();
  Thread* next = queue_.pop();
  while (!next && complete_some_load()) next = queue_.pop();
  return next;
}

void Multiprocessor::wait() {
  Thread* const next = next_runnable();
  if (!next) fail("{}", deadlock());
  announced_ = {};
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
  announced_ = {};
  threadIdx = thread.index;
  blockIdx = thread.block->index;
}

void Multiprocessor::arrived_from(boost::context::fiber&& previous) {
  (previous_ ? previous_->fiber : host_) = std::move(previous);
}

void Multiprocessor::wake(std::vector<Thread*>& threads) {
  for (Thread* const thread : threads) queue_.push(thread);
  threads.clear();
}

}  // namespace orchard::simt
