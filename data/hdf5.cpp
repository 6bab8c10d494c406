#include "data/hdf5.h"

#include <hdf5.h>

#include <algorithm>
#include <array>
#include <utility>

#include "data/atomic_file.h"
#include "data/hdf5_handle.h"
#include "kernels/core/error.h"

namespace orchard::hdf5 {
namespace {

hid_t memory_type(Element element) {
  switch (element) {
    case Element::u8:
      return H5T_NATIVE_UINT8;
    case Element::i32:
      return H5T_NATIVE_INT32;
    case Element::i64:
      return H5T_NATIVE_INT64;
    case Element::f32:
      return H5T_NATIVE_FLOAT;
    case Element::f64:
      return H5T_NATIVE_DOUBLE;
    case Element::bf16:
      return H5T_NATIVE_UINT16;
  }
  return H5I_INVALID_HID;
}

hid_t file_type(Element element) {
  switch (element) {
    case Element::u8:
      return H5T_STD_U8LE;
    case Element::i32:
      return H5T_STD_I32LE;
    case Element::i64:
      return H5T_STD_I64LE;
    case Element::f32:
      return H5T_IEEE_F32LE;
    case Element::f64:
      return H5T_IEEE_F64LE;
    case Element::bf16:
      return H5T_STD_U16LE;
  }
  return H5I_INVALID_HID;
}

struct Extents {
  std::array<hsize_t, Shape::max_rank> values{};
  explicit Extents(const Shape& shape) {
    for (int i = 0; i < shape.rank(); ++i)
      values[static_cast<std::size_t>(i)] = static_cast<hsize_t>(shape[i]);
  }
};

Id make_space(const Shape& shape, const std::string& label) {
  const Extents extents(shape);
  return Id(shape.rank() ? H5Screate_simple(shape.rank(), extents.values.data(), nullptr)
                         : H5Screate(H5S_SCALAR),
            H5Sclose, "describe the shape of", label);
}

// Memory and file dataspaces of one transfer.
struct Selection {
  Id memory, file;
};

Selection select(const Handle& set, const Shape& shape, const Slab& slab) {
  bool inside = slab.begin.rank() == shape.rank() && slab.count.rank() == shape.rank();
  for (int i = 0; inside && i < shape.rank(); ++i)
    inside = slab.begin[i] <= shape[i] && slab.count[i] <= shape[i] - slab.begin[i];
  require(inside, "{} has shape {}: no slab of shape {} begins at {}", set.label(), shape,
          slab.count, slab.begin);
  Selection selection{make_space(slab.count, set.label()),
                      Id(H5Dget_space(set.id()), H5Sclose, "read the shape of", set.label())};
  if (shape.rank() > 0) {
    const Extents begin(slab.begin), count(slab.count);
    check(H5Sselect_hyperslab(selection.file, H5S_SELECT_SET, begin.values.data(), nullptr,
                              count.values.data(), nullptr),
          "select a slab of", set.label());
  }
  return selection;
}

}  // namespace

Element element_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return Element::f32;
    case DType::bf16:
      return Element::bf16;
    case DType::i32:
      return Element::i32;
    case DType::i64:
      return Element::i64;
    case DType::u8:
      return Element::u8;
  }
  fail("HDF5 files hold no tensors of dtype number {}", static_cast<int>(dtype));
}

// ------------------------------------------------------------------------------------- Dataset

Slab Dataset::whole() const {
  Slab slab{{}, shape_};
  for (int i = 0; i < shape_.rank(); ++i) slab.begin.append(0);
  return slab;
}

void Dataset::check(Element element, std::size_t values, const Slab& slab) const {
  require(element == element_, "{} holds {}, not {}", handle_->label(), name_of(element_),
          name_of(element));
  require(values == static_cast<std::size_t>(slab.count.numel()),
          "{}: {} values were given for a slab of shape {}", handle_->label(), values, slab.count);
}

void Dataset::write(const void* values, const Slab& slab) {
  const Selection selection = select(*handle_, shape_, slab);
  if (slab.count.numel() == 0) return;
  hdf5::check(H5Dwrite(handle_->id(), memory_type(element_), selection.memory, selection.file,
                       H5P_DEFAULT, values),
              "write", handle_->label());
}

void Dataset::read(void* values, const Slab& slab) const {
  const Selection selection = select(*handle_, shape_, slab);
  if (slab.count.numel() == 0) return;
  hdf5::check(H5Dread(handle_->id(), memory_type(element_), selection.memory, selection.file,
                      H5P_DEFAULT, values),
              "read", handle_->label());
}

// ---------------------------------------------------------------------------------------- File

namespace {

// Files are immutable once in place, so locks protect nothing; on network file systems they fail.
Id file_access(const std::string& label) {
  Id access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "open", label);
  check(H5Pset_file_locking(access, false, true), "open", label);
  check(H5Pset_fclose_degree(access, H5F_CLOSE_STRONG), "open", label);
  return access;
}

std::string file_label(const std::filesystem::path& path) {
  return "the HDF5 file " + path.string();
}

}  // namespace

struct File::State {
  std::filesystem::path path;
  std::optional<AtomicFile> atomic;  // present while writing
};

File::File(std::shared_ptr<Handle> handle, std::unique_ptr<State> state)
    : Attributes(std::move(handle)), state_(std::move(state)) {}

File::File(File&&) noexcept = default;

File::~File() {
  if (handle_ && state_->atomic) handle_->abandon();
}

File File::create(const std::filesystem::path& path) {
  silence();
  auto state = std::make_unique<State>(State{path, AtomicFile(path)});
  const std::string label = file_label(path);
  const Id access = file_access(label);
  // Small datasets would wait in a buffer until they are closed, too late to report a full disk.
  check(H5Pset_sieve_buf_size(access, 0), "create", label);
  Id id(H5Fcreate(state->atomic->temporary().c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access), H5Fclose,
        "create", label);
  return {std::make_shared<Handle>(std::move(id), label), std::move(state)};
}

File File::open(const std::filesystem::path& path) {
  silence();
  const std::string label = file_label(path);
  require(std::filesystem::exists(path), "{} does not exist", label);
  const Id access = file_access(label);
  Id id(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access), H5Fclose, "open", label);
  return {std::make_shared<Handle>(std::move(id), label),
          std::make_unique<State>(State{path, std::nullopt})};
}

void File::commit() {
  require(handle_ && state_->atomic, "{} is not open for writing", file_label(state_->path));
  check(H5Fflush(handle_->id(), H5F_SCOPE_LOCAL), "write", handle_->label());
  handle_->close();
  handle_.reset();
  state_->atomic->commit();
}

Dataset File::create_dataset(std::string_view name, Element element, const Shape& shape) {
  silence();
  const std::string label = dataset_label(name, handle_->label());
  const Id space = make_space(shape, label);
  const Id links(H5Pcreate(H5P_LINK_CREATE), H5Pclose, "create", label);
  check(H5Pset_create_intermediate_group(links, 1), "create", label);
  const Id creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "create", label);
  check(H5Pset_obj_track_times(creation, false), "create", label);
  Id id(H5Dcreate2(handle_->id(), std::string(name).c_str(), file_type(element), space, links,
                   creation, H5P_DEFAULT),
        H5Dclose, "create", label);
  Dataset set(std::make_shared<Handle>(std::move(id), label, handle_), element, shape);
  if (element == Element::bf16) set.set_attribute("dtype", std::string_view("bf16"));
  return set;
}

Dataset File::dataset(std::string_view name) const {
  silence();
  const std::string label = dataset_label(name, handle_->label());
  require(contains(name), "{} does not exist", label);
  auto set = std::make_shared<Handle>(
      Id(H5Dopen2(handle_->id(), std::string(name).c_str(), H5P_DEFAULT), H5Dclose, "open", label),
      label, handle_);

  const Id space(H5Dget_space(set->id()), H5Sclose, "read the shape of", label);
  const int rank = H5Sget_simple_extent_ndims(space);
  require(rank >= 0 && rank <= Shape::max_rank, "{} has {} dimensions; at most {} are read", label,
          rank, Shape::max_rank);
  std::array<hsize_t, Shape::max_rank> extents{};
  if (rank > 0)
    check(H5Sget_simple_extent_dims(space, extents.data(), nullptr), "read the shape of", label);
  Shape shape;
  for (int i = 0; i < rank; ++i)
    shape.append(static_cast<std::int64_t>(extents[static_cast<std::size_t>(i)]));

  const Id type(H5Dget_type(set->id()), H5Tclose, "read the type of", label);
  const H5T_class_t kind = H5Tget_class(type);
  const std::size_t size = H5Tget_size(type);
  if (kind == H5T_INTEGER) {
    const bool is_signed = H5Tget_sign(type) == H5T_SGN_2;
    if (size == 1 && !is_signed) return {set, Element::u8, shape};
    if (size == 4 && is_signed) return {set, Element::i32, shape};
    if (size == 8 && is_signed) return {set, Element::i64, shape};
    Dataset half(set, Element::bf16, shape);
    if (size == 2 && half.has_attribute("dtype") && half.string_attribute("dtype") == "bf16")
      return half;
  }
  if (kind == H5T_FLOAT && size == 4) return {set, Element::f32, shape};
  if (kind == H5T_FLOAT && size == 8) return {set, Element::f64, shape};
  fail("{} has a type of {} bytes an element that is none of u8, i32, i64, f32, f64, bf16", label,
       size);
}

bool File::contains(std::string_view name) const {
  silence();
  // H5Lexists fails, instead of answering, where a group on the way is missing.
  for (std::size_t end = name.find('/', 1); end != name.npos; end = name.find('/', end + 1)) {
    if (H5Lexists(handle_->id(), std::string(name.substr(0, end)).c_str(), H5P_DEFAULT) <= 0)
      return false;
  }
  return H5Lexists(handle_->id(), std::string(name).c_str(), H5P_DEFAULT) > 0;
}

std::vector<std::string> File::links(std::string_view group) const {
  silence();
  const std::string label = dataset_label(group, handle_->label());
  const Id id(H5Gopen2(handle_->id(), std::string(group).c_str(), H5P_DEFAULT), H5Gclose, "open",
              label);
  std::vector<std::string> names;
  const auto collect = [](hid_t, const char* name, const H5L_info_t*, void* to) -> herr_t {
    static_cast<std::vector<std::string>*>(to)->emplace_back(name);
    return 0;
  };
  check(H5Literate(id, H5_INDEX_NAME, H5_ITER_NATIVE, nullptr, collect, &names), "list", label);
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace orchard::hdf5
