// How the CPU's matrix products fit together. An operation becomes a list of products of one type;
// run_products cuts them into tiles of rows and shares the tiles out. Each tile is computed by one
// thread, with a cut that depends on the shape alone, so results do not depend on the number of
// threads.
#pragma once

#include <span>
#include <vector>

#include "kernels/device/operation_table.h"
#include "kernels/gemm/onednn_tiles.h"
#include "kernels/gemm/sgemm_cpu.h"

namespace orchard::cpu {

// What the products of one operation share.
struct ProductType {
  Transpose transpose_a = Transpose::no;
  Transpose transpose_b = Transpose::no;
  DType in = DType::f32;
  DType out = DType::f32;
  std::int64_t n = 0;
  bool bias = false;
  bool gathered = false;  // products have a `source`
  // Upper bounds over every product that may ever come with these operands, so that workspace does
  // not depend on how rows fall to the groups of one step.
  std::int64_t max_products = 1;
  std::int64_t max_k = 0;        // of one product
  std::int64_t max_total_k = 0;  // sum over the products
};

struct Product {
  const std::byte* a = nullptr;
  const std::byte* b = nullptr;
  std::byte* c = nullptr;
  const std::byte* bias = nullptr;
  // Of the rows of activations: a's, or b's where a is transposed. Row i is row source[i] of the
  // matrix, zeros where that is -1. Null: they lie in order.
  const std::int32_t* source = nullptr;
  std::int64_t m = 0;
  std::int64_t k = 0;
  std::int64_t b_stride = 0;  // elements between the rows of b
  Accumulate accumulate = Accumulate::overwrite;
};

// The longest k of one product with transposed a: longer sums are cut. That bounds workspace, and
// keeps what is packed in the cache until every tile has used it. Longer pieces would read and write
// c less often: 1024 bf16, which take the room of 512 f32, are 7 % faster than 512.
constexpr std::int64_t max_transposed_k(DType dtype) {
  return dtype == DType::bf16 ? 1024 : 512;
}

enum class GemmLibrary : std::uint8_t { automatic, onednn, sgemm, openblas };

// Where the work of one product starts in the flat lists of a batch.
struct Placement {
  const Product* product = nullptr;
  std::size_t offset_bytes = 0;  // of its right-hand matrix in the workspace
  std::int64_t first_block = 0;  // units of preparing that matrix
  std::int64_t first_tile = 0;   // units of multiplying
};

// What the CPU backend keeps on its device for matrix products.
struct GemmState {
  GemmState();  // reads ORCHARD_GEMM

  bool prefers_tiles() const {
    return library == GemmLibrary::automatic || library == GemmLibrary::onednn;
  }

  GemmLibrary library = GemmLibrary::automatic;
  Sgemm sgemm = nullptr;
  TileKernels tiles;
  // Of the operation at hand; members so that their memory is reused.
  std::vector<Product> products;
  std::vector<Placement> batch;
};

// Adds a product to the list; none when it has no elements. A k above type.max_k (only where a is
// transposed) becomes several products that add up in order.
void append_product(std::vector<Product>& products, const ProductType& type, Product product);

// Products run in order where they share c; those of one list must else not overlap.
void run_products(Stream& stream, const ProductType& type, std::span<const Product> products);

// The two ways. run_tiles returns false, having done nothing, where oneDNN lacks a kernel.
bool run_tiles(Stream& stream, const ProductType& type, std::span<const Product> products);
void run_sgemm(Stream& stream, const ProductType& type, std::span<const Product> products);

// A rectangle of c.
struct Rectangle {
  std::int64_t row = 0, col = 0, rows = 0, cols = 0;
};

// Fills `sum` with what the product is added to: c when accumulating, else zero; plus the bias.
// `sum` has row stride `stride` and may be c's own memory.
void start_sum(const ProductType& type, const Product& product, const Rectangle& rectangle,
               float* sum, std::int64_t stride);

// The epilogue as an operation of its own, after the product: c [(batch,) rows, n] <- v of that shape, where
// product_result says that the product has left v.
void run_epilogue(Stream& stream, const GemmEpilogue& epilogue, Tensor c);

inline Tensor product_result(const GemmEpilogue& epilogue, Tensor c) {
  return epilogue.pre ? epilogue.pre : c;
}

void register_grouped_gemm(OperationTable&);

}  // namespace orchard::cpu
