// For .cpp files only: JSON whose errors name file and line.
#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "kernels/core/error.h"

namespace orchard {

using Json = nlohmann::json;

// `text` begins on line `first_line` of the file.
Json parse_json(std::string_view text, const std::filesystem::path& path,
                std::int64_t first_line = 1);

// The value of a field. `place` opens messages: "sample/pages.jsonl:12". Throws Error if it is
// missing or of another type.
template <class T>
T json_field(const Json& object, const char* name, const std::string& place) {
  require(object.is_object(), "{}: expected an object with the field \"{}\"", place, name);
  const auto field = object.find(name);
  require(field != object.end(), "{}: the field \"{}\" is missing", place, name);
  try {
    return field->get<T>();
  } catch (const Json::exception&) {
    fail("{}: the field \"{}\" has the wrong type: {}", place, name, field->dump().substr(0, 60));
  }
}

template <class T>
T json_field(const Json& object, const char* name, const std::string& place, T missing) {
  return object.is_object() && object.contains(name) ? json_field<T>(object, name, place)
                                                     : std::move(missing);
}

// Calls `visit(record, place)` for each object of a .jsonl file (one a line, blank lines allowed)
// or for each element of the array a .json file holds; place is "<path>:<line it begins on>".
void for_each_record(const std::filesystem::path& path,
                     const std::function<void(const Json&, const std::string&)>& visit);

}  // namespace orchard
