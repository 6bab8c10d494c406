// Private to the reader and the writer of training sets.
#pragma once

namespace orchard {

inline constexpr const char* description_file = "dataset.json";
inline constexpr const char* index_file = "index.h5";
inline constexpr const char* tokenizer_file = "tokenizer.model";
inline constexpr const char* format_name = "orchard training set";
inline constexpr int format_version = 1;

}  // namespace orchard
