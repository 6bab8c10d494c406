#include "train/append_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "data/atomic_file.h"
#include "kernels/core/error.h"

namespace orchard {

AppendFile::AppendFile(std::filesystem::path path)
    : path_(std::move(path)),
      fd_(::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666)) {
  require(fd_ >= 0, "cannot open {}: {}", path_.string(), describe_errno(errno));
}

AppendFile::~AppendFile() {
  ::close(fd_);
}

void AppendFile::append(std::string_view record) {
  const off_t start = ::lseek(fd_, 0, SEEK_END);
  while (!record.empty()) {
    const ssize_t n = ::write(fd_, record.data(), record.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int number = errno;
      // Half a record would make the file unreadable. If even this fails, the first error is still
      // the one to tell.
      if (::ftruncate(fd_, start) != 0) errno = number;
      fail("cannot write {}: {}", path_.string(), describe_errno(number));
    }
    record.remove_prefix(static_cast<std::size_t>(n));
  }
}

}  // namespace orchard
