#include "data/picture.h"

#include <algorithm>
#include <array>

#include "data/picture_codec.h"
#include "kernels/core/error.h"

namespace orchard {
namespace {

using Bytes = std::span<const std::uint8_t>;

constexpr std::array<std::uint8_t, 8> png_signature{0x89, 'P', 'N', 'G', 0x0d, 0x0a, 0x1a, 0x0a};
constexpr std::array<std::uint8_t, 3> jpeg_signature{0xff, 0xd8, 0xff};

template <std::size_t n>
bool starts_with(Bytes bytes, const std::array<std::uint8_t, n>& signature) {
  return bytes.size() >= n && std::equal(signature.begin(), signature.end(), bytes.begin());
}

enum class Format { jpeg, png };

Format format_of(Bytes bytes) {
  require(!bytes.empty(), "the picture is empty (0 bytes)");
  if (starts_with(bytes, png_signature)) return Format::png;
  if (starts_with(bytes, jpeg_signature)) return Format::jpeg;
  const auto cut = [&](const auto& signature) {
    return bytes.size() < signature.size() &&
           std::equal(bytes.begin(), bytes.end(), signature.begin());
  };
  require(!cut(png_signature) && !cut(jpeg_signature), "the picture is truncated: {} bytes",
          bytes.size());
  fail("the picture is neither JPEG nor PNG: convert it to one of them");
}

// Big-endian, as both formats store numbers.
std::int64_t number_at(Bytes bytes, std::size_t position, int size) {
  require(position <= bytes.size() && static_cast<std::size_t>(size) <= bytes.size() - position,
          "the picture is truncated: its header ends after {} bytes", bytes.size());
  std::int64_t value = 0;
  for (int i = 0; i < size; ++i) value = value << 8 | bytes[position + static_cast<std::size_t>(i)];
  return value;
}

// PNG specification, 5.6 and 11.2.2: the first chunk is IHDR, which opens with width and height.
PictureSize png_size(Bytes bytes) {
  require(number_at(bytes, 12, 4) == 0x49484452, "the PNG is corrupt: it has no IHDR chunk");
  const std::int64_t width = number_at(bytes, 16, 4), height = number_at(bytes, 20, 4);
  check_picture_size(width, height);
  return {static_cast<std::int32_t>(width), static_cast<std::int32_t>(height)};
}

// ITU-T T.81, B.2.2: the frame header is marker SOFn, length, precision, lines, samples per line.
PictureSize jpeg_size(Bytes bytes) {
  std::size_t position = 2;
  for (;;) {
    require(number_at(bytes, position, 1) == 0xff, "the JPEG is corrupt: no marker at byte {}",
            position);
    const std::int64_t marker = number_at(bytes, position + 1, 1);
    if (marker == 0xff) {  // fill byte
      ++position;
      continue;
    }
    require(marker != 0xda && marker != 0xd9, "the JPEG is corrupt: it has no frame header");
    const bool is_frame =
        marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc;
    if (is_frame) {
      const std::int64_t height = number_at(bytes, position + 5, 2);
      const std::int64_t width = number_at(bytes, position + 7, 2);
      check_picture_size(width, height);
      return {static_cast<std::int32_t>(width), static_cast<std::int32_t>(height)};
    }
    const bool stands_alone = marker == 0x01 || (marker >= 0xd0 && marker <= 0xd7);
    position += 2;
    if (stands_alone) continue;
    const std::int64_t length = number_at(bytes, position, 2);
    require(length >= 2, "the JPEG is corrupt: segment of {} bytes at byte {}", length, position);
    position += static_cast<std::size_t>(length);
  }
}

}  // namespace

void check_picture_size(std::int64_t width, std::int64_t height) {
  require(width > 0 && height > 0, "the picture is corrupt: it says it has {}x{} pixels", width,
          height);
  require(width <= max_picture_side && height <= max_picture_side &&
              width * height <= max_picture_pixels,
          "the picture is too large: {}x{} pixels, at most {} on a side and {} in all; scale it "
          "down",
          width, height, max_picture_side, max_picture_pixels);
}

PictureSize read_picture_size(Bytes bytes) {
  return format_of(bytes) == Format::png ? png_size(bytes) : jpeg_size(bytes);
}

Picture decode_picture(Bytes bytes) {
  return format_of(bytes) == Format::png ? decode_png(bytes) : decode_jpeg(bytes);
}

Picture crop(const Picture& picture, std::int32_t left, std::int32_t top, std::int32_t width,
             std::int32_t height) {
  require(left >= 0 && top >= 0 && width > 0 && height > 0 && width <= picture.width - left &&
              height <= picture.height - top,
          "a crop of {}x{} at ({}, {}) lies outside a picture of {}x{}", width, height, left, top,
          picture.width, picture.height);
  Picture part{width, height, {}};
  part.rgb.reserve(static_cast<std::size_t>(width) * static_cast<std::size_t>(height) * 3);
  for (std::int32_t y = top; y < top + height; ++y) {
    const auto row = picture.rgb.begin() + (std::int64_t{y} * picture.width + left) * 3;
    part.rgb.insert(part.rgb.end(), row, row + std::int64_t{width} * 3);
  }
  return part;
}

}  // namespace orchard
