// Antialiased bicubic resize on GPUs, from sm_80 on: the weights of both passes in fp64, as the CPU
// computes them, then a horizontal pass into the workspace, f32 [in_height, width, 3], and a
// vertical one onto the canvas.
//
// Bytes: 3 per input pixel, 12 per canvas pixel, and 24 per pixel between the passes. FLOPs: with s
// the larger of 1 and the shrink factor, a pass costs 8·s per value. Bound: load instructions, one a
// multiply-add; pictures come from data workers on the CPU, and no training step waits for this.
#include "kernels/device/device.h"
#include "kernels/device/scratch.h"
#include "kernels/gpu/grid.h"
#include "kernels/image/bicubic.h"
#include "kernels/image/image.h"
#include "kernels/image/image_gpu.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr int block_threads = 128;

// Output i of one pass is the sum of weights[i, tap] · input first[i] + tap, tap < count[i].
struct Filter {
  std::int64_t in_size, size, max_taps;
  std::int32_t* first;  // [size]
  std::int32_t* count;  // [size]
  float* weights;       // [size, max_taps]
};

__device__ inline std::int64_t thread_of_grid() {
  return static_cast<std::int64_t>(blockIdx.x) * block_threads + static_cast<int>(threadIdx.x);
}

__global__ void __launch_bounds__(block_threads) make_filter(Filter filter) {
  const std::int64_t i = thread_of_grid();
  if (i >= filter.size) return;
  const ResizeTaps taps(i, filter.in_size, filter.size);
  const double total = taps.total();
  store(filter.first + i, static_cast<std::int32_t>(taps.begin));
  store(filter.count + i, static_cast<std::int32_t>(taps.end - taps.begin));
  for (std::int64_t input = taps.begin; input < taps.end; ++input) {
    store(filter.weights + i * filter.max_taps + input - taps.begin,
          static_cast<float>(taps.weight(input) / total));
  }
}

// One value of out [rows, filter.size, 3] from x [rows, filter.in_size, 3].
__global__ void __launch_bounds__(block_threads)
    resize_across(Filter filter, const std::uint8_t* x, std::int64_t rows, float* out) {
  const std::int64_t value = thread_of_grid(), width = filter.size * 3;
  if (value >= rows * width) return;
  const std::int64_t row = value / width, j = value % width / 3, colour = value % 3;
  const float* const weights = filter.weights + j * filter.max_taps;
  const std::uint8_t* const from = x + (row * filter.in_size + load(filter.first + j)) * 3 + colour;
  const int count = load(filter.count + j);
  float sum = 0;
  for (int tap = 0; tap < count; ++tap) {
    sum = fmaf(load(weights + tap), static_cast<float>(load(from + 3 * tap)), sum);
  }
  store(out + value, sum);
}

// One value of the canvas [filter.size, canvas_width, 3] from in [filter.in_size, width, 3].
__global__ void __launch_bounds__(block_threads)
    resize_down(Filter filter, const float* in, std::int64_t width, float* canvas,
                std::int64_t canvas_width) {
  const std::int64_t value = thread_of_grid(), values = width * 3;
  if (value >= filter.size * values) return;
  const std::int64_t row = value / values, column = value % values;
  const float* const weights = filter.weights + row * filter.max_taps;
  const float* const from = in + load(filter.first + row) * values + column;
  const int count = load(filter.count + row);
  float sum = 0;
  for (int tap = 0; tap < count; ++tap) {
    sum = fmaf(load(weights + tap), load(from + tap * values), sum);
  }
  store(canvas + row * canvas_width * 3 + column, fminf(fmaxf(sum, 0.0f), 255.0f));
}

LaunchShape shape_for(const char* kernel, std::int64_t threads) {
  return {.kernel = kernel,
          .grid = {blocks_for(kernel, threads, block_threads)},
          .block = {block_threads}};
}

struct ReservedFilter {
  ScratchArray<std::int32_t> first, count;
  ScratchArray<float> weights;
};
ReservedFilter reserve(ScratchLayout& layout, const Filter& filter) {
  return {layout.add<std::int32_t>(filter.size), layout.add<std::int32_t>(filter.size),
          layout.add<float>(filter.size * filter.max_taps)};
}
void launch_filter(Stream& stream, Filter& filter, const ReservedFilter& reserved,
                   std::byte* scratch) {
  filter.first = reserved.first.in(scratch);
  filter.count = reserved.count.in(scratch);
  filter.weights = reserved.weights.in(scratch);
  launch(stream, shape_for("resize_filter", filter.size), make_filter, filter);
}

void resize_bicubic(Stream& stream, const ResizeBicubic& op) {
  const std::int64_t in_height = op.x.dim(0), in_width = op.x.dim(1);
  Filter across{in_width, op.width, max_resize_taps(in_width, op.width), {}, {}, {}};
  Filter down{in_height, op.height, max_resize_taps(in_height, op.height), {}, {}, {}};
  ScratchLayout layout;
  const ReservedFilter reserved_across = reserve(layout, across);
  const ReservedFilter reserved_down = reserve(layout, down);
  const auto rows = layout.add<float>(in_height * op.width * 3);
  std::byte* const scratch = stream.workspace(layout.bytes());
  launch_filter(stream, across, reserved_across, scratch);
  launch_filter(stream, down, reserved_down, scratch);
  launch(stream, shape_for("resize_across", in_height * op.width * 3), resize_across, across,
         op.x.data<std::uint8_t>(), in_height, rows.in(scratch));
  launch(stream, shape_for("resize_down", op.height * op.width * 3), resize_down, down,
         rows.in(scratch), op.width, op.y.data<float>(), op.y.dim(1));
}

}  // namespace

void register_resize(OperationTable& table) {
  table.add<ResizeBicubic>(resize_bicubic);
}

}  // namespace orchard::GPU_NAMESPACE
