#include "train/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "data/atomic_file.h"
#include "data/hdf5.h"
#include "kernels/image/image.h"
#include "tests/data/scratch.h"
#include "train/run_position.h"

namespace orchard::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// A store with its optimizer, as a stage has them. Every element of parameters and state differs.
class Trained {
 public:
  Trained(const std::vector<ParameterSpec>& specs, const OptimizerConfig& config, float first,
          DType dtype = DType::f32)
      : device_(make_cpu_device()), stream_(device_->make_stream()) {
    for (const ParameterSpec& spec : specs) store_.declare(spec);
    store_.allocate(*device_, *stream_, dtype);
    optimizer_ = std::make_unique<Optimizer>(*device_, *stream_, store_, config);
    const auto next = [&](std::int64_t count) {
      std::vector<float> elements(static_cast<std::size_t>(count));
      for (float& element : elements) element = first += 0.25f;
      return elements;
    };
    for (const Parameter& p : store_.parameters())
      store_.write(*stream_, p, next(p.master.numel()));
    for (const Optimizer::NamedShard& s : optimizer_->state())
      std::ranges::copy(next(s.tensor.numel()), s.tensor.data<float>());
  }

  Stream& stream() { return *stream_; }
  ParameterStore& store() { return store_; }
  Optimizer& optimizer() { return *optimizer_; }

  void save(const std::filesystem::path& path, const CheckpointInfo& info = {}) {
    const auto alone = make_single_communicator();
    save_checkpoint(path, info, *stream_, *alone, store_, *optimizer_);
  }
  void load(const std::filesystem::path& path, PositionTables positions = PositionTables::exact) {
    load_parameters(path, *stream_, store_, positions);
  }

  std::vector<float> parameters() { return values(store_.flat_masters()); }
  std::vector<std::vector<float>> state() {
    std::vector<std::vector<float>> all;
    for (const Optimizer::NamedShard& s : optimizer_->state()) all.push_back(values(s.tensor));
    return all;
  }

 private:
  static std::vector<float> values(const ConstTensor& t) {
    return {t.data<float>(), t.data<float>() + t.numel()};
  }

  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  ParameterStore store_;
  std::unique_ptr<Optimizer> optimizer_;
};

const std::vector<ParameterSpec> specs{{.name = "embedding", .shape = {7, 5}},
                                       {.name = "decoder.layers.0.attention.wq", .shape = {4, 4}},
                                       {.name = "decoder.norm", .shape = {5}}};
const OptimizerConfig adamw{.kind = OptimizerKind::adamw};
const OptimizerConfig adafactor{.kind = OptimizerKind::adafactor, .factor_threshold = 5};

TEST(Checkpoint, BringsBackEveryBit) {
  for (const OptimizerConfig& config : {adamw, adafactor}) {
    Scratch scratch;
    Trained saved(specs, config, 1), loaded(specs, config, 1000);
    saved.save(scratch / "c.h5");
    loaded.load(scratch / "c.h5");
    load_optimizer(scratch / "c.h5", loaded.stream(), loaded.optimizer());
    EXPECT_EQ(loaded.parameters(), saved.parameters());
    EXPECT_EQ(loaded.state(), saved.state());
    EXPECT_EQ(saved.state().size(), config.kind == OptimizerKind::adamw ? 6u : 4u);
  }
}

TEST(Checkpoint, RefreshesTheValuesThatForwardReads) {
  Scratch scratch;
  Trained saved(specs, adamw, 1, DType::bf16), loaded(specs, adamw, 1000, DType::bf16);
  saved.save(scratch / "c.h5");
  loaded.load(scratch / "c.h5");
  for (const Parameter& p : saved.store().parameters()) {
    EXPECT_EQ(std::memcmp(p.value.raw(), loaded.store().find(p.spec.name)->value.raw(),
                          p.value.size_bytes()),
              0)
        << p.spec.name;
  }
}

TEST(Checkpoint, SaysWhereItStands) {
  Scratch scratch;
  Trained trained(specs, adamw, 1);
  const CheckpointInfo info{.stage = 2,
                            .step = 1'234'567'890'123,
                            .sequences = 77,
                            .seed = 0xfedcba9876543210,
                            .stage_finished = true,
                            .tokenizer_hash = "abc",
                            .model = R"({"decoder.layers":3})"};
  trained.save(scratch / "c.h5", info);
  const CheckpointInfo read = read_checkpoint_info(scratch / "c.h5");
  EXPECT_EQ(read.stage, info.stage);
  EXPECT_EQ(read.step, info.step);
  EXPECT_EQ(read.sequences, info.sequences);
  EXPECT_EQ(read.seed, info.seed);
  EXPECT_EQ(read.stage_finished, info.stage_finished);
  EXPECT_EQ(read.tokenizer_hash, info.tokenizer_hash);
  EXPECT_EQ(read.model, info.model);
}

TEST(Checkpoint, TheNewestOfARunIsItsPosition) {
  Scratch scratch;
  EXPECT_EQ(newest_checkpoint(scratch / ""), (RunPosition{0, 0}));
  std::filesystem::create_directories(scratch / "checkpoints");
  Trained trained(specs, adamw, 1);
  trained.save(scratch / "checkpoints" / "stage1-step00000040.h5", {.stage = 1, .step = 40});
  EXPECT_EQ(newest_checkpoint(scratch / ""), (RunPosition{1, 40}));
  // The file of a finished stage does not have its step in its name.
  trained.save(scratch / "checkpoints" / "stage1.h5", {.stage = 1, .step = 60});
  EXPECT_EQ(newest_checkpoint(scratch / ""), (RunPosition{1, 60}));
}

TEST(Checkpoint, HoldsPlainDatasetsUnderTheirGlobalNames) {
  Scratch scratch;
  Trained trained(specs, adafactor, 1);
  trained.save(scratch / "c.h5");
  const hdf5::File file = hdf5::File::open(scratch / "c.h5");
  const hdf5::Dataset dataset = file.dataset("parameters/decoder.layers.0.attention.wq");
  EXPECT_EQ(dataset.shape(), (Shape{4, 4}));
  const ConstTensor master = trained.store().find("decoder.layers.0.attention.wq")->master;
  EXPECT_EQ(dataset.read<float>(),
            std::vector<float>(master.data<float>(), master.data<float>() + 16));
  EXPECT_TRUE(file.contains("optimizer/v_row/embedding"));
  EXPECT_TRUE(file.contains("optimizer/v_col/embedding"));
  EXPECT_TRUE(file.contains("optimizer/v/decoder.norm"));
}

TEST(Checkpoint, NamesTheDatasetThatIsDamaged) {
  Scratch scratch;
  Trained trained(specs, adamw, 1);
  const auto damage = [&](const std::string& dataset, const ConstTensor& values) {
    const auto path = scratch / "damaged.h5";
    trained.save(path);
    std::vector<std::uint8_t> bytes = read_file(path);
    const auto* const first = static_cast<const std::uint8_t*>(values.raw());
    const auto at = std::search(bytes.begin(), bytes.end(), first, first + values.size_bytes());
    ASSERT_NE(at, bytes.end());
    at[static_cast<std::ptrdiff_t>(values.size_bytes()) - 1] ^= 1;
    write_file(path, bytes);
    Trained other(specs, adamw, 1000);
    EXPECT_THAT(message_of([&] {
                  other.load(path);
                  load_optimizer(path, other.stream(), other.optimizer());
                }),
                AllOf(HasSubstr("damaged.h5"), HasSubstr(dataset), HasSubstr("damaged"),
                      HasSubstr("earlier checkpoint")));
  };
  damage("parameters/decoder.norm", trained.store().find("decoder.norm")->master);
  const auto state = trained.optimizer().state();
  damage("optimizer/" + state.back().name, state.back().tensor);
}

TEST(Checkpoint, OfAnotherModelNamesWhatDiffers) {
  Scratch scratch;
  Trained(specs, adamw, 1).save(scratch / "c.h5");
  const auto error_with = [&](const std::vector<ParameterSpec>& other) {
    Trained trained(other, adamw, 1000);
    return message_of([&] { trained.load(scratch / "c.h5"); });
  };
  auto reshaped = specs, larger = specs, smaller = specs, transposed = specs;
  reshaped[0].shape = {7, 6};
  transposed[0].shape = {5, 7};
  larger.push_back({.name = "decoder.extra", .shape = {2}});
  smaller.pop_back();
  EXPECT_THAT(error_with(reshaped),
              AllOf(HasSubstr("c.h5"), HasSubstr("another model"), HasSubstr("embedding"),
                    HasSubstr("[7, 5]"), HasSubstr("[7, 6]")));
  EXPECT_THAT(error_with(transposed), HasSubstr("embedding"));
  EXPECT_THAT(error_with(larger), AllOf(HasSubstr("c.h5"), HasSubstr("decoder.extra")));
  EXPECT_THAT(error_with(smaller),
              AllOf(HasSubstr("c.h5"), HasSubstr("1 parameters"), HasSubstr("decoder.norm")));
}

TEST(Checkpoint, OfAnotherOptimizerIsRefused) {
  Scratch scratch;
  Trained(specs, adamw, 1).save(scratch / "adamw.h5");
  Trained(specs, adafactor, 1).save(scratch / "adafactor.h5");
  Trained trained(specs, adafactor, 1);
  EXPECT_THAT(message_of([&] {
                load_optimizer(scratch / "adamw.h5", trained.stream(), trained.optimizer());
              }),
              AllOf(HasSubstr("state of adamw"), HasSubstr("adafactor")));
  OptimizerConfig unfactored = adafactor;
  unfactored.factor_threshold = 128;
  Trained other(specs, unfactored, 1);
  EXPECT_THAT(message_of([&] {
                load_optimizer(scratch / "adafactor.h5", other.stream(), other.optimizer());
              }),
              AllOf(HasSubstr("v/embedding"), HasSubstr("factoring threshold")));
}

std::vector<ParameterSpec> with_tables(std::int64_t side) {
  return {{.name = "vision.positions", .shape = {1 + side * side, 3}},
          {.name = "connector.positions", .shape = {side * side, 2}}};
}

TEST(Checkpoint, ResizesPositionTablesAndLeavesTheClassRow) {
  Scratch scratch;
  Trained saved(with_tables(3), adamw, 1), loaded(with_tables(5), adamw, 1000);
  saved.save(scratch / "c.h5");
  loaded.load(scratch / "c.h5", PositionTables::resized);
  for (const auto& [name, class_rows] :
       {std::pair{"vision.positions", 1}, {"connector.positions", 0}}) {
    const ConstTensor from = saved.store().find(name)->master,
                      to = loaded.store().find(name)->master;
    const std::int64_t width = from.dim(1);
    const float* const grid = from.data<float>() + class_rows * width;
    std::vector<float> expected(from.data<float>(), grid);  // the class row, untouched
    expected.resize(static_cast<std::size_t>(to.numel()));
    resize_positions({.table = grid,
                      .rows = 3,
                      .cols = 3,
                      .width = width,
                      .resized = expected.data() + class_rows * width,
                      .new_rows = 5,
                      .new_cols = 5});
    EXPECT_EQ(std::vector<float>(to.data<float>(), to.data<float>() + to.numel()), expected)
        << name;
    // The table rises row by row, so its resized form must span the same range at its corners.
    EXPECT_NEAR(expected[static_cast<std::size_t>(class_rows * width)], grid[0], 0.5f) << name;
    EXPECT_NEAR(expected.back(), grid[9 * width - 1], 0.5f) << name;
  }
}

TEST(Checkpoint, ResizesNothingUnasked) {
  Scratch scratch;
  Trained(with_tables(3), adamw, 1).save(scratch / "c.h5");
  Trained larger(with_tables(5), adamw, 1);
  EXPECT_THAT(message_of([&] { larger.load(scratch / "c.h5"); }), HasSubstr("vision.positions"));
  // Another width is another model, at whatever size.
  auto wider = with_tables(5);
  wider[1].shape = {25, 4};
  Trained other(wider, adamw, 1);
  EXPECT_THAT(message_of([&] { other.load(scratch / "c.h5", PositionTables::resized); }),
              HasSubstr("connector.positions"));
}

TEST(Checkpoint, OtherFilesAreRefusedByName) {
  Scratch scratch;
  EXPECT_THAT(message_of([&] { read_checkpoint_info(scratch / "none.h5"); }), HasSubstr("none.h5"));
  write_file(scratch / "text.h5", std::string_view("not HDF5 at all"));
  EXPECT_THAT(message_of([&] { read_checkpoint_info(scratch / "text.h5"); }), HasSubstr("text.h5"));
  hdf5::File::create(scratch / "plain.h5").commit();
  EXPECT_THAT(message_of([&] { read_checkpoint_info(scratch / "plain.h5"); }),
              HasSubstr("plain.h5 is not an Orchard checkpoint"));
  hdf5::File newer = hdf5::File::create(scratch / "newer.h5");
  newer.set_attribute("orchard_checkpoint", std::int64_t{99});
  newer.commit();
  EXPECT_THAT(message_of([&] { read_checkpoint_info(scratch / "newer.h5"); }),
              AllOf(HasSubstr("newer.h5"), HasSubstr("99")));
}

TEST(Checkpoint, AFullDiskLeavesTheFormerFile) {
  Scratch scratch;
  Trained trained(specs, adamw, 1), later(specs, adamw, 1000);
  trained.save(scratch / "c.h5", {.step = 1});
  // Fails at the first bytes, in the middle, in the last.
  const auto size = std::filesystem::file_size(scratch / "c.h5");
  for (const auto room : {std::uintmax_t{0}, size / 2, size - 1}) {
    EXPECT_THAT(message_on_full_disk(room, [&] { later.save(scratch / "c.h5", {.step = 2}); }),
                AllOf(HasSubstr("c.h5"), HasSubstr("free some space")))
        << room << " of " << size;
  }
  EXPECT_EQ(read_checkpoint_info(scratch / "c.h5").step, 1);
  EXPECT_EQ(scratch.names(), std::vector<std::string>{"c.h5"});
  Trained loaded(specs, adamw, 2000);
  loaded.load(scratch / "c.h5");
  EXPECT_EQ(loaded.parameters(), trained.parameters());
}

}  // namespace
}  // namespace orchard::testing
