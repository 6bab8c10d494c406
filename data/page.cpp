#include "data/page.h"

#include <algorithm>

#include "data/source_common.h"
#include "data/split.h"

namespace orchard {
namespace {

constexpr std::int32_t margin_pixels = 3;

Box read_box(const Json& object, const Page& page, const std::string& place) {
  const auto v = json_field<std::vector<double>>(object, "box", place);
  require(v.size() == 4, "{}: a box has four numbers, not {}", place, v.size());
  const auto clamp = [](double value, std::int32_t limit) {
    return static_cast<std::int32_t>(std::clamp(value, 0.0, static_cast<double>(limit)));
  };
  const Box box{clamp(v[0], page.width), clamp(v[1], page.height), clamp(v[2], page.width),
                clamp(v[3], page.height)};
  require(box.width() > 0 && box.height() > 0,
          "{}: the box [{}, {}, {}, {}] has no area on a page of {}x{}", place, v[0], v[1], v[2],
          v[3], page.width, page.height);
  return box;
}

std::int64_t common_area(const Box& a, const Box& b) {
  const std::int64_t width = std::min(a.right, b.right) - std::max(a.left, b.left);
  const std::int64_t height = std::min(a.bottom, b.bottom) - std::max(a.top, b.top);
  return width > 0 && height > 0 ? width * height : 0;
}

bool follows(const Box& upper, const Box& lower) {
  const std::int32_t common = std::min(upper.right, lower.right) - std::max(upper.left, lower.left);
  const std::int32_t line = std::max(upper.height(), lower.height());
  return lower.top >= upper.top + upper.height() / 2 && lower.top - upper.bottom <= line &&
         2 * common >= std::min(upper.width(), lower.width()) &&
         line <= 2 * std::min(upper.height(), lower.height());
}

}  // namespace

Box united(const Box& a, const Box& b) {
  return {std::min(a.left, b.left), std::min(a.top, b.top), std::max(a.right, b.right),
          std::max(a.bottom, b.bottom)};
}

std::string Page::text() const {
  std::string text;
  for (const Line& line : lines) text.append(line.text).append("\n");
  return text;
}

Page read_page(const Json& record, const std::filesystem::path& folder, const std::string& name,
               const std::string& place) {
  Page page;
  page.id = id_of(name, place);
  page.place = place;
  page.path = picture_path(folder, json_field<std::string>(record, "image", place), place);
  page.width = json_field<std::int32_t>(record, "width", place);
  page.height = json_field<std::int32_t>(record, "height", place);
  for (const Json& line : json_field<Json>(record, "lines", place)) {
    Line& added = page.lines.emplace_back();
    added.text = one_line(json_field<std::string>(line, "text", place));
    added.box = read_box(line, page, place);
    for (const Json& word : json_field<Json>(line, "words", place)) {
      const std::string text = one_line(json_field<std::string>(word, "text", place));
      added.words.push_back({text, word_key(text), read_box(word, page, place)});
    }
  }
  return page;
}

std::optional<Box> region_box(const Page& page, std::size_t first, std::size_t count) {
  if (first + count > page.lines.size()) return std::nullopt;
  Box box = page.lines[first].box;
  for (std::size_t i = first + 1; i < first + count; ++i) {
    if (!follows(page.lines[i - 1].box, page.lines[i].box)) return std::nullopt;
    box = united(box, page.lines[i].box);
  }
  for (std::size_t i = 0; i < page.lines.size(); ++i) {
    const Box& other = page.lines[i].box;
    const std::int64_t area = std::int64_t{other.width()} * other.height();
    // Boxes of neighbouring lines touch; a tenth of a line is neither letters nor half-letters.
    if ((i < first || i >= first + count) && 10 * common_area(box, other) > area)
      return std::nullopt;
  }
  return box;
}

Box with_margin(const Box& box, const Page& page) {
  return {std::max(0, box.left - margin_pixels), std::max(0, box.top - margin_pixels),
          std::min(page.width, box.right + margin_pixels),
          std::min(page.height, box.bottom + margin_pixels)};
}

std::string box_text(const Box& box, const Box& frame) {
  const auto x = [&](std::int32_t value) { return (value - frame.left) * 1000 / frame.width(); };
  const auto y = [&](std::int32_t value) { return (value - frame.top) * 1000 / frame.height(); };
  return fmt::format("<{},{},{},{}>", x(box.left), y(box.top), x(box.right), y(box.bottom));
}

}  // namespace orchard
