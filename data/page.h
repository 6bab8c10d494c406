// Private to the page source: pages of pages.jsonl, and which parts of them can be cut out.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "data/json.h"
#include "data/picture.h"
#include "data/sample.h"

namespace orchard {

struct Box {
  std::int32_t left = 0, top = 0, right = 0, bottom = 0;  // pixels, right and bottom exclusive

  std::int32_t width() const { return right - left; }
  std::int32_t height() const { return bottom - top; }
  bool operator==(const Box&) const = default;
};

Box united(const Box& a, const Box& b);

struct Word {
  std::string text, key;  // key: word_key(text)
  Box box;
};

struct Line {
  std::string text;
  Box box;
  std::vector<Word> words;
};

struct Page {
  std::string id, place;
  std::filesystem::path path;
  std::int32_t width = 0, height = 0;
  std::vector<Line> lines;
  Split split = Split::train;

  std::string text() const;  // lines, each followed by a newline
};

// Throws Error with the place for missing fields, missing pictures, boxes without area. A box that
// leaves the page is cut to it.
Page read_page(const Json& record, const std::filesystem::path& folder, const std::string& name,
               const std::string& place);

// Box of lines [first, first + count) if together they form one block: each below the one before,
// in the same column, no gap above a line's height, no other line of the page inside.
std::optional<Box> region_box(const Page& page, std::size_t first, std::size_t count);

// `box` with a margin of 3 pixels, cut to the page.
Box with_margin(const Box& box, const Page& page);

// "<x1,y1,x2,y2>": integers 0...1000 relative to `frame`, truncated as Ferret does.
std::string box_text(const Box& box, const Box& frame);

}  // namespace orchard
