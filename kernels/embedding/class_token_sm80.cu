// The class token's way in and out on GPUs, from sm_80 on. Bytes: 2·e per element of e bytes, and 8
// per position once. Bound: HBM bandwidth.
//
// Backward, a thread walks the images for its place of the picture and both copies the gradient and
// adds it up: it is read once, and the sum over images has a fixed order. It tends four elements: their
// fp32 sums are one access of 16 bytes, so that a warp's are whole sectors.
#include <algorithm>

#include "kernels/core/visit.h"
#include "kernels/device/stream.h"
#include "kernels/embedding/embedding.h"
#include "kernels/embedding/embedding_gpu.h"
#include "kernels/gpu/grid.h"
#include "kernels/gpu/pieces.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr int block_threads = 128;

// The place (row, column) of the n elements that a thread tends, of `rows` rows of `width`.
struct Place {
  std::int64_t row, column;
  bool inside;
};
template <int n>
__device__ Place place_of_thread(std::int64_t rows, std::int64_t width) {
  const std::int64_t element =
      (static_cast<std::int64_t>(blockIdx.x) * block_threads + static_cast<int>(threadIdx.x)) * n;
  return {element / width, element % width, element < rows * width};
}

template <class Kernel, class... Arguments>
void launch_over(Stream& stream, const char* name, std::int64_t rows, std::int64_t width, int n,
                 Kernel kernel, const Arguments&... arguments) {
  if (rows * width == 0) return;
  launch(stream,
         {.kernel = name,
          .grid = {blocks_for(name, rows * width, std::int64_t{block_threads} * n)},
          .block = {block_threads}},
         kernel, arguments...);
}

// ---- forward: y[image, row] = x[image, row + shift], plus positions[row] -----------------------

template <class T>
struct ShiftedRows {
  const T* x;            // [images, x_rows, width]
  const T* class_token;  // what stands at row -1 of x, or nullptr
  const T* positions;    // [y_rows, width], or nullptr
  T* y;                  // [images, y_rows, width]
  std::int64_t images, x_rows, y_rows, width;
  int shift;
};

template <class T, int n>
__global__ void __launch_bounds__(block_threads) shift_rows(ShiftedRows<T> op) {
  const auto [i, column, inside] = place_of_thread<n>(op.images * op.y_rows, op.width);
  if (!inside) return;
  const std::int64_t image = i / op.y_rows, row = i % op.y_rows, x_row = row + op.shift;
  const T* const from = x_row < 0 ? op.class_token : op.x + (image * op.x_rows + x_row) * op.width;
  const Piece<T, n> piece = load_piece<n>(from + column);
  T* const to = op.y + i * op.width + column;
  if (op.positions == nullptr) return store_piece(to, piece);
  Values<n> sum = values_of(piece);
  const Values<n> position = load_values<n>(op.positions + row * op.width + column);
#pragma unroll
  for (int j = 0; j < n; ++j) sum[j] += position[j];
  store_values(to, sum);
}

template <class T>
void shift_rows(Stream& stream, const char* name, const ShiftedRows<T>& op) {
  visit_piece<T>(op.width, {op.x, op.class_token, op.positions, op.y}, [&](auto n) {
    launch_over(stream, name, op.images * op.y_rows, op.width, n, shift_rows<T, n>, op);
  });
}

void prepend_class_forward(Stream& stream, const PrependClassForward& op) {
  visit_float(op.y.dtype(), [&]<class T>(T) {
    shift_rows<T>(stream, "prepend_class",
                  {.x = op.patches.data<T>(),
                   .class_token = op.class_token.data<T>(),
                   .positions = op.positions.data<T>(),
                   .y = op.y.data<T>(),
                   .images = op.y.dim(0),
                   .x_rows = op.patches.dim(1),
                   .y_rows = op.y.dim(1),
                   .width = op.y.dim(2),
                   .shift = -1});
  });
}

void drop_class_forward(Stream& stream, const DropClassForward& op) {
  visit_float(op.y.dtype(), [&]<class T>(T) {
    shift_rows<T>(stream, "drop_class",
                  {.x = op.x.data<T>(),
                   .class_token = nullptr,
                   .positions = op.positions.data<T>(),
                   .y = op.y.data<T>(),
                   .images = op.y.dim(0),
                   .x_rows = op.x.dim(1),
                   .y_rows = op.y.dim(1),
                   .width = op.y.dim(2),
                   .shift = 1});
  });
}

// ---- backward: d_x[image, row + shift] = d_y[image, row], zeros in rows of d_x that this leaves

template <class T>
struct ShiftedGradient {
  const T* d_y;          // [images, y_rows, width]
  T* d_x;                // [images, x_rows, width]
  float* d_positions;    // [y_rows, width], added to, or nullptr
  float* d_class_token;  // the same sum as row 0 of d_positions, or nullptr
  std::int64_t images, x_rows, y_rows, width;
  int shift;
};

// A thread tends one place of all images, from the first row that d_y or d_x has, -shift or 0.
template <class T, int n>
__global__ void __launch_bounds__(block_threads) shift_gradient(ShiftedGradient<T> op) {
  constexpr int in_flight = 8;
  const std::int64_t first_row = op.shift > 0 ? -op.shift : 0;
  const auto [i, column, inside] = place_of_thread<n>(op.y_rows - first_row, op.width);
  if (!inside) return;
  const std::int64_t row = i + first_row, x_row = row + op.shift;
  const T* const d_y = op.d_y + row * op.width + column;
  T* const d_x = op.d_x + x_row * op.width + column;
  Values<n> total{};
  for (std::int64_t first = 0; first < op.images; first += in_flight) {
    Piece<T, n> pieces[in_flight];
#pragma unroll
    for (int k = 0; k < in_flight; ++k) {
      pieces[k] = row >= 0 && first + k < op.images
                      ? load_piece<n>(d_y + (first + k) * op.y_rows * op.width)
                      : Piece<T, n>{};
    }
#pragma unroll
    for (int k = 0; k < in_flight; ++k) {
      const Values<n> gradient = values_of(pieces[k]);
#pragma unroll
      for (int j = 0; j < n; ++j) total[j] += gradient[j];
      if (x_row >= 0 && first + k < op.images) {
        store_piece(d_x + (first + k) * op.x_rows * op.width, pieces[k]);
      }
    }
  }
  const auto add_total = [&](float* target) {
    Values<n> sum = load_values<n>(target);
#pragma unroll
    for (int j = 0; j < n; ++j) sum[j] += total[j];
    store_values(target, sum);
  };
  if (row < 0 || op.d_positions == nullptr) return;
  add_total(op.d_positions + row * op.width + column);
  if (row == 0 && op.d_class_token != nullptr) add_total(op.d_class_token + column);
}

template <class T>
void shift_gradient(Stream& stream, const char* name, const ShiftedGradient<T>& op) {
  const std::int64_t rows = op.y_rows + std::max(op.shift, 0);
  visit_width<quad>(op.width, {op.d_y, op.d_x, op.d_positions, op.d_class_token}, [&](auto n) {
    launch_over(stream, name, rows, op.width, n, shift_gradient<T, n>, op);
  });
}

void prepend_class_backward(Stream& stream, const PrependClassBackward& op) {
  visit_float(op.d_y.dtype(), [&]<class T>(T) {
    shift_gradient<T>(stream, "prepend_class_backward",
                      {.d_y = op.d_y.data<T>(),
                       .d_x = op.d_patches.data<T>(),
                       .d_positions = op.d_positions.data<float>(),
                       .d_class_token = op.d_class_token.data<float>(),
                       .images = op.d_y.dim(0),
                       .x_rows = op.d_patches.dim(1),
                       .y_rows = op.d_y.dim(1),
                       .width = op.d_y.dim(2),
                       .shift = -1});
  });
}

void drop_class_backward(Stream& stream, const DropClassBackward& op) {
  visit_float(op.d_y.dtype(), [&]<class T>(T) {
    shift_gradient<T>(stream, "drop_class_backward",
                      {.d_y = op.d_y.data<T>(),
                       .d_x = op.d_x.data<T>(),
                       .d_positions = op.d_positions.data<float>(),
                       .d_class_token = nullptr,
                       .images = op.d_y.dim(0),
                       .x_rows = op.d_x.dim(1),
                       .y_rows = op.d_y.dim(1),
                       .width = op.d_y.dim(2),
                       .shift = 1});
  });
}

}  // namespace

void register_class_token(OperationTable& table) {
  table.add<PrependClassForward>(prepend_class_forward);
  table.add<PrependClassBackward>(prepend_class_backward);
  table.add<DropClassForward>(drop_class_forward);
  table.add<DropClassBackward>(drop_class_backward);
}

}  // namespace orchard::GPU_NAMESPACE
