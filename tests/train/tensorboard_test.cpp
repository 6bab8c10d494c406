#include "train/tensorboard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <ctime>
#include <map>

#include "data/atomic_file.h"
#include "tests/data/scratch.h"
#include "tests/train/events.h"

namespace orchard::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Reads protocol buffers by the wire format's own rules, knowing nothing of the writer.
struct Field {
  std::uint64_t number = 0, value = 0;  // value: of varint and fixed fields
  std::string bytes;                    // of length-delimited ones
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}
  bool at_end() const { return bytes_.empty(); }

  std::uint64_t fixed(std::size_t size) {
    std::uint64_t value = 0;
    const std::string_view part = take(size);
    for (std::size_t i = 0; i < part.size(); ++i)
      value |= std::uint64_t{static_cast<std::uint8_t>(part[i])} << (8 * i);
    return value;
  }
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const std::uint64_t byte = fixed(1);
      value |= (byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
  }
  std::string_view take(std::size_t size) {
    EXPECT_LE(size, bytes_.size());
    const std::string_view part = bytes_.substr(0, size);
    bytes_.remove_prefix(part.size());
    return part;
  }
  Field field() {
    const std::uint64_t key = varint();
    Field field{.number = key >> 3};
    switch (key & 7) {
      case 0:
        field.value = varint();
        break;
      case 1:
        field.value = fixed(8);
        break;
      case 2:
        field.bytes = take(varint());
        break;
      case 5:
        field.value = fixed(4);
        break;
      default:
        ADD_FAILURE() << "wire type " << (key & 7);
    }
    return field;
  }

 private:
  std::string_view bytes_;
};

struct DecodedEvent {
  double wall_time = 0;
  std::uint64_t step = 0;
  std::string file_version;
  std::map<std::string, float> scalars;
};

DecodedEvent decode(std::string_view payload) {
  DecodedEvent event;
  for (Reader reader(payload); !reader.at_end();) {
    const Field field = reader.field();
    if (field.number == 1) event.wall_time = std::bit_cast<double>(field.value);
    if (field.number == 2) event.step = field.value;
    if (field.number == 3) event.file_version = field.bytes;
    if (field.number != 5) continue;
    for (Reader summary(field.bytes); !summary.at_end();) {
      std::string tag;
      float value = 0;
      const Field entry_field = summary.field();
      for (Reader entry(entry_field.bytes); !entry.at_end();) {
        const Field part = entry.field();
        if (part.number == 1) tag = part.bytes;
        if (part.number == 2) value = std::bit_cast<float>(static_cast<std::uint32_t>(part.value));
      }
      EXPECT_TRUE(event.scalars.emplace(tag, value).second) << tag << " appears twice";
    }
  }
  return event;
}

// The inverse of the mask, as readers apply it.
std::uint32_t unmasked(std::uint64_t masked) {
  return std::rotl(static_cast<std::uint32_t>(masked) - 0xa282ead8u, 15);
}

std::vector<DecodedEvent> read_events(const std::filesystem::path& path) {
  const std::string bytes = read_text(path);
  std::vector<DecodedEvent> events;
  for (Reader reader(bytes); !reader.at_end();) {
    const std::string_view length = reader.take(8);
    EXPECT_EQ(unmasked(reader.fixed(4)), crc32c(length));
    const std::string_view payload = reader.take(Reader(length).fixed(8));
    EXPECT_EQ(unmasked(reader.fixed(4)), crc32c(payload));
    events.push_back(decode(payload));
  }
  return events;
}

TEST(Crc32c, MatchesPublishedVectors) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(crc32c(""), 0u);
  // RFC 3720, B.4.
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  std::string rising(32, '\0');
  for (int i = 0; i < 32; ++i) rising[static_cast<std::size_t>(i)] = static_cast<char>(i);
  EXPECT_EQ(crc32c(rising), 0x46dd794eu);
}

TEST(TensorBoard, WritesScalarsThatReadersUnderstand) {
  Scratch scratch;
  TensorBoard board(scratch / "");
  board.on_step(make_step(1, 3));
  board.on_validation(make_validation(2, 400));
  const std::vector<DecodedEvent> events = read_events(board.path());
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[0].file_version, "brain.Event:2");
  EXPECT_NEAR(events[1].wall_time, static_cast<double>(std::time(nullptr)), 60);
  EXPECT_EQ(events[1].step, 3u);
  const StepEvent step = make_step(1, 3);
  const std::map<std::string, float> expected{
      {"stage1/loss", static_cast<float>(step.report.losses.loss)},
      {"stage1/grad_norm", 0.875f},
      {"stage1/lr", static_cast<float>(step.learning_rate)},
      {"stage1/tokens_per_s", static_cast<float>(4003 / step.step_seconds)},
      {"stage1/step_seconds", static_cast<float>(step.step_seconds)},
      {"stage1/data_seconds", 0.125f},
      {"stage1/balance_loss", 2.25f},
      {"stage1/z_loss", 11.5f},
      {"stage1/expert_load/layer0", 1.6f},
      {"stage1/expert_load/layer1", 1.5f},
      {"stage1/dropped/layer0", 0.03f},
      {"stage1/dropped/layer1", 0.01f},
      {"stage1/dead_experts/layer0", 0.0f},
      {"stage1/dead_experts/layer1", 0.0f}};
  EXPECT_EQ(events[1].scalars, expected);
  EXPECT_EQ(events[2].step, 400u);  // a varint of two bytes
  const std::map<std::string, float> validation{{"stage2/validation/loss", 3.25f},
                                                {"stage2/validation/category/captions", 4.5f},
                                                {"stage2/validation/category/text_rich", 2.75f},
                                                {"stage2/validation/swap_difference", 0.25f},
                                                {"stage2/validation/swap_z", 4.0f}};
  EXPECT_EQ(events[2].scalars, validation);
}

TEST(TensorBoard, OfADenseModelHasNoExperts) {
  Scratch scratch;
  TensorBoard board(scratch / "");
  StepEvent event = make_step(1, 1);
  event.report.losses.expert_load.clear();
  event.report.losses.dropped.clear();
  board.on_step(event);
  EXPECT_EQ(read_events(board.path()).back().scalars.count("stage1/balance_loss"), 0u);
}

TEST(TensorBoard, SaysWhenTheDiskIsFull) {
  Scratch scratch;
  TensorBoard board(scratch / "");
  const auto size = std::filesystem::file_size(board.path());
  EXPECT_THAT(message_on_full_disk(size + 20, [&] { board.on_step(make_step(1, 1)); }),
              AllOf(HasSubstr("tfevents"), HasSubstr("free some space")));
}

}  // namespace
}  // namespace orchard::testing
