// Matrix products: the presets' linear layers (linear_layers.h), forward and both gradients; those with an
// epilogue beside the two operations that it replaces; squares, and a batch. The experts' are in
// expert_cases.cpp.
#include "bench/gpu/linear_layers.h"
#include "bench/gpu/presets.h"
#include "kernels/activation/activation.h"

namespace orchard::bench {
namespace {

// A product of one type, into c of another.
struct Product {
  Gemm form;
  GemmSizes sizes;
  DType dtype = DType::bf16, result = DType::bf16;
};

// c [(batch,) m, n] = op(a) · op(b).
GpuCase gemm_case(const std::string& name, const Product& product) {
  const std::int64_t m = product.sizes.m, n = product.sizes.n, k = product.sizes.k;
  const std::int64_t batch = product.sizes.batch;
  const auto matrices = [batch](std::int64_t height, std::int64_t width) {
    return batch == 1 ? Shape{height, width} : Shape{batch, height, width};
  };
  const bool adds = product.form.accumulate == Accumulate::add;
  return {.name = fmt::format("gemm/{}/{}{}x{}x{}", name,
                              batch == 1 ? "" : fmt::format("{}x", batch), m, n, k),
          .flops = product_flops(batch * m, k, n),
          .bytes = bytes_of(product.dtype, batch * (m * k + k * n)) +
                   bytes_of(product.result, batch * m * n) * (adds ? 2 : 1),
          .arithmetic = product.dtype,
          .prepare = [=](GpuBench& bench) -> GpuCase::Calls {
            Gemm op = product.form;
            const bool ta = op.transpose_a == Transpose::yes, tb = op.transpose_b == Transpose::yes;
            op.a = bench.random(product.dtype, ta ? matrices(k, m) : matrices(m, k));
            op.b = bench.random(product.dtype, tb ? matrices(n, k) : matrices(k, n), 0.02f);
            op.c = bench.random(product.result, matrices(m, n));
            GpuCase::Calls calls{.ours = [&bench, op] { run(bench.stream(), op); }};
            const auto library = [&bench, op] { return bench.run_library(op); };
            if (library()) calls.reference = library;
            return calls;
          }};
}

Product product_of(const LinearLayer& layer, Direction direction) {
  Product product{.form = form_of(direction), .dtype = layer.dtype};
  switch (direction) {
    case Direction::forward:
      product.sizes = {layer.rows, layer.out, layer.in, 1};
      product.result = layer.result;
      break;
    case Direction::input_gradient:
      product.sizes = {layer.rows, layer.in, layer.out, 1};
      product.result = layer.dtype;
      break;
    case Direction::weight_gradient:
      product.sizes = {layer.out, layer.in, layer.rows, 1};
      product.result = DType::f32;
      break;
  }
  return product;
}

// A product through an epilogue, beside the same product and the operation after it.
GpuCase epilogue_case(const LinearLayer& layer, EpilogueKind kind) {
  const std::int64_t rows = layer.rows, in = layer.in, out = layer.out;
  const bool gate = kind == EpilogueKind::silu_gate;
  // x, the weight, v and the result; the up-projection where there is one.
  const std::int64_t elements = rows * in + in * out + (gate ? 3 : 2) * rows * out;
  return {.name = fmt::format("epilogue/{}.{}/{}x{}x{}", layer.name,
                              gate ? "silu_gate" : "quick_gelu", rows, out, in),
          .flops = product_flops(rows, in, out),
          .bytes = bytes_of(DType::bf16, elements),
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
  const Gemm forward = form_of(Direction::forward);
  for (const std::int64_t side : {1024, 4096, 8192})
    cases.push_back(gemm_case("square", {forward, {side, side, side, 1}}));
  cases.push_back(
      gemm_case("square_f32", {forward, {4096, 4096, 4096, 1}, DType::f32, DType::f32}));
  // Scores of 64 heads of 128 at 1024 positions.
  cases.push_back(gemm_case("batched", {forward, {1024, 1024, 128, 64}}));
  for (const LinearLayer& layer : linear_layers()) {
    for (const Direction direction : layer.directions)
      cases.push_back(gemm_case(fmt::format("{}.{}", layer.name, name_of(direction)),
                                product_of(layer, direction)));
  }
  for (const LinearLayer& gate : ffn_gates())
    cases.push_back(epilogue_case(gate, EpilogueKind::silu_gate));
  for (const LinearLayer& layer : linear_layers())
    if (layer.name == "vit.mlp_up") cases.push_back(epilogue_case(layer, EpilogueKind::quick_gelu));
  return cases;
}

}  // namespace orchard::bench
