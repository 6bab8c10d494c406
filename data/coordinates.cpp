#include "data/coordinates.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "kernels/core/error.h"

namespace orchard {
namespace {

std::int32_t to_bin(double pixels, std::int32_t extent) {
  return static_cast<std::int32_t>(
      std::clamp(pixels * coordinate_bins / extent, 0.0, static_cast<double>(coordinate_bins)));
}

std::int32_t to_pixel(std::int32_t bin, std::int32_t extent) {
  return static_cast<std::int32_t>(static_cast<std::int64_t>(bin) * extent / coordinate_bins);
}

template <std::size_t count>
std::optional<std::array<std::int32_t, count>> parse(std::string_view text) {
  std::array<std::int32_t, count> values{};
  const char* at = text.data();
  const char* const end = at + text.size();
  for (std::size_t i = 0; i < count; ++i) {
    if (at == end || *at++ != (i == 0 ? '<' : ',')) return {};
    if (at == end || *at == '-') return {};
    const auto [next, error] = std::from_chars(at, end, values[i]);
    if (error != std::errc{} || values[i] > coordinate_bins) return {};
    at = next;
  }
  if (end - at != 1 || *at != '>') return {};
  return values;
}

}  // namespace

Point to_bins(double x_pixels, double y_pixels, PictureSize picture) {
  require(picture.width > 0 && picture.height > 0, "a picture of {} x {} has no coordinates",
          picture.width, picture.height);
  return {to_bin(x_pixels, picture.width), to_bin(y_pixels, picture.height)};
}

Point to_pixels(Point bins, PictureSize picture) {
  return {to_pixel(bins.x, picture.width), to_pixel(bins.y, picture.height)};
}

std::string format(const Point& point) {
  return fmt::format("<{},{}>", point.x, point.y);
}

std::string format(const Box& box) {
  return fmt::format("<{},{},{},{}>", box.top_left.x, box.top_left.y, box.bottom_right.x,
                     box.bottom_right.y);
}

std::optional<Point> parse_point(std::string_view text) {
  const auto values = parse<2>(text);
  if (!values) return {};
  return Point{(*values)[0], (*values)[1]};
}

std::optional<Box> parse_box(std::string_view text) {
  const auto values = parse<4>(text);
  if (!values) return {};
  return Box{{(*values)[0], (*values)[1]}, {(*values)[2], (*values)[3]}};
}

}  // namespace orchard
