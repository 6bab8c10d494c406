#include "kernels/simt/ptx_text/program.h"

#include <algorithm>
#include <fstream>
#include <sstream>

#include "kernels/core/error.h"
#include "kernels/simt/language.h"

namespace orchard::simt::ptx {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path);
  require(file.good(), "cannot read {}", path);
  std::ostringstream out;
  out << file.rdbuf();
  return out.str();
}

std::string file_name(const std::string& path) {
  return path.substr(path.rfind('/') + 1);  // npos + 1 is 0
}

void run(const Kernel& kernel, std::byte* parameters) {
  const std::span<std::byte> shared = block_shared_memory();
  Frame frame{kernel, parameters, shared.data(), shared.size(), kernel.image};
  const auto set = [&](Special slot, unsigned value) { frame.registers[slot] = value; };
  set(tid_x, threadIdx.x), set(tid_y, threadIdx.y), set(tid_z, threadIdx.z);
  set(ntid_x, blockDim.x), set(ntid_y, blockDim.y), set(ntid_z, blockDim.z);
  set(ctaid_x, blockIdx.x), set(ctaid_y, blockIdx.y), set(ctaid_z, blockIdx.z);
  set(nctaid_x, gridDim.x), set(nctaid_y, gridDim.y), set(nctaid_z, gridDim.z);
  set(laneid, lane_index());
  while (frame.next < kernel.code.size()) {
    const Instruction& i = kernel.code[frame.next++];
    if (i.guard >= 0 &&
        frame.read<bool>(static_cast<std::uint32_t>(i.guard)) == i.guard_is_negated) {
      continue;
    }
    i.execute(frame, i);
  }
}

}  // namespace

std::vector<ModuleText> read_modules(const std::string& list) {
  std::vector<ModuleText> out;
  std::istringstream paths(read_file(list));
  for (std::string path; std::getline(paths, path);) {
    if (!path.empty()) out.push_back({file_name(path), read_file(path)});
  }
  return out;
}

std::string text(const EntryName& entry) {
  return entry.module.empty() ? entry.name : fmt::format("{}: {}", entry.module, entry.name);
}

Program::Program(std::vector<ModuleText> modules) : modules_(std::move(modules)) {
  for (const ModuleText& module : modules_) scan(module);
}

// Finds the entries; their bodies are read when they are needed.
void Program::scan(const ModuleText& module) {
  const std::string_view text = module.text;
  const auto word_after = [&](std::string_view marker, std::size_t at) {
    at = text.find_first_not_of(' ', at + marker.size());
    return text.substr(at, text.find_first_of(" ([;\n", at) - at);
  };
  std::string_view shared;
  const std::size_t extern_shared = text.find(".extern .shared ");
  if (extern_shared != std::string_view::npos) {
    shared = word_after(".b8", text.find(".b8", extern_shared));
  }
  constexpr std::string_view marker = ".entry ";
  unsigned line = 1;
  std::size_t counted = 0;
  for (std::size_t at = 0; (at = text.find(marker, at)) != std::string_view::npos;) {
    const std::string_view mangled = word_after(marker, at);
    at = static_cast<std::size_t>(mangled.end() - text.begin());
    line += static_cast<unsigned>(std::count(text.begin() + static_cast<std::ptrdiff_t>(counted),
                                             text.begin() + static_cast<std::ptrdiff_t>(at), '\n'));
    counted = at;
    // Entries that other modules see are the same in all of them; the first one serves.
    const std::size_t begin =
        static_cast<std::size_t>(mangled.begin() - text.begin()) - marker.size();
    const bool is_local = begin == 0 || text[begin - 1] == '\n';
    const EntryName name{is_local ? module.file.substr(0, module.file.rfind('.')) : "",
                         plain_name(std::string(mangled))};
    if (locate(name) == entries_.end()) {
      entries_.push_back(
          {name, {ptx::text(name), module.file, text.substr(at), line, shared}, nullptr});
    }
  }
}

std::vector<EntryName> Program::entries() const {
  std::vector<EntryName> out;
  for (const Entry& entry : entries_) out.push_back(entry.name);
  return out;
}

std::vector<Program::Entry>::iterator Program::locate(const EntryName& name) {
  return std::find_if(entries_.begin(), entries_.end(),
                      [&](const Entry& entry) { return entry.name == name; });
}

const Kernel& Program::find(const EntryName& name) {
  const auto entry = locate(name);
  require(entry != entries_.end(), "no PTX module has the kernel {}", text(name));
  if (!entry->kernel) entry->kernel = std::make_unique<Kernel>(decode(entry->text, opcodes_));
  return *entry->kernel;
}

std::function<void()> Program::thread_of(const Kernel& kernel,
                                         std::span<const std::span<const std::byte>> parameters) {
  require(parameters.size() == kernel.parameters.size(),
          "the PTX of {} takes {} parameters, the launch has {}", kernel.name,
          kernel.parameters.size(), parameters.size());
  const auto bytes = std::make_shared<std::vector<std::byte>>(kernel.parameter_bytes);
  for (std::size_t n = 0; n < parameters.size(); ++n) {
    require(parameters[n].size() == kernel.parameters[n].bytes,
            "parameter {} of {} has {} bytes in the PTX, {} in the launch", n, kernel.name,
            kernel.parameters[n].bytes, parameters[n].size());
    std::copy(parameters[n].begin(), parameters[n].end(),
              bytes->begin() + static_cast<std::ptrdiff_t>(kernel.parameters[n].offset));
  }
  return [&kernel, bytes] { run(kernel, bytes->data()); };
}

void Program::launch(const LaunchShape&, const KernelCall& call, LaunchSite& site) {
  site.run(thread_of(find(entry_of(call.kernel)), call.parameters));
}

}  // namespace orchard::simt::ptx
