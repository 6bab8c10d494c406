// Antialiased bicubic resize on GPUs, from sm_80 on: the weights of both passes in fp64, as the CPU
// computes them, then a horizontal pass into the workspace, f32 [in_height, width, 3], and a
// vertical one onto the canvas.
//
// Bytes: 3 per input pixel, 12 per canvas pixel, and 24 per pixel between the passes. FLOPs: with s
// the larger of 1 and the shrink factor, a pass costs 8·s per value. Bound: load instructions, one a
// multiply-add; pictures come from data workers on the CPU, and no training step waits for this.
//
// Neighbouring values weigh pixels of three bytes that lie s apart. So the horizontal pass brings the
// stretch of a row that a block weighs to shared memory, in words. The weights of neighbouring outputs
// for one tap are neighbours.
#include <algorithm>
#include <cstdint>

#include "kernels/device/scratch.h"
#include "kernels/device/stream.h"
#include "kernels/gpu/grid.h"
#include "kernels/image/bicubic.h"
#include "kernels/image/image.h"
#include "kernels/image/image_gpu.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr int block_threads = 128;
constexpr unsigned sector = 32;  // bytes, the least that memory moves

// Output i of one pass is the sum of weights[tap, i] · input first[i] + tap, tap < count[i]. first and
// first + count do not fall with i.
struct Filter {
  std::int64_t in_size, size, max_taps;
  std::int32_t* first;  // [size]
  std::int32_t* count;  // [size]
  float* weights;       // [max_taps, size]
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
  // Lanes have different numbers of taps: unrolled, they would part and store a sector in turn.
#pragma unroll 1
  for (std::int64_t input = taps.begin; input < taps.end; ++input) {
    store(filter.weights + (input - taps.begin) * filter.size + i,
          static_cast<float>(taps.weight(input) / total));
  }
}

struct Picture {
  const std::uint8_t* x;  // [rows, width, 3]
  std::int64_t rows, width;

  __device__ std::int64_t bytes() const { return rows * width * 3; }
};

// A stretch of a picture's bytes, from a whole sector on.
struct Stretch {
  static constexpr int words = 1024, bytes = 4 * words;
  unsigned word[words];
};

// Brings the picture's bytes [begin, end), at most a stretch; x + begin is the address of a word.
__device__ inline void bring(const Picture& picture, std::int64_t begin, std::int64_t end,
                             Stretch& to) {
  auto* const bytes = reinterpret_cast<std::uint8_t*>(to.word);
  for (int i = static_cast<int>(threadIdx.x); begin + 4 * i < end; i += block_threads) {
    const std::int64_t at = begin + 4 * i;
    if (at >= 0 && at + 4 <= picture.bytes()) {
      store_shared(to.word + i, load(reinterpret_cast<const unsigned*>(picture.x + at)));
      continue;
    }
    for (int j = 0; j < 4; ++j) {  // before the picture, or after it
      const bool inside = at + j >= 0 && at + j < picture.bytes();
      if (inside) store_shared(bytes + 4 * i + j, load(picture.x + at + j));
    }
  }
}

// Of one row of out [rows, filter.size, 3] as many values as a block has threads.
__global__ void __launch_bounds__(block_threads)
    resize_across(Filter filter, Picture picture, float* out) {
  auto& shared = shared_storage<Stretch>();
  const auto* const bytes = reinterpret_cast<const std::uint8_t*>(shared.word);
  const std::int64_t values = filter.size * 3;
  const std::int64_t blocks_of_row = (values + block_threads - 1) / block_threads;
  const std::int64_t row = blockIdx.x / blocks_of_row;
  const std::int64_t first = blockIdx.x % blocks_of_row * block_threads;
  const std::int64_t last = std::min(first + block_threads, values) - 1;
  // Threads beyond the last value have no taps, and stay for the barriers.
  const std::int64_t value = first + static_cast<int>(threadIdx.x), j = std::min(value, last) / 3;
  const int count = value <= last ? load(filter.count + j) : 0;
  const auto pixel = [&](std::int64_t column) { return (row * picture.width + column) * 3; };
  const std::int64_t own = pixel(load(filter.first + j)) + value % 3;
  const std::int64_t end = pixel(load(filter.first + last / 3) + load(filter.count + last / 3));
  std::int64_t begin = pixel(load(filter.first + first / 3));
  begin -= (reinterpret_cast<std::uintptr_t>(picture.x) + begin) % sector;

  float sum = 0;
  for (int tap = 0; begin < end; begin += Stretch::bytes) {
    const std::int64_t stop = std::min(end, begin + Stretch::bytes);
    bring(picture, begin, stop, shared);
    __syncthreads();
    for (; tap < count && own + 3 * tap < stop; ++tap) {
      sum = fmaf(load(filter.weights + tap * filter.size + j),
                 static_cast<float>(load_shared(bytes + (own + 3 * tap - begin))), sum);
    }
    __syncthreads();  // before the next stretch takes its place
  }
  if (value <= last) store(out + row * values + value, sum);
}

// One value of the canvas [filter.size, canvas_width, 3] from in [filter.in_size, width, 3].
__global__ void __launch_bounds__(block_threads)
    resize_down(Filter filter, const float* in, std::int64_t width, float* canvas,
                std::int64_t canvas_width) {
  const std::int64_t value = thread_of_grid(), values = width * 3;
  if (value >= filter.size * values) return;
  const std::int64_t row = value / values, column = value % values;
  const float* const from = in + load(filter.first + row) * values + column;
  const int count = load(filter.count + row);
  float sum = 0;
  for (int tap = 0; tap < count; ++tap) {
    sum = fmaf(load(filter.weights + tap * filter.size + row), load(from + tap * values), sum);
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
  const Picture picture{op.x.data<std::uint8_t>(), in_height, in_width};
  const std::int64_t blocks_across = in_height * ceil_div(op.width * 3, block_threads);
  launch(stream,
         {.kernel = "resize_across",
          .grid = {blocks_for("resize_across", blocks_across, 1)},
          .block = {block_threads},
          .shared_bytes = sizeof(Stretch)},
         resize_across, across, picture, rows.in(scratch));
  launch(stream, shape_for("resize_down", op.height * op.width * 3), resize_down, down,
         rows.in(scratch), op.width, op.y.data<float>(), op.y.dim(1));
}

}  // namespace

void register_resize(OperationTable& table) {
  table.add<ResizeBicubic>(resize_bicubic);
}

}  // namespace orchard::GPU_NAMESPACE
