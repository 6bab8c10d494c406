// A file that grows record by record while others read it.
#pragma once

#include <filesystem>
#include <string_view>

namespace orchard {

class AppendFile {
 public:
  // Opens or creates `path`; its end is where the first record goes.
  explicit AppendFile(std::filesystem::path path);
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;
  ~AppendFile();

  const std::filesystem::path& path() const { return path_; }

  // Hands the whole record to the system before it returns. Throws Error naming the file and the
  // cure (disk full, ...); the file then ends with the record before.
  void append(std::string_view record);

 private:
  std::filesystem::path path_;
  int fd_;
};

}  // namespace orchard
