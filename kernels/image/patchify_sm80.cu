// Normalises a canvas and cuts it into flattened patches on GPUs, from sm_80 on. Bytes: 12 per
// pixel read, 3·e written. FLOPs: 6 per pixel. Bound: HBM bandwidth.
//
// Pixels are interleaved, patches are not: neighbouring values of a patch lie three floats apart on the
// canvas. So a block brings a strip of neighbouring patches to shared memory as the canvas has them,
// row by row, and reads it there in the order of the patches: both ways global memory sees whole
// sectors, but for the last strip of a row of patches. Lanes that are three words apart meet in no bank
// within a row of a patch; of the next row some do, two wavefronts a request at patches of 14.
#include <algorithm>
#include <cstdint>

#include "kernels/core/visit.h"
#include "kernels/device/stream.h"
#include "kernels/gpu/grid.h"
#include "kernels/gpu/vector.h"
#include "kernels/image/image.h"
#include "kernels/image/image_gpu.h"
#include "kernels/ptx/cp_async.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr int block_threads = 256;

struct Colours {
  float red, green, blue;
  __device__ float operator[](int c) const { return c == 0 ? red : c == 1 ? green : blue; }
};

// What a block holds at once: eight patches of 14, so that a strip's rows are whole sectors; six such
// blocks, by their registers, fill an SM.
constexpr int strip_floats = 8 * 14 * 14 * 3;

struct Strip {
  float values[strip_floats];  // [rows, patches · patch, 3]
};

// How patches are dealt to blocks: some rows of some neighbouring patches of one tile. All their rows,
// if one patch fits; then the values of a strip are neighbours in the result, too.
struct Strips {
  int rows, patches;  // of a strip, at most
  int down, across;   // strips below each other in a patch, beside each other in a tile
};

constexpr Strips cut_into_strips(int patch, int grid) {
  const int rows = std::min(patch, strip_floats / (3 * patch));
  int patches = rows < patch ? 1 : std::min(grid, strip_floats / (3 * patch * patch));
  if (patches > 8) patches -= patches % 8;
  return {rows, patches, (patch + rows - 1) / rows, (grid + patches - 1) / patches};
}

template <class T>
struct Patches {
  const float* x;  // [tile_rows·side, tile_cols·side, 3]
  T* patches;      // [tile_rows·tile_cols, grid, grid, 3, patch, patch]
  std::int64_t height, width;
  int tile_cols, grid, side, patch;
  Strips strips;
  Colours scale, shift;  // of a value
};

// A block's strip: patches [first_patch, + patches) of a row of patches, their rows [first_row, + rows).
struct OwnStrip {
  std::int64_t tile;
  int patch_row, first_patch, patches, first_row, rows;
};

template <class T>
__device__ OwnStrip own_strip(const Patches<T>& op) {
  const Strips& all = op.strips;
  const unsigned down = blockIdx.x % all.down, index = blockIdx.x / all.down;
  const unsigned across = index % all.across, patch_row = index / all.across % op.grid;
  OwnStrip strip{.tile = index / all.across / op.grid,
                 .patch_row = static_cast<int>(patch_row),
                 .first_patch = static_cast<int>(across) * all.patches,
                 .first_row = static_cast<int>(down) * all.rows};
  strip.patches = std::min(all.patches, op.grid - strip.first_patch);
  strip.rows = std::min(all.rows, op.patch - strip.first_row);
  return strip;
}

// A value of a strip in the order of the result, [patches, 3, rows, patch], and steps over it without
// divisions.
struct Place {
  int plane, row, col;  // plane: patch · 3 + colour

  __device__ Place(int value, int rows, int cols)
      : plane(value / cols / rows), row(value / cols % rows), col(value % cols) {}

  __device__ void advance(const Place& step, int rows, int cols) {
    col += step.col;
    row += step.row;
    plane += step.plane;
    if (col >= cols) col -= cols, ++row;
    if (row >= rows) row -= rows, ++plane;
  }
};

template <class T>
__global__ void __launch_bounds__(block_threads) patchify(Patches<T> op) {
  auto& shared = shared_storage<Strip>();
  const OwnStrip strip = own_strip(op);
  const std::int64_t canvas_width = static_cast<std::int64_t>(op.tile_cols) * op.side;
  const std::int64_t top =
      strip.tile / op.tile_cols * op.side + strip.patch_row * op.patch + strip.first_row;
  const std::int64_t left = strip.tile % op.tile_cols * op.side + strip.first_patch * op.patch;
  const int cols = strip.patches * op.patch;
  // The rows and columns of the strip that the picture has: the rest of the canvas is not read.
  const auto inside_rows = static_cast<int>(
      std::max<std::int64_t>(0, std::min<std::int64_t>(strip.rows, op.height - top)));
  const auto inside_cols =
      static_cast<int>(std::max<std::int64_t>(0, std::min<std::int64_t>(cols, op.width - left)));

  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  for (int row = thread / 32; row < inside_rows; row += block_threads / 32) {
    const float* const from = op.x + ((top + row) * canvas_width + left) * 3;
    for (int i = lane; i < 3 * inside_cols; i += 32) {
      cp_async_small<4>(shared.values + row * cols * 3 + i, from + i);
    }
  }
  cp_async_wait_all();
  __syncthreads();

  const Place step(block_threads, strip.rows, op.patch);
  Place at(thread, strip.rows, op.patch);
  const int area = op.patch * op.patch;
  const std::int64_t first_plane =
      3 * ((strip.tile * op.grid + strip.patch_row) * op.grid + strip.first_patch);
  T* const out = op.patches + first_plane * area + strip.first_row * op.patch;
  for (; at.plane < 3 * strip.patches; at.advance(step, strip.rows, op.patch)) {
    const int colour = at.plane % 3, col = at.plane / 3 * op.patch + at.col;
    float normalised = 0;
    if (at.row < inside_rows && col < inside_cols) {
      normalised = fmaf(load_shared(shared.values + (at.row * cols + col) * 3 + colour),
                        op.scale[colour], op.shift[colour]);
    }
    store(out + static_cast<std::int64_t>(at.plane) * area + at.row * op.patch + at.col,
          narrow<T>(normalised));
  }
}

void normalise_patchify(Stream& stream, const NormalisePatchify& op) {
  if (op.patches.numel() == 0) return;
  const auto scale = [&](std::size_t c) { return 1.0f / (255.0f * op.std[c]); };
  const auto shift = [&](std::size_t c) { return -op.mean[c] / op.std[c]; };
  const int patch = static_cast<int>(op.patch), grid = static_cast<int>(op.side / op.patch);
  const Strips strips = cut_into_strips(patch, grid);
  const std::int64_t blocks = op.patches.dim(0) * grid * strips.across * strips.down;
  visit_float(op.patches.dtype(), [&]<class T>(T) {
    launch(stream,
           {.kernel = "normalise_patchify",
            .grid = {blocks_for("normalise_patchify", blocks, 1)},
            .block = {block_threads},
            .shared_bytes = sizeof(Strip)},
           patchify<T>,
           Patches<T>{.x = op.x.data<float>(),
                      .patches = op.patches.data<T>(),
                      .height = op.height,
                      .width = op.width,
                      .tile_cols = static_cast<int>(op.x.dim(1) / op.side),
                      .grid = grid,
                      .side = static_cast<int>(op.side),
                      .patch = patch,
                      .strips = strips,
                      .scale = {scale(0), scale(1), scale(2)},
                      .shift = {shift(0), shift(1), shift(2)}});
  });
}

}  // namespace

void register_patchify(OperationTable& table) {
  table.add<NormalisePatchify>(normalise_patchify);
}

}  // namespace orchard::GPU_NAMESPACE
