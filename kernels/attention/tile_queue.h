// Which tile a persistent block of attention takes next. Blocks take numbers from one counter, so that who
// is free goes on with the longest tile that is left, as the hardware's own scheduler would have it with a
// block a tile. A deal known beforehand, every n-th tile for a block of n, needs no counter, but a causal
// mask makes tiles unlike: it ends later (docs/notes/attention-schedule.md has the figures). Nor does a
// block have a first tile of its own: it may come late, when other kernels hold its multiprocessor, and
// then finds the tiles done.
#pragma once

#include <algorithm>

#include "kernels/attention/attention_gpu.h"
#include "kernels/device/zero_words.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/gpu_properties.h"
#include "kernels/gpu/warp.h"

namespace orchard::GPU_NAMESPACE {

struct TileQueue {
  unsigned* taken;  // zero before the launch, and after it
  unsigned tiles;
  unsigned blocks;  // of the grid: as many as multiprocessors, which hold one each
};

inline TileQueue tile_queue(const char* name, Stream& stream, std::int64_t tiles) {
  require(tiles < (std::int64_t{1} << 31), "{}: {} tiles of all heads exceed what it counts (2^31)",
          name, tiles);
  return {.taken = zero_words(stream),
          .tiles = static_cast<unsigned>(tiles),
          .blocks = static_cast<unsigned>(
              std::min<std::int64_t>(tiles, gpu_properties(stream).multiprocessors))};
}

// The next tile's number, or one from queue.tiles on, when this block is done. By a whole warp, one a
// block; not after it was done.
__device__ inline unsigned take_tile(const TileQueue& queue) {
  unsigned number = 0;
  if (threadIdx.x % 32 == 0) {
    number = atomicAdd(queue.taken, 1u);
    // Every block asks once in vain. Who asks last of all leaves zero to the next launch.
    const unsigned last = queue.tiles + queue.blocks - 1;
    if (number == last) atomicAdd(queue.taken, ~last);
  }
  return __shfl_sync(all_lanes, number, 0);
}

}  // namespace orchard::GPU_NAMESPACE
