// Pieces of a web page that needs nothing but itself: no scripts, no files, no network.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace orchard {

// Text for element content and quoted attributes.
std::string html_escape(std::string_view text);

// The whole document around `body`, with the style of everything the report uses, light and dark as
// the reader's system asks. `title` is plain text.
std::string html_page(std::string_view title, std::string_view body);

// Columns after the first are numbers, aligned right. Cells are plain text; short rows are filled
// up.
struct HtmlTable {
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;
};
std::string html_table(const HtmlTable& table);

}  // namespace orchard
