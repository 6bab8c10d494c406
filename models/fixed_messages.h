// Messages of a fixed size to the experts of other ranks: what a capacity lets through at most bounds
// what any rank can have for an expert, so that nobody counts rows and nobody waits (docs/parallelism.md,
// "With a capacity, none").
#pragma once

#include <cstdint>

#include "kernels/router/router.h"

namespace orchard {

struct RowRange {
  std::int64_t begin = 0, end = 0;
  std::int64_t count() const { return end - begin; }
};

// One of `parts` parts, as equal as can be.
RowRange part_of(RowRange rows, std::int64_t part, std::int64_t parts);

// Which of a micro-batch's rows one of `ranks` tensor ranks sends. Shares are equal but for the last ones.
RowRange share_of(std::int64_t rows, int rank, int ranks);

struct FixedMessages {
  std::int64_t rows = 0;  // for an expert, of any part of any tensor rank: the same number on all
  // For how many times what the micro-batch can keep they have room together: each part of a sequence
  // that is cut has room for all that the sequence keeps.
  double room = 1;
};
FixedMessages fixed_messages(const CapacityRule& rule, std::int64_t rows, int tensor_ranks,
                             std::int64_t chunks);

}  // namespace orchard
