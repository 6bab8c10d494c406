// Products by a library's sgemm, in tiles of 256 x 512 of c. bf16 is widened to f32: the right-hand
// matrix once, the left-hand rows and c in each thread's scratch; rows that an index names are brought
// together there, in f32 too. This is the way on CPUs without
// AVX-512 (f32) or AVX512-BF16 (bf16), where the libraries have nothing faster.
#include "kernels/gemm/batch_cpu.h"
#include "kernels/gemm/one_thread.h"
#include "kernels/gemm/pack_cpu.h"

namespace orchard::cpu {
namespace {

constexpr std::int64_t rows_per_tile = 256, cols_per_tile = 512, rows_per_block = 64;

constexpr std::int64_t count_of(std::int64_t n, std::int64_t per) {
  return (n + per - 1) / per;
}

const bf16* as_bf16(const std::byte* p) {
  return reinterpret_cast<const bf16*>(p);
}

}  // namespace

void run_sgemm(Stream& stream, const ProductType& type, std::span<const Product> products) {
  auto& state = stream.device().extension<GemmState>();
  const bool widening = type.in == DType::bf16, transposed = type.transpose_a == Transpose::yes;
  const bool own_a = widening || (type.gathered && !transposed);
  const bool own_b = widening || (type.gathered && transposed);
  const bool own_c = type.out == DType::bf16;
  const auto floats = [](std::int64_t n) { return static_cast<std::size_t>(n) * sizeof(float); };
  // [k, n], or [n, k] when transposed.
  const auto right_rows = [&](const Product& p) {
    return type.transpose_b == Transpose::yes ? type.n : p.k;
  };
  const auto right_cols = [&](const Product& p) {
    return type.transpose_b == Transpose::yes ? p.k : type.n;
  };
  BatchLayout layout;
  if (own_b) {
    layout.largest_bytes = floats(type.max_k * type.n);
    layout.total_bytes = transposed
                             ? floats(type.max_total_k * type.n)
                             : layout.largest_bytes * static_cast<std::size_t>(type.max_products);
  }
  if (own_a) layout.thread_bytes = floats(rows_per_tile * type.max_k);
  if (own_c) layout.thread_bytes += floats(rows_per_tile * cols_per_tile);

  run_batches(
      stream, state, products, layout,
      [&](const Product& p) {
        return BatchNeed{own_b ? floats(p.k * type.n) : 0,
                         own_b ? count_of(right_rows(p), rows_per_block) : 0,
                         count_of(p.m, rows_per_tile) * count_of(type.n, cols_per_tile)};
      },
      [&](const Product& p, std::int64_t block, std::byte* right) {
        const std::int64_t first = block * rows_per_block, cols = right_cols(p);
        const std::int64_t rows = std::min(rows_per_block, right_rows(p) - first);
        copy_rows_to_f32(type.in, {p.b, p.b_stride, transposed ? p.source : nullptr}, first, rows,
                         cols, reinterpret_cast<float*>(right) + first * cols);
      },
      [&](const Product& p, std::int64_t tile, const std::byte* right, std::byte* scratch) {
        const OneThread one_thread;
        const std::int64_t across = count_of(type.n, cols_per_tile);
        const std::int64_t row = tile / across * rows_per_tile, col = tile % across * cols_per_tile;
        SgemmArguments s{.transpose_a = type.transpose_a,
                         .transpose_b = type.transpose_b,
                         .m = std::min(rows_per_tile, p.m - row),
                         .n = std::min(cols_per_tile, type.n - col),
                         .k = p.k,
                         .lda = transposed ? p.m : p.k,
                         .ldb = own_b ? right_cols(p) : p.b_stride,
                         .ldc = type.n};
        auto* a_floats = reinterpret_cast<float*>(scratch);
        if (!own_a) {
          s.a = reinterpret_cast<const float*>(p.a) + (transposed ? row : row * p.k);
        } else if (transposed) {
          for (std::int64_t i = 0; i < p.k; ++i)
            widen(as_bf16(p.a) + i * p.m + row, a_floats + i * s.m, s.m);
          s.a = a_floats;
          s.lda = s.m;
        } else {
          copy_rows_to_f32(type.in, {p.a, p.k, p.source}, row, s.m, p.k, a_floats);
          s.a = a_floats;
        }
        const std::int64_t b_offset = type.transpose_b == Transpose::yes ? col * s.ldb : col;
        s.b = reinterpret_cast<const float*>(own_b ? right : p.b) + b_offset;
        if (own_c) {
          s.c = a_floats + rows_per_tile * type.max_k;
          s.ldc = s.n;
        } else {
          s.c = reinterpret_cast<float*>(p.c) + row * type.n + col;
        }
        const bool started = own_c || p.bias != nullptr;
        if (started) start_sum(type, p, {row, col, s.m, s.n}, s.c, s.ldc);
        s.beta = started || p.accumulate == Accumulate::add ? 1.0f : 0.0f;
        if (!state.sgemm(s)) return false;
        for (std::int64_t i = 0; own_c && i < s.m; ++i)
          narrow(s.c + i * s.n, reinterpret_cast<bf16*>(p.c) + (row + i) * type.n + col, s.n);
        return true;
      });
}

}  // namespace orchard::cpu
