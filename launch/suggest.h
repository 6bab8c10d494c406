// "Did you mean": the known names nearest to one that nobody knows.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace orchard {

// A clause to append to a message: "; did you mean stage1.peak_lr?", or nothing when no name is
// near. Near means few edits (an insertion, deletion, replacement or swap of neighbours each count
// one), or another section with the same key.
std::string suggestion(std::string_view unknown, std::span<const std::string> known);

}  // namespace orchard
