#include "kernels/gemm/gemm_cpu.h"

#include <cstdlib>
#include <string_view>
#include <type_traits>

#include "kernels/cpu/register.h"
#include "kernels/device/device.h"
#include "kernels/gemm/peak.h"

namespace orchard::cpu {
namespace {

GemmLibrary library_from_environment() {
  const char* const value = std::getenv("ORCHARD_GEMM");
  const std::string_view name = value ? value : "auto";
  if (name == "auto") return GemmLibrary::automatic;
  if (name == "onednn") return GemmLibrary::onednn;
  if (name == "sgemm") return GemmLibrary::sgemm;
  if (name == "openblas") return GemmLibrary::openblas;
  fail("ORCHARD_GEMM is \"{}\"; it must be auto, onednn, sgemm or openblas", name);
}

// oneDNN generates its sgemm for x86; elsewhere it is plain C++, and OpenBLAS is many times faster.
bool onednn_generates_sgemm() {
#if defined(__x86_64__)
  return true;
#else
  return false;
#endif
}

template <class T>
void start_sum_as(const ProductType& type, const Product& product, const Rectangle& r, float* sum,
                  std::int64_t stride) {
  const auto value = [](auto v) {
    if constexpr (std::is_same_v<decltype(v), bf16>) {
      return to_float(v);
    } else {
      return v;
    }
  };
  const bool add = product.accumulate == Accumulate::add;
  for (std::int64_t i = 0; i < r.rows; ++i) {
    const std::int64_t first = (r.row + i) * type.n + r.col;
    const T* const c = reinterpret_cast<const T*>(product.c) + first;
    float* const row = sum + i * stride;
    for (std::int64_t j = 0; j < r.cols; ++j) row[j] = add ? value(c[j]) : 0.0f;
    if (!product.bias) continue;
    if (type.in == DType::bf16) {
      const auto* const bias = reinterpret_cast<const bf16*>(product.bias) + r.col;
      for (std::int64_t j = 0; j < r.cols; ++j) row[j] += to_float(bias[j]);
    } else {
      const auto* const bias = reinterpret_cast<const float*>(product.bias) + r.col;
      for (std::int64_t j = 0; j < r.cols; ++j) row[j] += bias[j];
    }
  }
}

// k = 0: c is what the sum starts from. Row by row, through a block of floats where c is bf16.
void run_empty_sum(const ProductType& type, const Product& product) {
  constexpr std::int64_t block = 256;
  float sums[block];
  for (std::int64_t row = 0; row < product.m; ++row) {
    for (std::int64_t col = 0; col < type.n; col += block) {
      const std::int64_t cols = std::min(block, type.n - col);
      start_sum(type, product, {row, col, 1, cols}, sums, cols);
      for (std::int64_t j = 0; j < cols; ++j) {
        const std::int64_t i = row * type.n + col + j;
        if (type.out == DType::f32) {
          reinterpret_cast<float*>(product.c)[i] = sums[j];
        } else {
          reinterpret_cast<bf16*>(product.c)[i] = to_bf16(sums[j]);
        }
      }
    }
  }
}

// Matrix `index` of a stack of matrices of `size` elements.
const std::byte* matrix_of(const ConstTensor& stack, std::int64_t index, std::int64_t size) {
  return static_cast<const std::byte*>(stack.raw()) +
         static_cast<std::size_t>(index * size) * size_of(stack.dtype());
}

void gemm(Stream& stream, const Gemm& op) {
  const bool transposed = op.transpose_a == Transpose::yes;
  const auto [m, n, k, batch] = sizes_of(op);
  const DType in = op.a.dtype(), out = op.c.dtype();
  // Only an f32 c can hold a partial sum.
  const std::int64_t longest =
      transposed && out == DType::f32 ? std::min(k, max_transposed_k(in)) : k;
  const ProductType type{.transpose_a = op.transpose_a,
                         .transpose_b = op.transpose_b,
                         .in = in,
                         .out = out,
                         .n = n,
                         .bias = static_cast<bool>(op.bias),
                         .max_products = batch,
                         .max_k = longest,
                         .max_total_k = batch * longest};
  auto& products = stream.device().extension<GemmState>().products;
  products.clear();
  const Tensor result = product_result(op.epilogue, op.c);
  for (std::int64_t i = 0; i < batch; ++i) {
    append_product(products, type,
                   {.a = matrix_of(op.a, i, m * k),
                    .b = matrix_of(op.b, i, k * n),
                    .c = const_cast<std::byte*>(matrix_of(result, i, m * n)),
                    .bias = static_cast<const std::byte*>(op.bias.raw()),
                    .m = m,
                    .k = k,
                    .b_stride = op.transpose_b == Transpose::yes ? k : n,
                    .accumulate = op.accumulate});
  }
  run_products(stream, type, products);
  run_epilogue(stream, op.epilogue, op.c);
}

}  // namespace

GemmState::GemmState() : library(library_from_environment()) {
  const bool prefers_openblas = library == GemmLibrary::automatic && !onednn_generates_sgemm();
  if (library == GemmLibrary::openblas || prefers_openblas) sgemm = openblas_sgemm();
  require(sgemm || library != GemmLibrary::openblas,
          "ORCHARD_GEMM is openblas, but libopenblas.so.0 cannot be loaded: install OpenBLAS, or "
          "set ORCHARD_GEMM to auto");
  if (!sgemm) sgemm = onednn_sgemm();
}

void append_product(std::vector<Product>& products, const ProductType& type, Product product) {
  if (product.m == 0 || type.n == 0) return;
  const std::size_t element = size_of(type.in);
  for (std::int64_t left = product.k; left > type.max_k; left -= type.max_k) {
    product.k = type.max_k;
    products.push_back(product);
    product.a += static_cast<std::size_t>(product.k * product.m) * element;
    if (product.source) {
      product.source += product.k;
    } else {
      const std::int64_t b_step = type.transpose_b == Transpose::yes ? 1 : product.b_stride;
      product.b += static_cast<std::size_t>(product.k * b_step) * element;
    }
    product.bias = nullptr;
    product.accumulate = Accumulate::add;
    product.k = left - type.max_k;
  }
  products.push_back(product);
}

void start_sum(const ProductType& type, const Product& product, const Rectangle& rectangle,
               float* sum, std::int64_t stride) {
  if (type.out == DType::f32) {
    start_sum_as<float>(type, product, rectangle, sum, stride);
  } else {
    start_sum_as<bf16>(type, product, rectangle, sum, stride);
  }
}

void run_products(Stream& stream, const ProductType& type, std::span<const Product> products) {
  if (products.empty()) return;
  if (type.max_k == 0) {
    for (const Product& product : products) run_empty_sum(type, product);
    return;
  }
  const bool tiles = stream.device().extension<GemmState>().prefers_tiles();
  if (!tiles || !run_tiles(stream, type, products)) run_sgemm(stream, type, products);
}

void register_gemm(OperationTable& table) {
  table.add<Gemm>(gemm);
  register_grouped_gemm(table);
}

}  // namespace orchard::cpu

namespace orchard {

std::string gemm_table(Device& device) {
  if (device.kind() != DeviceKind::cpu) return "";
  auto& state = device.extension<cpu::GemmState>();
  std::string table;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const bool tiles =
        state.prefers_tiles() &&
        state.tiles.find({.n = 64, .k = 64, .in = dtype, .out = dtype}, device.statistics());
    table += fmt::format("{}: {}{}\n", name_of(dtype),
                         tiles                                ? "oneDNN tile kernels"
                         : state.sgemm == cpu::onednn_sgemm() ? "oneDNN sgemm"
                                                              : "OpenBLAS sgemm",
                         !tiles && dtype == DType::bf16 ? " on values widened to f32" : "");
  }
  return table;
}

}  // namespace orchard
