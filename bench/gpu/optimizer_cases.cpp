// Optimizers on the largest matrices of the presets: a feed-forward's, attention's, the table of
// embeddings; and AdaFactor in parts on an eighth of a feed-forward's rows, as eight ranks have it.
#include "bench/gpu/presets.h"
#include "bench/gpu/row_case.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/optimizer/gradient_norm.h"
#include "kernels/optimizer/optimizer.h"

namespace orchard::bench {
namespace {

constexpr DType f32 = DType::f32, bf16 = DType::bf16;
// Small gradients and rates: the weights must stay finite over the runs.
constexpr float gradients = 1e-3f, rate = 1e-6f;

struct Matrix {
  std::int64_t rows = 0, cols = 0;

  double elements() const { return static_cast<double>(rows) * static_cast<double>(cols); }
  Shape shape() const { return {rows, cols}; }
  bool operator==(const Matrix&) const = default;
};

std::string named(const char* operation, const Matrix& m) {
  return fmt::format("{}/{}x{}", operation, m.rows, m.cols);
}

void add_adamw(std::vector<GpuCase>& cases, const Matrix& m) {
  cases.push_back(row_case(named("sum_of_squares", m), 4 * m.elements(), [=](GpuBench& bench) {
    return SumOfSquares{.x = bench.random(f32, m.shape()), .result = bench.random(f32, {1})};
  }));
  cases.push_back(row_case(named("adamw", m), 30 * m.elements(), [=](GpuBench& bench) {
    return AdamW{.weights = bench.random(f32, m.shape()),
                 .gradients = bench.random(f32, m.shape(), gradients),
                 .m = bench.zeros(f32, m.shape()),
                 .v = bench.zeros(f32, m.shape()),
                 .copy = bench.random(bf16, m.shape()),
                 .lr = rate};
  }));
}

// The norm's last steps, of one thread each: the squares of a large model's buckets, those of many ranks.
void add_norm(std::vector<GpuCase>& cases) {
  constexpr std::int64_t terms = 512;
  cases.push_back(row_case(named("sum_in_order", {1, terms}), 4.0 * terms, [=](GpuBench& bench) {
    return SumInOrder{.terms = bench.random(f32, {terms}), .sum = bench.zeros(DType::i64, {1})};
  }));
  cases.push_back(row_case(named("clip_by_norm", {1, terms}), 8.0 * terms, [=](GpuBench& bench) {
    return ClipByNorm{.squares = bench.zeros(DType::i64, {terms}),
                      .clip_norm = 1,
                      .norm = bench.zeros(DType::i64, {1}),
                      .scale = bench.zeros(f32, {1})};
  }));
}

void add_factored(std::vector<GpuCase>& cases, const Matrix& m) {
  cases.push_back(row_case(named("adafactor/factored", m), 22 * m.elements(), [=](GpuBench& bench) {
    return AdaFactor{.weights = bench.random(f32, m.shape()),
                     .gradients = bench.random(f32, m.shape(), gradients),
                     .v_row = bench.zeros(f32, {m.rows}),
                     .v_col = bench.zeros(f32, {m.cols}),
                     .copy = bench.random(bf16, m.shape()),
                     .lr = rate};
  }));
}

void add_full(std::vector<GpuCase>& cases, const Matrix& m) {
  cases.push_back(row_case(named("adafactor/full", m), 30 * m.elements(), [=](GpuBench& bench) {
    return AdaFactor{.weights = bench.random(f32, m.shape()),
                     .gradients = bench.random(f32, m.shape(), gradients),
                     .v = bench.zeros(f32, m.shape()),
                     .copy = bench.random(bf16, m.shape()),
                     .lr = rate};
  }));
}

// AdaFactor's parts of a rank with the rows `own` of a matrix of `all_rows`, factored or not; what a part
// takes from those before it is what they left.
struct Parts {
  Matrix own;
  std::int64_t all_rows = 0;  // 0: not factored

  bool factored() const { return all_rows > 0; }
  Tensor gradient(GpuBench& bench) const { return bench.random(f32, own.shape(), gradients); }
  AdaFactorSums sums(GpuBench& bench) const {
    return {.gradients = gradient(bench),
            .row_sums = bench.zeros(f32, {own.rows}),
            .col_sums = bench.zeros(f32, {own.cols})};
  }
  AdaFactorMeasure measure(GpuBench& bench) const {
    AdaFactorMeasure op{.squares = bench.zeros(f32, {1})};
    if (factored()) {
      const AdaFactorSums before = sums(bench);
      run(bench.stream(), before);
      op.gradients = before.gradients;
      op.row_sums = before.row_sums;
      op.col_sums = before.col_sums;
      op.v_row = bench.zeros(f32, {own.rows});
      op.v_col = bench.zeros(f32, {own.cols});
      op.rows = all_rows;
    } else {
      op.gradients = gradient(bench);
      op.v = bench.zeros(f32, own.shape());
    }
    return op;
  }
  AdaFactorApply apply(GpuBench& bench) const {
    const AdaFactorMeasure before = measure(bench);
    run(bench.stream(), before);
    return {.weights = bench.random(f32, own.shape()),
            .gradients = before.gradients,
            .v_row = before.v_row,
            .v_col = before.v_col,
            .v = before.v,
            .copy = bench.random(bf16, own.shape()),
            .squares = before.squares,
            .count = factored() ? all_rows * own.cols : own.shape().numel(),
            .lr = rate};
  }
};

void add_parts(std::vector<GpuCase>& cases, const Parts& parts) {
  const Matrix& own = parts.own;
  const auto name = [&](const char* part) {
    return named(
        fmt::format("adafactor/{}/{}", part, parts.factored() ? "factored" : "full").c_str(), own);
  };
  if (parts.factored()) {
    cases.push_back(row_case(name("sums"), 4 * own.elements(),
                             [=](GpuBench& bench) { return parts.sums(bench); }));
  }
  cases.push_back(row_case(name("measure"), (parts.factored() ? 4 : 12) * own.elements(),
                           [=](GpuBench& bench) { return parts.measure(bench); }));
  cases.push_back(row_case(name("apply"), (parts.factored() ? 14 : 18) * own.elements(),
                           [=](GpuBench& bench) { return parts.apply(bench); }));
}

}  // namespace

std::vector<GpuCase> optimizer_cases() {
  std::vector<GpuCase> cases;
  constexpr std::int64_t ranks = 8;
  const auto feed_forwards = each_once([](const Preset& p) {
    return Matrix{p.model.decoder.ffn, p.model.decoder.hidden};
  });
  const auto attentions = each_once([](const Preset& p) {
    const DecoderConfig& d = p.model.decoder;
    return Matrix{d.heads * d.head_dim, d.hidden};
  });
  const auto tables = each_once([](const Preset& p) {
    return Matrix{p.model.decoder.vocabulary, p.model.decoder.hidden};
  });
  add_norm(cases);
  for (const auto& matrices : {feed_forwards, tables})
    for (const Matrix& m : matrices) add_adamw(cases, m);
  for (const auto& matrices : {feed_forwards, attentions, tables})
    for (const Matrix& m : matrices) add_factored(cases, m);
  for (const Matrix& m : feed_forwards) add_parts(cases, {{m.rows / ranks, m.cols}, m.rows});
  // What is not factored is small in the presets; this shows what it costs.
  add_full(cases, feed_forwards.front());
  add_parts(cases, {feed_forwards.front()});
  return cases;
}

}  // namespace orchard::bench
