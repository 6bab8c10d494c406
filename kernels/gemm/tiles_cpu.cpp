// Products by oneDNN's tile kernels. Packing the right-hand matrix costs about 0.5 ns an element: 3
// % of a product of 1000 rows, which gains 5 to 10 %, but more than it gains at 64 rows and fewer.
// When a is transposed (a weight gradient) k is the number of rows of activations, which varies:
// the sum over k is then taken in pieces of 1024 (bf16), 512, 256, ... 32, in order, which keeps the set of
// shapes closed; a tile of a is transposed into scratch before it is multiplied.
//
// Zen 4 at 3.5 GHz, a core, f32 / bf16 GFLOP/s at 4096 x 1408 x 512: forward 111 / 215, input
// gradient 111 / 213, weight gradient 100 / 184 (oneDNN's sgemm 102, 111, 109; OpenBLAS 94, 92,
// 95).
#include "kernels/gemm/batch_cpu.h"
#include "kernels/gemm/pack_cpu.h"

namespace orchard::cpu {
namespace {

constexpr std::int64_t smallest_piece = 32;
constexpr int max_piece_sizes = 6;  // 32, 64, ... 1024

// How many of them there are.
constexpr int piece_sizes(DType dtype) {
  int sizes = 1;
  while (smallest_piece << (sizes - 1) < max_transposed_k(dtype)) ++sizes;
  return sizes;
}
static_assert(piece_sizes(DType::bf16) == max_piece_sizes && piece_sizes(DType::f32) == 5);

constexpr std::int64_t round_up(std::int64_t n, std::int64_t to) {
  return (n + to - 1) / to * to;
}

// Calls body(begin, length, log2(length / 32)) for the pieces that cover [0, k).
template <class Body>
void for_each_piece(DType dtype, std::int64_t k, const Body& body) {
  std::int64_t begin = 0, left = round_up(k, smallest_piece);
  for (int size = piece_sizes(dtype) - 1; size >= 0; --size) {
    const std::int64_t length = smallest_piece << size;
    for (; left >= length; left -= length, begin += length) body(begin, length, size);
  }
}

struct Kernels {
  const TileKernel* packed = nullptr;
  const TileKernel* plain = nullptr;
  std::array<const TileKernel*, max_piece_sizes> pieces{};
  bool complete = true;
  std::size_t scratch_bytes = 0;
};

Kernels find_kernels(Device& device, GemmState& state, const ProductType& type,
                     const Product& first) {
  Kernels kernels;
  const auto find = [&](const TileShape& shape) {
    const TileKernel* const kernel = state.tiles.find(shape, device.statistics());
    kernels.complete &= kernel != nullptr;
    if (kernel) kernels.scratch_bytes = std::max(kernels.scratch_bytes, kernel->scratch_bytes());
    return kernel;
  };
  TileShape shape{.n = type.n, .in = type.in, .out = type.out};
  if (type.transpose_a == Transpose::yes) {
    shape.out = DType::f32;
    shape.accumulate = Accumulate::add;
    for (int i = 0; i < piece_sizes(type.in) && kernels.complete; ++i) {
      shape.k = smallest_piece << i;
      kernels.pieces[i] = find(shape);
    }
    return kernels;
  }
  shape.k = first.k;
  shape.bias = type.bias;
  shape.accumulate = first.accumulate;
  kernels.packed = find(shape);
  shape.right =
      type.transpose_b == Transpose::yes ? RightLayout::plain_transposed : RightLayout::plain;
  if (kernels.complete) kernels.plain = find(shape);
  return kernels;
}

// A tile of a product whose a is transposed: `rows` rows of c from `first` on.
bool multiply_transposed(const ProductType& type, const Product& product, const Kernels& kernels,
                         std::int64_t first, std::int64_t rows, const std::byte* right,
                         std::byte* scratch) {
  const std::size_t element = size_of(type.in);
  std::byte* const a_tile = scratch + kernels.scratch_bytes;
  std::byte* const c = product.c + static_cast<std::size_t>(first * type.n) * size_of(type.out);
  auto* const sum = reinterpret_cast<float*>(
      type.out == DType::f32
          ? c
          : a_tile + static_cast<std::size_t>(tile_rows * max_transposed_k(type.in)) * element);
  const bool in_place = type.out == DType::f32 && product.accumulate == Accumulate::add;
  if (!in_place || product.bias) {
    start_sum(type, product, {first, 0, rows, type.n}, sum, type.n);
  }
  bool ok = true;
  for_each_piece(type.in, product.k, [&](std::int64_t begin, std::int64_t length, int size) {
    transpose_columns(type.in, product.a + static_cast<std::size_t>(begin * product.m) * element,
                      std::min(length, product.k - begin), product.m, first, rows, length, a_tile);
    ok &= kernels.pieces[size]->multiply(omp_get_thread_num(), rows,
                                         {.a = a_tile,
                                          .right = right + packed_bytes(begin, type.n, type.in),
                                          .c = reinterpret_cast<std::byte*>(sum)},
                                         scratch);
  });
  if (type.out == DType::bf16) narrow(sum, reinterpret_cast<bf16*>(c), rows * type.n);
  return ok;
}

}  // namespace

bool run_tiles(Stream& stream, const ProductType& type, std::span<const Product> products) {
  auto& state = stream.device().extension<GemmState>();
  Kernels kernels = find_kernels(stream.device(), state, type, products.front());
  if (!kernels.complete) return false;
  kernels.scratch_bytes =
      static_cast<std::size_t>(round_up(static_cast<std::int64_t>(kernels.scratch_bytes), 256));

  const bool transposed = type.transpose_a == Transpose::yes;
  const std::size_t element = size_of(type.in);
  const auto is_plain = [&](const Product& product) {
    return !transposed && product.m <= tile_rows;
  };
  BatchLayout layout{.thread_bytes = kernels.scratch_bytes};
  if (transposed) {
    const auto packed = [&](std::int64_t k) {
      return packed_bytes(round_up(k, smallest_piece), type.n, type.in);
    };
    layout.largest_bytes = packed(type.max_k);
    layout.total_bytes = packed(type.max_total_k);
    layout.thread_bytes +=
        static_cast<std::size_t>(tile_rows * max_transposed_k(type.in)) * element;
    if (type.out == DType::bf16)
      layout.thread_bytes += static_cast<std::size_t>(tile_rows * type.n) * sizeof(float);
  } else {
    if (type.gathered)
      layout.thread_bytes += static_cast<std::size_t>(tile_rows * type.max_k) * element;
    layout.largest_bytes = packed_bytes(type.max_k, type.n, type.in);
    layout.total_bytes = layout.largest_bytes * static_cast<std::size_t>(type.max_products);
  }
  const auto need_of = [&](const Product& product) {
    const std::int64_t tiles = (product.m + tile_rows - 1) / tile_rows;
    if (is_plain(product)) return BatchNeed{.tiles = tiles};
    const std::int64_t k = transposed ? round_up(product.k, smallest_piece) : product.k;
    return BatchNeed{packed_bytes(k, type.n, type.in), (type.n + block_cols - 1) / block_cols,
                     tiles};
  };
  const auto pack_piece = [&](const Product& product, std::int64_t begin, std::int64_t length,
                              std::int64_t block, std::byte* right) {
    const std::int64_t b_step = type.transpose_b == Transpose::yes ? 1 : product.b_stride;
    const bool gathered = transposed && product.source;
    const Rows matrix{
        .data = product.b + (gathered ? 0 : static_cast<std::size_t>(begin * b_step) * element),
        .stride = product.b_stride,
        .source = gathered ? product.source + begin : nullptr};
    pack_block(type.in, type.transpose_b, matrix, std::min(length, product.k - begin), length,
               type.n, block,
               right + packed_bytes(begin, type.n, type.in) +
                   packed_bytes(length, block * block_cols, type.in));
  };
  run_batches(
      stream, state, products, layout, need_of,
      [&](const Product& product, std::int64_t block, std::byte* right) {
        if (!transposed) return pack_piece(product, 0, product.k, block, right);
        for_each_piece(type.in, product.k, [&](std::int64_t begin, std::int64_t length, int) {
          pack_piece(product, begin, length, block, right);
        });
      },
      [&](const Product& product, std::int64_t tile, const std::byte* right, std::byte* scratch) {
        const std::int64_t first = tile * tile_rows;
        const std::int64_t rows = std::min(tile_rows, product.m - first);
        if (transposed)
          return multiply_transposed(type, product, kernels, first, rows, right, scratch);
        const bool plain = is_plain(product);
        const std::byte* a = product.a + static_cast<std::size_t>(first * product.k) * element;
        if (product.source) {
          std::byte* const a_tile = scratch + kernels.scratch_bytes;
          copy_rows(type.in, {product.a, product.k, product.source}, first, rows, product.k,
                    a_tile);
          a = a_tile;
        }
        const TileOperands operands{
            .a = a,
            .right = plain ? product.b : right,
            .c = product.c + static_cast<std::size_t>(first * type.n) * size_of(type.out),
            .bias = product.bias};
        return (plain ? kernels.plain : kernels.packed)
            ->multiply(omp_get_thread_num(), rows, operands, scratch);
      });
  return true;
}

}  // namespace orchard::cpu
