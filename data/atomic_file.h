// A file that appears whole or not at all: written as `<path>.tmp`, synced, renamed, folder synced.
// A reader, also after a crash, sees the former file or the new one.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace orchard {

// Owns the temporary file until commit; if destroyed before, it removes it and leaves `path` as it
// was. Whoever writes to temporary() closes it before commit.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();

  const std::filesystem::path& path() const { return path_; }
  const std::filesystem::path& temporary() const { return temporary_; }

  // Throws Error (disk full, folder gone, ...) with the temporary file still to be removed.
  void commit();

 private:
  std::filesystem::path path_, temporary_;
  bool pending_ = true;
};

void write_file(const std::filesystem::path& path, std::span<const std::uint8_t> bytes);
void write_file(const std::filesystem::path& path, std::string_view text);
std::vector<std::uint8_t> read_file(const std::filesystem::path& path);
std::string read_text(const std::filesystem::path& path);

// Makes the names in a folder durable.
void sync_folder(const std::filesystem::path& folder);

// What went wrong and, where there is one, what to do: "No space left on device: free some space
// there or write elsewhere".
std::string describe_errno(int number);

}  // namespace orchard
