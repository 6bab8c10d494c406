#include "data/tokenizer.h"

#include <fmt/format.h>
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <array>
#include <unordered_map>

#include "data/atomic_file.h"
#include "data/hash.h"
#include "kernels/core/error.h"

namespace orchard {
namespace {

constexpr std::array<std::string_view, 8> special_names{
    "<unk>", "<begin>", "<end>", "<pad>", "<image>", "<|user|>", "<|assistant|>", "<|end|>"};
static_assert(special_names.size() == token_turn_end + 1);

// SentencePiece writes a space inside a piece as this character, so the character itself must take
// the way of bytes.
constexpr std::string_view space_mark = "\u2581";

class SentenceList : public sentencepiece::SentenceIterator {
 public:
  explicit SentenceList(const std::vector<std::string>& sentences) : sentences_(sentences) {}
  bool done() const override { return next_ >= sentences_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return sentences_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& sentences_;
  std::size_t next_ = 0;
};

// Length of the well-formed UTF-8 character that opens `text`, 0 if there is none (Unicode, table
// 3-7).
std::size_t character_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  const std::size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < length) return 0;
  unsigned char low = 0x80, high = 0xbf;
  if (first == 0xe0) low = 0xa0;
  if (first == 0xed) high = 0x9f;
  if (first == 0xf0) low = 0x90;
  if (first == 0xf4) high = 0x8f;
  if (byte(1) < low || byte(1) > high) return 0;
  for (std::size_t i = 2; i < length; ++i)
    if ((byte(i) & 0xc0) != 0x80) return 0;
  return length;
}

std::string with_spaces(std::string_view piece) {
  std::string text;
  while (!piece.empty()) {
    const bool is_mark = piece.starts_with(space_mark);
    text.push_back(is_mark ? ' ' : piece[0]);
    piece.remove_prefix(is_mark ? space_mark.size() : 1);
  }
  return text;
}

}  // namespace

std::vector<std::uint8_t> train_tokenizer(const std::vector<std::string>& sentences,
                                          const TokenizerOptions& options) {
  const auto name = [](SpecialToken token) { return std::string(special_names[token]); };
  const std::unordered_map<std::string, std::string> settings{
      {"model_type", options.kind == TokenizerKind::unigram ? "unigram" : "bpe"},
      {"vocab_size", std::to_string(options.vocabulary)},
      {"character_coverage", fmt::format("{}", options.character_coverage)},
      {"unk_id", std::to_string(token_unknown)},
      {"unk_piece", name(token_unknown)},
      {"bos_id", std::to_string(token_begin)},
      {"bos_piece", name(token_begin)},
      {"eos_id", std::to_string(token_end)},
      {"eos_piece", name(token_end)},
      {"pad_id", std::to_string(token_pad)},
      {"pad_piece", name(token_pad)},
      {"control_symbols", fmt::format("{},{},{},{}", name(token_image), name(token_user),
                                      name(token_assistant), name(token_turn_end))},
      {"user_defined_symbols", "\n"},
      {"byte_fallback", "true"},
      {"split_digits", "true"},
      {"normalization_rule_name", "identity"},
      {"add_dummy_prefix", "false"},
      {"remove_extra_whitespaces", "false"},
      {"max_sentence_length", "65536"},
      {"num_threads", "1"},
      {"minloglevel", "3"},
  };
  SentenceList list(sentences);
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(settings, &list, &model);
  require(status.ok(),
          "cannot train a tokenizer with a vocabulary of {} on {} sentences: {}. Choose another "
          "vocabulary size or give more text",
          options.vocabulary, sentences.size(), status.ToString());
  return {model.begin(), model.end()};
}

struct Tokenizer::State {
  sentencepiece::SentencePieceProcessor processor;
  std::string hash;
  std::array<std::int32_t, 256> byte_tokens{};
  std::vector<std::string> texts;  // of each token; empty for special ones
};

Tokenizer::Tokenizer(std::span<const std::uint8_t> model, std::string_view name)
    : state_(std::make_unique<State>()) {
  auto& processor = state_->processor;
  const auto status = processor.LoadFromSerializedProto(
      {reinterpret_cast<const char*>(model.data()), model.size()});
  require(status.ok(), "{} is not a SentencePiece model: {}", name, status.ToString());
  for (std::size_t i = 0; i < special_names.size(); ++i) {
    const auto id = static_cast<int>(i);
    require(id < processor.GetPieceSize() && processor.IdToPiece(id) == special_names[i],
            "{} has no token {} at id {}: use a tokenizer made by `orchard pack`", name,
            special_names[i], i);
  }
  state_->hash = hash_hex(model);
  int bytes = 0;
  for (int id = 0; id < processor.GetPieceSize(); ++id) {
    std::string text;
    if (processor.IsByte(id)) {
      const int value = std::stoi(processor.IdToPiece(id).substr(3, 2), nullptr, 16);
      state_->byte_tokens[static_cast<std::size_t>(value)] = id;
      text.assign(1, static_cast<char>(value));
      ++bytes;
    } else if (id > token_turn_end) {
      text = with_spaces(processor.IdToPiece(id));
    }
    state_->texts.push_back(std::move(text));
  }
  require(bytes == 256, "{} has no byte tokens: use a tokenizer made by `orchard pack`", name);
}

Tokenizer Tokenizer::open(const std::filesystem::path& path) {
  return {read_file(path), path.string()};
}

Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> tokens;
  const auto append_pieces = [&](std::string_view part) {
    if (part.empty()) return;
    std::vector<int> ids;
    const auto status = state_->processor.Encode({part.data(), part.size()}, &ids);
    require(status.ok(), "cannot tokenize a text of {} bytes: {}", part.size(), status.ToString());
    tokens.insert(tokens.end(), ids.begin(), ids.end());
  };
  std::size_t begin = 0;  // of the part not yet encoded
  for (std::size_t at = 0; at < text.size();) {
    const std::string_view rest = text.substr(at);
    const std::size_t length = character_length(rest);
    const bool is_mark = rest.starts_with(space_mark);
    if (length > 0 && !is_mark && rest[0] != '\0') {
      at += length;
      continue;
    }
    append_pieces(text.substr(begin, at - begin));
    const std::size_t count = is_mark ? space_mark.size() : 1;
    for (const char byte : rest.substr(0, count))
      tokens.push_back(state_->byte_tokens[static_cast<unsigned char>(byte)]);
    begin = at += count;
  }
  append_pieces(text.substr(begin));
  return tokens;
}

std::string Tokenizer::decode(std::span<const std::int32_t> tokens) const {
  std::string text;
  for (const std::int32_t token : tokens) {
    require(token >= 0 && token < vocabulary(), "token {} is not in a vocabulary of {}", token,
            vocabulary());
    text += state_->texts[static_cast<std::size_t>(token)];
  }
  return text;
}

std::string Tokenizer::text_of(std::int32_t token) const {
  if (token >= 0 && token <= token_turn_end)
    return std::string(special_names[static_cast<std::size_t>(token)]);
  return decode({&token, 1});
}

std::int32_t Tokenizer::vocabulary() const {
  return static_cast<std::int32_t>(state_->texts.size());
}

const std::string& Tokenizer::hash() const {
  return state_->hash;
}

}  // namespace orchard
