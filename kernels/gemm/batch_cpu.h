// What both ways of running a list of products share: batches whose right-hand matrices fit the
// workspace together, prepared in one parallel loop and multiplied in a second.
#pragma once

#include <algorithm>
#include <atomic>

#include "kernels/cpu/parallel.h"
#include "kernels/gemm/gemm_cpu.h"

namespace orchard::cpu {

// Right-hand matrices prepared together stay below this, unless one alone is larger: enough to
// share out many small experts at once, little beside a model.
inline constexpr std::size_t batch_bytes = std::size_t{64} << 20;

struct BatchLayout {
  std::size_t largest_bytes = 0;  // of one right-hand matrix
  std::size_t total_bytes = 0;    // of all of them
  std::size_t thread_bytes = 0;   // scratch of each thread

  std::size_t shared_bytes() const {
    return std::max(largest_bytes, std::min(total_bytes, batch_bytes));
  }
};

// For one product: bytes of its prepared right-hand matrix, and its number of units.
struct BatchNeed {
  std::size_t bytes = 0;
  std::int64_t blocks = 0;
  std::int64_t tiles = 0;
};

// Runs the products of one type. The callables are
//   BatchNeed need_of(product)
//   void prepare(product, block, right)             on any thread, once for each block
//   bool multiply(product, tile, right, scratch)    then for each tile; false: the library failed
template <class NeedOf, class Prepare, class Multiply>
void run_batches(Stream& stream, GemmState& state, std::span<const Product> products,
                 const BatchLayout& layout, const NeedOf& need_of, const Prepare& prepare,
                 const Multiply& multiply) {
  const auto aligned = [](std::size_t bytes) { return (bytes + 255) / 256 * 256; };
  const std::size_t shared_bytes = aligned(layout.shared_bytes());
  const std::size_t thread_bytes = aligned(layout.thread_bytes);
  std::byte* const shared =
      stream.workspace(shared_bytes + thread_bytes * static_cast<std::size_t>(thread_count()));
  std::byte* const scratch = shared + shared_bytes;
  std::atomic<bool> ok = true;

  const auto at = [&](std::int64_t Placement::*first, std::int64_t index) {
    const auto after = std::upper_bound(
        state.batch.begin(), state.batch.end(), index,
        [&](std::int64_t i, const Placement& placement) { return i < placement.*first; });
    return *(after - 1);
  };
  for (std::size_t next = 0; next < products.size();) {
    state.batch.clear();
    std::size_t used = 0;
    std::int64_t blocks = 0, tiles = 0;
    for (; next < products.size(); ++next) {
      const BatchNeed need = need_of(products[next]);
      const bool same_c = !state.batch.empty() && state.batch.back().product->c == products[next].c;
      if (same_c || (used && used + need.bytes > shared_bytes)) break;
      state.batch.push_back({&products[next], used, blocks, tiles});
      used += need.bytes;
      blocks += need.blocks;
      tiles += need.tiles;
    }
    parallel_tasks(blocks, [&](std::int64_t i) {
      const Placement p = at(&Placement::first_block, i);
      prepare(*p.product, i - p.first_block, shared + p.offset_bytes);
    });
    parallel_tasks(tiles, [&](std::int64_t i) {
      const Placement p = at(&Placement::first_tile, i);
      const auto thread = static_cast<std::size_t>(omp_get_thread_num());
      if (!multiply(*p.product, i - p.first_tile, shared + p.offset_bytes,
                    scratch + thread * thread_bytes)) {
        ok.store(false, std::memory_order_relaxed);
      }
    });
  }
  require(ok.load(), "a matrix product failed inside the library; ORCHARD_GEMM selects another");
}

}  // namespace orchard::cpu
