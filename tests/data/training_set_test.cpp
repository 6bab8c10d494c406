// Training sets: what goes in comes out, damage is found and named.
#include "data/training_set.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <thread>

#include "data/atomic_file.h"
#include "data/picture.h"
#include "tests/data/corpus.h"
#include "tests/data/scratch.h"

namespace orchard::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::vector<Sample> some_samples(const Tokenizer& tokenizer, int count) {
  std::vector<Sample> samples;
  for (int i = 0; i < count; ++i) {
    Sample sample;
    sample.id = fmt::format("test:{}", i);
    sample.category = i % 3 ? "text" : "general";
    sample.tokens = {token_begin};
    for (int p = 0; p < i % 4; ++p) {
      Picture picture{i + 1, p + 1, {}};
      picture.rgb.assign(static_cast<std::size_t>(3 * (i + 1) * (p + 1)),
                         static_cast<std::uint8_t>(i));
      sample.tokens.push_back(token_image);
      sample.pictures.push_back({encode_png(picture), picture.width, picture.height});
    }
    const auto text = tokenizer.encode(i == 5 ? "" : fmt::format("sample number {}", i));
    sample.roles.assign(sample.tokens.size(), Role::user);
    sample.tokens.insert(sample.tokens.end(), text.begin(), text.end());
    sample.roles.resize(sample.tokens.size(), Role::assistant);
    samples.push_back(std::move(sample));
  }
  return samples;
}

void expect_equal(const Sample& found, const Sample& expected) {
  EXPECT_EQ(found.id, expected.id);
  EXPECT_EQ(found.category, expected.category);
  EXPECT_EQ(found.tokens, expected.tokens);
  EXPECT_EQ(found.roles, expected.roles);
  ASSERT_EQ(found.pictures.size(), expected.pictures.size());
  for (std::size_t p = 0; p < found.pictures.size(); ++p) {
    EXPECT_EQ(found.pictures[p].bytes, expected.pictures[p].bytes);
    EXPECT_EQ(found.pictures[p].width, expected.pictures[p].width);
    EXPECT_EQ(found.pictures[p].height, expected.pictures[p].height);
  }
}

class TrainingSetTest : public ::testing::Test {
 protected:
  TrainingSetTest() {
    const Tokenizer tokenizer(model_, "test");
    samples_ = some_samples(tokenizer, 40);
    TrainingSetWriter writer(scratch_ / "", {"text", "general"}, model_, {.shard_bytes = 2000});
    for (std::size_t i = 0; i < samples_.size(); ++i)
      writer.add(samples_[i], i % 10 ? Split::train : Split::held_out);
    writer.finish();
    shards_ = writer.shards();
  }

  std::string open_message() const {
    return message_of([&] { TrainingSet::open(scratch_ / ""); });
  }

  // Changes one byte in the middle.
  void damage(const char* name) const {
    auto bytes = read_file(scratch_ / name);
    bytes[bytes.size() / 2] ^= 1;
    write_file(scratch_ / name, bytes);
  }

  void replace_in_description(const std::string& from, const std::string& to) const {
    std::string text = read_text(scratch_ / "dataset.json");
    const auto at = text.find(from);
    ASSERT_NE(at, text.npos);
    text = text.substr(0, at).append(to).append(text.substr(at + from.size()));
    write_file(scratch_ / "dataset.json", text);
  }

  Scratch scratch_;
  std::vector<std::uint8_t> model_ = train_tokenizer(some_sentences(200), {.vocabulary = 350});
  std::vector<Sample> samples_;
  std::int64_t shards_ = 0;
};

TEST_F(TrainingSetTest, EverySampleComesBackInAnyOrder) {
  EXPECT_GT(shards_, 3);
  const auto set = TrainingSet::open(scratch_ / "");
  for (std::int64_t i = 39; i >= 0; --i) {
    Sample sample = samples_[static_cast<std::size_t>(i)];
    expect_equal(set.load(i), sample);
    for (EncodedPicture& picture : sample.pictures) picture.bytes.clear();
    expect_equal(set.load(i, PictureContent::absent), sample);
  }
  EXPECT_EQ(set.tokenizer().decode(set.load(7).tokens), "sample number 7");
  EXPECT_NE(message_of([&] { set.load(40); }), "");
  EXPECT_NE(message_of([&] { set.load(-1); }), "");
}

TEST_F(TrainingSetTest, TheIndexAgreesWithTheSamples) {
  const auto set = TrainingSet::open(scratch_ / "");
  const TrainingSetIndex& index = set.index();
  EXPECT_EQ(index.vocabulary, 350);
  ASSERT_EQ(index.samples.size(), samples_.size());
  for (std::size_t i = 0; i < samples_.size(); ++i) {
    const SampleRecord& record = index.samples[i];
    const Sample& sample = samples_[i];
    EXPECT_EQ(index.categories[static_cast<std::size_t>(record.category)], sample.category);
    EXPECT_EQ(record.split, i % 10 ? Split::train : Split::held_out);
    EXPECT_EQ(record.token_count, static_cast<std::int32_t>(sample.tokens.size()));
    EXPECT_EQ(record.assistant_tokens,
              std::count(sample.roles.begin(), sample.roles.end(), Role::assistant));
    ASSERT_EQ(record.picture_count, static_cast<std::int32_t>(sample.pictures.size()));
    for (std::int64_t p = 0; p < record.picture_count; ++p) {
      const auto& size = index.pictures[static_cast<std::size_t>(record.first_picture + p)];
      EXPECT_EQ(size.width, sample.pictures[static_cast<std::size_t>(p)].width);
      EXPECT_EQ(size.height, sample.pictures[static_cast<std::size_t>(p)].height);
    }
  }
}

TEST_F(TrainingSetTest, SeveralThreadsMayLoad) {
  const auto set = TrainingSet::open(scratch_ / "");
  const auto load_all = [&](std::size_t start) {
    for (std::size_t i = 0; i < samples_.size(); ++i) {
      const std::size_t at = (i + start) % samples_.size();
      expect_equal(set.load(static_cast<std::int64_t>(at)), samples_[at]);
    }
  };
  std::thread other(load_all, 13);
  load_all(0);
  other.join();
}

TEST_F(TrainingSetTest, ADamagedShardIsFoundWhenItIsFirstUsed) {
  damage("shard-00001.h5");
  const auto set = TrainingSet::open(scratch_ / "");
  set.load(0);
  const std::string message = message_of([&] {
    for (std::int64_t i = 0; i < 40; ++i) set.load(i);
  });
  EXPECT_THAT(message, AllOf(HasSubstr("shard-00001.h5"), HasSubstr("expects the XXH3-128"),
                             HasSubstr("the file has"), HasSubstr("orchard pack")));
  EXPECT_EQ(message_of([&] { set.verify(); }), message);
}

TEST_F(TrainingSetTest, DamageElsewhereIsFoundOnOpening) {
  for (const char* name : {"index.h5", "tokenizer.model"}) {
    damage(name);
    EXPECT_THAT(open_message(), AllOf(HasSubstr(name), HasSubstr("orchard pack")));
    damage(name);
    EXPECT_EQ(open_message(), "");
  }
}

TEST_F(TrainingSetTest, AShardThatIsCutOrMissingIsFoundOnOpening) {
  const auto shard = scratch_ / "shard-00002.h5";
  std::filesystem::resize_file(shard, std::filesystem::file_size(shard) - 1);
  EXPECT_THAT(open_message(),
              AllOf(HasSubstr("shard-00002.h5"), HasSubstr("bytes"), HasSubstr("orchard pack")));
  std::filesystem::remove(shard);
  EXPECT_THAT(open_message(),
              AllOf(HasSubstr("shard-00002.h5"), HasSubstr("missing"), HasSubstr("orchard pack")));
}

TEST_F(TrainingSetTest, ADescriptionThatDoesNotFitIsRefused) {
  EXPECT_THAT(message_of([&] { TrainingSet::open(scratch_ / "nowhere"); }),
              AllOf(HasSubstr("nowhere is not a training set"), HasSubstr("orchard pack")));
  replace_in_description("\"vocabulary\": 350", "\"vocabulary\": 351");
  EXPECT_THAT(open_message(), HasSubstr("351"));
  replace_in_description("\"version\": 1", "\"version\": 2");
  EXPECT_THAT(open_message(), HasSubstr("format version 2"));
  write_file(scratch_ / "dataset.json", "{\n\"a\": }");
  EXPECT_THAT(open_message(), AllOf(HasSubstr("dataset.json:2"), HasSubstr("JSON")));
}

TEST_F(TrainingSetTest, AFullDiskLeavesNoTrainingSet) {
  const Scratch other;
  std::filesystem::create_directories(other / "set");
  TrainingSetWriter writer(other / "set", {"text", "general"}, model_, {.shard_bytes = 1 << 20});
  for (const Sample& sample : samples_) writer.add(sample, Split::train);
  EXPECT_THAT(message_on_full_disk(3000, [&] { writer.finish(); }),
              AllOf(HasSubstr("shard-00000.h5"), HasSubstr("free some space")));
  EXPECT_FALSE(std::filesystem::exists(other / "set" / "shard-00000.h5"));
  EXPECT_FALSE(std::filesystem::exists(other / "set" / "dataset.json"));
}

TEST_F(TrainingSetTest, WrongSamplesAreRefused) {
  const Scratch other;
  TrainingSetWriter writer(other / "", {"text"}, model_, {});
  Sample sample{
      .id = "wrong", .category = "text", .tokens = {1, token_image}, .roles = {}, .pictures = {}};
  EXPECT_THAT(message_of([&] { writer.add(sample, Split::train); }), HasSubstr("roles"));
  sample.roles.resize(2);
  EXPECT_THAT(message_of([&] { writer.add(sample, Split::train); }),
              HasSubstr("1 image tokens but 0 pictures"));
  sample.tokens[1] = 350;
  EXPECT_THAT(message_of([&] { writer.add(sample, Split::train); }), HasSubstr("vocabulary"));
  sample.category = "none";
  EXPECT_THAT(message_of([&] { writer.add(sample, Split::train); }), HasSubstr("\"none\""));
}

}  // namespace
}  // namespace orchard::testing
