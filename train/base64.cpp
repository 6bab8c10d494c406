#include "train/base64.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace orchard {
namespace {

constexpr std::string_view digits =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

}  // namespace

std::string base64_encode(std::span<const std::uint8_t> bytes) {
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const std::size_t count = std::min<std::size_t>(3, bytes.size() - i);
    std::uint32_t group = 0;
    for (std::size_t b = 0; b < 3; ++b)
      group = group << 8 | (b < count ? bytes[i + b] : std::uint32_t{0});
    for (std::size_t d = 0; d < 4; ++d)
      text += d <= count ? digits[group >> (18 - 6 * d) & 63] : '=';
  }
  return text;
}

std::vector<std::uint8_t> base64_decode(std::string_view text) {
  require(text.size() % 4 == 0, "{} characters are not base64: it comes in fours", text.size());
  std::vector<std::uint8_t> bytes;
  bytes.reserve(text.size() / 4 * 3);
  for (std::size_t i = 0; i < text.size(); i += 4) {
    const bool last = i + 4 == text.size();
    const std::size_t padding = !last || text[i + 3] != '=' ? 0 : text[i + 2] != '=' ? 1 : 2;
    std::uint32_t group = 0;
    for (std::size_t d = 0; d < 4; ++d) {
      const auto value = d < 4 - padding ? digits.find(text[i + d]) : 0;
      require(value != digits.npos, "character {} of {} is not base64", i + d, text.size());
      group = group << 6 | static_cast<std::uint32_t>(value);
    }
    for (std::size_t b = 0; b < 3 - padding; ++b)
      bytes.push_back(static_cast<std::uint8_t>(group >> (16 - 8 * b)));
  }
  return bytes;
}

}  // namespace orchard
