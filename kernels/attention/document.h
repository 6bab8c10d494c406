// One packed document's rows in q and k, and who sees whom.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/attention/attention.h"

namespace orchard {

struct Document {
  std::int32_t query_begin = 0, queries = 0;
  std::int32_t key_begin = 0, keys = 0;

  // Query `i` of the document sees its keys [0, visible_keys(i)). The ends are aligned.
  constexpr std::int64_t visible_keys(Mask mask, std::int64_t i) const {
    if (mask == Mask::full) return keys;
    return std::clamp<std::int64_t>(i + 1 + keys - queries, 0, keys);
  }
  // The first query that sees key `j`; `queries` when none does.
  constexpr std::int64_t first_query(Mask mask, std::int64_t j) const {
    if (mask == Mask::full) return 0;
    return std::clamp<std::int64_t>(j - keys + queries, 0, queries);
  }
};

}  // namespace orchard
