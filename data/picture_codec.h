// Private to picture.cpp and the codecs.
#pragma once

#include "data/picture.h"

namespace orchard {

// The signature has been recognised; size limits are checked before memory is taken.
Picture decode_jpeg(std::span<const std::uint8_t> bytes);
Picture decode_png(std::span<const std::uint8_t> bytes);

// Throws unless the picture is within max_picture_side and max_picture_pixels.
void check_picture_size(std::int64_t width, std::int64_t height);

}  // namespace orchard
