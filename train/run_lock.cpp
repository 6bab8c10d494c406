#include "train/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string>

#include "data/atomic_file.h"
#include "kernels/core/error.h"

namespace orchard {
namespace {

constexpr std::size_t longest_name = 256;

std::string this_process() {
  std::array<char, longest_name> host{};
  ::gethostname(host.data(), host.size() - 1);
  return fmt::format("process {} on {}", ::getpid(), host.data());
}

std::string holder_named_in(int fd) {
  std::array<char, 2 * longest_name> text{};
  const ssize_t n = ::pread(fd, text.data(), text.size(), 0);
  return n > 0 ? std::string(text.data(), static_cast<std::size_t>(n)) : "another process";
}

}  // namespace

RunLock::RunLock(const std::filesystem::path& run_folder) {
  const std::string path = run_folder / "lock";
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  require(fd_ >= 0, "cannot open {}: {}", path, describe_errno(errno));
  const bool taken = ::flock(fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  if (taken) {
    const std::string holder = holder_named_in(fd_);
    ::close(fd_);
    fail("{} trains in {}: wait for its end, or name another --run-folder", holder,
         run_folder.string());
  }
  // Only a hint for whoever comes next: a full disk may swallow it.
  const std::string name = this_process();
  if (::ftruncate(fd_, 0) == 0 && ::pwrite(fd_, name.data(), name.size(), 0) < 0) errno = 0;
}

RunLock::~RunLock() {
  ::close(fd_);
}

}  // namespace orchard
