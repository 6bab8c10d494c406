#include "data/hdf5_handle.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "data/atomic_file.h"
#include "data/hdf5.h"
#include "kernels/core/error.h"

namespace orchard::hdf5 {
namespace {

// The innermost entry of HDF5's report says what happened, the outer ones which call failed for it.
std::string innermost_reason() {
  std::string reason;
  const auto keep_first = [](unsigned, const H5E_error2_t* entry, void* to) -> herr_t {
    auto& text = *static_cast<std::string*>(to);
    if (text.empty() && entry->desc) text = entry->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, &reason);
  // A failed system call reads "file write failed: time = ..., errno = 28, error message = ...".
  const auto number = reason.find("errno = ");
  if (number != std::string::npos) return describe_errno(std::atoi(reason.c_str() + number + 8));
  return reason.empty() ? "HDF5 gives no reason" : reason;
}

}  // namespace

void silence() {
  // When the process ends HDF5 would close again what it could not close before, a file on a full
  // disk, and crash over it. Nothing is left for it to do there: every handle here closes itself.
  [[maybe_unused]] static const herr_t once = H5dont_atexit();
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

void check(herr_t status, std::string_view action, const std::string& label) {
  if (status < 0) [[unlikely]]
    fail("cannot {} {}: {}", action, label, innermost_reason());
}

std::string dataset_label(std::string_view name, const std::string& file_label) {
  return fmt::format("dataset \"{}\" of {}", name, file_label);
}

Id::Id(hid_t id, Close closer, std::string_view action, const std::string& label)
    : id_(id), close_(closer) {
  check(id < 0 ? -1 : 0, action, label);
}

Id::Id(Id&& other) noexcept
    : id_(std::exchange(other.id_, H5I_INVALID_HID)), close_(other.close_) {}

Id::~Id() {
  close();
}

herr_t Id::close() {
  const hid_t id = std::exchange(id_, H5I_INVALID_HID);
  // A strongly closed file has closed its datasets already.
  return id >= 0 && H5Iis_valid(id) > 0 ? close_(id) : 0;
}

void Handle::close() {
  check(id_.close(), "close", label_);
}

void Handle::abandon() {
  silence();
  void* descriptor = nullptr;
  const int sink = ::memfd_create("abandoned", MFD_CLOEXEC);
  if (sink >= 0 && H5Fget_vfd_handle(id_, H5P_DEFAULT, &descriptor) >= 0)
    ::dup2(sink, *static_cast<int*>(descriptor));
  if (sink >= 0) ::close(sink);
  id_.close();
}

}  // namespace orchard::hdf5
