#include "data/json.h"

#include <algorithm>

#include "data/atomic_file.h"

namespace orchard {
namespace {

constexpr std::string_view blanks = " \t\r\n";

// The end of the value that begins at `at`: the comma or bracket, outside strings and inner
// brackets, that follows it; text.size() if there is none.
std::size_t end_of_value(std::string_view text, std::size_t at) {
  int depth = 0;
  bool in_string = false;
  for (; at < text.size(); ++at) {
    const char c = text[at];
    if (in_string) {
      if (c == '\\') ++at;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      ++depth;
    } else if (c == ']' || c == '}') {
      if (--depth < 0) return at;
    } else if (c == ',' && depth == 0) {
      return at;
    }
  }
  return text.size();
}

}  // namespace

Json parse_json(std::string_view text, const std::filesystem::path& path, std::int64_t first_line) {
  try {
    return Json::parse(text);
  } catch (const Json::parse_error& error) {
    const auto end = text.begin() + static_cast<std::ptrdiff_t>(std::min(error.byte, text.size()));
    // "[json.exception.parse_error.101] parse error at line 2, column 6: syntax error ...", where
    // the line counts from the start of `text`.
    std::string_view reason = error.what();
    const auto column = reason.find("column ");
    if (column != reason.npos) reason.remove_prefix(column);
    fail("{}:{}: not valid JSON, {}", path.string(),
         first_line + std::count(text.begin(), end, '\n'), reason);
  }
}

void for_each_record(const std::filesystem::path& path,
                     const std::function<void(const Json&, const std::string&)>& visit) {
  const std::string whole = read_text(path);
  const std::string_view text = whole;
  const bool lines = path.extension() == ".jsonl";
  std::int64_t line = 1;
  std::size_t at = 0;
  const auto advance = [&](std::size_t to) {
    const auto offset = [&](std::size_t i) {
      return text.begin() + static_cast<std::ptrdiff_t>(std::min(i, text.size()));
    };
    line += std::count(offset(at), offset(to), '\n');
    at = to;
  };
  const auto skip_blanks = [&] {
    advance(std::min(text.size(), text.find_first_not_of(blanks, at)));
  };
  const auto place = [&] { return fmt::format("{}:{}", path.string(), line); };

  // Records are parsed one by one, so an array of a million needs little more memory than its text.
  skip_blanks();
  if (!lines) {
    require(at < text.size() && text[at] == '[', "{}: expected an array of records", place());
    advance(at + 1);
    skip_blanks();
    if (at < text.size() && text[at] == ']') return;
  }
  while (at < text.size()) {
    const std::size_t end =
        lines ? std::min(text.size(), text.find('\n', at)) : end_of_value(text, at);
    require(lines || (end < text.size() && text[end] != '}'),
            "{}: the array is not closed after the record that begins here", place());
    visit(parse_json(text.substr(at, end - at), path, line), place());
    if (!lines && text[end] == ']') return;
    advance(end + 1);
    skip_blanks();
  }
  require(lines, "{}: the file ends before its array", place());
}

}  // namespace orchard
