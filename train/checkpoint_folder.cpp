#include "train/checkpoint_folder.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <string_view>
#include <vector>

namespace orchard {
namespace {

struct Entry {
  int stage = 0;
  std::int64_t step = 0;
  std::filesystem::path path;
};

constexpr std::int64_t stage_end = std::numeric_limits<std::int64_t>::max();

// Takes `prefix` and then a number off the front of `text`.
template <class Number>
bool take(std::string_view& text, std::string_view prefix, Number& number) {
  if (!text.starts_with(prefix)) return false;
  const char* const begin = text.data() + prefix.size();
  const auto [end, error] = std::from_chars(begin, text.data() + text.size(), number);
  if (error != std::errc()) return false;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return true;
}

std::optional<Entry> parse(const std::filesystem::path& path) {
  const std::string name = path.filename().string();
  std::string_view rest = name;
  Entry entry{.step = stage_end, .path = path};
  if (!take(rest, "stage", entry.stage)) return std::nullopt;
  take(rest, "-step", entry.step);
  if (rest != ".h5") return std::nullopt;
  return entry;
}

// Oldest first.
std::vector<Entry> list(const std::filesystem::path& folder) {
  std::vector<Entry> entries;
  if (!std::filesystem::is_directory(folder)) return entries;
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    if (auto entry = parse(file.path())) entries.push_back(std::move(*entry));
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.stage, a.step) < std::pair(b.stage, b.step);
  });
  return entries;
}

}  // namespace

CheckpointFolder::CheckpointFolder(const std::filesystem::path& run_folder)
    : folder_(run_folder / "checkpoints") {}

std::filesystem::path CheckpointFolder::at_step(int stage, std::int64_t step) const {
  return folder_ / fmt::format("stage{}-step{:08}.h5", stage, step);
}

std::filesystem::path CheckpointFolder::final_of(int stage) const {
  return folder_ / fmt::format("stage{}.h5", stage);
}

std::optional<std::filesystem::path> CheckpointFolder::latest() const {
  const std::vector<Entry> entries = list(folder_);
  if (entries.empty()) return std::nullopt;
  return entries.back().path;
}

void CheckpointFolder::prune(int stage, std::int64_t keep) const {
  std::vector<Entry> entries = list(folder_);
  std::erase_if(entries, [&](const Entry& e) { return e.stage != stage || e.step == stage_end; });
  const auto surplus = static_cast<std::int64_t>(entries.size()) - keep;
  for (std::int64_t i = 0; i < surplus; ++i)
    std::filesystem::remove(entries[static_cast<std::size_t>(i)].path);
}

}  // namespace orchard
