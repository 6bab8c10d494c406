// Made-up corpora for tests: text of many words, and pages and clip-art whose pixels say what they
// show.
#pragma once

#include <fmt/core.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "data/hash.h"
#include "data/picture.h"

namespace orchard::testing {

// Unlike orchard::write_file it does not wait for the disk.
inline void put_file(const std::filesystem::path& path, const auto& bytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}

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

struct Rgb {
  std::uint8_t r, g, b;
  bool operator==(const Rgb&) const = default;
};

// The colour in which a made-up page shows a word.
inline Rgb color_of(const std::string& word) {
  const std::uint64_t hash = hash64(word);
  return {static_cast<std::uint8_t>(hash), static_cast<std::uint8_t>(hash >> 8),
          static_cast<std::uint8_t>(hash >> 16 & 0x7f)};
}

inline Rgb pixel(const Picture& picture, std::int32_t x, std::int32_t y) {
  const auto at = static_cast<std::size_t>(y * picture.width + x) * 3;
  return {picture.rgb[at], picture.rgb[at + 1], picture.rgb[at + 2]};
}

inline void paint(Picture& picture, std::int32_t left, std::int32_t top, std::int32_t right,
                  std::int32_t bottom, Rgb color) {
  for (std::int32_t y = top; y < bottom; ++y) {
    for (std::int32_t x = left; x < right; ++x) {
      const auto at = static_cast<std::size_t>(y * picture.width + x) * 3;
      picture.rgb[at] = color.r, picture.rgb[at + 1] = color.g, picture.rgb[at + 2] = color.b;
    }
  }
}

inline Picture white(std::int32_t width, std::int32_t height) {
  return {width, height,
          std::vector<std::uint8_t>(static_cast<std::size_t>(width * height * 3), 255)};
}

// pages.jsonl: pages of 6 lines of 5 words, each word a rectangle of its colour.
inline void write_pages(const std::filesystem::path& folder, int count) {
  std::mt19937 generator(2);
  std::filesystem::create_directories(folder / "pages");
  std::string records;
  for (int p = 0; p < count; ++p) {
    Picture picture = white(320, 150);
    std::string lines;
    for (int l = 0; l < 6; ++l) {
      std::string text, words;
      for (int w = 0; w < 5; ++w) {
        std::string word = some_word(generator);
        if (generator() % 4 == 0) word[0] = static_cast<char>(word[0] - 'a' + 'A');
        if (generator() % 8 == 0) word += ",";
        const int left = 10 + 60 * w, top = 10 + 22 * l, right = left + 40, bottom = top + 14;
        paint(picture, left, top, right, bottom, color_of(word));
        text.append(w ? " " : "").append(word);
        words += fmt::format(R"({}{{"text":"{}","box":[{},{},{},{}]}})", w ? "," : "", word, left,
                             top, right, bottom);
      }
      lines += fmt::format(R"({}{{"text":"{}","box":[10,{},290,{}],"words":[{}]}})", l ? "," : "",
                           text, 10 + 22 * l, 24 + 22 * l, words);
    }
    put_file(folder / fmt::format("pages/{}.png", p), encode_png(picture));
    records += fmt::format(
        R"({{"image":"pages/{}.png","document":"made","page":{},"width":320,"height":150,"lines":[{}]}})",
        p, p, lines);
    records += "\n";
  }
  put_file(folder / "pages.jsonl", records);
}

// clipart.jsonl: pictures of one colour.
inline void write_clipart(const std::filesystem::path& folder, int count) {
  std::mt19937 generator(4);
  std::filesystem::create_directories(folder / "clipart");
  std::string records;
  for (int i = 0; i < count; ++i) {
    Picture picture = white(20, 10 + i % 7);
    paint(picture, 2, 2, 18, 9, color_of(std::to_string(i)));
    put_file(folder / fmt::format("clipart/{}.png", i), encode_png(picture));
    records += fmt::format(
        R"({{"image":"clipart/{}.png","category":"{}","title":"{}","keywords":["made"]}})", i,
        i % 2 ? "plants" : "tools", some_word(generator));
    records += "\n";
  }
  put_file(folder / "clipart.jsonl", records);
}

inline void write_text(const std::filesystem::path& folder, int paragraphs) {
  std::filesystem::create_directories(folder / "text");
  std::string text;
  int i = 0;
  for (const std::string& sentence : some_sentences(static_cast<std::size_t>(paragraphs), 9))
    text.append(sentence).append(++i % 7 ? "\n" : "\n\n");
  put_file(folder / "text" / "made.txt", text);
}

inline void write_corpus(const std::filesystem::path& folder) {
  write_pages(folder, 40);
  write_clipart(folder, 60);
  write_text(folder, 200);
}

}  // namespace orchard::testing
