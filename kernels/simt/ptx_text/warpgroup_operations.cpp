// wgmma and setmaxnreg, which the four warps of a group execute alike.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "kernels/core/error.h"
#include "kernels/simt/ptx_text/opcodes.h"
#include "kernels/simt/wgmma_queue.h"

namespace orchard::simt::ptx {
namespace {

constexpr unsigned whole_warp = 0xffffffffu;

// From issue to wait the sums lie in a place of their own, and each of the registers that will hold
// them has a signalling NaN that says which sum of which wgmma: PTX moves sums in flight between
// registers, which the assembler makes no moves of. Whatever computes with one gets a NaN without
// the name of a sum.
constexpr std::uint32_t tag_base = 0xffa40000, tag_step = 1 << 8;

SumsInFlight& sums_of(Frame& frame, const Instruction& i, std::uint32_t count) {
  const auto word = [&](std::uint32_t k) { return frame.read<std::uint32_t>(frame.operand(i, k)); };
  for (SumsInFlight& known : frame.sums) {
    if (word(0) != known.tag) continue;
    for (std::uint32_t k = 0; k < count; ++k) {
      if (word(k) == known.tag + k) continue;
      fail("{}:{}: sum {} was touched while a wgmma was in flight", frame.kernel.file, i.line, k);
    }
    return known;
  }
  const std::uint32_t tag = frame.sums.empty() ? tag_base : frame.sums.back().tag + tag_step;
  SumsInFlight& fresh = frame.sums.emplace_back(SumsInFlight{tag, {}});
  for (std::uint32_t k = 0; k < count; ++k) {
    fresh.values.push_back(frame.read<float>(frame.operand(i, k)));
    frame.write(frame.operand(i, k), tag + k);
  }
  return fresh;
}

bool is_in_flight(const SumsInFlight& sums) {
  return std::bit_cast<std::uint32_t>(sums.values[0]) == wgmma_poison;
}

// The registers that hold the names of these sums get the sums.
void deliver(Frame& frame, const Instruction& i, const SumsInFlight& sums) {
  std::vector<bool> delivered(sums.values.size());
  for (std::uint32_t& word : frame.registers) {
    const std::uint32_t k = word - sums.tag;
    if (k >= sums.values.size()) continue;
    word = std::bit_cast<std::uint32_t>(sums.values[k]);
    delivered[k] = true;
  }
  const auto lost = std::find(delivered.begin(), delivered.end(), false);
  if (lost != delivered.end()) {
    fail("{}:{}: sum {} was overwritten while a wgmma was in flight", frame.kernel.file, i.line,
         lost - delivered.begin());
  }
}

void require_one(const Frame& frame, const Instruction& i, std::size_t n) {
  if (frame.operand(i, n) != 1) {
    fail("{}:{}: a wgmma negates an operand, which is not known", frame.kernel.file, i.line);
  }
}

// {d}, a, b, whether to accumulate, the signs of a and b, whether a and b are transposed
template <int n>
void multiply(Frame& frame, const Instruction& i) {
  constexpr std::size_t after = n / 2;
  require_one(frame, i, after + 3);
  require_one(frame, i, after + 4);
  WgmmaArguments arguments{.d = sums_of(frame, i, after).values.data(),
                           .n = n,
                           .a = frame.read<std::uint64_t>(frame.operand(i, after)),
                           .b = frame.read<std::uint64_t>(frame.operand(i, after + 1)),
                           .a_is_mn = frame.operand(i, after + 5) != 0,
                           .b_is_mn = frame.operand(i, after + 6) != 0,
                           .accumulate = frame.read<bool>(frame.operand(i, after + 2)),
                           .where = frame.where(i)};
  warp_collective(wgmma_operation, whole_warp, &arguments, frame.where(i));
}

// {d}, {a}, b, whether to accumulate, the signs of a and b, whether b is transposed
template <int n>
void multiply_registers(Frame& frame, const Instruction& i) {
  constexpr std::size_t after = n / 2;
  require_one(frame, i, after + 6);
  require_one(frame, i, after + 7);
  unsigned a[4];
  for (std::size_t k = 0; k < 4; ++k) a[k] = frame.read<unsigned>(frame.operand(i, after + k));
  WgmmaArguments arguments{.d = sums_of(frame, i, after).values.data(),
                           .n = n,
                           .b = frame.read<std::uint64_t>(frame.operand(i, after + 4)),
                           .b_is_mn = frame.operand(i, after + 8) != 0,
                           .accumulate = frame.read<bool>(frame.operand(i, after + 5)),
                           .a_registers = a,
                           .where = frame.where(i)};
  warp_collective(wgmma_operation, whole_warp, &arguments, frame.where(i));
}

void fence(Frame& frame, const Instruction& i) {
  warp_collective(wgmma_fence_operation, whole_warp, nullptr, frame.where(i));
}

void commit(Frame& frame, const Instruction& i) {
  warp_collective(wgmma_commit_operation, whole_warp, nullptr, frame.where(i));
}

void wait(Frame& frame, const Instruction& i) {
  unsigned pending = frame.operand(i, 0);
  warp_collective(wgmma_wait_operation, whole_warp, &pending, frame.where(i));
  for (const SumsInFlight& sums : frame.sums) {
    if (!is_in_flight(sums)) deliver(frame, i, sums);
  }
  std::erase_if(frame.sums, [](const SumsInFlight& sums) { return !is_in_flight(sums); });
}

template <bool grow>
void set_register_count(Frame& frame, const Instruction& i) {
  const std::uint32_t count = frame.operand(i, 0);
  if (count < 24 || count > 256 || count % 8) {
    fail("{}:{}: {} registers are not a multiple of 8 within 24 .. 256", frame.kernel.file, i.line,
         count);
  }
  SetRegistersArguments arguments{count, grow};
  warp_collective(set_registers_operation, whole_warp, &arguments, frame.where(i));
  if (grow) wait_for_registers(frame.where(i));
}

template <int n>
void add_product(Opcodes& to) {
  const std::string opcode = fmt::format("wgmma.mma_async.sync.aligned.m64n{}k16.f32.bf16.bf16", n);
  const std::string d = group("=w", n / 2);
  to.add(opcode, d + "ddpiiii", multiply<n>);
  to.add(opcode, d + "{wwww}dpiii", multiply_registers<n>);
}

}  // namespace

void add_warpgroup_operations(Opcodes& to) {
  add_product<64>(to);
  add_product<128>(to);
  add_product<256>(to);
  to.add("wgmma.fence.sync.aligned", "", fence);
  to.add("wgmma.commit_group.sync.aligned", "", commit);
  to.add("wgmma.wait_group.sync.aligned", "i", wait);
  to.add("setmaxnreg.dec.sync.aligned.u32", "i", set_register_count<false>);
  to.add("setmaxnreg.inc.sync.aligned.u32", "i", set_register_count<true>);
}

}  // namespace orchard::simt::ptx
