// Matrix products in the shapes that training meets: the three forms of a linear layer at 4096
// rows, and eight experts with many, few and uneven rows; and eight products as one batch. The
// reference is oneDNN as a user would call it: its sgemm, or a bf16 matmul primitive for the whole
// product, on all threads.
#include <fmt/core.h>

#include <algorithm>
#include <numeric>
#include <oneapi/dnnl/dnnl.hpp>

#include "bench/bench_main.h"
#include "kernels/device/device.h"
#include "kernels/gemm/gemm.h"

namespace orchard::bench {
namespace {

enum class Form { forward, input_gradient, weight_gradient };

constexpr const char* name_of(Form form) {
  switch (form) {
    case Form::forward:
      return "forward";
    case Form::input_gradient:
      return "input_gradient";
    case Form::weight_gradient:
      return "weight_gradient";
  }
  return "?";
}

// A linear layer applied to groups of rows, each with weights [out, in] of its own.
struct Layer {
  std::int64_t in, out;
  std::vector<std::int64_t> rows;
  bool batched = false;  // as one Gemm; all groups have as many rows

  std::int64_t total_rows() const {
    return std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
  }
  std::int64_t groups() const { return static_cast<std::int64_t>(rows.size()); }
};

void fill(const Tensor& tensor) {
  const auto value = [](std::int64_t i) {
    return static_cast<float>((i * 7919 + 13) % 2003 - 1001) / 1001.0f;
  };
  const std::int64_t n = tensor.numel();
  if (tensor.dtype() == DType::f32) {
    std::generate_n(tensor.data<float>(), n,
                    [&, i = std::int64_t{0}]() mutable { return value(i++); });
  } else {
    std::generate_n(tensor.data<bf16>(), n,
                    [&, i = std::int64_t{0}]() mutable { return to_bf16(value(i++)); });
  }
}

// One whole product by oneDNN, c f32 when accumulating, else of the inputs' dtype.
class LibraryGemm {
 public:
  explicit LibraryGemm(const Gemm& op) : op_(op) {
    if (op.a.dtype() == DType::f32) return;
    using Tag = dnnl::memory::format_tag;
    const auto tag = [](Transpose t) { return t == Transpose::yes ? Tag::ba : Tag::ab; };
    const auto bf16_type = dnnl::memory::data_type::bf16;
    const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    const dnnl::memory::desc a({m(), k()}, bf16_type, tag(op.transpose_a)),
        b({k(), n()}, bf16_type, tag(op.transpose_b)),
        c({m(), n()}, op.c.dtype() == DType::f32 ? dnnl::memory::data_type::f32 : bf16_type,
          Tag::ab);
    dnnl::primitive_attr attributes;
    if (op.accumulate == Accumulate::add) {
      dnnl::post_ops sum;
      sum.append_sum(1.0f);
      attributes.set_post_ops(sum);
    }
    stream_ = dnnl::stream(engine);
    primitive_ = dnnl::matmul({{a, b, c}, attributes, engine});
    arguments_ = {{DNNL_ARG_SRC, dnnl::memory(a, engine, const_cast<void*>(op.a.raw()))},
                  {DNNL_ARG_WEIGHTS, dnnl::memory(b, engine, const_cast<void*>(op.b.raw()))},
                  {DNNL_ARG_DST, dnnl::memory(c, engine, op.c.raw())}};
  }

  void operator()() {
    if (primitive_) {
      primitive_.execute(stream_, arguments_);
      return;
    }
    const auto code = [](Transpose t) { return t == Transpose::yes ? 'T' : 'N'; };
    dnnl_sgemm(code(op_.transpose_a), code(op_.transpose_b), m(), n(), k(), 1.0f,
               op_.a.data<float>(), op_.a.dim(1), op_.b.data<float>(), op_.b.dim(1),
               op_.accumulate == Accumulate::add ? 1.0f : 0.0f, op_.c.data<float>(), n());
  }

 private:
  std::int64_t m() const { return op_.c.dim(0); }
  std::int64_t n() const { return op_.c.dim(1); }
  std::int64_t k() const { return op_.a.dim(op_.transpose_a == Transpose::yes ? 0 : 1); }

  Gemm op_;
  dnnl::stream stream_;
  dnnl::matmul primitive_;
  std::unordered_map<int, dnnl::memory> arguments_;
};

void run_layer(benchmark::State& state, const Layer& layer, Form form, DType dtype) {
  const auto device = make_cpu_device();
  const auto stream = device->make_stream();
  const std::int64_t rows = layer.total_rows(), in = layer.in, out = layer.out,
                     groups = layer.groups();
  std::vector<Buffer> buffers;
  const auto make = [&](DType type, Shape shape) {
    buffers.push_back(device->allocate(static_cast<std::size_t>(shape.numel()) * size_of(type)));
    const Tensor tensor = buffers.back().tensor(type, shape);
    fill(tensor);
    return tensor;
  };
  const Tensor x = make(dtype, {rows, in}), y = make(dtype, {rows, out});
  const Tensor w = make(form == Form::weight_gradient ? DType::f32 : dtype, {groups, out, in});
  buffers.push_back(device->allocate(static_cast<std::size_t>(groups + 1) * sizeof(std::int32_t)));
  const Tensor offsets = buffers.back().tensor(DType::i32, {groups + 1});
  offsets.data<std::int32_t>()[0] = 0;

  // The groups one by one: what the reference runs, and our own operation where there is one group.
  std::vector<Gemm> gemms;
  for (std::int64_t g = 0, first = 0; g < groups; ++g) {
    const std::int64_t count = layer.rows[static_cast<std::size_t>(g)];
    const Tensor gx = x.slice(first, count), gy = y.slice(first, count);
    const Tensor gw = w.slice(g, 1).reshape({out, in});
    first += count;
    offsets.data<std::int32_t>()[g + 1] = static_cast<std::int32_t>(first);
    switch (form) {
      case Form::forward:
        gemms.push_back({.a = gx, .b = gw, .c = gy, .transpose_b = Transpose::yes});
        break;
      case Form::input_gradient:
        gemms.push_back({.a = gy, .b = gw, .c = gx});
        break;
      case Form::weight_gradient:
        gemms.push_back({.a = gy,
                         .b = gx,
                         .c = gw,
                         .transpose_a = Transpose::yes,
                         .accumulate = Accumulate::add});
        break;
    }
  }
  const auto batched = [&] {
    const auto stack = [&](const Tensor& t) {
      return t.reshape({groups, rows / groups, t.dim(1)});
    };
    Gemm op = gemms.front();
    op.a = stack(form == Form::forward ? x : y);
    op.b = form == Form::weight_gradient ? stack(x) : w;
    op.c = form == Form::forward ? stack(y) : form == Form::input_gradient ? stack(x) : w;
    run(*stream, op);
  };
  const auto ours = [&] {
    if (layer.batched) {
      batched();
    } else if (groups == 1) {
      run(*stream, gemms.front());
    } else if (form == Form::weight_gradient) {
      run(*stream, GroupedGemmWeightGradient{.a = y, .b = x, .d_b = w, .row_offsets = offsets});
    } else if (form == Form::forward) {
      run(*stream,
          GroupedGemm{
              .a = x, .b = w, .c = y, .row_offsets = offsets, .transpose_b = Transpose::yes});
    } else {
      run(*stream, GroupedGemm{.a = y, .b = w, .c = x, .row_offsets = offsets});
    }
  };
  std::vector<LibraryGemm> references;
  const std::string name = dtype == DType::f32 ? "oneDNN sgemm" : "oneDNN matmul";
  try {
    for (const Gemm& gemm : gemms) {
      if (gemm.a.numel()) references.emplace_back(gemm);
    }
  } catch (const dnnl::error&) {
    references.clear();  // no bf16 on this CPU
  }
  Reference reference{.name = name, .call = {}};
  if (!references.empty())
    reference.call = [&] {
      for (LibraryGemm& gemm : references) gemm();
    };
  const double weights = static_cast<double>(groups * in * out);
  measure(state,
          {.flops = 2.0 * static_cast<double>(rows * in * out),
           .bytes = static_cast<double>(rows * (in + out)) * static_cast<double>(size_of(dtype)) +
                    weights * static_cast<double>(size_of(w.dtype()))},
          ours, reference);
}

const bool registered = [] {
  const std::vector<std::int64_t> even(8, 1024), few(8, 32);
  const std::vector<std::int64_t> uneven = {1408, 544, 1952, 32, 0, 1216, 992, 2048};
  const std::vector<std::pair<const char*, Layer>> layers = {
      {"gemm", {512, 512, {4096}}},        {"gemm", {512, 1408, {4096}}},
      {"gemm", {1408, 512, {4096}}},       {"gemm", {512, 8192, {4096}}},
      {"gemm_small", {512, 512, {32}}},    {"grouped", {512, 1408, even}},
      {"grouped", {1408, 512, even}},      {"grouped_uneven", {512, 1408, uneven}},
      {"grouped_few", {512, 1408, few}},   {"grouped_few", {1408, 512, few}},
      {"batched", {512, 1408, even, true}}};
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const auto& [kind, shape] : layers) {
      const Layer& layer = shape;  // which a lambda can capture
      for (const Form form : {Form::forward, Form::input_gradient, Form::weight_gradient}) {
        const std::string name =
            fmt::format("{}/{}/{}/{}x{}x{}", kind, name_of(form), orchard::name_of(dtype),
                        layer.total_rows(), layer.in, layer.out);
        benchmark::RegisterBenchmark(
            name.c_str(), [=](benchmark::State& state) { run_layer(state, layer, form, dtype); })
            ->UseManualTime()
            ->MinTime(0.15);
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace orchard::bench
