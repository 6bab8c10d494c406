// The cases of the layout matrix: what a run may choose, which choices go together, and which cases
// show them all.
#pragma once

#include <fmt/format.h>

#include <array>
#include <map>
#include <string>
#include <vector>

#include "tests/parallel/covering.h"
#include "tests/parallel/layout_harness.h"
#include "tests/parallel/toy_batches.h"
#include "train/pipeline_cut.h"

namespace orchard::testing {

enum MatrixAxis : std::uint8_t {
  // The layout.
  tp_axis,
  dp_axis,
  pp_axis,
  ep_axis,
  etp_axis,
  model_axis,
  rows_axis,
  // What goes with every layout.
  stage_axis,
  schedule_axis,
  optimizer_axis,
  capacity_axis,
  dispatch_axis,
  moe_chunks_axis,
  tp_chunks_axis,
  dtype_axis,
  matrix_axes,
};
inline constexpr int layout_axes = stage_axis;

// By axis, what each level is called. The first is what there is where an axis has no meaning.
inline const std::array<std::vector<std::string>, matrix_axes> matrix_levels = {{
    {"tp1", "tp2", "tp4"},
    {"dp1", "dp2", "dp4"},
    {"pp1", "pp2", "pp4"},
    {"ep1", "ep2", "ep4"},
    {"etp1", "etp2", "etp4"},
    {"dense", "sparse"},
    {"same-rows", "shared-rows"},
    {"stage1", "stage2", "stage3"},
    {"gpipe", "1f1b", "interleaved", "zb-h1", "zb-v"},
    {"adamw", "adafactor"},
    {"dropless", "capacity"},
    {"direct", "by-node"},
    {"moe-chunks1", "moe-chunks2"},
    {"tp-chunks1", "tp-chunks2"},
    {"f32", "bf16"},
}};

struct MatrixCase {
  Combination levels;

  int at(MatrixAxis axis) const { return levels[axis]; }
  int size(MatrixAxis axis) const { return 1 << levels[axis]; }
  int ranks_of_stage() const { return size(tp_axis) * size(dp_axis); }
  int ranks() const { return ranks_of_stage() * size(pp_axis); }
  bool is_sparse() const { return at(model_axis) == 1; }

  Layout layout() const {
    return {.tensor = size(tp_axis),
            .pipeline = size(pp_axis),
            .expert = size(ep_axis),
            .expert_tensor = size(etp_axis),
            .tensor_chunks = size(tp_chunks_axis)};
  }
  SequenceParallel rows() const {
    return at(rows_axis) == 1 ? SequenceParallel::yes : SequenceParallel::no;
  }
  PipelineStages stages() const;
  std::string name() const {
    std::string text;
    for (std::size_t axis = 0; axis < levels.size(); ++axis)
      text += (axis ? " " : "") + matrix_levels[axis][static_cast<std::size_t>(levels[axis])];
    return text;
  }
};

// Up to eight ranks. Where an axis has no meaning, only its first level is.
inline bool is_legal(const Combination& levels) {
  const MatrixCase c{levels};
  const int experts_ranks = c.size(ep_axis) * c.size(etp_axis);
  if (c.ranks() > 8 || c.ranks_of_stage() % experts_ranks != 0) return false;
  if (c.size(pp_axis) == 1 && c.at(schedule_axis) > 0) return false;
  if (c.size(tp_axis) == 1 && (c.at(rows_axis) > 0 || c.at(tp_chunks_axis) > 0)) return false;
  if (!c.is_sparse() && (experts_ranks > 1 || c.at(capacity_axis) > 0 || c.at(moe_chunks_axis) > 0))
    return false;
  return experts_ranks > 1 || c.at(dispatch_axis) == 0;
}

// Of the first so many axes, by number: the levels as digits.
inline int number_of(const Combination& levels, int axes) {
  int number = 0;
  for (int axis = 0; axis < axes; ++axis)
    number = number * 3 + levels[static_cast<std::size_t>(axis)];
  return number;
}

enum class MatrixSize : std::uint8_t {
  covering,  // every pair of levels, and every layout
  // Every layout under every schedule, with shared rows or without: in fp32 in stage 3 (pictures, and
  // targets that are not all learnt), and with every level of what else goes with it. Every pair.
  complete,
};

// What the promise of fp32 losses and gradients is held to under every schedule.
inline bool is_stage3_in_f32(const Combination& c) {
  return c[stage_axis] == 2 && c[dtype_axis] == 0;
}

inline std::vector<Combination> legal_combinations() {
  std::vector<int> levels(matrix_levels.size());
  std::ranges::transform(matrix_levels, levels.begin(),
                         [](const auto& names) { return static_cast<int>(names.size()); });
  return all_combinations(levels, is_legal);
}

inline std::vector<MatrixCase> matrix_cases(MatrixSize size) {
  const auto features = [&](const Combination& c) {
    std::vector<int> all = pairs_of(c);
    const int layouts = pair_features(matrix_axes);
    if (size == MatrixSize::covering) {
      all.push_back(layouts + number_of(c, rows_axis));
    } else {
      const int layout = number_of(c, layout_axes) * most_levels + c[schedule_axis];
      const auto feature = [&](int axis, int level) {
        return layouts + (layout * (matrix_axes + 1) + axis) * most_levels + level;
      };
      for (int axis = layout_axes; axis < matrix_axes; ++axis)
        all.push_back(feature(axis, c[static_cast<std::size_t>(axis)]));
      if (is_stage3_in_f32(c)) all.push_back(feature(matrix_axes, 0));
    }
    return all;
  };
  std::vector<MatrixCase> cases;
  for (Combination& c : covering(legal_combinations(), features)) cases.push_back({std::move(c)});
  return cases;
}

// Two layers, of a sparse model the second one with experts, and pictures, whose tiles are larger
// from stage 2 on. Everything has four parts to share; there are too few key-value heads for four
// ranks.
inline ModelConfig matrix_model(const MatrixCase& c) {
  ModelConfig config;
  config.vision = {.layers = 1, .width = 32, .heads = 4, .mlp_width = 48, .patch = 2, .side = 4};
  if (c.at(stage_axis) > 0) config.vision.side = 6;
  config.connector = {.hidden = 12, .depth = 1, .out_side = 2};
  config.decoder = {.layers = 2,
                    .hidden = 32,
                    .ffn = 48,
                    .heads = 4,
                    .kv_heads = 2,
                    .head_dim = 8,
                    .vocabulary = 48,
                    .max_positions = 16};
  if (c.is_sparse())
    config.decoder.moe = {
        .experts = 8, .every = 2, .capacity_factor = c.at(capacity_axis) == 1 ? 1.0f : 0.0f};
  return config;
}

inline PipelineStages MatrixCase::stages() const {
  return cut_pipeline(matrix_model(*this),
                      {.schedule = schedule_kinds[static_cast<std::size_t>(at(schedule_axis))]},
                      size(pp_axis),
                      {.tokens = 12, .document_length = 6, .targets = 8, .tiles = 1});
}

// In stage 3 two of three targets are somebody else's words, which nobody learns to say.
inline void keep_every_third_target(std::vector<std::vector<MicroBatch>>& steps) {
  for (std::vector<MicroBatch>& step : steps) {
    for (MicroBatch& batch : step) {
      int targets = 0;
      batch.target_count = 0;
      for (std::int32_t& target : batch.targets) {
        if (target >= 0 && targets++ % 3 != 0) target = -1;
        batch.target_count += target >= 0;
      }
    }
  }
}

// What a case and its reference train.
inline LayoutTask matrix_task(const MatrixCase& c) {
  LayoutTask task{.model = matrix_model(c)};
  for (const MatrixAxis axis : {model_axis, stage_axis, optimizer_axis, capacity_axis, dtype_axis})
    task.name += matrix_levels[axis][static_cast<std::size_t>(c.at(axis))] + " ";
  task.options.dtype = c.at(dtype_axis) == 1 ? DType::bf16 : DType::f32;
  task.options.optimizer = {
      .kind = c.at(optimizer_axis) == 1 ? OptimizerKind::adafactor : OptimizerKind::adamw,
      .factor_threshold = 8};
  task.options.experts = {
      .dispatch = c.at(dispatch_axis) == 1 ? ExpertDispatch::by_node : ExpertDispatch::direct,
      .chunks = c.size(moe_chunks_axis)};
  task.steps = mixed_steps(task.model);
  if (c.at(stage_axis) == 2) keep_every_third_target(task.steps);
  return task;
}

}  // namespace orchard::testing
