// The kernels of PTX modules, executed on the emulator in place of those that the host compiler made:
// the instructions that nvcc emitted, its inline PTX and the widths of its accesses.
//
// An entry is decoded when it is first asked for. An unknown opcode is an Error that names it, with
// file and line; so is a launch whose parameters are not those of the entry.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/simt/front_end.h"
#include "kernels/simt/ptx_text/decoder.h"
#include "kernels/simt/ptx_text/opcodes.h"

namespace orchard::simt::ptx {

struct ModuleText {
  std::string file;  // "gemm_sm80.ptx", beside gemm_sm80.cu
  std::string text;
};

// The modules whose paths stand in a file, one a line.
std::vector<ModuleText> read_modules(const std::string& list);

// A kernel's name in C++, without return type and without the namespace of the compilation, so that it
// is the same in both. Names that are local to a source file come with the file's, without ending.
struct EntryName {
  std::string module;  // empty: the name is not local
  std::string name;
  bool operator==(const EntryName&) const = default;
};
// "gemm_sm80: gemm_bf16<...>(...)"
std::string text(const EntryName& entry);

class Program final : public FrontEnd {
 public:
  explicit Program(std::vector<ModuleText> modules);

  std::vector<EntryName> entries() const;

  // The kernel, until the program ends. Throws Error where there is none.
  const Kernel& find(const EntryName& name);

  // One thread of it. The parameters are copied.
  static std::function<void()> thread_of(const Kernel& kernel,
                                         std::span<const std::span<const std::byte>> parameters);

  // Runs the entry that nvcc made of the launch's kernel.
  void launch(const LaunchShape& shape, const KernelCall& call, LaunchSite& site) override;

 private:
  struct Entry {
    EntryName name;
    EntryText text;
    std::unique_ptr<const Kernel> kernel;  // once it is decoded
  };

  void scan(const ModuleText& module);
  std::vector<Entry>::iterator locate(const EntryName& name);

  std::vector<ModuleText> modules_;
  Opcodes opcodes_;
  std::vector<Entry> entries_;
};

// The name of a kernel that the host compiler compiled, by its address: from the program's symbol
// table, which `strip` would remove.
EntryName entry_of(const void* kernel);

// From a mangled name of either compiler.
std::string plain_name(const std::string& mangled);

}  // namespace orchard::simt::ptx
