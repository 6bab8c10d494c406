#include "models/fixed_messages.h"

#include <algorithm>

namespace orchard {

RowRange part_of(RowRange rows, std::int64_t part, std::int64_t parts) {
  return {rows.begin + rows.count() * part / parts, rows.begin + rows.count() * (part + 1) / parts};
}

RowRange share_of(std::int64_t rows, int rank, int ranks) {
  const std::int64_t whole = (rows + ranks - 1) / ranks;
  return {std::min(rank * whole, rows), std::min((rank + 1) * whole, rows)};
}

FixedMessages fixed_messages(const CapacityRule& rule, std::int64_t rows, int tensor_ranks,
                             std::int64_t chunks) {
  FixedMessages messages;
  for (int rank = 0; rank < tensor_ranks; ++rank) {
    for (std::int64_t i = 0; i < chunks; ++i) {
      const RowRange part = part_of(share_of(rows, rank, tensor_ranks), i, chunks);
      messages.rows = std::max(messages.rows, most_kept_choices(rule, part.begin, part.end));
    }
  }
  const std::int64_t kept = most_kept_choices(rule, 0, rows);
  if (kept > 0) {
    messages.room =
        static_cast<double>(messages.rows * tensor_ranks * chunks) / static_cast<double>(kept);
  }
  return messages;
}

}  // namespace orchard
