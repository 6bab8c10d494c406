// Private to the HDF5 wrapper: identifiers that close themselves, and errors from HDF5's report.
#pragma once

#include <hdf5.h>

#include <memory>
#include <string>
#include <string_view>

namespace orchard::hdf5 {

// Before any other call: HDF5 prints its report to stderr unless told otherwise, for each thread
// anew, and tidies up when the process ends unless told otherwise before it begins.
void silence();

// Throws Error "cannot <action> <label>: <HDF5's innermost reason>" if `status` is negative.
void check(herr_t status, std::string_view action, const std::string& label);

std::string dataset_label(std::string_view name, const std::string& file_label);

class Id {
 public:
  using Close = herr_t (*)(hid_t);

  // Takes an identifier just returned by HDF5; throws as check if it is invalid.
  Id(hid_t id, Close closer, std::string_view action, const std::string& label);
  Id(Id&& other) noexcept;
  Id& operator=(Id&&) = delete;
  ~Id();

  operator hid_t() const { return id_; }  // NOLINT(google-explicit-constructor)

  // Negative if closing failed. The identifier is gone either way.
  herr_t close();

 private:
  hid_t id_;
  Close close_;
};

class Handle {
 public:
  // `file` keeps the file open as long as an object in it is in use.
  Handle(Id id, std::string label, std::shared_ptr<Handle> file = nullptr)
      : file_(std::move(file)), id_(std::move(id)), label_(std::move(label)) {}

  hid_t id() const { return id_; }
  const std::string& label() const { return label_; }

  void close();

  // Closes a file whose contents nobody wants. After a failed write HDF5 would retry, fail again
  // and leak the file, so what it still has to write goes to an anonymous file in memory.
  void abandon();

 private:
  std::shared_ptr<Handle> file_;
  Id id_;
  std::string label_;
};

}  // namespace orchard::hdf5
