// A warm training step asks nobody for memory: neither the device nor, in blocks of any size worth
// noticing, the heap; nor does it build a library primitive. Routing differs from step to step. On one
// rank, with graphs and without, and under mpirun on two that share experts, rows or both.
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <new>
#include <optional>
#include <utility>

#include "comm/nccl.h"
#include "parallel/random.h"
#include "tests/comm/find_nccl.h"
#include "tests/comm/ranks_test.h"
#include "tests/kernels/device_test.h"
#include "tests/train/model_in_training.h"

namespace {

// Small blocks (a name, a list of layers) are the price of plain code; tensors are larger.
constexpr std::size_t large_block = std::size_t{64} << 10;
std::atomic<std::int64_t> large_blocks = 0;

void* counted(void* block, std::size_t bytes) {
  if (!block) throw std::bad_alloc();
  if (bytes >= large_block) ++large_blocks;
  return block;
}

}  // namespace

// GCC sees free inlined at a delete whose new it did not inline, and takes them for a mismatch.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"

// The standard's other forms of new and delete end in these.
void* operator new(std::size_t bytes) {
  return counted(std::malloc(bytes), bytes);
}
// A sanitizer has a form of its own for this one.
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  if (bytes >= large_block) ++large_blocks;
  return std::malloc(bytes);
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  const auto a = static_cast<std::size_t>(alignment);
  return counted(std::aligned_alloc(a, (bytes + a - 1) / a * a), bytes);
}
void operator delete(void* block) noexcept {
  std::free(block);
}
void operator delete(void* block, std::size_t) noexcept {
  std::free(block);
}
void operator delete(void* block, std::align_val_t) noexcept {
  std::free(block);
}
void operator delete(void* block, std::size_t, std::align_val_t) noexcept {
  std::free(block);
}
#pragma GCC diagnostic pop

// Libraries written in C go past new. A sanitizer watches these functions itself and tolerates no
// other watcher.
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_memalign(std::size_t, std::size_t);

void* malloc(std::size_t bytes) {
  if (bytes >= large_block) ++large_blocks;
  return __libc_malloc(bytes);
}
int posix_memalign(void** block, std::size_t alignment, std::size_t bytes) {
  if (bytes >= large_block) ++large_blocks;
  *block = __libc_memalign(alignment, bytes);
  return *block ? 0 : ENOMEM;
}
}
#endif

namespace orchard::testing {
namespace {

// Large enough that every tensor of rows x hidden passes large_block; on the emulator, which takes its
// time and whose own memory is nobody's concern, smaller, with a picture of 4 tokens in place of 16.
ModelConfig model_config(DeviceKind device) {
  ModelConfig config;
  config.vision = {.layers = 2, .width = 64, .heads = 2, .mlp_width = 128, .patch = 4, .side = 32};
  config.connector = {.hidden = 32, .depth = 1, .out_side = 4};
  config.decoder = {.layers = 4,
                    .hidden = 64,
                    .ffn = 128,
                    .heads = 4,
                    .kv_heads = 2,
                    .head_dim = 16,
                    .vocabulary = 512,
                    .max_positions = 256,
                    .moe = {.experts = 4, .every = 2}};
  if (device != DeviceKind::cpu) {
    config.vision.layers = 1;
    config.vision.side = 16;
    config.connector.out_side = 2;
    config.decoder.layers = 2;
  }
  return config;
}
constexpr std::int64_t length_on(DeviceKind device) {
  return device == DeviceKind::cpu ? 256 : 32;
}

// Two sequences of two documents, a picture at the head of each document, padding at the end. Its
// shapes are always the same; tokens and pixels follow from `seed`.
MicroBatch make_micro_batch(const ModelConfig& config, std::int64_t length, std::uint64_t seed) {
  constexpr std::int64_t sequences = 2, documents = 2;
  const std::int64_t document = length / 2 - 8;
  const std::int64_t visual = config.connector.tokens();
  const CounterRandom random(seed, "micro-batch");
  MicroBatch batch{.sequences = sequences, .length = length, .document_offsets = {0}};
  // Half of the vocabulary a batch: what the router sees changes with it.
  const auto token = [&](std::int64_t row) {
    const double share = std::abs(random.normal(static_cast<std::uint64_t>(row)));
    return static_cast<std::int32_t>(8 + static_cast<std::int64_t>(100 * share) % 250 +
                                     250 * static_cast<std::int64_t>(seed % 2));
  };
  std::int32_t visual_rows = 0;
  const auto add_row = [&](std::int32_t source, std::int32_t target, std::int64_t position) {
    batch.sources.push_back(source);
    batch.targets.push_back(target);
    batch.positions.push_back(static_cast<std::int32_t>(position));
    batch.target_count += target >= 0;
  };
  const auto end_document = [&] {
    batch.document_offsets.push_back(static_cast<std::int32_t>(batch.sources.size()));
  };
  for (std::int64_t s = 0; s < sequences; ++s) {
    for (std::int64_t d = 0; d < documents; ++d) {
      for (std::int64_t i = 0; i < document; ++i) {
        const auto row = static_cast<std::int64_t>(batch.sources.size());
        add_row(i < visual ? -1 - visual_rows++ : token(row), i < visual ? -1 : token(row + 1), i);
      }
      end_document();
      ++batch.tiles;
    }
    batch.real_rows.push_back(documents * document);
    for (std::int64_t i = documents * document; i < length; ++i) add_row(3, -1, 0);
    end_document();
  }
  const std::int64_t pixels = batch.tiles * config.vision.patches() * config.vision.patch_values();
  for (std::int64_t i = 0; i < pixels; ++i) {
    batch.patches.push_back(
        static_cast<float>(random.normal(static_cast<std::uint64_t>(1'000'000 + i))));
  }
  return batch;
}

struct Counts {
  std::int64_t allocations, workspace_growths, primitive_creations, arena_growths;
  bool operator==(const Counts&) const = default;
};

void PrintTo(const Counts& counts, std::ostream* out) {
  *out << counts.allocations << " allocations, " << counts.workspace_growths
       << " workspace growths, " << counts.primitive_creations << " primitives, "
       << counts.arena_growths << " arena growths";
}

// This rank's micro-batches of a step, all of one shape.
StepReport take_step(ModelInTraining& training, std::span<const MicroBatch> mine,
                     double learning_rate) {
  const std::int64_t count = training.ranks().mesh().data() * std::ssize(mine);
  return training.step(mine,
                       {.targets = count * mine[0].target_count,
                        .real_rows = count * mine[0].sequences * mine[0].real_rows[0],
                        .sequences = count * mine[0].sequences,
                        .sizes = MicroBatchSizes::alike},
                       learning_rate);
}

// A model on one rank.
class WarmStepTest : public ::testing::TestWithParam<std::tuple<DeviceKind, DType, Graphs>> {
 protected:
  void SetUp() override {
    if (session->world()->size() > 1) GTEST_SKIP() << "is of one rank";
    const auto [kind, dtype, graphs] = GetParam();
    if (on_cpu()) omp_set_num_threads(2);
    auto [device, absence] = find_device(kind);
    if (!device) GTEST_SKIP() << name_of(kind) << ": " << absence;
    device_ = std::move(device);
    training_.emplace(*device_, ranks_, config_, dtype, StepOptions{.graphs = graphs});
  }

  static bool on_cpu() { return std::get<0>(GetParam()) == DeviceKind::cpu; }

  // Micro-batches of which each has another seed, from `first_seed` on.
  std::vector<MicroBatch> make_micro_batches(std::int64_t count, std::int64_t first_seed) const {
    std::vector<MicroBatch> batches;
    for (std::int64_t m = 0; m < count; ++m) {
      batches.push_back(make_micro_batch(config_, length_on(std::get<0>(GetParam())),
                                         static_cast<std::uint64_t>(first_seed + m)));
    }
    return batches;
  }

  StepReport train(std::span<const MicroBatch> micro_batches) {
    return take_step(*training_, micro_batches, 1e-2);
  }

  const ModelConfig config_ = model_config(std::get<0>(GetParam()));
  const std::unique_ptr<Communicator> world_ = make_single_communicator();
  const ParallelContext ranks_{*world_, {}};
  std::unique_ptr<Device> device_;
  std::optional<ModelInTraining> training_;
};

TEST_P(WarmStepTest, AllocatesNothingWhateverTheRouting) {
  constexpr std::int64_t warm_up = 2, accumulated = 2;
  const std::int64_t steps = on_cpu() ? 6 : 4;
  std::vector<std::vector<MicroBatch>> batches;
  for (std::int64_t s = 0; s < steps; ++s)
    batches.push_back(make_micro_batches(accumulated, accumulated * s));
  const auto counts = [&] {
    const DeviceStatistics& s = device_->statistics();
    return Counts{s.allocations, s.workspace_growths, s.primitive_creations,
                  training_->runner().arena().growths()};
  };
  std::vector<std::vector<std::vector<double>>> loads;
  const auto step = [&](std::int64_t s) {
    loads.push_back(train(batches[static_cast<std::size_t>(s)]).losses.expert_load);
  };
  for (std::int64_t s = 0; s < warm_up; ++s) step(s);
  const Counts warm = counts();
  const std::int64_t blocks = large_blocks;
  EXPECT_GT(blocks, 0) << "the heap is not watched";
  for (std::int64_t s = warm_up; s < steps; ++s) {
    step(s);
    EXPECT_EQ(counts(), warm) << "step " << s + 1;
    if (on_cpu()) {
      EXPECT_EQ(large_blocks, blocks) << "step " << s + 1;
    }
    EXPECT_NE(loads[static_cast<std::size_t>(s)], loads[static_cast<std::size_t>(s - 1)])
        << "routing did not change, so step " << s + 1 << " shows nothing";
  }
}

TEST_P(WarmStepTest, WaitsForTheDeviceOnce) {
  const auto waits = [&](std::int64_t micro_batches) {
    const auto batches = make_micro_batches(micro_batches, 0);
    const std::int64_t before = device_->statistics().host_waits;
    train(batches);
    return device_->statistics().host_waits - before;
  };
  waits(3);  // memory grows, and growth waits
  EXPECT_EQ(waits(1), 1);
  EXPECT_EQ(waits(3), 1);
}

// The update has been queued by the time that the host learns of it.
TEST_P(WarmStepTest, AStepWithANaNChangesNoBit) {
  train(make_micro_batches(1, 0));
  const std::vector<std::byte> before = training_->state();
  std::vector<MicroBatch> poisoned = make_micro_batches(2, 1);
  poisoned[1].patches[0] = std::nanf("");
  EXPECT_THROW(train(poisoned), Error);
  EXPECT_TRUE(training_->state() == before) << "weights or moments have changed";
  train(make_micro_batches(1, 0));
  EXPECT_FALSE(training_->state() == before) << "no step would change any";
}

// The emulator takes its time: there, each dtype once, and once with graphs.
std::vector<std::tuple<DeviceKind, DType, Graphs>> settings() {
  std::vector<std::tuple<DeviceKind, DType, Graphs>> all;
  for (const DeviceKind device : device_kinds()) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const Graphs graphs : {Graphs::no, Graphs::yes}) {
        if (device != DeviceKind::simt || (dtype == DType::bf16) == (graphs == Graphs::yes))
          all.emplace_back(device, dtype, graphs);
      }
    }
  }
  return all;
}

std::string name_of_test(
    const ::testing::TestParamInfo<std::tuple<DeviceKind, DType, Graphs>>& test) {
  const auto& [device, dtype, graphs] = test.param;
  return fmt::format("{}_{}{}", name_of(device), name_of(dtype),
                     graphs == Graphs::yes ? "_graphs" : "");
}

INSTANTIATE_TEST_SUITE_P(Devices, WarmStepTest, ::testing::ValuesIn(settings()), name_of_test);

// Rows for experts come and go with the routing: what arrives has room for a quarter more than the most
// that there was, so the batches of the warm-up come back, with other weights.
TEST(WarmStepOnRanks, AllocatesNothingWhateverTheRouting) {
  const auto world = session->world();
  if (world->size() != 2) GTEST_SKIP() << "needs two ranks";
  constexpr std::int64_t batches = 3, steps = 3 * batches;
  const std::int64_t length = length_on(DeviceKind::cpu);
  ModelConfig config = model_config(DeviceKind::cpu);
  for (const auto& [layout, capacity] : {std::pair{Layout{.expert = 2}, 0.0f},
                                         {Layout{.tensor = 2, .expert = 2}, 0.0f},
                                         {Layout{.tensor = 2}, 0.0f},
                                         {Layout{.expert = 2}, 1.0f},
                                         {Layout{.tensor = 2, .expert = 2}, 1.25f}}) {
    SCOPED_TRACE(fmt::format("{}, capacity {}", layout.to_string(), capacity));
    config.decoder.moe.capacity_factor = capacity;
    const auto device = make_cpu_device({.threads = 1});
    const ParallelContext ranks(*world, layout);
    ModelInTraining training(*device, ranks, config, DType::f32);
    StepRunner& runner = training.runner();
    std::vector<MicroBatch> all;
    for (std::int64_t b = 0; b < 2 * batches; ++b)
      all.push_back(make_micro_batch(config, length, static_cast<std::uint64_t>(b)));
    std::vector<std::vector<double>> load;
    const auto step = [&](std::int64_t s) {
      const std::int64_t mine =
          s % batches * 2 + (ranks.mesh().data() > 1 ? ranks.coordinates().data : 0);
      load = take_step(training, std::span(all).subspan(static_cast<std::size_t>(mine), 1), 1e-3)
                 .losses.expert_load;
    };
    const auto counts = [&] {
      const DeviceStatistics& s = device->statistics();
      return Counts{s.allocations, s.workspace_growths, s.primitive_creations,
                    runner.arena().growths()};
    };
    for (std::int64_t s = 0; s < 2 * batches; ++s) step(s);
    const Counts warm = counts();
    const std::int64_t blocks = large_blocks, rooms = runner.dispatcher()->growths();
    EXPECT_GT(blocks, 0) << "the heap is not watched";
    for (std::int64_t s = 2 * batches; s < steps; ++s) {
      const auto before = std::exchange(load, {});
      step(s);
      EXPECT_NE(load, before) << "routing did not change, so step " << s + 1 << " shows nothing";
      EXPECT_EQ(counts(), warm) << "step " << s + 1;
      EXPECT_EQ(large_blocks, blocks) << "step " << s + 1;
      EXPECT_EQ(runner.dispatcher()->growths(), rooms) << "step " << s + 1;
    }
  }
}

// Messages, the norm and AdaFactor's sums over ranks go from device to device. Without a capacity the
// host needs the counts of each sparse layer, and waits for them.
TEST(WarmStepOnRanks, WaitsForTheDeviceOnceWhereNoLayerIsCounted) {
  const auto world = session->world();
  if (world->size() != 2) GTEST_SKIP() << "needs two ranks";
  const std::unique_ptr<Device> device = find_device(DeviceKind::simt).device;
  ASSERT_TRUE(device);
  const auto messages =
      make_nccl_world(*world, {.device = *device, .library = make_emulated_nccl()});
  constexpr MoeConfig sparse{.experts = 4, .every = 2};
  MoeConfig limited = sparse;
  limited.capacity_factor = 1;
  struct {
    const char* name;
    Layout layout;
    MoeConfig experts;
    OptimizerKind optimizer = OptimizerKind::adamw;
    bool counts = false;
  } const cases[] = {{"dense, AdaFactor", {}, {}, OptimizerKind::adafactor},
                     {"experts with a capacity", {.expert = 2}, limited},
                     {"dropless experts", {.expert = 2}, sparse, OptimizerKind::adamw, true}};
  for (const auto& [name, layout, experts, optimizer, counts] : cases) {
    SCOPED_TRACE(name);
    ModelConfig config = model_config(DeviceKind::simt);
    config.decoder.moe = experts;
    const ParallelContext ranks(*messages, layout);
    ModelInTraining training(*device, ranks, config, DType::f32, {},
                             {.kind = optimizer, .factor_threshold = 8});
    const auto waits = [&](std::size_t micro_batches) {
      std::vector<MicroBatch> mine;
      for (std::size_t m = 0; m < micro_batches; ++m)
        mine.push_back(
            make_micro_batch(config, length_on(DeviceKind::simt),
                             2 * m + static_cast<std::size_t>(ranks.coordinates().data)));
      const std::int64_t before = device->statistics().host_waits;
      take_step(training, mine, 1e-3);
      return device->statistics().host_waits - before;
    };
    waits(2);  // memory grows, and growth waits
    if (counts) {
      const std::int64_t of_one = waits(1);
      EXPECT_GT(of_one, 1);
      EXPECT_GT(waits(2), of_one);
    } else {
      EXPECT_EQ(waits(2), 1);
    }
  }
}

}  // namespace
}  // namespace orchard::testing

int main(int argc, char** argv) {
  return orchard::testing::rank_tests_main(argc, argv);
}
