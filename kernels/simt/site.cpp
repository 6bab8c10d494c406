#include "kernels/simt/site.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <array>
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
std::string line_of_code(std::uintptr_t return_address) {
  const std::uintptr_t call = return_address - 1;
  const std::string unknown = fmt::format("code address {:#x}", call);
  Dl_info module{};
  if (!dladdr(reinterpret_cast<const void*>(call), &module)) return unknown;
  const auto* const header = static_cast<const ElfW(Ehdr)*>(module.dli_fbase);
  const std::uintptr_t base =
      header->e_type == ET_DYN ? reinterpret_cast<std::uintptr_t>(module.dli_fbase) : 0;
  std::filesystem::path file = module.dli_fname;
  std::error_code ignored;
  if (!file.is_absolute()) file = std::filesystem::read_symlink("/proc/self/exe", ignored);
  // With the calls that it is inlined into, innermost first: "/path/file.cu:12 (discriminator 3)".
  const std::string command =
      fmt::format("addr2line -i -e '{}' {:#x} 2>/dev/null", file.string(), call - base);
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> answer(popen(command.c_str(), "r"), pclose);
  std::array<char, 4096> line{};
  while (answer && std::fgets(line.data(), line.size(), answer.get())) {
    std::string_view text = line.data();
    text = text.substr(0, text.find_first_of(" \n"));
    // A value that a function of ours takes by reference is read in there, and meant by its caller.
    if (text.find("/kernels/simt/") != std::string_view::npos) continue;
    return text.starts_with("??") ? unknown : without_folder(text);
  }
  return unknown;
}

}  // namespace

std::string Site::text() const {
  const unsigned line = bits_ & line_mask;
  const std::uintptr_t pointer = bits_ >> line_bits;
  if (line == 0) return line_of_code(pointer);
  return fmt::format("{}:{}", without_folder(reinterpret_cast<const char*>(pointer)), line);
}

}  // namespace orchard::simt
