// A thin owner of the serial HDF5 C API. HDF5 is trusted input only: verify a file's checksum
// first.
//
// Every failure is an orchard::Error that names file and dataset; HDF5's own error report is
// silenced. Handles close themselves and are moved, not copied. Several threads may use different
// files at once where HDF5 was built thread-safe; one file belongs to one thread at a time.
// Datasets are little-endian and contiguous. bf16 is stored as u16 with the attribute
// dtype = "bf16". No time stamps are stored, so equal contents give equal bytes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/dtype.h"
#include "kernels/core/shape.h"

namespace orchard::hdf5 {

enum class Element : std::uint8_t { u8, i32, i64, f32, f64, bf16 };

constexpr std::string_view name_of(Element element) {
  constexpr std::string_view names[] = {"u8", "i32", "i64", "f32", "f64", "bf16"};
  return names[static_cast<int>(element)];
}

Element element_of(DType dtype);

template <class T>
struct ElementOf;
template <>
struct ElementOf<std::uint8_t> {
  static constexpr Element value = Element::u8;
};
template <>
struct ElementOf<std::int32_t> {
  static constexpr Element value = Element::i32;
};
template <>
struct ElementOf<std::int64_t> {
  static constexpr Element value = Element::i64;
};
template <>
struct ElementOf<float> {
  static constexpr Element value = Element::f32;
};
template <>
struct ElementOf<double> {
  static constexpr Element value = Element::f64;
};
template <>
struct ElementOf<bf16> {
  static constexpr Element value = Element::bf16;
};

// The box [begin, begin + count) of a dataset; both of the dataset's rank.
struct Slab {
  Shape begin, count;
};

// Shared by all objects of a file: its handle and its name for messages.
class Handle;

// What datasets, and the file itself, carry beside their elements.
class Attributes {
 public:
  void set_attribute(std::string_view name, std::string_view value);
  void set_attribute(std::string_view name, std::int64_t value);
  void set_attribute(std::string_view name, double value);
  bool has_attribute(std::string_view name) const;
  // Throw Error if the attribute is missing or of another kind.
  std::string string_attribute(std::string_view name) const;
  std::int64_t integer_attribute(std::string_view name) const;
  double real_attribute(std::string_view name) const;

 protected:
  explicit Attributes(std::shared_ptr<Handle> handle) : handle_(std::move(handle)) {}
  std::shared_ptr<Handle> handle_;
};

class Dataset : public Attributes {
 public:
  Element element() const { return element_; }
  const Shape& shape() const { return shape_; }

  // Untyped: `values` holds exactly the slab's elements, densely, in row-major order.
  void write(const void* values, const Slab& slab);
  void read(void* values, const Slab& slab) const;

  // T must be the stored element type and the span must have the slab's size: nothing is converted.
  template <class T>
  void write(std::span<const T> values, const Slab& slab) {
    check(ElementOf<T>::value, values.size(), slab);
    write(static_cast<const void*>(values.data()), slab);
  }
  template <class T>
  void read(std::span<T> values, const Slab& slab) const {
    check(ElementOf<T>::value, values.size(), slab);
    read(static_cast<void*>(values.data()), slab);
  }
  template <class T>
  std::vector<T> read() const {
    std::vector<T> values(static_cast<std::size_t>(shape_.numel()));
    read(std::span<T>(values), whole());
    return values;
  }
  // Elements [begin, begin + count) of a dataset of rank 1.
  template <class T>
  std::vector<T> read_range(std::int64_t begin, std::int64_t count) const {
    std::vector<T> values(static_cast<std::size_t>(count));
    read(std::span<T>(values), Slab{{begin}, {count}});
    return values;
  }

  Slab whole() const;

 private:
  friend class File;
  Dataset(std::shared_ptr<Handle> handle, Element element, Shape shape)
      : Attributes(std::move(handle)), element_(element), shape_(shape) {}
  void check(Element element, std::size_t values, const Slab& slab) const;

  Element element_;
  Shape shape_;
};

class File : public Attributes {
 public:
  // A new file, built beside `path` and put in its place by commit; without commit nothing remains.
  static File create(const std::filesystem::path& path);
  // An existing file, read only.
  static File open(const std::filesystem::path& path);

  File(File&&) noexcept;
  ~File();

  // Writes all, makes it durable, renames. The file and its datasets are closed afterwards.
  void commit();

  // A slash in `name` opens groups, made where they are missing. Elements not written read as 0.
  Dataset create_dataset(std::string_view name, Element element, const Shape& shape);
  Dataset dataset(std::string_view name) const;

  template <class T>
  void write(std::string_view name, std::span<const T> values, const Shape& shape) {
    Dataset set = create_dataset(name, ElementOf<T>::value, shape);
    set.write(values, set.whole());
  }
  template <class T>
  void write(std::string_view name, const std::vector<T>& values) {
    write(name, std::span<const T>(values), {static_cast<std::int64_t>(values.size())});
  }
  template <class T>
  std::vector<T> read(std::string_view name) const {
    return dataset(name).read<T>();
  }

  bool contains(std::string_view name) const;
  // Names of the datasets and groups in a group, in the order of their bytes.
  std::vector<std::string> links(std::string_view group = "/") const;

 private:
  struct State;
  File(std::shared_ptr<Handle> handle, std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace orchard::hdf5
