// A place in a kernel's source, in eight bytes: a line that the caller named, or the address of code
// that the compiler instrumented, whose line is looked up when a message needs it.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/simt/runtime.h"

namespace orchard::simt {

class Site {
 public:
  Site() = default;
  Site(const Where& where)  // NOLINT(google-explicit-constructor)
      : bits_(reinterpret_cast<std::uintptr_t>(where.file) << line_bits |
              (where.line < line_mask ? where.line : line_mask)) {}
  static Site of_code(const void* return_address) {
    Site site;
    site.bits_ = reinterpret_cast<std::uintptr_t>(return_address) << line_bits;
    return site;
  }

  // "file.cu:12"
  std::string text() const;

 private:
  // User addresses of x86-64 and AArch64 have 48 bits. No line is 0.
  static constexpr unsigned line_bits = 16;
  static constexpr unsigned line_mask = (1u << line_bits) - 1;
  std::uint64_t bits_ = 0;
};

}  // namespace orchard::simt
