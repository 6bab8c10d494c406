// Base64 (RFC 4648, padded): bytes as text in JSON and in data URIs.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace orchard {

std::string base64_encode(std::span<const std::uint8_t> bytes);

// Throws Error for foreign characters, line breaks too, and for missing padding.
std::vector<std::uint8_t> base64_decode(std::string_view text);

}  // namespace orchard
