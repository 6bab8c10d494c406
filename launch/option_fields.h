// Makers of RunOptions: how text becomes a field of each type, and back.
//
// `field` is a generic lambda that returns a reference to the field, of a const RunConfig or not:
//   [](auto& run) -> auto& { return run.seed; }
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <charconv>
#include <cmath>
#include <concepts>
#include <limits>
#include <utility>

#include "launch/ini.h"
#include "launch/run_options.h"

namespace orchard {

// Reads the whole text as one number.
template <class T>
bool read_number(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size();
}

struct OptionText {
  std::string name, help;
};

struct IntegerBounds {
  std::int64_t least = 0;
  std::int64_t most = std::numeric_limits<std::int64_t>::max();
};

template <class Field>
RunOption integer_option(const OptionText& text, IntegerBounds bounds, Field field) {
  const bool open = bounds.most == std::numeric_limits<std::int64_t>::max();
  return {.name = text.name,
          .help = text.help,
          .values = open ? fmt::format("a whole number of at least {}", bounds.least)
                         : fmt::format("a whole number from {} to {}", bounds.least, bounds.most),
          .read =
              [=](RunConfig& run, std::string_view value) {
                std::int64_t number = 0;
                if (!read_number(value, number)) return false;
                if (number < bounds.least || number > bounds.most) return false;
                auto& target = field(run);
                target = static_cast<std::remove_reference_t<decltype(target)>>(number);
                return true;
              },
          .print = [=](const RunConfig& run) { return fmt::format("{}", field(run)); }};
}

// least <= value <= most, or, where `open`, least < value.
struct RealBounds {
  enum class Least : std::uint8_t { included, excluded };
  double least = 0;
  double most = std::numeric_limits<double>::infinity();
  Least kind = Least::included;
};

template <class Field>
RunOption real_option(const OptionText& text, RealBounds bounds, Field field) {
  const bool above = bounds.kind == RealBounds::Least::excluded;
  std::string values = fmt::format("a number {} {}", above ? "above" : "of at least", bounds.least);
  if (std::isfinite(bounds.most)) values += fmt::format(" and at most {}", bounds.most);
  return {.name = text.name,
          .help = text.help,
          .values = std::move(values),
          .read =
              [=](RunConfig& run, std::string_view value) {
                auto& target = field(run);
                std::remove_reference_t<decltype(target)> number = 0;
                if (!read_number(value, number) || !std::isfinite(number)) return false;
                if (number < bounds.least || number > bounds.most) return false;
                if (above && number == bounds.least) return false;
                target = number;
                return true;
              },
          .print = [=](const RunConfig& run) { return fmt::format("{}", field(run)); }};
}

template <class Enum, std::size_t n>
using ChoiceNames = std::array<std::pair<std::string_view, Enum>, n>;

template <class Enum, std::size_t n, class Field>
RunOption choice_option(const OptionText& text, const ChoiceNames<Enum, n>& names, Field field) {
  std::vector<std::string_view> words;
  for (const auto& [word, unused] : names) words.push_back(word);
  return {.name = text.name,
          .help = text.help,
          .values = fmt::format("{}", fmt::join(words, " | ")),
          .read =
              [=](RunConfig& run, std::string_view value) {
                for (const auto& [word, meaning] : names) {
                  if (word != value) continue;
                  field(run) = meaning;
                  return true;
                }
                return false;
              },
          .print =
              [=](const RunConfig& run) {
                for (const auto& [word, meaning] : names) {
                  if (meaning == field(run)) return std::string(word);
                }
                fail("a choice has a value without a name");
              }};
}

// `values` says what the text means; it may be empty.
template <class Field>
RunOption text_option(const OptionText& text, const std::string& values, Field field) {
  return {.name = text.name,
          .help = text.help,
          .values = values + ", without line breaks or \" #\"",
          .read =
              [=](RunConfig& run, std::string_view value) {
                if (!ini_can_hold(value)) return false;
                field(run) = std::string(value);
                return true;
              },
          .print = [=](const RunConfig& run) { return std::string(field(run)); }};
}

}  // namespace orchard
