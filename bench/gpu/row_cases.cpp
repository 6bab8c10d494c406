// Norms and pointwise operations, at the shapes of the presets: tokens of the decoders, rows of the vision
// tower and of the connector. Beside each a plain copy that moves as many bytes.
#include "bench/gpu/linear_layers.h"
#include "bench/gpu/presets.h"
#include "bench/gpu/row_case.h"
#include "kernels/activation/activation.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/norm/norm.h"

namespace orchard::bench {
namespace {

constexpr DType f32 = DType::f32, bf16 = DType::bf16;

struct Rows {
  std::int64_t rows = 0, cols = 0;

  double elements() const { return static_cast<double>(rows) * static_cast<double>(cols); }
  Shape shape() const { return {rows, cols}; }
  bool operator==(const Rows&) const = default;
};

// "rms_norm/forward/8192x2048"
std::string named(const char* operation, const Rows& r) {
  return fmt::format("{}/{}x{}", operation, r.rows, r.cols);
}

// Along the residual stream: with what is added to it on the way.
void add_rms_norm(std::vector<GpuCase>& cases, const Rows& r) {
  const double bytes = 8 * r.elements();
  cases.push_back(row_case(named("rms_norm/forward", r), bytes, [=](GpuBench& bench) {
    return RmsNormForward{.x = bench.random(bf16, r.shape()),
                          .delta = bench.random(bf16, r.shape()),
                          .weight = bench.random(bf16, {r.cols}),
                          .sum = bench.random(bf16, r.shape()),
                          .y = bench.random(bf16, r.shape()),
                          .inverse_rms = bench.random(f32, {r.rows})};
  }));
  cases.push_back(row_case(named("rms_norm/backward", r), bytes, [=](GpuBench& bench) {
    return RmsNormBackward{.x = bench.random(bf16, r.shape()),
                           .weight = bench.random(bf16, {r.cols}),
                           .inverse_rms = bench.random(f32, {r.rows}),
                           .d_y = bench.random(bf16, r.shape()),
                           .d_sum = bench.random(bf16, r.shape()),
                           .d_x = bench.random(bf16, r.shape()),
                           .d_weight = bench.random(f32, {r.cols})};
  }));
}

// The tower's lie along its residual stream; the connector's have nothing to add.
enum class Residuals { none, added };

void add_layer_norm(std::vector<GpuCase>& cases, const Rows& r, Residuals residuals) {
  const bool adds = residuals == Residuals::added;
  const auto along_stream = [=](GpuBench& bench) {
    return adds ? bench.random(bf16, r.shape()) : Tensor();
  };
  cases.push_back(
      row_case(named("layer_norm/forward", r), (adds ? 8 : 4) * r.elements(), [=](GpuBench& bench) {
        return LayerNormForward{.x = bench.random(bf16, r.shape()),
                                .delta = along_stream(bench),
                                .weight = bench.random(bf16, {r.cols}),
                                .bias = bench.random(bf16, {r.cols}),
                                .sum = along_stream(bench),
                                .y = bench.random(bf16, r.shape()),
                                .mean = bench.random(f32, {r.rows}),
                                .inverse_std = bench.random(f32, {r.rows})};
      }));
  cases.push_back(row_case(named("layer_norm/backward", r), (adds ? 8 : 6) * r.elements(),
                           [=](GpuBench& bench) {
                             return LayerNormBackward{.x = bench.random(bf16, r.shape()),
                                                      .weight = bench.random(bf16, {r.cols}),
                                                      .mean = bench.random(f32, {r.rows}),
                                                      .inverse_std = bench.random(f32, {r.rows}),
                                                      .d_y = bench.random(bf16, r.shape()),
                                                      .d_sum = along_stream(bench),
                                                      .d_x = bench.random(bf16, r.shape()),
                                                      .d_weight = bench.random(f32, {r.cols}),
                                                      .d_bias = bench.random(f32, {r.cols})};
                           }));
}

struct Heads {
  std::int64_t tokens = 0, heads = 0, head_dim = 0, positions = 0;
  bool operator==(const Heads&) const = default;
};

void add_qk_norm_rope(std::vector<GpuCase>& cases, const Heads& h) {
  const Shape shape = {h.tokens, h.heads, h.head_dim};
  const double n = static_cast<double>(shape.numel());
  const std::string name = fmt::format("{}x{}x{}", h.tokens, h.heads, h.head_dim);
  const auto where = [=](GpuBench& bench) {
    std::vector<std::int32_t> values;
    for (std::int64_t t = 0; t < h.tokens; ++t)
      values.push_back(static_cast<std::int32_t>(t % h.positions));
    return bench.integers(values);
  };
  cases.push_back(row_case("qk_norm_rope/forward/" + name, 4 * n, [=](GpuBench& bench) {
    return QkNormRopeForward{.x = bench.random(bf16, shape),
                             .weight = bench.random(bf16, {h.head_dim}),
                             .rotation = bench.random(f32, {h.positions, h.head_dim}),
                             .positions = where(bench),
                             .y = bench.random(bf16, shape),
                             .inverse_rms = bench.random(f32, {h.tokens, h.heads})};
  }));
  cases.push_back(row_case("qk_norm_rope/backward/" + name, 6 * n, [=](GpuBench& bench) {
    return QkNormRopeBackward{.x = bench.random(bf16, shape),
                              .weight = bench.random(bf16, {h.head_dim}),
                              .rotation = bench.random(f32, {h.positions, h.head_dim}),
                              .positions = where(bench),
                              .inverse_rms = bench.random(f32, {h.tokens, h.heads}),
                              .d_y = bench.random(bf16, shape),
                              .d_x = bench.random(bf16, shape),
                              .d_weight = bench.random(f32, {h.head_dim})};
  }));
}

// Forward as an operation of its own, which the gate's product replaces (gemm_cases.cpp).
void add_swiglu(std::vector<GpuCase>& cases, const Rows& r) {
  cases.push_back(row_case(named("swiglu/forward", r), 6 * r.elements(), [=](GpuBench& bench) {
    return SwiGluForward{.gate = bench.random(bf16, r.shape()),
                         .up = bench.random(bf16, r.shape()),
                         .y = bench.random(bf16, r.shape())};
  }));
  cases.push_back(row_case(named("swiglu/backward", r), 10 * r.elements(), [=](GpuBench& bench) {
    return SwiGluBackward{.gate = bench.random(bf16, r.shape()),
                          .up = bench.random(bf16, r.shape()),
                          .d_y = bench.random(bf16, r.shape()),
                          .d_gate = bench.random(bf16, r.shape()),
                          .d_up = bench.random(bf16, r.shape())};
  }));
}

void add_activation(std::vector<GpuCase>& cases, const char* name, Activation kind, const Rows& r) {
  cases.push_back(row_case(
      named(fmt::format("{}/forward", name).c_str(), r), 4 * r.elements(), [=](GpuBench& bench) {
        return ActivationForward{
            .kind = kind, .x = bench.random(bf16, r.shape()), .y = bench.random(bf16, r.shape())};
      }));
  cases.push_back(row_case(named(fmt::format("{}/backward", name).c_str(), r), 6 * r.elements(),
                           [=](GpuBench& bench) {
                             return ActivationBackward{.kind = kind,
                                                       .x = bench.random(bf16, r.shape()),
                                                       .d_y = bench.random(bf16, r.shape()),
                                                       .d_x = bench.random(bf16, r.shape())};
                           }));
}

// The gradients of the linear layers' biases.
void add_column_sums(std::vector<GpuCase>& cases) {
  std::vector<Rows> added;
  for (const LinearLayer& layer : linear_layers()) {
    const Rows r{layer.rows, layer.out};
    if (!layer.has_bias || std::find(added.begin(), added.end(), r) != added.end()) continue;
    added.push_back(r);
    cases.push_back(row_case(named("column_sum", r), 2 * r.elements(), [=](GpuBench& bench) {
      return ColumnSum{.x = bench.random(bf16, r.shape()), .y = bench.random(f32, {r.cols})};
    }));
  }
}

// What is added, converted and scaled has the decoder's width; rows mean nothing to them.
void add_elementwise(std::vector<GpuCase>& cases, const Rows& r) {
  cases.push_back(row_case(named("add", r), 6 * r.elements(), [=](GpuBench& bench) {
    return Add{.a = bench.random(bf16, r.shape()),
               .b = bench.random(bf16, r.shape()),
               .y = bench.random(bf16, r.shape())};
  }));
  const auto conversion = [r](DType from, DType to) {
    return [=](GpuBench& bench) {
      return Convert{.x = bench.random(from, r.shape()), .y = bench.random(to, r.shape())};
    };
  };
  cases.push_back(row_case(named("convert_to_bf16", r), 6 * r.elements(), conversion(f32, bf16)));
  cases.push_back(row_case(named("convert_to_f32", r), 6 * r.elements(), conversion(bf16, f32)));
  cases.push_back(row_case(named("scale", r), 4 * r.elements(), [=](GpuBench& bench) {
    return Scale{.x = bench.random(bf16, r.shape()), .factor = -1};
  }));
}

void add_decoders(std::vector<GpuCase>& cases) {
  const auto streams = each_once([](const Preset& p) {
    return Rows{p.tokens(), p.model.decoder.hidden};
  });
  const auto products = each_once([](const Preset& p) {
    return Rows{p.tokens(), p.model.decoder.ffn};
  });
  const auto heads_of = [](const Preset& p, std::int64_t heads) {
    return Heads{p.tokens(), heads, p.model.decoder.head_dim, p.length};
  };
  const auto keys =
      each_once([&](const Preset& p) { return heads_of(p, p.model.decoder.kv_heads); });
  const auto queries =
      each_once([&](const Preset& p) { return heads_of(p, p.model.decoder.heads); });
  add_elementwise(cases, streams.front());
  for (const Rows& r : streams) add_rms_norm(cases, r);
  for (const auto& all : {keys, queries})
    for (const Heads& h : all) add_qk_norm_rope(cases, h);
  for (const Rows& r : products) add_swiglu(cases, r);
}

void add_towers(std::vector<GpuCase>& cases) {
  const Preset& preset = presets().front();  // tower and connector are the same in all
  const std::int64_t width = preset.model.vision.width, hidden = preset.model.connector.hidden;
  for (const TileBatch& pictures : preset.pictures) {
    add_layer_norm(cases, {pictures.tower_rows(), width}, Residuals::added);
    add_layer_norm(cases, {pictures.patches(), hidden}, Residuals::none);
    add_layer_norm(cases, {pictures.tiles * preset.model.connector.tokens(), hidden},
                   Residuals::none);
  }
  const TileBatch& pictures = preset.pictures[0];
  const Rows inner{pictures.tower_rows(), preset.model.vision.mlp_width};
  add_activation(cases, "quick_gelu", Activation::quick_gelu, inner);
  add_activation(cases, "silu", Activation::silu, {pictures.patches(), hidden});
}

}  // namespace

std::vector<GpuCase> row_cases() {
  std::vector<GpuCase> cases;
  add_decoders(cases);
  add_towers(cases);
  add_column_sums(cases);
  return cases;
}

}  // namespace orchard::bench
