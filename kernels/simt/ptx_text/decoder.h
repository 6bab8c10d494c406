// From the text of an entry to a Kernel.
#pragma once

#include <string>
#include <string_view>

#include "kernels/simt/ptx_text/kernel.h"

namespace orchard::simt::ptx {

class Opcodes;

struct EntryText {
  std::string name;  // as in C++
  std::string file;
  std::string_view text;           // from the bracket that opens its parameters on
  unsigned line;                   // in which that begins
  std::string_view shared_memory;  // the module's symbol for the block's shared memory, or empty
};

// Throws Error, with file and line, for an opcode, a directive or an operand that is not known.
Kernel decode(const EntryText& entry, const Opcodes& opcodes);

}  // namespace orchard::simt::ptx
