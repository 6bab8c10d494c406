// SentencePiece with byte fallback. decode(encode(text)) == text for every string of bytes: nothing
// is normalised, newline is a piece of its own, each digit is a piece of its own (so a coordinate
// always costs its number of digits), what the vocabulary lacks travels as bytes.
//
// Text never turns into a special token, whatever it says: only code that means one puts it there
// (data/chat.h).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/sample.h"

namespace orchard {

enum class TokenizerKind : std::uint8_t { unigram, bpe };

struct TokenizerOptions {
  TokenizerKind kind = TokenizerKind::unigram;
  std::int32_t vocabulary = 2048;      // special tokens and 256 bytes included
  double character_coverage = 0.9999;  // share of characters that get a piece; the rest are bytes
};

// SentencePiece's model file, trained on `sentences` (without newlines). The same sentences give
// the same bytes. Throws Error if they are too few for the vocabulary.
std::vector<std::uint8_t> train_tokenizer(const std::vector<std::string>& sentences,
                                          const TokenizerOptions& options);

class Tokenizer {
 public:
  // `name` is for messages. Refuses a model whose special tokens are not those of sample.h.
  Tokenizer(std::span<const std::uint8_t> model, std::string_view name);
  static Tokenizer open(const std::filesystem::path& path);
  Tokenizer(Tokenizer&&) noexcept;
  ~Tokenizer();

  std::vector<std::int32_t> encode(std::string_view text) const;
  // Special tokens leave nothing behind. Bytes that are no whole character come out as they are.
  std::string decode(std::span<const std::int32_t> tokens) const;
  // As decode of this one token, but a special token gives its name, "<image>".
  std::string text_of(std::int32_t token) const;

  std::int32_t vocabulary() const;
  // XXH3-128 of the model file, in hexadecimal digits.
  const std::string& hash() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace orchard
