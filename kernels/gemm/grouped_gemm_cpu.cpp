// The experts' products on the CPU. All groups become one list of products, so that small groups
// fill the threads together. Rows after the last group are not touched.
#include "kernels/cpu/indices.h"
#include "kernels/device/device.h"
#include "kernels/gemm/gemm_cpu.h"

namespace orchard::cpu {
namespace {

constexpr std::int64_t row_multiple = 32;

// Calls body(group, first_row, rows) for every group, after checking its offsets. Returns the rows of all.
template <class Body>
std::int64_t for_each_group(const char* operation, const ConstTensor& row_offsets,
                            std::int64_t max_rows, const Body& body) {
  const auto* const offsets = row_offsets.data<std::int32_t>();
  std::int64_t used = 0;
  for (std::int64_t g = 0; g + 1 < row_offsets.dim(0); ++g) {
    const std::int64_t begin = offsets[g], end = offsets[g + 1];
    require(0 <= begin && begin <= end && end <= max_rows && begin % row_multiple == 0 &&
                end % row_multiple == 0,
            "{}: rows [{}, {}) of group {} must be multiples of {} that ascend and stay below {}",
            operation, begin, end, g, row_multiple, max_rows);
    body(g, begin, end - begin);
    used = end;
  }
  return used;
}

const std::byte* row_of(const ConstTensor& matrix, std::int64_t row) {
  return static_cast<const std::byte*>(matrix.raw()) +
         static_cast<std::size_t>(row * matrix.dim(1)) * size_of(matrix.dtype());
}

// The activations of a group that begins at row `first`, as a product takes them.
struct GroupRows {
  const std::byte* data;
  const std::int32_t* source;

  GroupRows(const ConstTensor& x, const ConstTensor& named, std::int64_t first)
      : data(row_of(x, named ? 0 : first)),
        source(named ? named.data<std::int32_t>() + first : nullptr) {}
};

// Of the `used` rows of all groups.
void check_source(const char* operation, const ConstTensor& source, std::int64_t used,
                  const ConstTensor& x) {
  if (source) check_indices(operation, "source", source.slice(0, used), -1, x.dim(0));
}

void grouped_gemm(Stream& stream, const GroupedGemm& op) {
  const std::int64_t groups = op.b.dim(0), k = op.a.dim(1), n = op.c.dim(1);
  const ProductType type{.transpose_b = op.transpose_b,
                         .in = op.a.dtype(),
                         .out = op.c.dtype(),
                         .n = n,
                         .gathered = static_cast<bool>(op.source),
                         .max_products = groups,
                         .max_k = k,
                         .max_total_k = groups * k};
  const Tensor result = product_result(op.epilogue, op.c);
  auto& products = stream.device().extension<GemmState>().products;
  products.clear();
  const std::int64_t rows_of_all =
      for_each_group("GroupedGemm", op.row_offsets, op.c.dim(0),
                     [&](std::int64_t g, std::int64_t first, std::int64_t rows) {
                       const GroupRows a(op.a, op.source, first);
                       append_product(products, type,
                                      {.a = a.data,
                                       .b = static_cast<const std::byte*>(op.b.raw()) +
                                            static_cast<std::size_t>(g * k * n) * size_of(type.in),
                                       .c = const_cast<std::byte*>(row_of(result, first)),
                                       .source = a.source,
                                       .m = rows,
                                       .k = k,
                                       .b_stride = op.transpose_b == Transpose::yes ? k : n,
                                       .accumulate = op.accumulate});
                     });
  check_source("GroupedGemm", op.source, rows_of_all, op.a);
  run_products(stream, type, products);
  const auto used = [&](auto rows) { return rows ? rows.slice(0, rows_of_all) : rows; };
  run_epilogue(stream, {op.epilogue.kind, used(op.epilogue.other), used(op.epilogue.pre)},
               used(op.c));
}

void grouped_gemm_weight_gradient(Stream& stream, const GroupedGemmWeightGradient& op) {
  const std::int64_t max_rows = op.a.dim(0), m = op.d_b.dim(1), n = op.d_b.dim(2);
  const ProductType type{.transpose_a = Transpose::yes,
                         .in = op.a.dtype(),
                         .out = DType::f32,
                         .n = n,
                         .gathered = static_cast<bool>(op.source),
                         .max_products = op.d_b.dim(0),
                         .max_k = std::min(max_rows, max_transposed_k(op.a.dtype())),
                         .max_total_k = max_rows};
  auto& products = stream.device().extension<GemmState>().products;
  products.clear();
  const std::int64_t rows_of_all =
      for_each_group("GroupedGemmWeightGradient", op.row_offsets, max_rows,
                     [&](std::int64_t g, std::int64_t first, std::int64_t rows) {
                       if (rows == 0) return;
                       const GroupRows b(op.b, op.source, first);
                       append_product(products, type,
                                      {.a = row_of(op.a, first),
                                       .b = b.data,
                                       .c = static_cast<std::byte*>(op.d_b.raw()) +
                                            static_cast<std::size_t>(g * m * n) * sizeof(float),
                                       .source = b.source,
                                       .m = m,
                                       .k = rows,
                                       .b_stride = n,
                                       .accumulate = Accumulate::add});
                     });
  check_source("GroupedGemmWeightGradient", op.source, rows_of_all, op.b);
  run_products(stream, type, products);
}

}  // namespace

void register_grouped_gemm(OperationTable& table) {
  table.add<GroupedGemm>(grouped_gemm);
  table.add<GroupedGemmWeightGradient>(grouped_gemm_weight_gradient);
}

}  // namespace orchard::cpu
