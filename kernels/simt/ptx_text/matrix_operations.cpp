// ldmatrix, stmatrix and mma, which a warp executes together.
#include "kernels/simt/matrix_operations.h"

#include <cstdint>

#include "kernels/simt/ptx_text/addresses.h"
#include "kernels/simt/ptx_text/opcodes.h"

namespace orchard::simt::ptx {
namespace {

constexpr unsigned whole_warp = 0xffffffffu;

template <int matrices, bool transposed>
void load_matrices(Frame& frame, const Instruction& i) {
  const std::byte* const row = shared_pointer(frame, i, matrices);
  if (frame.read<std::uint32_t>(laneid) < 8 * matrices) {
    simt::shared_access(row, 16, Access::read, frame.where(i));
  }
  unsigned registers[matrices];
  LoadMatrixArguments arguments{registers, row};
  warp_collective(load_matrix_operation(matrices, transposed), whole_warp, &arguments,
                  frame.where(i));
  for (std::size_t k = 0; k < matrices; ++k) frame.write(frame.operand(i, k), registers[k]);
}

template <int matrices, bool transposed>
void store_matrices(Frame& frame, const Instruction& i) {
  constexpr std::size_t after = 3;  // the address
  std::byte* const row = shared_pointer(frame, i, 0);
  if (frame.read<std::uint32_t>(laneid) < 8 * matrices) {
    simt::shared_access(row, 16, Access::write, frame.where(i));
  }
  unsigned registers[matrices];
  for (std::size_t k = 0; k < matrices; ++k) {
    registers[k] = frame.read<unsigned>(frame.operand(i, after + k));
  }
  StoreMatrixArguments arguments{registers, row};
  warp_collective(store_matrix_operation(matrices, transposed), whole_warp, &arguments,
                  frame.where(i));
}

void multiply(Frame& frame, const Instruction& i) {
  float d[4];
  unsigned a[4], b[2];
  for (std::size_t k = 0; k < 4; ++k) a[k] = frame.read<unsigned>(frame.operand(i, 4 + k));
  for (std::size_t k = 0; k < 2; ++k) b[k] = frame.read<unsigned>(frame.operand(i, 8 + k));
  for (std::size_t k = 0; k < 4; ++k) d[k] = frame.read<float>(frame.operand(i, 10 + k));
  MmaArguments arguments{d, a, {b[0], b[1]}};
  warp_collective(mma_m16n8k16_bf16_operation, whole_warp, &arguments, frame.where(i));
  for (std::size_t k = 0; k < 4; ++k) frame.write(frame.operand(i, k), d[k]);
}

template <int matrices>
void add_load_matrices(Opcodes& to) {
  const std::string stem = fmt::format("ldmatrix.sync.aligned.m8n8.x{}", matrices);
  const std::string operands = group("=w", matrices) + "a";
  to.add(stem + ".shared.b16", operands, load_matrices<matrices, false>);
  to.add(stem + ".trans.shared.b16", operands, load_matrices<matrices, true>);
}

template <int matrices>
void add_store_matrices(Opcodes& to) {
  const std::string stem = fmt::format("stmatrix.sync.aligned.m8n8.x{}", matrices);
  const std::string operands = fmt::format("a{}", group("w", matrices));
  to.add(stem + ".shared.b16", operands, store_matrices<matrices, false>);
  to.add(stem + ".trans.shared.b16", operands, store_matrices<matrices, true>);
}

}  // namespace

void add_matrix_operations(Opcodes& to) {
  add_load_matrices<1>(to);
  add_load_matrices<2>(to);
  add_load_matrices<4>(to);
  add_store_matrices<1>(to);
  add_store_matrices<2>(to);
  add_store_matrices<4>(to);
  to.add("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "{=w=w=w=w}{wwww}{ww}{wwww}",
         multiply);
}

}  // namespace orchard::simt::ptx
