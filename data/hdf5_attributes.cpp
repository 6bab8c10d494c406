#include <hdf5.h>

#include "data/hdf5.h"
#include "data/hdf5_handle.h"
#include "kernels/core/error.h"

namespace orchard::hdf5 {
namespace {

void write_attribute(const Handle& owner, std::string_view name, hid_t file_type, hid_t memory_type,
                     const void* value) {
  const std::string key(name), label = "attribute \"" + key + "\" of " + owner.label();
  const htri_t exists = H5Aexists(owner.id(), key.c_str());
  check(exists, "look for", label);
  if (exists > 0) check(H5Adelete(owner.id(), key.c_str()), "replace", label);
  const Id space(H5Screate(H5S_SCALAR), H5Sclose, "create", label);
  const Id attribute(
      H5Acreate2(owner.id(), key.c_str(), file_type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose,
      "create", label);
  check(H5Awrite(attribute, memory_type, value), "write", label);
}

// An attribute that exists, is a single value and of the wanted class.
struct OpenAttribute {
  std::string label;
  Id id, type;

  OpenAttribute(const Handle& owner, std::string_view name, H5T_class_t kind,
                std::string_view kind_name)
      : label("attribute \"" + std::string(name) + "\" of " + owner.label()),
        id(H5Aopen(owner.id(), std::string(name).c_str(), H5P_DEFAULT), H5Aclose, "open", label),
        type(H5Aget_type(id), H5Tclose, "read the type of", label) {
    const Id space(H5Aget_space(id), H5Sclose, "read the shape of", label);
    require(H5Tget_class(type) == kind && H5Sget_simple_extent_npoints(space) == 1, "{} is not {}",
            label, kind_name);
  }
};

}  // namespace

void Attributes::set_attribute(std::string_view name, std::string_view value) {
  silence();
  const Id type(H5Tcopy(H5T_C_S1), H5Tclose, "describe an attribute of", handle_->label());
  check(H5Tset_size(type, value.size() + 1), "describe an attribute of", handle_->label());
  check(H5Tset_cset(type, H5T_CSET_UTF8), "describe an attribute of", handle_->label());
  write_attribute(*handle_, name, type, type, std::string(value).c_str());
}

void Attributes::set_attribute(std::string_view name, std::int64_t value) {
  silence();
  write_attribute(*handle_, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

void Attributes::set_attribute(std::string_view name, double value) {
  silence();
  write_attribute(*handle_, name, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, &value);
}

bool Attributes::has_attribute(std::string_view name) const {
  silence();
  return H5Aexists(handle_->id(), std::string(name).c_str()) > 0;
}

std::string Attributes::string_attribute(std::string_view name) const {
  silence();
  const OpenAttribute attribute(*handle_, name, H5T_STRING, "a string");
  if (H5Tis_variable_str(attribute.type) > 0) {  // as h5py writes them
    char* text = nullptr;
    check(H5Aread(attribute.id, attribute.type, &text), "read", attribute.label);
    std::string value = text ? text : "";
    H5free_memory(text);
    return value;
  }
  std::string value(H5Tget_size(attribute.type), '\0');
  check(H5Aread(attribute.id, attribute.type, value.data()), "read", attribute.label);
  value.resize(std::min(value.size(), value.find('\0')));
  return value;
}

std::int64_t Attributes::integer_attribute(std::string_view name) const {
  silence();
  const OpenAttribute attribute(*handle_, name, H5T_INTEGER, "an integer");
  std::int64_t value = 0;
  check(H5Aread(attribute.id, H5T_NATIVE_INT64, &value), "read", attribute.label);
  return value;
}

double Attributes::real_attribute(std::string_view name) const {
  silence();
  const OpenAttribute attribute(*handle_, name, H5T_FLOAT, "a real number");
  double value = 0;
  check(H5Aread(attribute.id, H5T_NATIVE_DOUBLE, &value), "read", attribute.label);
  return value;
}

}  // namespace orchard::hdf5
