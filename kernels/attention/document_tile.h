// Where a block of an attention kernel works. The host knows how many tokens and documents there
// are but not where documents end, so it launches a bound of blocks, and each finds its tile of
// rows from the offsets.
//
// Cut along either axis, document d's tiles of `rows` rows have the slots from offset[d] / rows + d
// on. The next document's begin no earlier, because a division by `rows` loses less than one slot.
// So a block finds its document by a search instead of a sum over all, and at most one slot per
// document is spare. The rows before the first document and after the last one count as documents
// that have nothing on the other axis: their results are the zeros that they must become.
#pragma once

#include "kernels/attention/document.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/warp.h"

namespace orchard::GPU_NAMESPACE {

enum class Axis : std::uint8_t { queries, keys };

struct Packing {
  const std::int32_t* query_offsets;  // [documents + 1]
  const std::int32_t* key_offsets;    // [documents + 1]
  int documents;
  int query_tokens, key_tokens;
};

struct DocumentTile {
  Document document;
  int first;  // row of the document, along the axis that was cut; beyond its end in a spare slot
};

inline std::int64_t slots(const Packing& packing, Axis axis, int rows) {
  const int tokens = axis == Axis::queries ? packing.query_tokens : packing.key_tokens;
  return tokens == 0 ? 0 : tokens / rows + packing.documents + 2;
}

// To be called by whole warps.
__device__ inline DocumentTile find_tile(const Packing& packing, Axis axis, int rows, int slot) {
  const bool queries = axis == Axis::queries;
  const std::int32_t* const offsets = queries ? packing.query_offsets : packing.key_offsets;
  const std::int32_t* const others = queries ? packing.key_offsets : packing.query_offsets;
  const int tokens = queries ? packing.query_tokens : packing.key_tokens;
  // Document 0 is the rows before the first one, document documents + 1 those after the last.
  const auto begin = [&](int document) {
    if (document == 0) return 0;
    return document == packing.documents + 2 ? tokens : load_readonly(offsets + document - 1);
  };
  const auto first_slot = [&](int document) { return begin(document) / rows + document; };

  // The lanes probe 32 documents at once: one round trip to memory for up to 32 of them, two for up
  // to 1024.
  int low = 0, high = packing.documents + 2;  // first_slot(low) <= slot, and of high it is above
  while (high - low > 1) {
    const int step = (high - low + 31) / 32;
    const int probe = low + static_cast<int>(threadIdx.x % 32) * step;
    const bool reached = probe < high && first_slot(probe) <= slot;
    low += (__popc(__ballot_sync(all_lanes, reached)) - 1) * step;
    high = low + step < high ? low + step : high;
  }

  const int size = begin(low + 1) - begin(low);
  Document document;
  int other_begin = 0, other_size = 0;
  if (low > 0 && low <= packing.documents) {
    other_begin = load_readonly(others + low - 1);
    other_size = load_readonly(others + low) - other_begin;
  }
  if (queries) {
    document = {begin(low), size, other_begin, other_size};
  } else {
    document = {other_begin, other_size, begin(low), size};
  }
  return {document, (slot - first_slot(low)) * rows};
}

}  // namespace orchard::GPU_NAMESPACE
