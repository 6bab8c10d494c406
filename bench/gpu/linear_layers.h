// The linear layers of the presets, and the three products of each (kernels/gemm/gemm.h).
#pragma once

#include <string>
#include <vector>

#include "bench/gpu/gpu_bench.h"

namespace orchard::bench {

enum class Direction { forward, input_gradient, weight_gradient };

inline const char* name_of(Direction direction) {
  switch (direction) {
    case Direction::forward:
      return "forward";
    case Direction::input_gradient:
      return "input_gradient";
    case Direction::weight_gradient:
      return "weight_gradient";
  }
  return "?";
}

struct LinearLayer {
  std::string name;  // "3b.ffn_up"
  std::int64_t rows = 0, in = 0, out = 0;
  DType dtype = DType::bf16;   // of x and the weight
  DType result = DType::bf16;  // of y: logits are f32
  bool has_bias = false;
  std::vector<Direction> directions = {Direction::forward, Direction::input_gradient,
                                       Direction::weight_gradient};

  bool has_shape_of(const LinearLayer& other) const {
    return rows == other.rows && in == other.in && out == other.out && dtype == other.dtype &&
           result == other.result;
  }
};

// Each shape once, under the name of the first that has it: decoders, heads and routers by their
// preset, "vit" and "connector" for what the presets share.
std::vector<LinearLayer> linear_layers();

// The gates of SwiGLU.
std::vector<LinearLayer> ffn_gates();

inline Gemm form_of(Direction direction) {
  switch (direction) {
    case Direction::forward:
      return {.transpose_b = Transpose::yes};
    case Direction::input_gradient:
      return {};
    case Direction::weight_gradient:
      return {.transpose_a = Transpose::yes, .accumulate = Accumulate::add};
  }
  return {};
}

// Of a product of `rows` rows with a matrix [in, out].
inline double product_flops(std::int64_t rows, std::int64_t in, std::int64_t out) {
  return 2.0 * static_cast<double>(rows) * static_cast<double>(in) * static_cast<double>(out);
}

inline double bytes_of(DType dtype, std::int64_t elements) {
  return static_cast<double>(size_of(dtype)) * static_cast<double>(elements);
}

}  // namespace orchard::bench
