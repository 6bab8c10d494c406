// HDF5 files: what is written comes back, what is wrong has a name, what fails leaves nothing.
#include "data/hdf5.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <numeric>
#include <thread>

#include "data/atomic_file.h"
#include "kernels/core/error.h"
#include "tests/data/scratch.h"

namespace orchard::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Hdf5, EveryElementTypeComesBack) {
  const Scratch scratch;
  const auto path = scratch / "all.h5";
  {
    auto file = hdf5::File::create(path);
    file.write("u8", std::vector<std::uint8_t>{0, 255});
    file.write("i32", std::vector<std::int32_t>{-2147483647 - 1, 7});
    file.write("i64", std::vector<std::int64_t>{std::int64_t{-1} << 62});
    file.write("group/f32", std::vector<float>{1.5f, -0.0f});
    file.write("group/deep/f64", std::vector<double>{1e300});
    file.write("bf16", std::vector<bf16>{to_bf16(1.0f), to_bf16(-3.0f)});
    file.write("empty", std::vector<float>{});
    file.commit();
  }
  const auto file = hdf5::File::open(path);
  EXPECT_THAT(file.read<std::uint8_t>("u8"), ElementsAre(0, 255));
  EXPECT_THAT(file.read<std::int32_t>("i32"), ElementsAre(-2147483647 - 1, 7));
  EXPECT_THAT(file.read<std::int64_t>("i64"), ElementsAre(std::int64_t{-1} << 62));
  EXPECT_THAT(file.read<float>("group/f32"), ElementsAre(1.5f, -0.0f));
  EXPECT_THAT(file.read<double>("group/deep/f64"), ElementsAre(1e300));
  EXPECT_EQ(file.read<float>("empty").size(), 0u);
  const auto half = file.read<bf16>("bf16");
  EXPECT_EQ(to_float(half.at(1)), -3.0f);
  EXPECT_EQ(file.dataset("bf16").string_attribute("dtype"), "bf16");
  EXPECT_THAT(file.links(), ElementsAre("bf16", "empty", "group", "i32", "i64", "u8"));
  EXPECT_THAT(file.links("group"), ElementsAre("deep", "f32"));
  EXPECT_TRUE(file.contains("group/deep/f64"));
  EXPECT_FALSE(file.contains("none/deep/f64"));
}

TEST(Hdf5, SlabsOfRankFiveLandInTheirPlaces) {
  const Scratch scratch;
  const Shape shape{2, 3, 2, 3, 2};
  std::vector<std::int32_t> expected(72);
  {
    auto file = hdf5::File::create(scratch / "slab.h5");
    auto set = file.create_dataset("x", hdf5::Element::i32, shape);
    for (std::int64_t i = 0; i < 2; ++i) {
      std::vector<std::int32_t> values(12);
      std::iota(values.begin(), values.end(), static_cast<std::int32_t>(100 * i + 1));
      set.write(std::span<const std::int32_t>(values), {{i, 1, 0, 0, 0}, {1, 1, 2, 3, 2}});
      std::copy(values.begin(), values.end(), expected.begin() + 36 * i + 12);
    }
    file.commit();
  }
  const auto file = hdf5::File::open(scratch / "slab.h5");
  const auto set = file.dataset("x");
  EXPECT_EQ(set.shape(), shape);
  EXPECT_EQ(set.read<std::int32_t>(), expected);
  std::vector<std::int32_t> corner(2);
  set.read(std::span<std::int32_t>(corner), {{1, 1, 0, 2, 0}, {1, 1, 1, 1, 2}});
  EXPECT_THAT(corner, ElementsAre(105, 106));
}

TEST(Hdf5, ScalarsAndAttributesComeBack) {
  const Scratch scratch;
  {
    auto file = hdf5::File::create(scratch / "a.h5");
    auto set = file.create_dataset("step", hdf5::Element::i64, {});
    const std::int64_t step = 41;
    set.write(std::span(&step, 1), set.whole());
    set.set_attribute("name", "Äpfel");
    set.set_attribute("empty", "");
    file.set_attribute("seed", std::int64_t{1} << 60);
    file.set_attribute("rate", 0.25);
    file.set_attribute("rate", 0.5);
    file.commit();
  }
  const auto file = hdf5::File::open(scratch / "a.h5");
  EXPECT_THAT(file.read<std::int64_t>("step"), ElementsAre(41));
  EXPECT_EQ(file.dataset("step").string_attribute("name"), "Äpfel");
  EXPECT_EQ(file.dataset("step").string_attribute("empty"), "");
  EXPECT_EQ(file.integer_attribute("seed"), std::int64_t{1} << 60);
  EXPECT_EQ(file.real_attribute("rate"), 0.5);
  EXPECT_FALSE(file.has_attribute("none"));
}

TEST(Hdf5, ErrorsNameFileAndDataset) {
  const Scratch scratch;
  const auto path = scratch / "wrong.h5";
  {
    auto file = hdf5::File::create(path);
    file.write("x", std::vector<float>{1, 2, 3});
    EXPECT_THAT(message_of([&] { file.write("x", std::vector<float>{1}); }),
                ::testing::AllOf(HasSubstr("\"x\""), HasSubstr("wrong.h5")));
    file.commit();
  }
  const auto file = hdf5::File::open(path);
  EXPECT_THAT(message_of([&] { file.dataset("y"); }),
              ::testing::AllOf(HasSubstr("\"y\""), HasSubstr("does not exist")));
  EXPECT_THAT(message_of([&] { file.read<std::int32_t>("x"); }), HasSubstr("holds f32, not i32"));
  EXPECT_THAT(message_of([&] { file.dataset("x").read_range<float>(2, 2); }),
              HasSubstr("no slab of shape [2] begins at [2]"));
  EXPECT_THAT(message_of([&] { file.integer_attribute("none"); }), HasSubstr("\"none\""));
  EXPECT_THAT(message_of([&] { hdf5::File::open(scratch / "no.h5"); }),
              HasSubstr("no.h5 does not exist"));
  write_file(scratch / "text.h5", "this is not HDF5");
  EXPECT_THAT(message_of([&] { hdf5::File::open(scratch / "text.h5"); }), HasSubstr("text.h5"));
}

TEST(Hdf5, ACutFileIsRefused) {
  const Scratch scratch;
  {
    auto file = hdf5::File::create(scratch / "cut.h5");
    file.write("x", std::vector<double>(1000, 1.0));
    file.commit();
  }
  std::filesystem::resize_file(scratch / "cut.h5", 4000);
  EXPECT_THAT(message_of([&] { hdf5::File::open(scratch / "cut.h5"); }),
              ::testing::AllOf(HasSubstr("cut.h5"), HasSubstr("truncated")));
}

TEST(Hdf5, EqualContentsGiveEqualBytesAtAnyTime) {
  const Scratch scratch;
  const auto write = [&](const char* name) {
    auto file = hdf5::File::create(scratch / name);
    file.write("group/x", std::vector<double>(100, 1.0));
    file.set_attribute("seed", std::int64_t{3});
    file.commit();
  };
  write("first.h5");
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // time stamps have seconds
  write("second.h5");
  EXPECT_EQ(read_file(scratch / "first.h5"), read_file(scratch / "second.h5"));
}

TEST(Hdf5, WithoutCommitTheFormerFileStays) {
  const Scratch scratch;
  const auto path = scratch / "kept.h5";
  const auto write = [&](float value) {
    auto file = hdf5::File::create(path);
    file.write("x", std::vector<float>{value});
    return file;
  };
  write(1).commit();
  write(2);
  EXPECT_THAT(hdf5::File::open(path).read<float>("x"), ElementsAre(1.0f));
  EXPECT_THAT(scratch.names(), ElementsAre("kept.h5"));
}

TEST(Hdf5, AFullDiskIsOneClearErrorAndLeavesNothing) {
  const Scratch scratch;
  const auto open_files = [] {
    const std::filesystem::directory_iterator files("/proc/self/fd");
    return std::distance(begin(files), end(files));
  };
  for (const std::size_t values : {100'000u, 1000u}) {  // larger, smaller than HDF5's buffers
    const std::string message = message_on_full_disk(4096, [&] {
      const auto open_before = open_files();
      const std::string first = message_of([&] {
        auto file = hdf5::File::create(scratch / "full.h5");
        file.write("x", std::vector<double>(values, 1.0));
        file.commit();
      });
      require(open_files() == open_before, "the file is still open after: {}", first);
      fail("{}", first);
    });
    EXPECT_THAT(message, ::testing::AllOf(::testing::StartsWith("cannot write"),
                                          HasSubstr("full.h5"), HasSubstr("free some space")));
    EXPECT_THAT(scratch.names(), ElementsAre());
  }
  EXPECT_THAT(message_on_full_disk(
                  4096, [&] { write_file(scratch / "full.json", std::string(5000, 'x')); }),
              ::testing::AllOf(HasSubstr("full.json"), HasSubstr("free some space")));
  EXPECT_THAT(scratch.names(), ElementsAre());
}

TEST(Hdf5, ASmallWriteThatDoesNotFitIsReportedAtOnce) {
  // Not when the dataset is closed, where nobody could be told.
  const Scratch scratch;
  EXPECT_THAT(message_on_full_disk(4096,
                                   [&] {
                                     auto file = hdf5::File::create(scratch / "full.h5");
                                     file.write("x", std::vector<double>(1000, 1.0));
                                   }),
              HasSubstr("dataset \"x\""));
}

TEST(AtomicFile, AMissingFolderIsNamed) {
  const Scratch scratch;
  EXPECT_THAT(message_of([&] { write_file(scratch / "none" / "a.json", "{}"); }),
              HasSubstr("No such file or directory"));
}

}  // namespace
}  // namespace orchard::testing
