#include "kernels/simt/wgmma_queue.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "kernels/core/dtype.h"
#include "kernels/core/error.h"
#include "kernels/simt/counters.h"
#include "kernels/simt/tensor_map.h"

namespace orchard::simt {
namespace {

constexpr int warp_rows = 16, depth = 16;
const float poison = std::bit_cast<float>(wgmma_poison);

bool is_poison(float value) {
  return std::bit_cast<std::uint32_t>(value) == wgmma_poison;
}

const WgmmaArguments& arguments_of(void* lane) {
  return *static_cast<const WgmmaArguments*>(lane);
}

// Where element i of a lane's accumulator lies in the warp's [16, n]: PTX ISA, "Register Fragments
// for wgmma.mma_async.m64nNk16", matrix D.
std::size_t place(unsigned lane, int i, int n) {
  const int row = static_cast<int>(lane / 4) + 8 * (i / 2 % 2);
  const int col = 8 * (i / 4) + 2 * static_cast<int>(lane % 4) + i % 2;
  return static_cast<std::size_t>(row * n + col);
}

// A matrix descriptor (PTX ISA, "Shared Memory Matrix Descriptor").
struct Descriptor {
  std::size_t start, leading_bytes, stride_bytes;
  Swizzle swizzle;

  explicit Descriptor(std::uint64_t bits) {
    const auto field = [&](unsigned shift) {
      return static_cast<std::size_t>(bits >> shift & 0x3fff) << 4;
    };
    start = field(0);
    leading_bytes = field(16);
    stride_bytes = field(32);
    constexpr Swizzle codes[] = {Swizzle::none, Swizzle::bytes_128, Swizzle::bytes_64,
                                 Swizzle::bytes_32};
    swizzle = codes[bits >> 62];
    require((bits >> 49 & 7) == 0, "the descriptor's base offset must be 0");
  }

  // Byte of shared memory of element [mn, k]: PTX ISA, "Canonical Layouts". Eight lines of `width`
  // elements lie together. Of what follows them, the strides say where; without a swizzle they change
  // places where mn is contiguous, and are both needed where k is.
  std::size_t byte_of(bool is_mn, std::size_t mn, std::size_t k) const {
    const bool plain = swizzle == Swizzle::none;
    const std::size_t width = 8 * static_cast<std::size_t>(swizzle), line = 2 * width;
    std::size_t at = start;
    if (is_mn) {
      at += mn % width * 2 + mn / width * (plain ? stride_bytes : leading_bytes);
      at += k % 8 * line + k / 8 * (plain ? leading_bytes : stride_bytes);
    } else {
      at += mn % 8 * line + mn / 8 * stride_bytes;
      at += k % 8 * 2 + k / 8 * (plain ? leading_bytes : 16);
    }
    return swizzled(at, swizzle);
  }
};

// An operand of [count, 16] elements from row `first` on; `is_mn`: they are contiguous in the rows.
struct Operand {
  std::uint64_t descriptor;
  bool is_mn;
  std::size_t first, count;
};

// Calls action(mn, k, byte of shared memory) for every 8 elements that lie together.
template <class Action>
void for_each_chunk(const Operand& operand, std::size_t shared_bytes, const Action& action) {
  const Descriptor layout(operand.descriptor);
  const bool is_mn = operand.is_mn;
  for (std::size_t outer = 0; outer < (is_mn ? depth : operand.count); ++outer) {
    for (std::size_t inner = 0; inner < (is_mn ? operand.count : depth); inner += 8) {
      const std::size_t mn = is_mn ? inner : outer, k = is_mn ? outer : inner;
      const std::size_t at = layout.byte_of(is_mn, operand.first + mn, k);
      require(at + 16 <= shared_bytes, "an operand lies at byte {} of {} bytes of shared memory",
              at, shared_bytes);
      action(mn, k, at);
    }
  }
}

void read_operand(const Operand& operand, std::span<const std::byte> shared,
                  std::vector<float>& out) {
  out.resize(operand.count * depth);
  for_each_chunk(operand, shared.size(), [&](std::size_t mn, std::size_t k, std::size_t at) {
    bf16 chunk[8];
    std::memcpy(chunk, shared.data() + at, sizeof chunk);
    for (std::size_t i = 0; i < 8; ++i) {
      const bool along_mn = operand.is_mn;
      out[(along_mn ? mn + i : mn) * depth + (along_mn ? k : k + i)] = to_float(chunk[i]);
    }
  });
}

// A warp's share of an instruction's operands.
Operand left_operand(const WgmmaArguments& op, unsigned warp_of_group) {
  return {op.a, op.a_is_mn, std::size_t{warp_rows} * warp_of_group, warp_rows};
}
Operand right_operand(const WgmmaArguments& op) {
  return {op.b, op.b_is_mn, 0, static_cast<std::size_t>(op.n)};
}

// The warp's [16, 16] of an operand in registers: mma's left operand.
std::vector<float> gather_operand(const std::array<void*, 32>& lanes) {
  std::vector<float> out(warp_rows * depth);
  for (unsigned lane = 0; lane < lanes.size(); ++lane) {
    for (unsigned r = 0; r < 4; ++r) {
      const unsigned bits = arguments_of(lanes[lane]).a_registers[r];
      for (unsigned half = 0; half < 2; ++half) {
        const unsigned row = lane / 4 + 8 * (r % 2), k = 2 * (lane % 4) + half + 8 * (r / 2);
        out[row * depth + k] = to_float(bf16{static_cast<std::uint16_t>(bits >> (16 * half))});
      }
    }
  }
  return out;
}

}  // namespace

WgmmaQueue::Accumulator& WgmmaQueue::accumulator(const std::array<void*, 32>& lanes, int n) {
  float* const first = arguments_of(lanes[0]).d;
  for (Accumulator& known : accumulators_) {
    if (known.registers[0] == first) return known;
  }
  Accumulator fresh{{}, std::vector<float>(static_cast<std::size_t>(warp_rows * n)), 0};
  for (unsigned lane = 0; lane < lanes.size(); ++lane) {
    float* const registers = arguments_of(lanes[lane]).d;
    fresh.registers[lane] = registers;
    for (int i = 0; i < n / 2; ++i) {
      fresh.sums[place(lane, i, n)] = registers[i];
      registers[i] = poison;
    }
  }
  return accumulators_.emplace_back(std::move(fresh));
}

void WgmmaQueue::issue(const std::array<void*, 32>& lanes, std::span<const std::byte> shared,
                       unsigned warp_of_group, bool at_once) {
  const WgmmaArguments& own = arguments_of(lanes[0]);
  for (void* const lane : lanes) {
    require(lane != nullptr, "all 32 lanes must take part");
    const WgmmaArguments& other = arguments_of(lane);
    require(other.a == own.a && other.b == own.b && other.accumulate == own.accumulate,
            "the lanes of a warp bring different descriptors");
  }
  require(fenced_, "no wgmma_fence since the last commit");
  note({{own.a, own.b, 2 * static_cast<std::uint64_t>(own.n) + own.accumulate}, own.where});
  const auto record = [](std::size_t, std::size_t, std::size_t at) { record_wgmma_read(at); };
  if (!own.a_registers) for_each_chunk(left_operand(own, warp_of_group), shared.size(), record);
  for_each_chunk(right_operand(own), shared.size(), record);
  ++accumulator(lanes, own.n).in_flight;
  Product product{own, {}, warp_of_group, false, {}};
  if (own.a_registers) product.a = gather_operand(lanes);
  if (own.a_stays) product.left.emplace(lanes);
  products_.push_back(std::move(product));
  // In order: later products add to what earlier ones leave.
  for (std::size_t i = done_; at_once && i < products_.size(); ++i) perform(products_[i], shared);
  ++counters().wgmma_instructions;
  counters().tensor_flops += static_cast<std::uint64_t>(2 * warp_rows * own.n * depth);
}

void WgmmaQueue::perform(Product& product, std::span<const std::byte> shared) {
  if (std::exchange(product.happened, true)) return;
  const WgmmaArguments& op = product.arguments;
  const auto n = static_cast<std::size_t>(op.n);
  std::vector<float> a = product.a, b;
  if (!op.a_registers) {
    read_operand(left_operand(op, product.warp_of_group), shared, a);
  }
  read_operand(right_operand(op), shared, b);
  for (Accumulator& into : accumulators_) {
    if (into.registers[0] != op.d) continue;
    std::vector<float> column(n * depth);  // b transposed: the inner loop runs along n
    for (std::size_t col = 0; col < n; ++col) {
      for (std::size_t k = 0; k < depth; ++k) column[k * n + col] = b[col * depth + k];
    }
    for (std::size_t row = 0; row < warp_rows; ++row) {
      float* const sums = into.sums.data() + row * n;
      if (!op.accumulate) std::fill(sums, sums + n, 0.0f);
      for (std::size_t k = 0; k < depth; ++k) {
        for (std::size_t col = 0; col < n; ++col) {
          sums[col] += a[row * depth + k] * column[k * n + col];
        }
      }
    }
  }
}

void WgmmaQueue::commit() {
  group_ends_.push_back(products_.size());
  fenced_ = false;
}

void WgmmaQueue::wait(std::size_t pending_groups, std::span<const std::byte> shared) {
  while (group_ends_.size() - done_groups_ > pending_groups) {
    for (const std::size_t end = group_ends_[done_groups_++]; done_ < end; ++done_) {
      perform(products_[done_], shared);
      finish(products_[done_]);
    }
  }
  if (done_ == products_.size() && done_groups_ == group_ends_.size()) {
    products_.clear();
    group_ends_.clear();
    done_ = done_groups_ = 0;
  }
}

WgmmaQueue::LeftRegisters::LeftRegisters(const std::array<void*, 32>& lanes) {
  for (std::size_t lane = 0; lane < lanes.size(); ++lane) {
    at[lane] = arguments_of(lanes[lane]).a_registers;
    std::copy_n(at[lane], bits[lane].size(), bits[lane].begin());
  }
}

void WgmmaQueue::LeftRegisters::require_unchanged() const {
  for (std::size_t lane = 0; lane < at.size(); ++lane) {
    for (std::size_t r = 0; r < bits[lane].size(); ++r) {
      require(at[lane][r] == bits[lane][r],
              "register {} of lane {}'s left operand was changed while a wgmma was in flight", r,
              lane);
    }
  }
}

void WgmmaQueue::finish(const Product& product) {
  if (product.left) product.left->require_unchanged();
  for (std::size_t at = 0; at < accumulators_.size(); ++at) {
    Accumulator& own = accumulators_[at];
    if (own.registers[0] != product.arguments.d || --own.in_flight > 0) continue;
    const int n = product.arguments.n;
    for (unsigned lane = 0; lane < own.registers.size(); ++lane) {
      for (int i = 0; i < n / 2; ++i) {
        require(is_poison(own.registers[lane][i]),
                "accumulator {} of lane {} was touched while a wgmma was in flight", i, lane);
        own.registers[lane][i] = own.sums[place(lane, i, n)];
      }
    }
    accumulators_.erase(accumulators_.begin() + static_cast<std::ptrdiff_t>(at));
    return;
  }
}

const WarpOperation wgmma_operation{"wgmma", [](const std::array<void*, 32>& lanes) {
                                      wgmma_queue().issue(lanes, block_shared_memory(),
                                                          warp_index() % 4, happens_at_once());
                                    }};
const WarpOperation wgmma_fence_operation{
    "wgmma.fence", [](const std::array<void*, 32>&) { wgmma_queue().fence(); }};
const WarpOperation wgmma_commit_operation{"wgmma.commit_group",
                                           [](const std::array<void*, 32>&) { commit_wgmma(); }};
const WarpOperation wgmma_wait_operation{"wgmma.wait_group",
                                         [](const std::array<void*, 32>& lanes) {
                                           wait_wgmma(*static_cast<const unsigned*>(lanes[0]));
                                         }};

const WarpOperation set_registers_operation{
    "setmaxnreg", [](const std::array<void*, 32>& lanes) {
      for (void* const lane : lanes) {
        require(lane != nullptr, "all 32 lanes must take part");
      }
      const auto& own = *static_cast<const SetRegistersArguments*>(lanes[0]);
      change_registers(own.count, own.grow);
    }};

}  // namespace orchard::simt
