// What ranks do with rows and gradients on their way to each other, messages apart, at the shapes of the
// presets: the experts of the sparse ones dealt to eight ranks (kernels/permute/exchange.h), and the sums of
// eight ranks' parts (kernels/collective/rank_sum.h).
#include "bench/gpu/presets.h"
#include "bench/gpu/row_case.h"
#include "kernels/collective/rank_sum.h"
#include "kernels/permute/exchange.h"

namespace orchard::bench {
namespace {

constexpr std::int64_t ranks = 8;

std::vector<std::int32_t> counted(std::int64_t count, std::int64_t step, std::int64_t below) {
  std::vector<std::int32_t> values;
  for (std::int64_t i = 0; i < count; ++i)
    values.push_back(static_cast<std::int32_t>(i * step % below));
  return values;
}

// The target of each choice; and the node of each, two of them, once a token.
void add_map_choices(std::vector<GpuCase>& cases, const Preset& p) {
  const std::int64_t tokens = p.tokens(), experts = p.model.decoder.moe.experts;
  const std::int64_t k = p.model.decoder.moe.top_k;
  const auto map = [=](Repeats repeats, std::int64_t targets) {
    return [=](GpuBench& bench) {
      return MapChoices{.experts = bench.integers(counted(tokens * k, 37, experts), {tokens, k}),
                        .table = bench.integers(counted(experts, 1, targets), {experts, 1}),
                        .targets = bench.zeros(DType::i32, {tokens, k}),
                        .repeats = repeats};
    };
  };
  const double bytes = 8.0 * static_cast<double>(tokens * k);
  const std::string shape = fmt::format("{}x{}", tokens, k);
  cases.push_back(row_case("map_choices/targets/" + shape, bytes, map(Repeats::keep, experts)));
  cases.push_back(row_case("map_choices/nodes/" + shape, bytes, map(Repeats::drop, 2)));
}

// Rows that came from eight ranks, each rank's in the experts' order, put together by expert. A rank
// has an eighth of the experts and about as many rows as it has choices itself.
void add_copy_runs(std::vector<GpuCase>& cases, const Preset& p) {
  const std::int64_t experts = p.model.decoder.moe.experts, here = experts / ranks;
  const std::int64_t rows = p.tokens() * p.model.decoder.moe.top_k, hidden = p.model.decoder.hidden;
  const std::int64_t count = rows / experts;  // of an expert and a rank
  std::vector<std::int32_t> runs;
  for (std::int64_t expert = 0; expert < here; ++expert) {
    for (std::int64_t rank = 0; rank < ranks; ++rank) {
      for (const std::int64_t word :
           {(rank * here + expert) * count, (expert * ranks + rank) * count, count})
        runs.push_back(static_cast<std::int32_t>(word));
    }
  }
  cases.push_back(row_case(fmt::format("copy_runs/{}x{}", rows, hidden),
                           4.0 * static_cast<double>(rows * hidden), [=](GpuBench& bench) {
                             return CopyRuns{
                                 .x = bench.random(DType::bf16, {rows, hidden}),
                                 .runs = bench.integers(runs, {std::ssize(runs) / 3, 3}),
                                 .y = bench.random(DType::bf16, {rows, hidden})};
                           }));
}

// Every token goes to one node, with its choices' targets.
void add_packing(std::vector<GpuCase>& cases, const Preset& p) {
  const std::int64_t tokens = p.tokens(), hidden = p.model.decoder.hidden;
  const std::int64_t slots = p.model.decoder.moe.top_k;
  const std::int64_t packed = packed_row_bytes(hidden, DType::bf16, slots);
  // Rows apart, targets, and both together.
  const double bytes = static_cast<double>(tokens * (2 * hidden + 4 * slots + packed));
  const std::string shape = fmt::format("{}x{}x{}", tokens, slots, hidden);
  cases.push_back(row_case("pack_rows/" + shape, bytes, [=](GpuBench& bench) {
    return PackRows{.x = bench.random(DType::bf16, {tokens, hidden}),
                    .targets = bench.zeros(DType::i32, {tokens, slots}),
                    .source = bench.integers(counted(tokens, 1031, tokens)),
                    .packed = bench.bytes({tokens, packed})};
  }));
  cases.push_back(row_case("unpack_rows/" + shape, bytes, [=](GpuBench& bench) {
    return UnpackRows{.packed = bench.bytes({tokens, packed}),
                      .x = bench.random(DType::bf16, {tokens, hidden}),
                      .targets = bench.zeros(DType::i32, {tokens, slots})};
  }));
}

void add_rank_sum(std::vector<GpuCase>& cases, DType dtype, std::int64_t count) {
  const double bytes = static_cast<double>(ranks + 1) * static_cast<double>(size_of(dtype)) * count;
  cases.push_back(row_case(fmt::format("rank_sum/{}/{}x{}", name_of(dtype), ranks, count), bytes,
                           [=](GpuBench& bench) {
                             return RankSum{.parts = bench.random(dtype, {ranks, count}),
                                            .own = bench.random(dtype, {count}),
                                            .result = bench.random(dtype, {count})};
                           }));
}

}  // namespace

std::vector<GpuCase> exchange_cases() {
  std::vector<GpuCase> cases;
  bool mapped = false;
  for (const Preset& p : presets()) {
    if (!p.is_sparse()) continue;
    if (!mapped) add_map_choices(cases, p);  // of integers alone: all sparse presets are alike
    mapped = true;
    add_copy_runs(cases, p);
    add_packing(cases, p);
  }
  // Gradients of a matrix, each rank's share; and the residual stream between tensor ranks.
  for (const Preset& p : presets()) {
    const DecoderConfig& d = p.model.decoder;
    if (p.is_sparse()) continue;
    add_rank_sum(cases, DType::f32, d.hidden * d.ffn / ranks);
    add_rank_sum(cases, DType::bf16, p.tokens() * d.hidden / ranks);
  }
  return cases;
}

}  // namespace orchard::bench
