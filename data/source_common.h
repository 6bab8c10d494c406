// Private to the sources.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "data/json.h"
#include "data/picture.h"
#include "data/sample.h"

namespace orchard {

// "<name>/<file>:<line>", for ids: independent of where the corpus lies.
std::string id_of(const std::string& name, const std::string& place);

// Path of a record's picture; throws if the file does not exist.
std::filesystem::path picture_path(const std::filesystem::path& folder, const std::string& image,
                                   const std::string& place);

// Newlines and runs of blanks become one space.
std::string one_line(std::string_view text);

EncodedPicture encode(const Picture& picture);

}  // namespace orchard
