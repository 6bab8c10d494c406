// Ini files: `[section]`, then `key = value` lines. A `#` at the start of a line or after white
// space opens a comment. No lists, no nesting, no quoting.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace orchard {

struct IniEntry {
  std::string name;  // section.key
  std::string value;
  int line = 0;  // from 1
};

// The entries of a file, in order. `place` names the text in messages: "tiny.ini". Throws
// ConfigurationError with place and line for a line that is none of the above, a key before the
// first section, and a key that the same text gives twice.
std::vector<IniEntry> parse_ini(std::string_view text, std::string_view place);

// True when the value survives being written to a file and read back.
bool ini_can_hold(std::string_view value);

// Without white space at either end.
std::string_view trimmed(std::string_view text);

}  // namespace orchard
