// JPEG and PNG, from and to memory. Bytes may come from anywhere: damaged or hostile ones give an
// Error that says what is wrong with them (the caller adds which file), never a crash or a picture
// that is partly grey.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/sample.h"

namespace orchard {

inline constexpr std::int64_t max_picture_pixels = 64'000'000;
inline constexpr std::int32_t max_picture_side = 32'768;

struct Picture {
  std::int32_t width = 0, height = 0;
  std::vector<std::uint8_t> rgb;  // [height, width, 3]
};

// From the header alone: enough to plan with, no promise that the rest can be decoded.
PictureSize read_picture_size(std::span<const std::uint8_t> bytes);

// Grey and palette become RGB, 16 bits become 8, transparency is laid on white, CMYK is converted.
// Any warning of the JPEG decoder counts as an error. Needs at most about 12 bytes a pixel.
Picture decode_picture(std::span<const std::uint8_t> bytes);

// The rectangle [left, left + width) x [top, top + height), which lies inside `picture`.
Picture crop(const Picture& picture, std::int32_t left, std::int32_t top, std::int32_t width,
             std::int32_t height);

// As 8-bit grey if every pixel is grey, else as RGB. The same picture gives the same bytes.
std::vector<std::uint8_t> encode_png(const Picture& picture);

}  // namespace orchard
