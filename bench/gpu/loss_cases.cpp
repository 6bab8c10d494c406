// Cross-entropy of a chunk of logits at the presets' vocabulary, and at a smaller and a larger one; and of
// the vocabulary's shards on 2 and 8 ranks, in its two passes.
#include <numeric>

#include "bench/gpu/presets.h"
#include "bench/gpu/row_case.h"
#include "kernels/loss/loss.h"

namespace orchard::bench {
namespace {

constexpr DType f32 = DType::f32, bf16 = DType::bf16;

struct Logits {
  std::int64_t rows = 0, cols = 0;

  double elements() const { return static_cast<double>(rows * cols); }
  Shape shape() const { return {rows, cols}; }
};

// The logits of a chunk of rows.
Logits chunk_of(std::int64_t cols) {
  return {logits_rows(cols), cols};
}

Tensor targets(GpuBench& bench, const Logits& logits) {
  std::vector<std::int32_t> ids;
  for (std::int64_t r = 0; r < logits.rows; ++r)
    ids.push_back(static_cast<std::int32_t>(r * 31 % logits.cols));
  return bench.integers(ids);
}

void add_cross_entropy(std::vector<GpuCase>& cases, const Logits& l, DType gradient) {
  const bool in_place = gradient == f32;
  cases.push_back(row_case(fmt::format("cross_entropy/{}/{}x{}", name_of(gradient), l.rows, l.cols),
                           (in_place ? 8 : 6) * l.elements(), [=](GpuBench& bench) {
                             const Tensor logits = bench.random(f32, l.shape());
                             return CrossEntropy{
                                 .logits = logits,
                                 .targets = targets(bench, l),
                                 .scale = bench.random(f32, {1}),
                                 .losses = bench.random(f32, {l.rows}),
                                 .d_logits = in_place ? logits : bench.random(bf16, l.shape())};
                           }));
}

void add_shards(std::vector<GpuCase>& cases, std::int64_t vocabulary, std::int64_t ranks) {
  const Logits l = chunk_of(vocabulary / ranks);
  const VocabularyShard shard{.first_id = 0, .vocabulary = vocabulary};
  const std::string shape = fmt::format("{}/{}x{}", ranks, l.rows, l.cols);
  cases.push_back(
      row_case("cross_entropy/softmax_of_shard/" + shape, 8 * l.elements(), [=](GpuBench& bench) {
        const Tensor logits = bench.random(f32, l.shape());
        return SoftmaxOfShard{.logits = logits,
                              .targets = targets(bench, l),
                              .shard = shard,
                              .statistics = bench.zeros(f32, {l.rows, softmax_statistics}),
                              .exponentials = logits};
      }));
  cases.push_back(
      row_case("cross_entropy/of_shards/" + shape, 6 * l.elements(), [=](GpuBench& bench) {
        return CrossEntropyOfShards{
            .statistics = bench.random(f32, {ranks, l.rows, softmax_statistics}),
            .targets = targets(bench, l),
            .shard = shard,
            .scale = bench.random(f32, {1}),
            .losses = bench.random(f32, {l.rows}),
            .exponentials = bench.random(f32, l.shape()),
            .d_logits = bench.random(bf16, l.shape())};
      }));
}

}  // namespace

std::vector<GpuCase> loss_cases() {
  std::vector<GpuCase> cases;
  for (const std::int64_t vocabulary :
       each_once([](const Preset& p) { return p.model.decoder.vocabulary; })) {
    for (const DType gradient : {bf16, f32})
      add_cross_entropy(cases, chunk_of(vocabulary), gradient);
    for (const std::int64_t ranks : {2, 8}) add_shards(cases, vocabulary, ranks);
  }
  for (const std::int64_t vocabulary : {24064, 102400})
    add_cross_entropy(cases, chunk_of(vocabulary), bf16);
  return cases;
}

}  // namespace orchard::bench
