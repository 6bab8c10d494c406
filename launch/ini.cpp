#include "launch/ini.h"

#include <algorithm>
#include <map>

#include "launch/configuration_error.h"

namespace orchard {
namespace {

constexpr std::string_view blanks = " \t\r";

std::string_view without_comment(std::string_view line) {
  for (std::size_t i = 0; i < line.size(); ++i) {
    const bool opens = i == 0 || blanks.find(line[i - 1]) != std::string_view::npos;
    if (line[i] == '#' && opens) return line.substr(0, i);
  }
  return line;
}

bool is_name(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '_' || c == '-';
  });
}

}  // namespace

std::string_view trimmed(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(blanks);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(blanks) - begin + 1);
}

bool ini_can_hold(std::string_view value) {
  return value.find('\n') == std::string_view::npos && without_comment(value) == value &&
         trimmed(value) == value;
}

std::vector<IniEntry> parse_ini(std::string_view text, std::string_view place) {
  std::vector<IniEntry> entries;
  std::map<std::string, int> first_lines;
  std::string section;
  int number = 0;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = trimmed(without_comment(text.substr(0, end)));
    text.remove_prefix(std::min(end + 1, text.size()));
    ++number;
    if (line.empty()) continue;
    if (line.front() == '[') {
      const std::string_view name = line.substr(1, line.size() - 2);
      require_configuration(line.back() == ']' && is_name(name),
                            "{}:{}: \"{}\" is not a section; write [name]", place, number, line);
      section = name;
      continue;
    }
    const std::size_t equals = line.find('=');
    const std::string_view key = trimmed(line.substr(0, equals));
    require_configuration(equals != std::string_view::npos && is_name(key),
                          "{}:{}: \"{}\" is neither a [section] nor key = value", place, number,
                          line);
    require_configuration(!section.empty(), "{}:{}: {} stands before the first [section]", place,
                          number, key);
    IniEntry entry{section + "." + std::string(key), std::string(trimmed(line.substr(equals + 1))),
                   number};
    const auto [first, inserted] = first_lines.emplace(entry.name, number);
    require_configuration(inserted, "{}:{}: {} is given again, after line {}; keep one", place,
                          number, entry.name, first->second);
    entries.push_back(std::move(entry));
  }
  return entries;
}

}  // namespace orchard
