#include "comm/mapped_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "kernels/core/error.h"

namespace orchard {
namespace {

class Descriptor {
 public:
  Descriptor(const std::filesystem::path& file, int flags)
      : number_(::open(file.c_str(), flags | O_CLOEXEC, 0644)) {
    require(number_ >= 0, "cannot open {}: {}", file.string(), std::strerror(errno));
  }
  ~Descriptor() { ::close(number_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int number() const { return number_; }

 private:
  int number_;
};

std::byte* map(std::size_t bytes, int protection, int flags, int descriptor) {
  void* const data = ::mmap(nullptr, bytes, protection, flags, descriptor, 0);
  require(data != MAP_FAILED, "cannot map {} bytes: {}", bytes, std::strerror(errno));
  return static_cast<std::byte*>(data);
}

}  // namespace

MappedMemory MappedMemory::anonymous(std::size_t bytes) {
  return {map(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1), bytes};
}

MappedMemory MappedMemory::create(const std::filesystem::path& file, std::size_t bytes) {
  // A new file, not the old one cut short: whoever has that one mapped keeps what he reads.
  std::filesystem::remove(file);
  const Descriptor descriptor(file, O_RDWR | O_CREAT | O_EXCL);
  // With its blocks: a disk that fills up later must not end the process with SIGBUS.
  const int error = ::posix_fallocate(descriptor.number(), 0, static_cast<off_t>(bytes));
  require(error == 0, "cannot make {} of {} bytes: {}", file.string(), bytes, std::strerror(error));
  return {map(bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor.number()), bytes};
}

MappedMemory MappedMemory::open(const std::filesystem::path& file) {
  const Descriptor descriptor(file, O_RDONLY);
  struct stat status {};
  require(::fstat(descriptor.number(), &status) == 0 && status.st_size > 0, "{} is empty",
          file.string());
  const auto bytes = static_cast<std::size_t>(status.st_size);
  return {map(bytes, PROT_READ, MAP_SHARED, descriptor.number()), bytes};
}

MappedMemory::~MappedMemory() {
  if (data_ != nullptr) ::munmap(data_, bytes_);
}

}  // namespace orchard
