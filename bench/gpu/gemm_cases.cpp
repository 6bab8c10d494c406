// Matrix products at the shapes of the presets (launch/recipes): the linear layers of their decoders
// and of the vision tower at 8192 rows, forward and both gradients, and the experts' products, of rows and
// of tokens that an index names; those with an epilogue beside the two operations that it replaces; and a batch.
#include "bench/gpu/gpu_bench.h"
#include "kernels/activation/activation.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/gemm/gemm.h"
#include "kernels/permute/permute.h"

namespace orchard::bench {
namespace {

constexpr std::int64_t rows = 8192;

enum class Direction { forward, input_gradient, weight_gradient };

struct Layer {
  const char* name;
  std::int64_t in, out;
};

// q and o are as wide as the decoder; k and v have eight heads of 128.
constexpr Layer layers[] = {
    {"1b.q_o", 2048, 2048},        {"1b.k_v", 2048, 1024},        {"1b.ffn_up", 2048, 5632},
    {"1b.ffn_down", 5632, 2048},   {"3b.q_o", 3072, 3072},        {"3b.k_v", 3072, 1024},
    {"3b.ffn_up", 3072, 8064},     {"3b.ffn_down", 8064, 3072},   {"7b.q_o", 4096, 4096},
    {"7b.k_v", 4096, 1024},        {"7b.ffn_up", 4096, 13312},    {"7b.ffn_down", 13312, 4096},
    {"30b.q_o", 7168, 7168},       {"30b.k_v", 7168, 1024},       {"30b.ffn_up", 7168, 23552},
    {"30b.ffn_down", 23552, 7168}, {"vit.attention", 1280, 1280}, {"vit.mlp_up", 1280, 5120},
    {"vit.mlp_down", 5120, 1280},  {"3b.head", 3072, 49152},
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

// The experts' products of one direction, as one operation or one product an expert.
struct GroupedOperands {
  Tensor x, y, w;  // [rows, in], [rows, out], [experts, out, in]
  Tensor offsets;
  std::vector<std::int32_t> host_offsets;
  Tensor source = {};  // the token of each row, where x has tokens
};

void run_grouped(Stream& stream, Direction direction, const GroupedOperands& on) {
  switch (direction) {
    case Direction::forward:
      return run(stream, GroupedGemm{.a = on.x,
                                     .b = on.w,
                                     .c = on.y,
                                     .row_offsets = on.offsets,
                                     .source = on.source,
                                     .transpose_b = Transpose::yes});
    case Direction::input_gradient:
      return run(stream, GroupedGemm{.a = on.y, .b = on.w, .c = on.x, .row_offsets = on.offsets});
    case Direction::weight_gradient:
      return run(
          stream,
          GroupedGemmWeightGradient{
              .a = on.y, .b = on.x, .d_b = on.w, .row_offsets = on.offsets, .source = on.source});
  }
}

bool run_looped(Stream& stream, Direction direction, const GroupedOperands& on) {
  bool done = true;
  for (std::int64_t e = 0; e < on.w.dim(0); ++e) {
    const std::int64_t begin = on.host_offsets[static_cast<std::size_t>(e)];
    const std::int64_t count = on.host_offsets[static_cast<std::size_t>(e) + 1] - begin;
    const Tensor x = on.x.slice(begin, count), y = on.y.slice(begin, count);
    Gemm op = form_of(direction);
    op.b = on.w.slice(e, 1).reshape({on.w.dim(1), on.w.dim(2)});
    if (direction == Direction::forward) op.a = x, op.c = y;
    if (direction == Direction::input_gradient) op.a = y, op.c = x;
    if (direction == Direction::weight_gradient) {
      op.c = on.w.slice(e, 1).reshape({on.w.dim(1), on.w.dim(2)});
      op.a = y, op.b = x;
    }
    done = cuda::run_library(stream, op) && done;
  }
  return done;
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
        const std::vector<std::int32_t> offsets = expert_offsets(count, experts);
        const GroupedOperands on{.x = bench.random(DType::bf16, {count, in}),
                                 .y = bench.random(DType::bf16, {count, out}),
                                 .w = bench.random(weight_type, {experts, out, in}, 0.02f),
                                 .offsets = bench.integers(offsets),
                                 .host_offsets = offsets};
        Stream& stream = bench.stream();
        GpuCase::Calls calls{.ours = [=, &stream] { run_grouped(stream, direction, on); }};
        if (cuda::cublaslt_absence().empty() && run_looped(stream, direction, on)) {
          calls.reference = [=, &stream] { run_looped(stream, direction, on); };
          calls.reference_name = "library, looped";
        }
        return calls;
      }};
}

// The experts' products of tokens, of which each has two rows, beside those of rows that are copied first.
GpuCase gathered_case(const std::string& name, Direction direction, const Layer& layer,
                      int experts) {
  const std::int64_t count = 2 * rows, in = layer.in, out = layer.out;
  const bool gradient = direction == Direction::weight_gradient;
  const DType weight_type = gradient ? DType::f32 : DType::bf16;
  return {.name = fmt::format("gathered/{}.{}/{}x{}x{}x{}", layer.name, name, experts,
                              count / experts, in, out),
          .flops = 2.0 * static_cast<double>(count) * static_cast<double>(in * out),
          .bytes = static_cast<double>(
              bytes_of(DType::bf16, rows * in + count * out) + bytes_of(DType::i32, count) +
              bytes_of(weight_type, experts * in * out) * (gradient ? 2 : 1)),
          .prepare = [=](GpuBench& bench) -> GpuCase::Calls {
            std::vector<std::int32_t> tokens;  // of neighbouring rows far apart, each twice
            for (std::int64_t row = 0; row < count; ++row)
              tokens.push_back(static_cast<std::int32_t>(row * 1031 % rows));
            const GroupedOperands on{.x = bench.random(DType::bf16, {rows, in}),
                                     .y = bench.random(DType::bf16, {count, out}),
                                     .w = bench.random(weight_type, {experts, out, in}, 0.02f),
                                     .offsets = bench.integers(expert_offsets(count, experts)),
                                     .source = bench.integers(tokens)};
            GroupedOperands copied = on;
            copied.x = bench.random(DType::bf16, {count, in});
            copied.source = {};
            Stream& stream = bench.stream();
            return {.ours = [=, &stream] { run_grouped(stream, direction, on); },
                    .reference =
                        [=, &stream] {
                          run(stream, DispatchForward{.x = on.x,
                                                      .source = on.source,
                                                      .row_offsets = on.offsets,
                                                      .rows = copied.x});
                          run_grouped(stream, direction, copied);
                        },
                    .reference_name = "copied first"};
          }};
}

// A product through an epilogue, beside the same product and the operation after it.
GpuCase epilogue_case(const Layer& layer, EpilogueKind kind) {
  const std::int64_t in = layer.in, out = layer.out;
  const bool gate = kind == EpilogueKind::silu_gate;
  // x, the weight, v and the result; the up-projection where there is one.
  const std::int64_t elements = rows * in + in * out + (gate ? 3 : 2) * rows * out;
  return {.name = fmt::format("epilogue/{}.{}/{}x{}x{}", layer.name,
                              gate ? "silu_gate" : "quick_gelu", rows, out, in),
          .flops = 2.0 * static_cast<double>(rows) * static_cast<double>(in * out),
          .bytes = static_cast<double>(bytes_of(DType::bf16, elements)),
          .prepare = [=](GpuBench& bench) -> GpuCase::Calls {
            const Tensor v = bench.random(DType::bf16, {rows, out});
            const Tensor up = gate ? bench.random(DType::bf16, {rows, out}) : Tensor();
            const Gemm fused{.a = bench.random(DType::bf16, {rows, in}),
                             .b = bench.random(DType::bf16, {out, in}, 0.02f),
                             .c = bench.random(DType::bf16, {rows, out}),
                             .transpose_b = Transpose::yes,
                             .epilogue = {.kind = kind, .other = up, .pre = v}};
            Gemm plain = fused;
            plain.c = v;
            plain.epilogue = {};
            Stream& stream = bench.stream();
            return {.ours = [=, &stream] { run(stream, fused); },
                    .reference =
                        [=, &stream] {
                          run(stream, plain);
                          if (gate) {
                            run(stream, SwiGluForward{.gate = v, .up = up, .y = fused.c});
                          } else {
                            run(stream, ActivationForward{
                                            .kind = Activation::quick_gelu, .x = v, .y = fused.c});
                          }
                        },
                    .reference_name = "unfused"};
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
  for (const Layer& layer : {Layer{"1b-moe.up", 2048, 5632}, Layer{"1b-moe.down", 5632, 2048},
                             Layer{"3b-moe.up", 3072, 8064}, Layer{"3b-moe.down", 8064, 3072}}) {
    cases.push_back(grouped_case("forward", Direction::forward, layer, 64));
    cases.push_back(grouped_case("input_gradient", Direction::input_gradient, layer, 64));
    cases.push_back(grouped_case("weight_gradient", Direction::weight_gradient, layer, 64));
  }
  for (const Layer& layer : {Layer{"1b-moe.up", 2048, 5632}, Layer{"3b-moe.up", 3072, 8064}}) {
    cases.push_back(gathered_case("forward", Direction::forward, layer, 64));
    cases.push_back(gathered_case("weight_gradient", Direction::weight_gradient, layer, 64));
  }
  for (const Layer& layer : {Layer{"1b.ffn_gate", 2048, 5632}, Layer{"3b.ffn_gate", 3072, 8064},
                             Layer{"7b.ffn_gate", 4096, 13312}}) {
    cases.push_back(epilogue_case(layer, EpilogueKind::silu_gate));
  }
  cases.push_back(epilogue_case({"vit.mlp_up", 1280, 5120}, EpilogueKind::quick_gelu));
  return cases;
}

}  // namespace orchard::bench
