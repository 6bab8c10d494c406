// wgmma and setmaxnreg, which the four warps of a group execute alike.
#include <cstdint>

#include "kernels/core/error.h"
#include "kernels/simt/ptx_text/opcodes.h"
#include "kernels/simt/wgmma_queue.h"

namespace orchard::simt::ptx {
namespace {

constexpr unsigned whole_warp = 0xffffffffu;

// The thread's sums, which must stay where they are until the wait: the registers themselves.
float* sums(Frame& frame, const Instruction& i, std::uint32_t count) {
  const std::uint32_t first = frame.operand(i, 0);
  for (std::uint32_t k = 1; k < count; ++k) {
    if (frame.operand(i, k) != first + k) {
      fail("{}:{}: the sums of a wgmma must be registers of consecutive numbers",
           frame.kernel.file, i.line);
    }
  }
  return reinterpret_cast<float*>(frame.registers.data() + first);
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
  WgmmaArguments arguments{.d = sums(frame, i, after),
                           .n = n,
                           .a = frame.read<std::uint64_t>(frame.operand(i, after)),
                           .b = frame.read<std::uint64_t>(frame.operand(i, after + 1)),
                           .a_is_mn = frame.operand(i, after + 5) != 0,
                           .b_is_mn = frame.operand(i, after + 6) != 0,
                           .accumulate = frame.read<bool>(frame.operand(i, after + 2))};
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
  WgmmaArguments arguments{.d = sums(frame, i, after),
                           .n = n,
                           .b = frame.read<std::uint64_t>(frame.operand(i, after + 4)),
                           .b_is_mn = frame.operand(i, after + 8) != 0,
                           .accumulate = frame.read<bool>(frame.operand(i, after + 5)),
                           .a_registers = a};
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
}

void set_register_count(Frame& frame, const Instruction& i) {
  const std::uint32_t count = frame.operand(i, 0);
  if (count < 24 || count > 256 || count % 8) {
    fail("{}:{}: {} registers are not a multiple of 8 within 24 .. 256", frame.kernel.file, i.line,
         count);
  }
}

template <int n>
void add_product(Opcodes& to) {
  const std::string opcode =
      fmt::format("wgmma.mma_async.sync.aligned.m64n{}k16.f32.bf16.bf16", n);
  const std::string d = group("=w", n / 2);
  to.add(opcode, d + "ddpiiii", multiply<n>);
  to.add(opcode, d + "{wwww}dpiii", multiply_registers<n>);
}

}  // namespace

void add_warpgroup_operations(Opcodes& to) {
  add_product<128>(to);
  add_product<256>(to);
  to.add("wgmma.fence.sync.aligned", "", fence);
  to.add("wgmma.commit_group.sync.aligned", "", commit);
  to.add("wgmma.wait_group.sync.aligned", "i", wait);
  to.add("setmaxnreg.dec.sync.aligned.u32", "i", set_register_count);
  to.add("setmaxnreg.inc.sync.aligned.u32", "i", set_register_count);
}

}  // namespace orchard::simt::ptx
