#include "train/stage_data.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "data/picture.h"

namespace orchard {
namespace {

// Batches ready ahead of the trainer: enough to ride out a slow picture, few enough to stay small.
constexpr std::size_t prefetched_batches = 4;

SampleLayout make_layout(const TrainingSet& set, const RunConfig& run, const StageConfig& stage) {
  const PackingOptions options = packing_options(run, stage);
  const TextTokenizer tokenize = [&](std::string_view text) {
    return set.tokenizer().encode(text);
  };
  return {set.index(), options,
          make_mark_table(stage.marks, tokenize, options.tiling, set.index())};
}

SampleSource source_of(const TrainingSet& set, PictureContent pictures) {
  return {.read = [&set, pictures](std::int64_t i) { return set.load(i, pictures); },
          .decode = [](const EncodedPicture& encoded) { return decode_picture(encoded.bytes); }};
}

// Stages draw independently of each other from one seed.
std::uint64_t stage_seed(const RunConfig& run, const StageConfig& stage) {
  return run.seed * 1000003u + static_cast<std::uint64_t>(stage.number);
}

// The training set's categories that the mixture draws from.
std::vector<std::int32_t> categories_of(const ResolvedMixture& mixture,
                                        const TrainingSetIndex& index) {
  std::set<std::int32_t> categories;
  for (const ResolvedGroup& group : mixture.groups) {
    for (const ResolvedCategory& category : group.categories) {
      for (const std::int64_t sample : category.samples) {
        categories.insert(index.samples[static_cast<std::size_t>(sample)].category);
      }
    }
  }
  return {categories.begin(), categories.end()};
}

}  // namespace

PackingOptions packing_options(const RunConfig& run, const StageConfig& stage) {
  PackingOptions options{.length = stage.sequence_length,
                         .tokens_per_tile = run.model.connector.tokens(),
                         .max_pictures = stage.max_pictures,
                         .tiling = stage.tiling,
                         .targets = stage.targets};
  options.tiling.side = stage.side;
  return options;
}

StageData::StageData(const TrainingSet& set, const RunConfig& run, const StageConfig& stage,
                     std::int64_t micro_batch)
    : set_(set),
      patch_(run.model.vision.patch),
      shape_{.global_sequences = stage.global_batch, .micro_sequences = micro_batch},
      layout_(make_layout(set, run, stage)),
      plan_(layout_, named_mixture(stage.mixture, set.index().categories), stage_seed(run, stage)) {
  HeldOutOptions options;
  if (run.validation_samples > 0) options.limit_per_category = run.validation_samples;
  options.categories = categories_of(plan_.mixture(), set.index());
  held_out_ = plan_held_out(layout_, options);
}

StepPlan StageData::step_plan(std::int64_t step) {
  return plan_step(plan_, (step - 1) * shape_.global_sequences, shape_);
}

Workload StageData::first_workload() {
  const StepPlan plan = step_plan(1);
  std::int64_t samples = 0;
  for (const MicroBatchPlan& batch : plan.micro_batches) {
    for (const PackedSequence& sequence : batch.sequences) samples += std::ssize(sequence.samples);
  }
  return {.tokens = plan.real_rows,
          .document_length = static_cast<double>(plan.real_rows) /
                             static_cast<double>(std::max<std::int64_t>(samples, 1)),
          .targets = plan.targets,
          .tiles = plan.tiles};
}

MicroBatch StageData::typical_batch() {
  const StepPlan plan = step_plan(1);
  const double mean =
      static_cast<double>(plan.tiles) / static_cast<double>(plan.micro_batches.size());
  const auto distance = [&](const MicroBatchPlan& batch) {
    return std::abs(static_cast<double>(batch.tiles) - mean);
  };
  const auto typical = std::ranges::min_element(plan.micro_batches, {}, distance);
  const std::unique_ptr<Device> device = make_cpu_device({.threads = 1});
  return make_builder(*device, {}, PictureContent::absent).build(typical->sequences);
}

BatchBuilder StageData::make_builder(Device& device, std::function<void(const BadSample&)> on_bad,
                                     PictureContent pictures) const {
  return {layout_,
          source_of(set_, pictures),
          {.patch = patch_, .pictures = pictures, .on_bad = std::move(on_bad)},
          device};
}

std::unique_ptr<PrefetchingLoader> StageData::make_loader(LoaderOptions options) {
  // The loader's device and builder belong to its thread and are made there: OpenMP's number of
  // threads is a property of the calling thread, and pictures should not compete with the model for
  // cores.
  struct Worker {
    std::unique_ptr<Device> device;
    std::unique_ptr<BatchBuilder> builder;
    std::int64_t step = 0;  // that `plan` is of
    StepPlan plan;
  };
  const auto worker = std::make_shared<Worker>();
  const auto make = [this, worker,
                     with = std::move(options)](std::int64_t n) -> std::optional<MicroBatch> {
    if (!worker->device) {
      worker->device = make_cpu_device({.threads = 1});
      worker->builder =
          std::make_unique<BatchBuilder>(make_builder(*worker->device, with.on_bad, with.pictures));
    }
    const std::int64_t per_step = shape_.global_sequences / shape_.micro_sequences / with.ranks;
    if (const std::int64_t step = with.first_step + n / per_step; step != worker->step) {
      worker->plan = step_plan(step);
      worker->step = step;
    }
    const auto mine = worker->plan.of_rank(with.rank, with.ranks);
    return worker->builder->build(mine[static_cast<std::size_t>(n % per_step)].sequences);
  };
  return std::make_unique<PrefetchingLoader>(make, prefetched_batches);
}

void tell_bad(const BadSample& bad) {
  fmt::print(stderr, "bad sample {} ({}): {}; it keeps its place without targets\n", bad.sample,
             bad.id, bad.reason);
}

}  // namespace orchard
