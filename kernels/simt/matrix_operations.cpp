#include "kernels/simt/matrix_operations.h"

#include <cstring>

#include "kernels/core/dtype.h"
#include "kernels/core/error.h"
#include "kernels/simt/counters.h"

namespace orchard::simt {
namespace {

using Lanes = std::array<void*, 32>;

void require_whole_warp(const Lanes& lanes) {
  for (unsigned lane = 0; lane < lanes.size(); ++lane) {
    require(lanes[lane] != nullptr, "lane {} is not there, and all 32 must take part", lane);
  }
}

template <int matrices, bool transposed>
void load_matrices(const Lanes& lanes) {
  require_whole_warp(lanes);
  const auto argument = [&](unsigned lane) -> const LoadMatrixArguments& {
    return *static_cast<const LoadMatrixArguments*>(lanes[lane]);
  };
  for (unsigned matrix = 0; matrix < matrices; ++matrix) {
    std::uint16_t elements[8][8];
    for (unsigned row = 0; row < 8; ++row) {
      std::memcpy(elements[row], argument(8 * matrix + row).row, sizeof elements[row]);
    }
    for (unsigned lane = 0; lane < lanes.size(); ++lane) {
      const unsigned group = lane / 4, pair = 2 * (lane % 4);
      const unsigned low = transposed ? elements[pair][group] : elements[group][pair];
      const unsigned high = transposed ? elements[pair + 1][group] : elements[group][pair + 1];
      argument(lane).registers[matrix] = low | high << 16;
    }
  }
}

template <int matrices, bool transposed>
void store_matrices(const Lanes& lanes) {
  require_whole_warp(lanes);
  const auto argument = [&](unsigned lane) -> const StoreMatrixArguments& {
    return *static_cast<const StoreMatrixArguments*>(lanes[lane]);
  };
  for (unsigned matrix = 0; matrix < matrices; ++matrix) {
    std::uint16_t elements[8][8];
    for (unsigned lane = 0; lane < lanes.size(); ++lane) {
      const unsigned group = lane / 4, pair = 2 * (lane % 4);
      for (unsigned half = 0; half < 2; ++half) {
        const auto value =
            static_cast<std::uint16_t>(argument(lane).registers[matrix] >> (16 * half));
        (transposed ? elements[pair + half][group] : elements[group][pair + half]) = value;
      }
    }
    for (unsigned row = 0; row < 8; ++row) {
      std::memcpy(argument(8 * matrix + row).row, elements[row], sizeof elements[row]);
    }
  }
}

float half_of(unsigned bits, unsigned half) {
  return to_float(bf16{static_cast<std::uint16_t>(bits >> (16 * half))});
}

// d [16, 8] += a [16, 16] · b [16, 8]. The products are exact in fp32 and are added in the order of
// k. A tensor core's order and rounding are its own, and differ between generations.
void multiply_m16n8k16(const Lanes& lanes) {
  require_whole_warp(lanes);
  float a[16][16], b[16][8], d[16][8];
  for (unsigned lane = 0; lane < lanes.size(); ++lane) {
    const auto& own = *static_cast<const MmaArguments*>(lanes[lane]);
    const unsigned group = lane / 4, pair = 2 * (lane % 4);
    for (unsigned half = 0; half < 2; ++half) {
      for (unsigned r = 0; r < 4; ++r) {
        a[group + 8 * (r % 2)][pair + half + 8 * (r / 2)] = half_of(own.a[r], half);
      }
      for (unsigned r = 0; r < 2; ++r) b[pair + half + 8 * r][group] = half_of(own.b[r], half);
    }
    for (unsigned i = 0; i < 4; ++i) d[group + 8 * (i / 2)][pair + i % 2] = own.d[i];
  }
  for (unsigned k = 0; k < 16; ++k) {
    for (unsigned row = 0; row < 16; ++row) {
      for (unsigned col = 0; col < 8; ++col) d[row][col] += a[row][k] * b[k][col];
    }
  }
  for (unsigned lane = 0; lane < lanes.size(); ++lane) {
    float* const own = static_cast<const MmaArguments*>(lanes[lane])->d;
    const unsigned group = lane / 4, pair = 2 * (lane % 4);
    for (unsigned i = 0; i < 4; ++i) own[i] = d[group + 8 * (i / 2)][pair + i % 2];
  }
  ++counters().mma_instructions;
  counters().tensor_flops += 2 * 16 * 8 * 16;
}

}  // namespace

// Tables are chosen as pointers: of (transposed ? trans : plain)[matrices / 2] GCC 12 with
// -fsanitize=undefined evaluates the index in one arm alone.
const WarpOperation& load_matrix_operation(int matrices, bool transposed) {
  static constexpr WarpOperation plain[] = {{"ldmatrix.x1", load_matrices<1, false>},
                                            {"ldmatrix.x2", load_matrices<2, false>},
                                            {"ldmatrix.x4", load_matrices<4, false>}};
  static constexpr WarpOperation trans[] = {{"ldmatrix.x1.trans", load_matrices<1, true>},
                                            {"ldmatrix.x2.trans", load_matrices<2, true>},
                                            {"ldmatrix.x4.trans", load_matrices<4, true>}};
  const WarpOperation* const of = transposed ? trans : plain;
  return of[matrices / 2];  // 1, 2, 4
}

const WarpOperation& store_matrix_operation(int matrices, bool transposed) {
  static constexpr WarpOperation plain[] = {{"stmatrix.x1", store_matrices<1, false>},
                                            {"stmatrix.x2", store_matrices<2, false>},
                                            {"stmatrix.x4", store_matrices<4, false>}};
  static constexpr WarpOperation trans[] = {{"stmatrix.x1.trans", store_matrices<1, true>},
                                            {"stmatrix.x2.trans", store_matrices<2, true>},
                                            {"stmatrix.x4.trans", store_matrices<4, true>}};
  const WarpOperation* const of = transposed ? trans : plain;
  return of[matrices / 2];  // 1, 2, 4
}

const WarpOperation mma_m16n8k16_bf16_operation{"mma.m16n8k16", multiply_m16n8k16};

}  // namespace orchard::simt
