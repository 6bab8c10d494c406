// The tokenizer: every text comes back, special tokens sit at their ids and never come from text.
#include "data/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "data/atomic_file.h"
#include "tests/data/corpus.h"
#include "tests/data/scratch.h"

namespace orchard::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class TokenizerOf : public ::testing::TestWithParam<TokenizerKind> {
 protected:
  std::vector<std::uint8_t> model_ =
      train_tokenizer(some_sentences(400), {.kind = GetParam(), .vocabulary = 400});
  Tokenizer tokenizer_{model_, "test.model"};
};

TEST_P(TokenizerOf, EveryTextComesBack) {
  const std::string texts[] = {
      "",
      " ",
      "the tree",
      " the  tree ",
      "line one\nline two\n\n\tfour\r\n",
      "<12,345,678,1000>",
      "<image><|user|>\nhello<|end|><unk><0x41>",
      "Äpfel, ▁ 日本語 😀 \u2047 \u2585",
      std::string("zero\0byte", 9),
      "broken \xff\xc3( \xe6\x97",
      "\u00a0\u200b\u3000 odd spaces",
  };
  for (const std::string& text : texts) EXPECT_EQ(tokenizer_.decode(tokenizer_.encode(text)), text);
  std::mt19937 generator(5);
  for (int round = 0; round < 500; ++round) {
    std::string text(generator() % 20, ' ');
    for (char& c : text) c = static_cast<char>(generator());
    EXPECT_EQ(tokenizer_.decode(tokenizer_.encode(text)), text);
  }
}

TEST_P(TokenizerOf, SpecialTokensHaveTheirIdsAndNeverComeFromText) {
  const std::pair<SpecialToken, std::string> names[] = {{token_unknown, "<unk>"},
                                                        {token_begin, "<begin>"},
                                                        {token_end, "<end>"},
                                                        {token_pad, "<pad>"},
                                                        {token_image, "<image>"},
                                                        {token_user, "<|user|>"},
                                                        {token_assistant, "<|assistant|>"},
                                                        {token_turn_end, "<|end|>"}};
  for (const auto& [token, name] : names) {
    EXPECT_EQ(tokenizer_.text_of(token), name);
    for (const std::int32_t id : tokenizer_.encode(fmt::format("a{}b", name)))
      EXPECT_GT(id, token_turn_end) << name;
    const std::int32_t id = token;
    EXPECT_EQ(tokenizer_.decode({&id, 1}), "");
  }
}

TEST_P(TokenizerOf, DigitsAndNewlinesArePiecesOfTheirOwn) {
  const auto pieces = [&](const std::string& text) {
    std::vector<std::string> result;
    for (const auto id : tokenizer_.encode(text)) result.push_back(tokenizer_.text_of(id));
    return result;
  };
  EXPECT_THAT(pieces("10\n007"), ::testing::ElementsAre("1", "0", "\n", "0", "0", "7"));
  // Any box of four three-digit numbers costs the same.
  const auto length = tokenizer_.encode("<111,222,333,444>").size();
  EXPECT_EQ(tokenizer_.encode("<907,815,126,340>").size(), length);
}

TEST_P(TokenizerOf, TrainingIsRepeatable) {
  EXPECT_EQ(train_tokenizer(some_sentences(400), {.kind = GetParam(), .vocabulary = 400}), model_);
  EXPECT_EQ(tokenizer_.vocabulary(), 400);
  EXPECT_EQ(tokenizer_.hash().size(), 32u);
}

INSTANTIATE_TEST_SUITE_P(Kinds, TokenizerOf,
                         ::testing::Values(TokenizerKind::unigram, TokenizerKind::bpe),
                         [](const auto& test) {
                           return test.param == TokenizerKind::bpe ? "bpe" : "unigram";
                         });

TEST(Tokenizer, TooLittleTextAndWrongFilesAreNamed) {
  EXPECT_THAT(message_of([] { train_tokenizer(some_sentences(20), {.vocabulary = 30'000}); }),
              AllOf(HasSubstr("30000"), HasSubstr("20 sentences")));
  EXPECT_THAT(message_of([] { train_tokenizer({}, {.vocabulary = 400}); }),
              HasSubstr("0 sentences"));
  const Scratch scratch;
  write_file(scratch / "wrong.model", "no model");
  EXPECT_THAT(message_of([&] { Tokenizer::open(scratch / "wrong.model"); }),
              HasSubstr("wrong.model is not a SentencePiece model"));
}

}  // namespace
}  // namespace orchard::testing
