// Names of compiled kernels. Most are local to their source file, where dladdr does not see them: the
// program's own symbol table has them all, those of a file behind the file's name.
#include <cxxabi.h>
#include <elf.h>
#include <link.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <unordered_map>
#include <vector>

#include "kernels/core/error.h"
#include "kernels/simt/ptx_text/program.h"

namespace orchard::simt::ptx {
namespace {

void erase_all(std::string& text, std::string_view part) {
  for (std::size_t at; (at = text.find(part)) != std::string::npos;) text.erase(at, part.size());
}

std::uintptr_t load_address() {
  std::uintptr_t out = 0;
  // The program itself comes first.
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* to) {
        *static_cast<std::uintptr_t*>(to) = info->dlpi_addr;
        return 1;
      },
      &out);
  return out;
}

class SymbolTable {
 public:
  SymbolTable() : file_("/proc/self/exe", std::ios::binary) {
    const auto header = read<Elf64_Ehdr>(0, 1).at(0);
    for (const Elf64_Shdr& section : read<Elf64_Shdr>(header.e_shoff, header.e_shnum)) {
      if (section.sh_type != SHT_SYMTAB) continue;
      const auto strings =
          read<Elf64_Shdr>(header.e_shoff + section.sh_link * sizeof(Elf64_Shdr), 1).at(0);
      collect(read<Elf64_Sym>(section.sh_offset, section.sh_size / sizeof(Elf64_Sym)),
              read<char>(strings.sh_offset, strings.sh_size));
    }
  }

  const EntryName* find(const void* address) const {
    const auto found = names_.find(reinterpret_cast<std::uintptr_t>(address));
    return found == names_.end() ? nullptr : &found->second;
  }

 private:
  template <class T>
  std::vector<T> read(std::uint64_t offset, std::size_t count) {
    std::vector<T> out(count);
    file_.seekg(static_cast<std::streamoff>(offset));
    file_.read(reinterpret_cast<char*>(out.data()),
               static_cast<std::streamsize>(count * sizeof(T)));
    require(file_.good(), "cannot read the program's symbol table");
    return out;
  }

  void collect(const std::vector<Elf64_Sym>& symbols, const std::vector<char>& strings) {
    const std::uintptr_t base = load_address();
    std::string module;
    for (const Elf64_Sym& symbol : symbols) {
      std::string name = strings.data() + symbol.st_name;
      if (ELF64_ST_TYPE(symbol.st_info) == STT_FILE) module = name.substr(0, name.rfind('.'));
      if (ELF64_ST_TYPE(symbol.st_info) != STT_FUNC || !name.starts_with("_ZN7orchard4simt")) {
        continue;
      }
      const bool is_local = ELF64_ST_BIND(symbol.st_info) == STB_LOCAL;
      // Behind a dot: compilers' names for other forms of a function.
      if (name.find('.') != std::string::npos) continue;
      names_[base + symbol.st_value] = {is_local ? module : "", plain_name(name)};
    }
  }

  std::ifstream file_;
  std::unordered_map<std::uintptr_t, EntryName> names_;
};

}  // namespace

std::string plain_name(const std::string& mangled) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> demangled(
      abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status), std::free);
  std::string out = status == 0 ? demangled.get() : mangled;
  erase_all(out, "orchard::cuda::");
  erase_all(out, "orchard::simt::");
  if (out.starts_with("void ")) out.erase(0, std::strlen("void "));
  // CUDA's type of a tensor map.
  for (std::size_t at; (at = out.find("CUtensorMap_st")) != std::string::npos;) {
    out.replace(at, std::strlen("CUtensorMap_st"), "TensorMap");
  }
  return out;
}

EntryName entry_of(const void* kernel) {
  static const SymbolTable table;
  const EntryName* const found = table.find(kernel);
  require(found != nullptr,
          "the kernel at {} has no name in the program's symbol table: was the program stripped?",
          kernel);
  return *found;
}

}  // namespace orchard::simt::ptx
