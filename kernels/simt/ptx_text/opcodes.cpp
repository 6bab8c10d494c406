#include "kernels/simt/ptx_text/opcodes.h"

namespace orchard::simt::ptx {

Opcodes::Opcodes() {
  add_integer_arithmetic(*this);
  add_float_arithmetic(*this);
  add_comparisons(*this);
  add_conversions(*this);
  add_control(*this);
  add_memory(*this);
  add_warp_operations(*this);
  add_matrix_operations(*this);
  add_async_copies(*this);
  add_warpgroup_operations(*this);
}

std::span<const Opcode> Opcodes::find(std::string_view name) const {
  const auto found = opcodes_.find(std::string(name));
  if (found == opcodes_.end()) return {};
  return found->second;
}

std::string group(std::string_view letters, int n) {
  std::string out = "{";
  for (int i = 0; i < n; ++i) out += letters;
  out += '}';
  return out;
}

}  // namespace orchard::simt::ptx
