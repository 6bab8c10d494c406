// Rows copied from anywhere: y[r] = the row that `source_of` names, or zeros. One warp a row; bound
// by memory, at 2·e bytes per element of e bytes. The dtype does not matter: a row is cut into the
// widest units that all addresses and lengths allow, 16, 4, 2 bytes or 1, and a lane has four of them
// in flight.
#pragma once

#include <cstdint>

#include "kernels/core/tensor.h"
#include "kernels/device/stream.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/grid.h"

namespace orchard::GPU_NAMESPACE {

inline constexpr int copy_warps = 4;  // rows of a block

// rows[indices[r] - first], zeros where the index is below `first`.
template <class Unit>
struct GatheredRows {
  const Unit* rows;
  const std::int32_t* indices;
  std::int64_t units;  // of a row
  int first = 0;
  __device__ const Unit* operator()(std::int64_t r) const {
    const int index = load(indices + r) - first;
    return index < 0 ? nullptr : rows + index * units;
  }
};

// `row_limit`, where given, is a number of rows on the device; those from there on stay untouched.
template <class Unit, class Source>
__global__ void __launch_bounds__(32 * copy_warps)
    copy_rows(Source source_of, Unit* y, std::int64_t rows, const std::int32_t* row_limit) {
  constexpr int in_flight = 4;
  const std::int64_t row =
      static_cast<std::int64_t>(blockIdx.x) * copy_warps + static_cast<int>(threadIdx.x) / 32;
  if (row >= rows || (row_limit != nullptr && row >= load(row_limit))) return;
  const Unit* const from = source_of(row);
  const std::int64_t units = source_of.units;
  Unit* const to = y + row * units;
  // All lanes take as many turns, so that they stay together in an unrolled loop.
  for (std::int64_t begin = 0; begin < units; begin += 32 * in_flight) {
    const auto at = [&](int i) { return begin + 32 * i + static_cast<int>(threadIdx.x) % 32; };
    Unit held[in_flight];
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
      held[i] = from != nullptr && at(i) < units ? load(from + at(i)) : Unit{};
    }
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
      if (at(i) < units) store(to + at(i), held[i]);
    }
  }
}

// Calls body(Unit{}, units) for rows of `row_bytes` bytes that start at these addresses, all of them
// multiples of `narrowest`, 1 or 2: rows of no float have odd bytes, and so no kernel for them.
template <int narrowest = 2, class Body>
void visit_unit(std::int64_t row_bytes, std::initializer_list<const void*> addresses,
                const Body& body) {
  auto bits = static_cast<std::uintptr_t>(row_bytes);
  for (const void* const address : addresses) bits |= reinterpret_cast<std::uintptr_t>(address);
  if (bits % 16 == 0) return body(uint4{}, row_bytes / 16);
  if (bits % 4 == 0) return body(0u, row_bytes / 4);
  if constexpr (narrowest == 1) {
    if (bits % 2 != 0) return body(static_cast<unsigned char>(0), row_bytes);
  }
  return body(static_cast<unsigned short>(0), row_bytes / 2);
}

inline std::int64_t row_bytes(const ConstTensor& rows) {
  auto bytes = static_cast<std::int64_t>(size_of(rows.dtype()));
  for (int d = 1; d < rows.rank(); ++d) bytes *= rows.dim(d);
  return bytes;
}

template <class Unit, class Source>
void launch_copy_rows(Stream& stream, const char* name, const Source& source, Unit* y,
                      std::int64_t rows, const std::int32_t* row_limit = nullptr) {
  if (rows == 0 || source.units == 0) return;
  launch(stream,
         {.kernel = name, .grid = {blocks_for(name, rows, copy_warps)}, .block = {32 * copy_warps}},
         copy_rows<Unit, Source>, source, y, rows, row_limit);
}

// y[r] = x[indices[r] - first], zeros where the index is below `first`.
inline void copy_gathered_rows(Stream& stream, const char* name, const ConstTensor& x,
                               const std::int32_t* indices, int first, const Tensor& y,
                               const std::int32_t* row_limit = nullptr) {
  visit_unit(row_bytes(y), {x.raw(), y.raw()}, [&]<class Unit>(Unit, std::int64_t units) {
    launch_copy_rows(stream, name,
                     GatheredRows<Unit>{static_cast<const Unit*>(x.raw()), indices, units, first},
                     static_cast<Unit*>(y.raw()), y.dim(0), row_limit);
  });
}

}  // namespace orchard::GPU_NAMESPACE
