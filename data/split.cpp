#include "data/split.h"

#include "data/hash.h"
#include "kernels/core/error.h"

namespace orchard {
namespace {

// Bytes at the start (or, mirrored, the end) of `word` that are punctuation: ASCII, or of the block
// General Punctuation, U+2000 to U+206F.
std::size_t leading_punctuation(std::string_view word) {
  if (word.size() >= 3 && word[0] == '\xe2' && (word[1] == '\x80' || word[1] == '\x81')) return 3;
  return !word.empty() && std::ispunct(static_cast<unsigned char>(word[0])) ? 1 : 0;
}

std::size_t trailing_punctuation(std::string_view word) {
  if (word.size() >= 3 && leading_punctuation(word.substr(word.size() - 3)) == 3) return 3;
  return !word.empty() && std::ispunct(static_cast<unsigned char>(word.back())) ? 1 : 0;
}

}  // namespace

std::string word_key(std::string_view word) {
  while (const std::size_t n = leading_punctuation(word)) word.remove_prefix(n);
  while (const std::size_t n = trailing_punctuation(word)) word.remove_suffix(n);
  std::string key(word);
  for (char& c : key)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return key;
}

Splitter::Splitter(int held_out_permille)
    : permille_(static_cast<std::uint64_t>(held_out_permille)) {
  require(held_out_permille >= 0 && held_out_permille < 1000,
          "{} per mille cannot be held out: choose 0 to 999", held_out_permille);
}

Split Splitter::of(std::string_view kind, std::uint64_t content) const {
  return hash64(kind, content) % 1000 < permille_ ? Split::held_out : Split::train;
}

Split Splitter::word(std::string_view word) const {
  return of("word", hash64(word_key(word)));
}
Split Splitter::page(std::string_view text) const {
  return of("page", hash64(text));
}
Split Splitter::text(std::string_view text) const {
  return of("text", hash64(text));
}
Split Splitter::picture(std::span<const std::uint8_t> bytes) const {
  return of("picture", hash64(bytes));
}

}  // namespace orchard
