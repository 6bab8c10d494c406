// The C++ side of tests/goldens/reference/values.py: parameters and inputs by formula, so that the
// goldens hold results only.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace orchard::testing::golden {

// A tensor as its norm and its products with two directions.
struct Summary {
  std::string_view name;
  double norm, first, second;
};

// All elements of a tensor.
struct Values {
  std::string_view name;
  std::span<const double> values;
};

inline std::uint64_t word(std::string_view name, std::int64_t index) {
  std::uint64_t z = 0xCBF29CE484222325;  // FNV-1a of the name
  for (const char c : name) z = (z ^ static_cast<unsigned char>(c)) * 0x100000001B3;
  z += static_cast<std::uint64_t>(index + 1) * 0x9E3779B97F4A7C15;  // then splitmix64
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

// In [-1, 1), a multiple of 2^-15: exact in fp32.
inline float value(std::string_view name, std::int64_t index) {
  return (static_cast<float>(word(name, index) >> 48) - 32768) / 32768;
}

// 0 ... 255.
inline float pixel(std::string_view name, std::int64_t index) {
  return static_cast<float>(word(name, index) >> 56);
}

}  // namespace orchard::testing::golden
