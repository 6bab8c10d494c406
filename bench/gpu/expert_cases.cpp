// The experts' products of the sparse presets: of rows in the experts' order, beside one product an
// expert; of tokens that an index names, beside the copy and the product; and with SwiGLU in the gate's
// epilogue, beside the product and the operation after it.
#include "bench/gpu/linear_layers.h"
#include "bench/gpu/presets.h"
#include "kernels/activation/activation.h"
#include "kernels/permute/permute.h"

namespace orchard::bench {
namespace {

// A layer of every expert: its rows are the tokens' choices.
struct ExpertLayer {
  std::string name;
  std::int64_t tokens = 0, choices = 0, experts = 0;  // choices: of all tokens
  std::int64_t in = 0, out = 0;

  std::string shape() const {
    return fmt::format("{}x{}x{}x{}", experts, choices / experts, in, out);
  }
  double flops() const { return product_flops(choices, in, out); }
  // The weights are bf16, and their gradients f32, read and written.
  DType weight_type(Direction direction) const {
    return direction == Direction::weight_gradient ? DType::f32 : DType::bf16;
  }
  double weight_bytes(Direction direction) const {
    const int times = direction == Direction::weight_gradient ? 2 : 1;
    return bytes_of(weight_type(direction), experts * in * out) * times;
  }
};

// Every other expert has three times the rows of its neighbour.
std::vector<std::int32_t> expert_offsets(const ExpertLayer& layer) {
  std::vector<std::int32_t> offsets{0};
  const auto share = static_cast<std::int32_t>(layer.choices / layer.experts / 2);
  for (std::int64_t e = 0; e < layer.experts; ++e)
    offsets.push_back(offsets.back() + share * (e % 2 ? 3 : 1));
  return offsets;
}

// The tokens of neighbouring rows lie far apart, and each has as many rows.
std::vector<std::int32_t> scattered_tokens(const ExpertLayer& layer) {
  std::vector<std::int32_t> tokens;
  for (std::int64_t row = 0; row < layer.choices; ++row)
    tokens.push_back(static_cast<std::int32_t>(row * 1031 % layer.tokens));
  return tokens;
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

bool run_looped(GpuBench& bench, Direction direction, const GroupedOperands& on) {
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
    done = bench.run_library(op) && done;
  }
  return done;
}

GpuCase grouped_case(const ExpertLayer& layer, Direction direction) {
  const std::int64_t count = layer.choices, in = layer.in, out = layer.out;
  return {
      .name = fmt::format("grouped/{}.{}/{}", layer.name, name_of(direction), layer.shape()),
      .flops = layer.flops(),
      .bytes = bytes_of(DType::bf16, count * (in + out)) + layer.weight_bytes(direction),
      .prepare = [=](GpuBench& bench) -> GpuCase::Calls {
        const std::vector<std::int32_t> offsets = expert_offsets(layer);
        const GroupedOperands on{
            .x = bench.random(DType::bf16, {count, in}),
            .y = bench.random(DType::bf16, {count, out}),
            .w = bench.random(layer.weight_type(direction), {layer.experts, out, in}, 0.02f),
            .offsets = bench.integers(offsets),
            .host_offsets = offsets};
        GpuCase::Calls calls{.ours = [=, &bench] { run_grouped(bench.stream(), direction, on); }};
        if (run_looped(bench, direction, on)) {
          calls.reference = [=, &bench] { run_looped(bench, direction, on); };
          calls.reference_name = "library, looped";
        }
        return calls;
      }};
}

// Of tokens, of which each has two rows, beside that of rows that are copied first.
GpuCase gathered_case(const ExpertLayer& layer, Direction direction) {
  const std::int64_t count = layer.choices, tokens = layer.tokens, in = layer.in, out = layer.out;
  return {.name = fmt::format("gathered/{}.{}/{}", layer.name, name_of(direction), layer.shape()),
          .flops = layer.flops(),
          .bytes = bytes_of(DType::bf16, tokens * in + count * out) + bytes_of(DType::i32, count) +
                   layer.weight_bytes(direction),
          .prepare = [=](GpuBench& bench) -> GpuCase::Calls {
            const GroupedOperands on{
                .x = bench.random(DType::bf16, {tokens, in}),
                .y = bench.random(DType::bf16, {count, out}),
                .w = bench.random(layer.weight_type(direction), {layer.experts, out, in}, 0.02f),
                .offsets = bench.integers(expert_offsets(layer)),
                .source = bench.integers(scattered_tokens(layer))};
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

// The gate's product as a rank with all experts runs it: of tokens, through SwiGLU.
GpuCase gate_case(const ExpertLayer& layer) {
  const std::int64_t count = layer.choices, tokens = layer.tokens, in = layer.in, out = layer.out;
  return {.name = fmt::format("epilogue/{}.silu_gate/{}", layer.name, layer.shape()),
          .flops = layer.flops(),
          // Tokens, the gate, the up-projection and the result.
          .bytes = bytes_of(DType::bf16, tokens * in + 3 * count * out) +
                   bytes_of(DType::i32, count) + layer.weight_bytes(Direction::forward),
          .prepare = [=](GpuBench& bench) -> GpuCase::Calls {
            const Tensor gate = bench.random(DType::bf16, {count, out});
            const Tensor up = bench.random(DType::bf16, {count, out});
            const Tensor offsets = bench.integers(expert_offsets(layer));
            const GroupedGemm fused{
                .a = bench.random(DType::bf16, {tokens, in}),
                .b = bench.random(DType::bf16, {layer.experts, out, in}, 0.02f),
                .c = bench.random(DType::bf16, {count, out}),
                .row_offsets = offsets,
                .source = bench.integers(scattered_tokens(layer)),
                .transpose_b = Transpose::yes,
                .epilogue = {.kind = EpilogueKind::silu_gate, .other = up, .pre = gate}};
            GroupedGemm plain = fused;
            plain.c = gate;
            plain.epilogue = {};
            const SwiGluForward behind{
                .gate = gate, .up = up, .y = fused.c, .row_count = offsets.slice(layer.experts, 1)};
            Stream& stream = bench.stream();
            return {.ours = [=, &stream] { run(stream, fused); },
                    .reference =
                        [=, &stream] {
                          run(stream, plain);
                          run(stream, behind);
                        },
                    .reference_name = "unfused"};
          }};
}

}  // namespace

std::vector<GpuCase> expert_cases() {
  std::vector<GpuCase> cases;
  for (const Preset& p : presets()) {
    if (!p.is_sparse()) continue;
    const DecoderConfig& d = p.model.decoder;
    const ExpertLayer up{.name = p.name + ".up",
                         .tokens = p.tokens(),
                         .choices = p.tokens() * d.moe.top_k,
                         .experts = d.moe.experts,
                         .in = d.hidden,
                         .out = d.ffn};
    ExpertLayer down = up, gate = up;
    down.name = p.name + ".down";
    std::swap(down.in, down.out);
    gate.name = p.name + ".gate";
    for (const ExpertLayer& layer : {up, down}) {
      for (const Direction direction :
           {Direction::forward, Direction::input_gradient, Direction::weight_gradient})
        cases.push_back(grouped_case(layer, direction));
    }
    for (const Direction direction : {Direction::forward, Direction::weight_gradient})
      cases.push_back(gathered_case(up, direction));
    cases.push_back(gate_case(gate));
  }
  return cases;
}

}  // namespace orchard::bench
