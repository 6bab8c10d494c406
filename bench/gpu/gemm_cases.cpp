// Matrix products at the shapes of the presets (launch/recipes): the linear layers of their decoders
// and of the vision tower at 8192 rows, forward and both gradients, and the experts' products; and a batch.
#include "bench/gpu/gpu_bench.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/gemm/gemm.h"

namespace orchard::bench {
namespace {

constexpr std::int64_t rows = 8192;

enum class Direction { forward, input_gradient, weight_gradient };

struct Layer {
  const char* name;
  std::int64_t in, out;
};

constexpr Layer layers[] = {
    {"1b.qkv", 2048, 4096},        {"1b.ffn_down", 5632, 2048},  {"3b.qkv", 3072, 5120},
    {"3b.ffn_up", 3072, 16128},    {"3b.ffn_down", 8064, 3072},  {"7b.qkv", 4096, 6144},
    {"7b.ffn_up", 4096, 26624},    {"7b.ffn_down", 13312, 4096}, {"30b.qkv", 7168, 9216},
    {"30b.ffn_down", 23552, 7168}, {"vit.mlp_up", 1280, 5120},   {"3b.head", 3072, 49152},
};

std::size_t bytes_of(DType dtype, std::int64_t elements) {
  return size_of(dtype) * static_cast<std::size_t>(elements);
}

// c [(batch,) m, n] = op(a) · op(b), weight gradients onto f32.
GpuCase gemm_case(const std::string& name, Gemm form, const GemmSizes& sizes) {
  const std::int64_t m = sizes.m, n = sizes.n, k = sizes.k, batch = sizes.batch;
  const auto matrices = [batch](std::int64_t height, std::int64_t width) {
    return batch == 1 ? Shape{height, width} : Shape{batch, height, width};
  };
  const DType out = form.accumulate == Accumulate::add ? DType::f32 : DType::bf16;
  return {.name = fmt::format("gemm/{}/{}{}x{}x{}", name,
                              batch == 1 ? "" : fmt::format("{}x", batch), m, n, k),
          .flops = 2.0 * static_cast<double>(batch * m) * static_cast<double>(n) *
                   static_cast<double>(k),
          .bytes = static_cast<double>(bytes_of(DType::bf16, batch * (m * k + k * n)) +
                                       bytes_of(out, batch * m * n) *
                                           (form.accumulate == Accumulate::add ? 2 : 1)),
          .prepare = [=](GpuBench& bench) -> GpuCase::Calls {
            Gemm op = form;
            const bool ta = op.transpose_a == Transpose::yes, tb = op.transpose_b == Transpose::yes;
            op.a = bench.random(DType::bf16, ta ? matrices(k, m) : matrices(m, k));
            op.b = bench.random(DType::bf16, tb ? matrices(n, k) : matrices(k, n), 0.02f);
            op.c = bench.random(out, matrices(m, n));
            const auto library = [&bench, op] { return cuda::run_library(bench.stream(), op); };
            GpuCase::Calls calls{.ours = [&bench, op] { run(bench.stream(), op); }};
            if (cuda::cublaslt_absence().empty() && library()) calls.reference = library;
            return calls;
          }};
}

Gemm form_of(Direction direction) {
  switch (direction) {
    case Direction::forward:
      return {.transpose_b = Transpose::yes};
    case Direction::input_gradient:
      return {};
    case Direction::weight_gradient:
      return {.transpose_a = Transpose::yes, .accumulate = Accumulate::add};
  }
  return {};
}

// 64 experts, two a token; every other expert has three times the rows of its neighbour.
std::vector<std::int32_t> expert_offsets(std::int64_t total, int experts) {
  std::vector<std::int32_t> offsets{0};
  const auto share = static_cast<std::int32_t>(total / experts / 2);
  for (int e = 0; e < experts; ++e) offsets.push_back(offsets.back() + share * (e % 2 ? 3 : 1));
  return offsets;
}

GpuCase grouped_case(const std::string& name, Direction direction, const Layer& layer,
                     int experts) {
  const std::int64_t count = 2 * rows, in = layer.in, out = layer.out;
  const bool gradient = direction == Direction::weight_gradient;
  const DType weight_type = gradient ? DType::f32 : DType::bf16;
  return {
      .name = fmt::format("grouped/{}.{}/{}x{}x{}x{}", layer.name, name, experts, count / experts,
                          in, out),
      .flops = 2.0 * static_cast<double>(count) * static_cast<double>(in * out),
      .bytes = static_cast<double>(bytes_of(DType::bf16, count * (in + out)) +
                                   bytes_of(weight_type, experts * in * out) * (gradient ? 2 : 1)),
      .prepare = [=](GpuBench& bench) -> GpuCase::Calls {
        const Tensor x = bench.random(DType::bf16, {count, in});
        const Tensor y = bench.random(DType::bf16, {count, out});
        const Tensor w = bench.random(weight_type, {experts, out, in}, 0.02f);
        const Tensor offsets = bench.integers(expert_offsets(count, experts));
        Stream& stream = bench.stream();
        switch (direction) {
          case Direction::forward:
            return {.ours = [=, &stream] {
              run(stream, GroupedGemm{.a = x,
                                      .b = w,
                                      .c = y,
                                      .row_offsets = offsets,
                                      .transpose_b = Transpose::yes});
            }};
          case Direction::input_gradient:
            return {.ours = [=, &stream] {
              run(stream, GroupedGemm{.a = y, .b = w, .c = x, .row_offsets = offsets});
            }};
          case Direction::weight_gradient:
            break;
        }
        return {.ours = [=, &stream] {
          run(stream, GroupedGemmWeightGradient{.a = y, .b = x, .d_b = w, .row_offsets = offsets});
        }};
      }};
}

}  // namespace

std::vector<GpuCase> gemm_cases() {
  std::vector<GpuCase> cases;
  for (const std::int64_t side : {1024, 4096, 8192}) {
    cases.push_back(gemm_case("square", form_of(Direction::forward), {side, side, side, 1}));
  }
  // Scores of 64 heads of 128 at 1024 positions.
  cases.push_back(gemm_case("batched", form_of(Direction::forward), {1024, 1024, 128, 64}));
  for (const Layer& layer : layers) {
    const std::string name = layer.name;
    cases.push_back(
        gemm_case(name + ".forward", form_of(Direction::forward), {rows, layer.out, layer.in, 1}));
    cases.push_back(gemm_case(name + ".input_gradient", form_of(Direction::input_gradient),
                              {rows, layer.in, layer.out, 1}));
    cases.push_back(gemm_case(name + ".weight_gradient", form_of(Direction::weight_gradient),
                              {layer.out, layer.in, rows, 1}));
  }
  for (const Layer& layer : {Layer{"1b-moe.up", 2048, 2816}, Layer{"3b-moe.down", 8064, 3072}}) {
    cases.push_back(grouped_case("forward", Direction::forward, layer, 64));
    cases.push_back(grouped_case("input_gradient", Direction::input_gradient, layer, 64));
    cases.push_back(grouped_case("weight_gradient", Direction::weight_gradient, layer, 64));
  }
  return cases;
}

}  // namespace orchard::bench
