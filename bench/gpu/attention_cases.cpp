// Attention, forward and backward, at the shapes of the presets: their decoders on whole sequences and on
// packed documents, and the vision tower on its tiles; and at some that others publish figures of. FLOPs
// are those of the pairs of a query and a key that see each other, 4·head_dim forward and 10·head_dim
// backward, whatever the kernels compute beyond them. Beside them, where cuBLASLt is found, its products
// alone of the same rows: whole squares of scores, also under a causal mask, with no softmax between.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "bench/gpu/gpu_bench.h"
#include "bench/gpu/presets.h"
#include "kernels/attention/attention.h"
#include "kernels/gemm/gemm.h"

namespace orchard::bench {
namespace {

struct Workload {
  std::string name;
  std::int64_t heads, kv_heads, head_dim;
  Mask mask;
  std::vector<std::int32_t> lengths;
  DType dtype = DType::bf16;
};

// Documents of a training mixture: a long one, and ever shorter ones behind it.
std::vector<std::int32_t> packed(std::int32_t tokens) {
  std::vector<std::int32_t> lengths;
  for (std::int32_t length = tokens / 2; tokens > 0; length = std::max(length * 3 / 4, 100)) {
    lengths.push_back(std::min(length, tokens));
    tokens -= lengths.back();
  }
  return lengths;
}

using Lengths = std::vector<std::int32_t>;

// Sequences of whole documents, and of packed ones.
void add_decoder(std::vector<Workload>& workloads, const Preset& p) {
  const DecoderConfig& d = p.model.decoder;
  const auto length = static_cast<std::int32_t>(p.length);
  Workload causal{p.name + ".causal", d.heads,      d.kv_heads,
                  d.head_dim,         Mask::causal, Lengths(Preset::sequences, length)};
  const auto same = [&](const Workload& w) {
    return w.heads == causal.heads && w.kv_heads == causal.kv_heads &&
           w.head_dim == causal.head_dim && w.lengths == causal.lengths;
  };
  if (std::any_of(workloads.begin(), workloads.end(), same)) return;
  workloads.push_back(causal);
  causal.name = p.name + ".packed";
  causal.lengths.clear();
  for (std::int64_t s = 0; s < Preset::sequences; ++s) {
    const Lengths documents = packed(length);
    causal.lengths.insert(causal.lengths.end(), documents.begin(), documents.end());
  }
  workloads.push_back(causal);
}

std::vector<Workload> workloads() {
  std::vector<Workload> all;
  for (const Preset& preset : presets()) add_decoder(all, preset);
  const VisionConfig& v = presets().front().model.vision;
  for (const TileBatch& p : presets().front().pictures) {
    all.push_back({"vit.full", v.heads, v.heads, v.width / v.heads, Mask::full,
                   Lengths(static_cast<std::size_t>(p.tiles),
                           static_cast<std::int32_t>(p.grid * p.grid + 1))});
  }
  const Workload others[] = {
      {"tiny.causal", 8, 4, 64, Mask::causal, Lengths(8, 2048)},
      {"64.causal", 32, 8, 64, Mask::causal, Lengths(2, 8192)},
      {"64.full", 32, 32, 64, Mask::full, Lengths(2, 4096)},
      {"128.causal", 32, 8, 128, Mask::causal, Lengths(2, 8192)},
      {"128.full", 16, 16, 128, Mask::full, Lengths(4, 4096)},
      {"128.causal", 24, 8, 128, Mask::causal, Lengths(2, 2048), DType::f32},
  };
  all.insert(all.end(), std::begin(others), std::end(others));
  return all;
}

enum class Direction { forward, backward };

double pairs_of(const Workload& w) {
  double pairs = 0;
  for (const double n : w.lengths) pairs += w.mask == Mask::full ? n * n : n * (n + 1) / 2;
  return pairs * static_cast<double>(w.heads);
}

// The products of one attention, a batch of heads for each run of documents of one length. All write
// over the same scores, and over each other's results.
std::vector<Gemm> products_of(GpuBench& bench, const Workload& w, Direction direction) {
  struct Batch {
    std::int64_t heads, length;
  };
  std::vector<Batch> batches;
  for (const std::int64_t length : w.lengths) {
    if (batches.empty() || batches.back().length != length) batches.push_back({0, length});
    batches.back().heads += w.heads;
  }
  std::int64_t most_rows = 0, most_scores = 0;
  for (const Batch& batch : batches) {
    most_rows = std::max(most_rows, batch.heads * batch.length);
    most_scores = std::max(most_scores, batch.heads * batch.length * batch.length);
  }
  const Tensor left = bench.random(w.dtype, {most_rows * w.head_dim});
  const Tensor right = bench.random(w.dtype, {most_rows * w.head_dim});
  const Tensor result = bench.random(w.dtype, {most_rows * w.head_dim});
  const Tensor all_scores = bench.random(w.dtype, {most_scores});
  std::vector<Gemm> products;
  for (const Batch& batch : batches) {
    const auto rows = [&](const Tensor& x) {
      return x.slice(0, batch.heads * batch.length * w.head_dim)
          .reshape({batch.heads, batch.length, w.head_dim});
    };
    const Tensor scores = all_scores.slice(0, batch.heads * batch.length * batch.length)
                              .reshape({batch.heads, batch.length, batch.length});
    const Gemm of_rows{
        .a = rows(left), .b = rows(right), .c = scores, .transpose_b = Transpose::yes};
    const Gemm of_scores{.a = scores, .b = rows(right), .c = rows(result)};
    Gemm of_transposed = of_scores;
    of_transposed.transpose_a = Transpose::yes;
    if (direction == Direction::forward) {
      products.insert(products.end(), {of_rows, of_scores});  // q·kᵀ, P·v
    } else {  // q·kᵀ, d_out·vᵀ, d_S·k; Pᵀ·d_out, d_Sᵀ·q
      products.insert(products.end(), {of_rows, of_rows, of_scores, of_transposed, of_transposed});
    }
  }
  return products;
}

// Adds the reference, where cuBLASLt can give it.
GpuCase::Calls beside_products(GpuBench& bench, const Workload& w, Direction direction,
                               std::function<void()> ours) {
  GpuCase::Calls calls{.ours = std::move(ours)};
  const auto multiply = [&bench, products = products_of(bench, w, direction)] {
    bool done = true;
    for (const Gemm& product : products) done = bench.run_library(product) && done;
    return done;
  };
  if (!multiply()) return calls;
  calls.reference = multiply;
  calls.reference_name = "library, products alone";
  return calls;
}

GpuCase attention_case(const Workload& w, Direction direction) {
  const bool forward = direction == Direction::forward;
  const std::int64_t tokens = std::accumulate(w.lengths.begin(), w.lengths.end(), std::int64_t{0});
  const std::int64_t queries = tokens * w.heads * w.head_dim;
  const std::int64_t keys = tokens * w.kv_heads * w.head_dim;
  // q, out, and k, v; backward reads d_out beside them and writes three gradients.
  const std::int64_t elements = forward ? 2 * queries + 2 * keys : 4 * queries + 4 * keys;
  return {
      .name =
          fmt::format("attention/{}.{}.{}/{}x{}x{}/{}", w.name, forward ? "forward" : "backward",
                      name_of(w.dtype), w.lengths.size(), w.lengths.front(), w.heads, w.head_dim),
      .flops = (forward ? 4.0 : 10.0) * static_cast<double>(w.head_dim) * pairs_of(w),
      .bytes = static_cast<double>(elements) * static_cast<double>(size_of(w.dtype)),
      .arithmetic = w.dtype,
      .prepare = [w, tokens, direction](GpuBench& bench) -> GpuCase::Calls {
        std::vector<std::int32_t> offsets{0};
        for (const std::int32_t n : w.lengths) offsets.push_back(offsets.back() + n);
        const Shape query_shape{tokens, w.heads, w.head_dim};
        const Shape key_shape{tokens, w.kv_heads, w.head_dim};
        const AttentionForward op{
            .q = bench.random(w.dtype, query_shape),
            .k = bench.random(w.dtype, key_shape),
            .v = bench.random(w.dtype, key_shape),
            .query_offsets = bench.integers(offsets),
            .mask = w.mask,
            .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(w.head_dim))),
            .out = bench.random(w.dtype, query_shape),
            .log_sum_exp = bench.random(DType::f32, {tokens, w.heads})};
        if (direction == Direction::forward)
          return beside_products(bench, w, direction, [&bench, op] { run(bench.stream(), op); });
        run(bench.stream(), op);  // backward takes its results
        const AttentionBackward gradients{.q = op.q,
                                          .k = op.k,
                                          .v = op.v,
                                          .out = op.out,
                                          .log_sum_exp = op.log_sum_exp,
                                          .d_out = bench.random(w.dtype, query_shape),
                                          .query_offsets = op.query_offsets,
                                          .mask = op.mask,
                                          .scale = op.scale,
                                          .d_q = bench.random(w.dtype, query_shape),
                                          .d_k = bench.random(w.dtype, key_shape),
                                          .d_v = bench.random(w.dtype, key_shape)};
        return beside_products(bench, w, direction,
                               [&bench, gradients] { run(bench.stream(), gradients); });
      }};
}

}  // namespace

std::vector<GpuCase> attention_cases() {
  std::vector<GpuCase> cases;
  for (const Workload& workload : workloads()) {
    cases.push_back(attention_case(workload, Direction::forward));
    cases.push_back(attention_case(workload, Direction::backward));
  }
  return cases;
}

}  // namespace orchard::bench
