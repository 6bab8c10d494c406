// Packing: repeatable, nothing held out is trained on, answers agree with the pixels, bad input has
// a name.
#include "data/pack.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "data/atomic_file.h"
#include "data/sources.h"
#include "data/training_set.h"
#include "tests/data/corpus.h"
#include "tests/data/scratch.h"

namespace orchard::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

PackOptions options_for(const std::filesystem::path& corpus, const std::filesystem::path& folder) {
  PackOptions options;
  options.corpora = {corpus};
  options.folder = folder;
  options.tokenizer.vocabulary = 400;
  options.held_out_permille = 300;  // so that a small corpus has many of both
  return options;
}

struct Read {
  Sample sample;
  Split split;
  std::string text;    // without special tokens
  std::string answer;  // of the assistant
};

std::vector<Read> read_all(const std::filesystem::path& folder) {
  const auto set = TrainingSet::open(folder);
  std::vector<Read> all;
  for (std::size_t i = 0; i < set.index().samples.size(); ++i) {
    Read read{set.load(static_cast<std::int64_t>(i)), set.index().samples[i].split, {}, {}};
    read.text = set.tokenizer().decode(read.sample.tokens);
    for (std::size_t t = 0; t < read.sample.tokens.size(); ++t) {
      if (read.sample.roles[t] == Role::assistant)
        read.answer += set.tokenizer().decode({&read.sample.tokens[t], 1});
    }
    all.push_back(std::move(read));
  }
  return all;
}

// "corpus/pages.jsonl:12" of a sample's id.
std::string record_of(const Sample& sample) {
  return sample.id.substr(0, sample.id.find(' '));
}

std::vector<std::string> split_at(const std::string& text, char separator) {
  std::vector<std::string> parts{""};
  for (const char c : text) {
    if (c == separator)
      parts.emplace_back();
    else
      parts.back().push_back(c);
  }
  return parts;
}

// One pack of everything, shared by the tests that only look at it.
class Pack : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::filesystem::temp_directory_path() / fmt::format("orchard-{}-pack", ::getpid());
    write_corpus(folder_ / "corpus");
    report_ = pack(options_for(folder_ / "corpus", folder_ / "set"));
    samples_ = read_all(folder_ / "set");
  }
  static void TearDownTestSuite() { std::filesystem::remove_all(folder_); }

  static std::vector<const Read*> of(const std::set<std::string>& categories) {
    std::vector<const Read*> found;
    for (const Read& read : samples_)
      if (categories.count(read.sample.category)) found.push_back(&read);
    EXPECT_FALSE(found.empty()) << "there is nothing to look at";
    return found;
  }

  // Fails if a key of a held-out sample is a key of a train sample, or if a split has none.
  template <class Keys>
  static void expect_disjoint(const std::set<std::string>& categories, Keys keys_of) {
    std::set<std::string> train, held_out;
    for (const Read* read : of(categories)) {
      for (const std::string& key : keys_of(*read))
        (read->split == Split::train ? train : held_out).insert(key);
    }
    EXPECT_FALSE(train.empty());
    EXPECT_FALSE(held_out.empty());
    for (const std::string& key : held_out) EXPECT_EQ(train.count(key), 0u) << key;
  }

  static inline std::filesystem::path folder_;
  static inline PackReport report_;
  static inline std::vector<Read> samples_;
};

TEST_F(Pack, EveryCategoryIsMadeAndCounted) {
  std::vector<std::string> names;
  std::int64_t samples = 0;
  for (const auto& category : report_.categories) {
    names.push_back(category.name);
    EXPECT_GT(category.train, 0) << category.name;
    EXPECT_GT(category.held_out, 0) << category.name;
    EXPECT_EQ(category.train + category.held_out,
              static_cast<std::int64_t>(of({category.name}).size()));
    samples += category.train + category.held_out;
  }
  EXPECT_THAT(
      names, ::testing::ElementsAre("caption_words", "caption_clipart", "interleaved", "text",
                                    "ocr_words", "ocr_lines", "ocr_regions", "general", "text_rich",
                                    "refer_ground", "math", "multi_image", "text_only"));
  EXPECT_EQ(report_.samples, samples);
  EXPECT_EQ(report_.vocabulary, 400);
  EXPECT_EQ(report_.bad, 0);
}

TEST_F(Pack, HeldOutWordsAreNeverShownAloneInTraining) {
  expect_disjoint({"caption_words", "ocr_words", "text_rich", "multi_image"}, [](const Read& read) {
    std::vector<std::string> keys;
    const std::string& id = read.sample.id;
    if (id.find(" word ") == id.npos) return keys;  // a line
    if (read.sample.category == "multi_image" && read.answer.find('\n') == read.answer.npos) {
      const auto parts = split_at(read.text, '"');  // Which picture says "X"
      return std::vector<std::string>{word_key(parts.at(1))};
    }
    for (const auto& word : split_at(read.answer.empty() ? read.text : read.answer, '\n'))
      keys.push_back(word_key(word));
    return keys;
  });
}

TEST_F(Pack, HeldOutWordsAreNeverAskedForInTraining) {
  std::set<std::string> held_out;
  for (const Read* read : of({"caption_words"}))
    if (read->split == Split::held_out) held_out.insert(word_key(read->text));
  EXPECT_FALSE(held_out.empty());
  for (const Read* read : of({"refer_ground"})) {
    if (read->split == Split::held_out) continue;
    const bool where = read->answer.find('<') != std::string::npos;
    const std::string word = where ? split_at(read->text, '"').at(1) : read->answer;
    EXPECT_EQ(held_out.count(word_key(word)), 0u) << read->sample.id;
  }
}

TEST_F(Pack, NothingOfAHeldOutPageIsInTraining) {
  const std::set<std::string> of_pages{"ocr_lines", "ocr_regions", "interleaved", "refer_ground",
                                       "math"};
  expect_disjoint(
      of_pages, [](const Read& read) { return std::vector<std::string>{record_of(read.sample)}; });
  std::set<std::string> held_out_pages;
  for (const Read* read : of(of_pages))
    if (read->split == Split::held_out) held_out_pages.insert(record_of(read->sample));
  for (const Read& read : samples_) {
    if (read.split == Split::train) {
      EXPECT_EQ(held_out_pages.count(record_of(read.sample)), 0u) << read.sample.id;
    }
  }
}

TEST_F(Pack, HeldOutLinesPicturesAndParagraphsAreNotInTraining) {
  expect_disjoint({"ocr_lines"}, [](const Read& read) { return std::vector{read.text}; });
  expect_disjoint({"caption_clipart", "general"}, [](const Read& read) {
    const auto& bytes = read.sample.pictures.at(0).bytes;
    return std::vector{std::string(bytes.begin(), bytes.end())};
  });
  expect_disjoint({"text"}, [](const Read& read) { return split_at(read.text, '\n'); });
  // A sentence and its number come from one paragraph.
  expect_disjoint({"text_only", "text"}, [](const Read& read) {
    const std::size_t at = read.text.find("Number ");
    return std::vector{read.text.substr(at, read.text.find(':', at) - at)};
  });
}

TEST_F(Pack, NoTwoSamplesOfACategoryAreEqual) {
  std::set<std::tuple<std::string, std::string, std::vector<std::vector<std::uint8_t>>>> seen;
  for (const Read& read : samples_) {
    std::vector<std::vector<std::uint8_t>> pictures;
    for (const auto& picture : read.sample.pictures) pictures.push_back(picture.bytes);
    EXPECT_TRUE(seen.emplace(read.sample.category, read.text, pictures).second) << read.sample.id;
  }
}

TEST_F(Pack, CropsShowTheWordsTheySay) {
  for (const Read* read : of({"caption_words", "ocr_words"})) {
    const Picture picture = decode_picture(read->sample.pictures.at(0).bytes);
    ASSERT_EQ(picture.width, 46);  // 40 and the margin
    ASSERT_EQ(picture.height, 20);
    EXPECT_EQ(pixel(picture, 23, 10), color_of(read->text)) << read->sample.id;
  }
  for (const Read* read : of({"multi_image"})) {
    const auto shown = [&](std::size_t p) {
      return pixel(decode_picture(read->sample.pictures.at(p).bytes), 23, 10);
    };
    if (read->sample.pictures.size() == 3) {
      const auto words = split_at(read->answer, '\n');
      for (std::size_t p = 0; p < 3; ++p) EXPECT_EQ(shown(p), color_of(words.at(p)));
    } else {
      const Rgb wanted = color_of(split_at(read->text, '"').at(1));
      EXPECT_EQ(read->answer == "first", shown(0) == wanted);
      EXPECT_EQ(read->answer == "second", shown(1) == wanted);
    }
  }
  for (const Read* read : of({"ocr_regions"})) {
    const Picture picture = decode_picture(read->sample.pictures.at(0).bytes);
    const auto lines = split_at(read->text, '\n');
    ASSERT_GE(lines.size(), 2u);
    for (std::size_t l = 0; l < lines.size(); ++l)
      EXPECT_EQ(pixel(picture, 23, 10 + 22 * static_cast<int>(l)),
                color_of(split_at(lines[l], ' ').at(0)));
  }
}

TEST_F(Pack, BoxesPointAtTheirWords) {
  int asked_where = 0, asked_what = 0;
  for (const Read* read : of({"refer_ground"})) {
    const bool where = read->answer.find('<') != std::string::npos;
    ++(where ? asked_where : asked_what);
    const std::string word = where ? split_at(read->text, '"').at(1) : read->answer;
    const std::string box = read->text.substr(read->text.find('<'));
    int left = 0, top = 0, right = 0, bottom = 0;
    ASSERT_EQ(std::sscanf(box.c_str(), "<%d,%d,%d,%d>", &left, &top, &right, &bottom), 4) << box;
    EXPECT_LE(std::max(right, bottom), 1000);
    const Picture picture = decode_picture(read->sample.pictures.at(0).bytes);
    const auto at = [&](int x, int y) {
      return pixel(picture, x * picture.width / 1000, y * picture.height / 1000);
    };
    EXPECT_EQ(at((left + right) / 2, (top + bottom) / 2), color_of(word)) << read->sample.id;
    // A little inside the corners still the word, a little outside white: 2 of 46 pixels and more.
    EXPECT_EQ(at(left + 20, top + 60), color_of(word)) << read->sample.id;
    EXPECT_EQ(at(right - 20, bottom - 60), color_of(word)) << read->sample.id;
    EXPECT_EQ(at(right + 8, bottom - 60), (Rgb{255, 255, 255})) << read->sample.id;
  }
  EXPECT_GT(asked_where, 0);
  EXPECT_GT(asked_what, 0);
}

TEST_F(Pack, CountsAreRight) {
  for (const Read* read : of({"math"})) {
    const Picture picture = decode_picture(read->sample.pictures.at(0).bytes);
    const int lines = (picture.height - 6 + 8) / 22;
    const bool words = read->text.find("words") != std::string::npos;
    EXPECT_EQ(read->answer, std::to_string(words ? 5 * lines : lines));
  }
}

TEST_F(Pack, ChatHasTheFormAndTheRolesOfTheRecipe) {
  const auto set = TrainingSet::open(folder_ / "set");
  const auto shown = [&](const Sample& sample) {
    std::string text;
    for (const auto token : sample.tokens) text += set.tokenizer().text_of(token);
    return text;
  };
  const Read& read = *of({"general"}).at(0);
  EXPECT_EQ(shown(read.sample),
            fmt::format("<begin><|user|>What does the picture show? <image><|end|>"
                        "<|assistant|>{}<|end|>\n<end>",
                        read.answer));
  EXPECT_TRUE(read.answer == "plants" || read.answer == "tools");
  std::string targets;
  for (std::size_t t = 0; t < read.sample.tokens.size(); ++t) {
    EXPECT_NE(read.sample.roles[t], Role::document);
    if (read.sample.roles[t] == Role::assistant)
      targets += set.tokenizer().text_of(read.sample.tokens[t]);
  }
  EXPECT_EQ(targets, fmt::format("{}<|end|>", read.answer));
  const Read& document = *of({"ocr_lines"}).at(0);
  EXPECT_EQ(shown(document.sample), fmt::format("<begin><image>{}<end>", document.text));
  EXPECT_THAT(document.sample.roles, ::testing::Each(Role::document));
  const Read& several = *of({"interleaved"}).at(0);
  EXPECT_EQ(several.sample.pictures.size(), 3u);
  EXPECT_EQ(split_at(several.text, '\n').size(), 4u);  // each line ends with a newline
}

TEST_F(Pack, TwoPacksGiveTheSameBytes) {
  auto options = options_for(folder_ / "corpus", folder_ / "again");
  pack(options);
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder_ / "set")) {
    EXPECT_EQ(read_file(entry.path()), read_file(folder_ / "again" / entry.path().filename()))
        << entry.path();
    ++files;
  }
  EXPECT_GE(files, 4);
}

TEST_F(Pack, LimitsHoldAndChooseAmongTheSame) {
  auto options = options_for(folder_ / "corpus", folder_ / "limited");
  options.limits = {{"ocr_words", 50}, {"text", 0}};
  pack(options);
  // By content: of equal crops the first in the corpus is kept, and that may be another one.
  std::set<std::string> all, few;
  const auto shown = [](const Sample& sample) { return hash_hex(sample.pictures.at(0).bytes); };
  for (const Read* read : of({"ocr_words"})) all.insert(shown(read->sample));
  for (const Read& read : read_all(folder_ / "limited")) {
    EXPECT_NE(read.sample.category, "text");
    if (read.sample.category == "ocr_words") few.insert(shown(read.sample));
  }
  EXPECT_LE(few.size(), 50u);
  EXPECT_GE(few.size(), 40u);
  EXPECT_TRUE(std::includes(all.begin(), all.end(), few.begin(), few.end()));
  options.folder = folder_ / "none";
  options.limits = {{"ocr_wrds", 50}};
  EXPECT_THAT(message_of([&] { pack(options); }),
              AllOf(HasSubstr("ocr_wrds"), HasSubstr("ocr_words")));
}

TEST_F(Pack, ATrainingSetIsKeptOrReplacedWhole) {
  auto options = options_for(folder_ / "corpus", folder_ / "kept");
  options.limits = {{"text", 20}};
  pack(options);
  const std::string before = TrainingSet::open(folder_ / "kept").hash();
  EXPECT_THAT(message_of([&] { pack(options); }), HasSubstr("exists already"));
  options.existing = Existing::replace;
  EXPECT_THAT(message_on_full_disk(100'000, [&] { pack(options); }), HasSubstr("free some space"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "kept.partial"));
  EXPECT_EQ(TrainingSet::open(folder_ / "kept").hash(), before);
  options.limits = {{"text", 10}};
  pack(options);
  EXPECT_NE(TrainingSet::open(folder_ / "kept").hash(), before);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "kept.partial"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "kept.old"));
}

TEST_F(Pack, AFolderThatIsNoTrainingSetIsNeverReplaced) {
  std::filesystem::create_directories(folder_ / "photographs");
  write_file(folder_ / "photographs/first.png", std::string_view("precious"));
  auto options = options_for(folder_ / "corpus", folder_ / "photographs");
  options.existing = Existing::replace;
  EXPECT_THAT(message_of([&] { pack(options); }), HasSubstr("photographs is no training set"));
  EXPECT_EQ(read_text(folder_ / "photographs/first.png"), "precious");
}

class BadCorpus : public ::testing::Test {
 protected:
  BadCorpus() { write_corpus(corpus_); }

  PackReport pack_it() {
    auto options = options_for(corpus_, scratch_ / "set");
    options.log = [this](const std::string& line) { log_.push_back(line); };
    return pack(options);
  }

  Scratch scratch_;
  std::filesystem::path corpus_ = scratch_ / "corpus";
  std::vector<std::string> log_;
};

TEST_F(BadCorpus, ADamagedPictureIsLoggedCountedAndLeftOut) {
  const auto page = read_file(corpus_ / "pages/3.png");
  write_file(corpus_ / "pages/3.png", std::span(page).first(page.size() / 2));
  write_file(corpus_ / "clipart/5.png", "no picture");
  write_file(corpus_ / "pages/8.png", encode_png(white(10, 10)));
  const PackReport report = pack_it();
  EXPECT_EQ(report.bad, 3);
  ASSERT_EQ(log_.size(), 3u);
  EXPECT_THAT(log_[0],
              AllOf(HasSubstr("clipart.jsonl:6"), HasSubstr("5.png"), HasSubstr("neither")));
  EXPECT_THAT(log_[1],
              AllOf(HasSubstr("pages.jsonl:4"), HasSubstr("3.png"), HasSubstr("truncated")));
  EXPECT_THAT(log_[2], AllOf(HasSubstr("pages.jsonl:9"), HasSubstr("10x10"), HasSubstr("320x150")));
  for (const Read& read : read_all(scratch_ / "set"))
    EXPECT_NE(record_of(read.sample), "corpus/pages.jsonl:4");
}

TEST_F(BadCorpus, AMissingPictureIsAnErrorWithItsLine) {
  std::filesystem::remove(corpus_ / "pages/3.png");
  EXPECT_THAT(message_of([&] { pack_it(); }),
              AllOf(HasSubstr("pages.jsonl:4"), HasSubstr("pages/3.png"), HasSubstr("not exist")));
  EXPECT_THAT(scratch_.names(), ::testing::ElementsAre("corpus"));
}

TEST_F(BadCorpus, BrokenRecordsAreErrorsWithTheirLine) {
  const std::string good = R"({"image":"clipart/1.png","category":"a","title":"b"})";
  write_file(corpus_ / "clipart.jsonl", fmt::format("{}\n\n{{\"image\": nope}}\n", good));
  EXPECT_THAT(message_of([&] { pack_it(); }),
              AllOf(HasSubstr("clipart.jsonl:3"), HasSubstr("JSON")));
  write_file(corpus_ / "clipart.jsonl", fmt::format("{}\n{{\"image\":\"clipart/1.png\"}}\n", good));
  EXPECT_THAT(message_of([&] { pack_it(); }),
              AllOf(HasSubstr("clipart.jsonl:2"), HasSubstr("\"category\" is missing")));
  write_file(corpus_ / "clipart.jsonl", R"({"image":"clipart/1.png","category":7,"title":"b"})");
  EXPECT_THAT(message_of([&] { pack_it(); }),
              AllOf(HasSubstr("clipart.jsonl:1"), HasSubstr("wrong type")));
  std::filesystem::remove(corpus_ / "clipart.jsonl");
  write_file(
      corpus_ / "pages.jsonl",
      R"({"image":"pages/1.png","width":320,"height":150,"lines":[{"text":"a","box":[5,5,5,9],"words":[]}]})");
  EXPECT_THAT(message_of([&] { pack_it(); }), AllOf(HasSubstr("pages.jsonl:1"), HasSubstr("area")));
}

TEST_F(BadCorpus, AnEmptyOrMissingCorpusIsNamed) {
  std::filesystem::create_directories(scratch_ / "empty");
  corpus_ = scratch_ / "empty";
  EXPECT_THAT(message_of([&] { pack_it(); }), AllOf(HasSubstr("empty"), HasSubstr("pages.jsonl")));
  corpus_ = scratch_ / "nowhere";
  EXPECT_THAT(message_of([&] { pack_it(); }), HasSubstr("nowhere does not exist"));
}

TEST_F(BadCorpus, ConversationsKeepTurnsAndPicturesInOrder) {
  write_file(corpus_ / "conversations.json", R"([
  {"id": 1, "image": "clipart/1.png", "conversations": [
    {"from": "human", "value": "<image>\nWhat is <|end|> it?"}, {"from": "gpt", "value": "A, [b] {c}"},
    {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes \"sure\"."}]},
  {"id": "two", "images": ["clipart/2.png", "clipart/3.png"], "category": "science",
   "conversations": [{"from": "human", "value": "Compare <image> and <image>"}, {"from": "gpt", "value": "No."}]},
  {"id": "three", "image": "clipart/4.png", "conversations": [
    {"from": "human", "value": "No mark"}, {"from": "gpt", "value": "In front."}]},
  {"id": "four", "image": "clipart/5.png", "conversations": [
    {"from": "human", "value": "<image> <image>"}, {"from": "gpt", "value": "Two marks."}]},
  {"id": "five", "conversations": [{"from": "gpt", "value": "I begin."}]},
  {"id": "six", "conversations": [
    {"from": "human", "value": "Text only?"}, {"from": "gpt", "value": "Yes."}]}
])");
  std::filesystem::remove(corpus_ / "clipart.jsonl");
  const PackReport report = pack_it();
  EXPECT_EQ(report.bad, 2);
  ASSERT_EQ(log_.size(), 2u);
  EXPECT_THAT(log_[0], AllOf(HasSubstr("conversations.json:9"), HasSubstr("1 pictures but 2")));
  EXPECT_THAT(log_[1], AllOf(HasSubstr("conversations.json:11"), HasSubstr("alternate")));
  const auto set = TrainingSet::open(scratch_ / "set");
  std::map<std::string, std::string> texts;
  for (std::size_t i = 0; i < set.index().samples.size(); ++i) {
    const Sample sample = set.load(static_cast<std::int64_t>(i));
    if (sample.category != "general" && sample.category != "science") continue;
    std::string text;
    for (const auto token : sample.tokens) text += set.tokenizer().text_of(token);
    texts[sample.id] = text;
    if (sample.category == "science") {
      EXPECT_EQ(sample.pictures.at(0).bytes, read_file(corpus_ / "clipart/2.png"));
      EXPECT_EQ(sample.pictures.at(1).bytes, read_file(corpus_ / "clipart/3.png"));
    }
    // A mark that somebody typed is text.
    if (sample.id == "corpus/conversations.json:2") {
      EXPECT_EQ(std::count(sample.tokens.begin(), sample.tokens.end(), token_turn_end), 4);
    }
  }
  EXPECT_EQ(texts.size(), 4u);
  EXPECT_EQ(texts["corpus/conversations.json:2"],
            "<begin><|user|><image>\nWhat is <|end|> it?<|end|><|assistant|>A, [b] {c}<|end|>\n"
            "<|user|>Sure?<|end|><|assistant|>Yes \"sure\".<|end|>\n<end>");
  EXPECT_EQ(texts["corpus/conversations.json:5"],
            "<begin><|user|>Compare <image> and <image><|end|><|assistant|>No.<|end|>\n<end>");
  EXPECT_EQ(texts["corpus/conversations.json:7"],
            "<begin><|user|><image>\nNo mark<|end|><|assistant|>In front.<|end|>\n<end>");
}

TEST_F(BadCorpus, ConversationFilesThatAreCutAreErrorsWithALine) {
  const std::string record =
      R"({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]})";
  const std::pair<std::string, const char*> files[] = {
      {fmt::format("[\n{},\n{}", record, record), "conversations.json:3"},
      {fmt::format("[\n{},\n{{\"conversations\": [", record), "conversations.json:3"},
      {fmt::format("[\n{},\n{{\"conversations\": nope}}]", record), "conversations.json:3"},
      {fmt::format("[\n{},\n", record), "conversations.json:3"},
      {"{}", "conversations.json:1"},
      {"", "conversations.json:1"}};
  for (const auto& [text, place] : files) {
    write_file(corpus_ / "conversations.json", text);
    EXPECT_THAT(message_of([&] { pack_it(); }), HasSubstr(place)) << text;
  }
}

TEST_F(BadCorpus, TemplatesAreReplacedByName) {
  std::filesystem::create_directories(scratch_ / "templates");
  const auto general = scratch_ / "templates" / "general.txt";
  auto options = options_for(corpus_, scratch_ / "set");
  options.templates = scratch_ / "templates";
  options.existing = Existing::replace;
  write_file(
      general,
      "# two ways\nuser: <image>Name it.\nuser: What is this? <image>\nassistant: a {title}\n");
  pack(options);
  std::map<std::string, int> asked;
  for (const Read& read : read_all(scratch_ / "set")) {
    if (read.sample.category != "general") continue;
    for (const char* question : {"Name it.", "What is this? "})
      asked[question] += read.text.find(question) != read.text.npos;
    EXPECT_EQ(read.answer.substr(0, 2), "a ");
  }
  EXPECT_GT(asked["Name it."], 10);
  EXPECT_GT(asked["What is this? "], 10);
  write_file(general, "user: <image>{colour}?\nassistant: {title}\n");
  EXPECT_THAT(
      message_of([&] { pack(options); }),
      AllOf(HasSubstr("general.txt:1"), HasSubstr("{colour}"), HasSubstr("category, title")));
  write_file(general, "user: <image>\n");
  EXPECT_THAT(message_of([&] { pack(options); }), HasSubstr("general.txt"));
  write_file(scratch_ / "templates" / "genral.txt", "user: a\nassistant: b\n");
  EXPECT_THAT(message_of([&] { pack(options); }), HasSubstr("genral.txt replaces no template"));
}

TEST(Split, WordsWithAndWithoutPunctuationAreOneKey) {
  EXPECT_EQ(word_key("“The"), "the");
  EXPECT_EQ(word_key("the,"), "the");
  EXPECT_EQ(word_key("(don't)…"), "don't");
  EXPECT_EQ(word_key("—"), "");
  EXPECT_EQ(word_key(""), "");
  EXPECT_EQ(word_key("Ä."), "Ä");
}

// A new rule would move samples between the splits of sets that were packed before.
TEST(Split, TheRuleIsFixed) {
  const Splitter splitter(100);
  int held_out = 0;
  std::string first;
  for (int i = 0; i < 10'000; ++i) {
    const std::string word = fmt::format("word{}", i);
    if (splitter.word(word) == Split::train) continue;
    ++held_out;
    if (held_out <= 4) first += word + " ";
  }
  EXPECT_NEAR(held_out, 1000, 100);  // three standard deviations of a binomial are 90
  EXPECT_EQ(first, "word7 word11 word35 word39 ");
  EXPECT_NE(message_of([] { Splitter(1000); }), "");
}

}  // namespace
}  // namespace orchard::testing
