#include "kernels/simt/ptx_text/registers.h"

#include <charconv>

#include "kernels/simt/ptx_text/kernel.h"

namespace orchard::simt::ptx {
namespace {

constexpr std::uint32_t poison = 0xffffffff;

// 0: not known.
char letter_of(std::string_view type) {
  if (type == ".pred") return 'p';
  if (type.ends_with("16")) return 'h';
  if (type.ends_with("32")) return 'w';
  if (type.ends_with("64")) return 'd';
  return 0;
}

}  // namespace

Registers::Registers() : image_(special_count) {
  auto& specials = scopes_.emplace_back();
  const auto name = [&](std::string_view special, Special slot) {
    specials[special] = {{slot, 'w'}, 0};
  };
  name("%tid.x", tid_x), name("%tid.y", tid_y), name("%tid.z", tid_z);
  name("%ntid.x", ntid_x), name("%ntid.y", ntid_y), name("%ntid.z", ntid_z);
  name("%ctaid.x", ctaid_x), name("%ctaid.y", ctaid_y), name("%ctaid.z", ctaid_z);
  name("%nctaid.x", nctaid_x), name("%nctaid.y", nctaid_y), name("%nctaid.z", nctaid_z);
  name("%laneid", laneid);
}

std::uint32_t Registers::allocate(std::uint64_t words) {
  const auto slot = static_cast<std::uint32_t>(image_.size());
  image_.resize(image_.size() + words, poison);
  return slot;
}

bool Registers::declare(std::string_view type, std::string_view name, std::uint64_t count) {
  const char letter = letter_of(type);
  if (!letter) return false;
  const Register first{0, letter};
  const std::uint64_t registers = count ? count : 1;
  scopes_.back()[name] = {{allocate(registers * first.words()), letter}, count};
  return true;
}

const Register* Registers::find(std::string_view name) {
  const std::size_t digits = name.find_last_not_of("0123456789") + 1;
  const std::string_view stem = name.substr(0, digits), suffix = name.substr(digits);
  for (std::size_t i = scopes_.size(); i-- > 0;) {
    const auto whole = scopes_[i].find(name);
    if (whole != scopes_[i].end() && whole->second.count == 0) return &whole->second.first;
    const auto range = scopes_[i].find(stem);
    if (suffix.empty() || range == scopes_[i].end()) continue;
    std::uint64_t number = 0;
    std::from_chars(suffix.data(), suffix.data() + suffix.size(), number);
    if (number >= range->second.count) continue;
    found_ = range->second.first;
    found_.slot += static_cast<std::uint32_t>(number) * found_.words();
    return &found_;
  }
  return nullptr;
}

Register Registers::constant(char letter, std::uint64_t bits) {
  const auto [known, is_new] = constants_.try_emplace({letter, bits});
  if (is_new) {
    Register& fresh = known->second;
    fresh.letter = letter;
    fresh.slot = allocate(fresh.words());
    image_[fresh.slot] = static_cast<std::uint32_t>(bits);
    if (letter == 'd') image_[fresh.slot + 1] = static_cast<std::uint32_t>(bits >> 32);
  }
  return known->second;
}

}  // namespace orchard::simt::ptx
