// Rows that an index names, at the widths of the presets: embeddings, of text and of text with pictures,
// and the rows that have targets. Bytes are those of the rows, each once; indices do not count.
#include <set>

#include "bench/gpu/presets.h"
#include "bench/gpu/row_case.h"
#include "kernels/embedding/embedding.h"

namespace orchard::bench {
namespace {

constexpr DType f32 = DType::f32, bf16 = DType::bf16;

// One token in eight is the same, as words of a language repeat; the others scatter over the
// vocabulary.
std::vector<std::int32_t> token_ids(std::int64_t tokens, std::int64_t vocabulary) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens));
  for (std::size_t t = 0; t < ids.size(); ++t) {
    ids[t] =
        t % 8 == 0
            ? 13
            : static_cast<std::int32_t>(t * 2654435761u % static_cast<std::size_t>(vocabulary));
  }
  return ids;
}

// The pictures' rows first.
std::vector<std::int32_t> with_pictures(std::vector<std::int32_t> ids, std::int64_t visual_rows) {
  for (std::int64_t row = 0; row < visual_rows; ++row)
    ids[static_cast<std::size_t>(row)] = static_cast<std::int32_t>(-1 - row);
  return ids;
}

double distinct_tokens(const std::vector<std::int32_t>& ids) {
  std::set<std::int32_t> distinct(ids.begin(), ids.end());
  distinct.erase(distinct.begin(), distinct.lower_bound(0));
  return static_cast<double>(distinct.size());
}

void add_embedding(std::vector<GpuCase>& cases, const Preset& p, std::int64_t visual) {
  const std::int64_t tokens = p.tokens(), hidden = p.model.decoder.hidden;
  const std::int64_t vocabulary = p.model.decoder.vocabulary;
  const std::vector<std::int32_t> ids = with_pictures(token_ids(tokens, vocabulary), visual);
  const auto cols = static_cast<double>(hidden);
  const double of_tokens = 2 * static_cast<double>(tokens) * cols;
  const double of_visual = 2 * static_cast<double>(visual) * cols;
  const double of_ids = distinct_tokens(ids) * cols;
  const auto name = [&](const char* direction) {
    return fmt::format("{}/{}/{}x{}", visual ? "embedding_with_pictures" : "embedding", direction,
                       tokens, hidden);
  };
  cases.push_back(
      row_case(name("forward"), 2 * of_ids + of_visual + of_tokens, [=](GpuBench& bench) {
        return EmbeddingForward{.table = bench.random(bf16, {vocabulary, hidden}),
                                .visual = visual ? bench.random(bf16, {visual, hidden}) : Tensor(),
                                .sources = bench.integers(ids),
                                .y = bench.random(bf16, {tokens, hidden})};
      }));
  cases.push_back(
      row_case(name("backward"), 8 * of_ids + of_visual + of_tokens, [=](GpuBench& bench) {
        return EmbeddingBackward{
            .d_y = bench.random(bf16, {tokens, hidden}),
            .sources = bench.integers(ids),
            .d_table = bench.zeros(f32, {vocabulary, hidden}),
            .d_visual = visual ? bench.random(bf16, {visual, hidden}) : Tensor()};
      }));
}

// Every other row has a target.
void add_target_rows(std::vector<GpuCase>& cases, const Preset& p) {
  const std::int64_t tokens = p.tokens(), targets = p.targets(), hidden = p.model.decoder.hidden;
  std::vector<std::int32_t> indices(static_cast<std::size_t>(targets));
  for (std::size_t i = 0; i < indices.size(); ++i) indices[i] = static_cast<std::int32_t>(2 * i);
  const std::string shape = fmt::format("{}x{}", tokens, hidden);
  const auto of = [&](std::int64_t rows) { return 2 * static_cast<double>(rows * hidden); };
  cases.push_back(row_case("gather_rows/" + shape, 2 * of(targets), [=](GpuBench& bench) {
    return GatherRows{.x = bench.random(bf16, {tokens, hidden}),
                      .indices = bench.integers(indices),
                      .y = bench.random(bf16, {targets, hidden})};
  }));
  cases.push_back(row_case("scatter_rows/" + shape, of(targets) + of(tokens), [=](GpuBench& bench) {
    return ScatterRows{.x = bench.random(bf16, {targets, hidden}),
                       .indices = bench.integers(indices),
                       .y = bench.random(bf16, {tokens, hidden})};
  }));
}

}  // namespace

std::vector<GpuCase> table_cases() {
  std::vector<GpuCase> cases;
  for (const Preset& p : presets()) {
    if (p.is_sparse()) continue;  // as the dense one
    add_embedding(cases, p, 0);
    add_embedding(cases, p, p.visual_tokens());
    add_target_rows(cases, p);
  }
  return cases;
}

}  // namespace orchard::bench
