#include "data/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "kernels/core/error.h"

namespace orchard {
namespace {

class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, int flags)
      : fd_(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {
    if (fd_ < 0) fail("cannot open {}: {}", path.string(), describe_errno(errno));
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }

  int get() const { return fd_; }

  // Some file systems report a full disk only here.
  int close() { return ::close(std::exchange(fd_, -1)); }

 private:
  int fd_;
};

template <class Bytes>
Bytes read_whole(const std::filesystem::path& path) {
  const Descriptor file(path, O_RDONLY);
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  require(!error, "cannot read {}: {}", path.string(), error.message());
  Bytes bytes(size, {});
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::read(file.get(), bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("cannot read {}: {}", path.string(), describe_errno(errno));
    require(n > 0, "{} became shorter while it was read", path.string());
    done += static_cast<std::size_t>(n);
  }
  return bytes;
}

}  // namespace

std::string describe_errno(int number) {
  std::string text = std::generic_category().message(number);
  if (number == ENOSPC || number == EDQUOT || number == EFBIG)
    return text + ": free some space there or write elsewhere";
  if (number == EACCES || number == EPERM || number == EROFS)
    return text + ": check who may read and write there";
  return text;
}

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)), temporary_(path_) {
  temporary_ += ".tmp";
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)),
      pending_(std::exchange(other.pending_, false)) {}

AtomicFile::~AtomicFile() {
  std::error_code ignored;  // a destructor has nobody to tell
  if (pending_) std::filesystem::remove(temporary_, ignored);
}

void AtomicFile::commit() {
  Descriptor file(temporary_, O_WRONLY);
  if (::fsync(file.get()) != 0 || file.close() != 0)
    fail("cannot write {}: {}", path_.string(), describe_errno(errno));
  std::error_code error;
  std::filesystem::rename(temporary_, path_, error);
  require(!error, "cannot put {} in place: {}", path_.string(), error.message());
  pending_ = false;
  sync_folder(path_.parent_path());
}

void sync_folder(const std::filesystem::path& folder) {
  const Descriptor handle(folder.empty() ? "." : folder, O_RDONLY | O_DIRECTORY);
  // Some file systems know no fsync of a folder and say EINVAL; there the rename is all there is.
  if (::fsync(handle.get()) != 0 && errno != EINVAL)
    fail("cannot sync the folder {}: {}", folder.string(), describe_errno(errno));
}

void write_file(const std::filesystem::path& path, std::span<const std::uint8_t> bytes) {
  AtomicFile atomic(path);
  {
    Descriptor file(atomic.temporary(), O_WRONLY | O_CREAT | O_TRUNC);
    while (!bytes.empty()) {
      const ssize_t n = ::write(file.get(), bytes.data(), bytes.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail("cannot write {}: {}", path.string(), describe_errno(errno));
      bytes = bytes.subspan(static_cast<std::size_t>(n));
    }
    if (file.close() != 0) fail("cannot write {}: {}", path.string(), describe_errno(errno));
  }
  atomic.commit();
}

void write_file(const std::filesystem::path& path, std::string_view text) {
  write_file(path, {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()});
}

std::vector<std::uint8_t> read_file(const std::filesystem::path& path) {
  return read_whole<std::vector<std::uint8_t>>(path);
}

std::string read_text(const std::filesystem::path& path) {
  return read_whole<std::string>(path);
}

}  // namespace orchard
