// Made-up text for tests: many words, no two sentences alike.
#pragma once

#include <fmt/core.h>

#include <random>
#include <string>
#include <vector>

namespace orchard::testing {

inline std::string some_word(std::mt19937& generator) {
  static constexpr const char* syllables[] = {"ba",  "tre", "lo",  "win", "sta", "ker", "mo",
                                              "ril", "du",  "fen", "ga",  "pos", "ne",  "thu"};
  std::string word;
  const auto count = 1 + generator() % 3;
  for (std::size_t i = 0; i < count; ++i) word += syllables[generator() % std::size(syllables)];
  return word;
}

inline std::vector<std::string> some_sentences(std::size_t count, unsigned seed = 1) {
  std::mt19937 generator(seed);
  std::vector<std::string> sentences;
  for (std::size_t i = 0; i < count; ++i) {
    std::string sentence = fmt::format("Number {}:", i);
    for (int word = 0; word < 12; ++word) sentence.append(" ").append(some_word(generator));
    sentences.push_back(sentence.append("."));
  }
  return sentences;
}

}  // namespace orchard::testing
