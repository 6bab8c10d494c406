#include "kernels/simt/site.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <array>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string_view>

#include "kernels/core/error.h"

namespace orchard::simt {
namespace {

std::string without_folder(std::string_view path) {
  return std::string(path.substr(path.rfind('/') + 1));  // npos + 1 is 0
}

// Asks addr2line, which is where a compiler is. Slow, and for messages alone.
std::string line_of_code(const void* return_address) {
  const void* const call = static_cast<const std::byte*>(return_address) - 1;
  std::string unknown = fmt::format("code address {}", call);
  Dl_info module{};
  if (!dladdr(call, &module)) return unknown;
  const auto* const header = static_cast<const ElfW(Ehdr)*>(module.dli_fbase);
  const std::uintptr_t base =
      header->e_type == ET_DYN ? reinterpret_cast<std::uintptr_t>(module.dli_fbase) : 0;
  std::filesystem::path file = module.dli_fname;
  std::error_code ignored;
  if (!file.is_absolute()) file = std::filesystem::read_symlink("/proc/self/exe", ignored);
  // With the calls that it is inlined into, innermost first: "/path/file.cu:12 (discriminator 3)".
  const std::string command = fmt::format("addr2line -i -e '{}' {:#x} 2>/dev/null", file.string(),
                                          reinterpret_cast<std::uintptr_t>(call) - base);
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> answer(popen(command.c_str(), "r"), pclose);
  std::array<char, 4096> line{};
  while (answer && std::fgets(line.data(), line.size(), answer.get())) {
    std::string_view text = line.data();
    text = text.substr(0, text.find_first_of(" \n"));
    // A value that a function of ours takes by reference is read in there, and meant by its caller.
    if (text.find("/kernels/simt/") != std::string_view::npos) continue;
    if (text.starts_with("??")) return unknown;
    return without_folder(text);
  }
  return unknown;
}

}  // namespace

std::string Site::text() const {
  const unsigned line = bits_ & line_mask;
  // What the constructors took apart. NOLINTNEXTLINE(performance-no-int-to-ptr)
  const auto* const pointer = reinterpret_cast<const char*>(bits_ >> line_bits);
  if (line == 0) return line_of_code(pointer);
  return fmt::format("{}:{}", without_folder(pointer), line);
}

}  // namespace orchard::simt
