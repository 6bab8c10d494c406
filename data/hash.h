// XXH3 hashes: 128 bits to know a file again, 64 bits to choose by content.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace orchard {

// 32 lower-case hexadecimal digits, the same as `xxh128sum` prints.
std::string hash_hex(std::span<const std::uint8_t> bytes);
std::string hash_hex_of_file(const std::filesystem::path& path);

std::uint64_t hash64(std::string_view text, std::uint64_t seed = 0);
std::uint64_t hash64(std::span<const std::uint8_t> bytes, std::uint64_t seed = 0);

}  // namespace orchard
