// Shuffles, votes, matches, elections and reductions: pure functions of what the lanes bring.
#include <utility>

#include "kernels/core/error.h"
#include "kernels/simt/counters.h"
#include "kernels/simt/language.h"

namespace orchard::simt {
namespace {

void shuffle_lanes(const std::array<void*, 32>& lanes) {
  for (unsigned lane = 0; lane < lanes.size(); ++lane) {
    if (!lanes[lane]) continue;
    auto& own = *static_cast<ShuffleArguments*>(lanes[lane]);
    const auto* const source = static_cast<const ShuffleArguments*>(lanes[own.source]);
    require(source != nullptr, "lane {} reads lane {}, which is not there", lane, own.source);
    own.result = source->value;
  }
  ++counters().shuffles;
}

void count_votes(const std::array<void*, 32>& lanes) {
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < lanes.size(); ++lane) {
    if (lanes[lane] && static_cast<const VoteArguments*>(lanes[lane])->predicate) {
      ballot |= 1u << lane;
    }
  }
  for (void* const lane : lanes) {
    if (lane) static_cast<VoteArguments*>(lane)->ballot = ballot;
  }
}

void match_values(const std::array<void*, 32>& lanes) {
  for (void* const lane : lanes) {
    if (!lane) continue;
    auto& own = *static_cast<MatchArguments*>(lane);
    own.same = 0;
    for (unsigned other = 0; other < lanes.size(); ++other) {
      if (!lanes[other]) continue;
      if (static_cast<const MatchArguments*>(lanes[other])->value == own.value) {
        own.same |= 1u << other;
      }
    }
  }
}

// Which lane is the hardware's choice; it is the same every time, here the first.
void elect_first(const std::array<void*, 32>& lanes) {
  bool elected = true;
  for (void* const lane : lanes) {
    if (lane) static_cast<ElectArguments*>(lane)->elected = std::exchange(elected, false);
  }
}

std::uint32_t reduce(const ReduceArguments& own, std::uint32_t a, std::uint32_t b) {
  const bool a_is_less =
      own.is_signed ? static_cast<std::int32_t>(a) < static_cast<std::int32_t>(b) : a < b;
  switch (own.reduction) {
    case Reduction::add:
      return a + b;
    case Reduction::min:
      return a_is_less ? a : b;
    case Reduction::max:
      return a_is_less ? b : a;
    case Reduction::bit_and:
      return a & b;
    case Reduction::bit_or:
      return a | b;
    case Reduction::bit_xor:
      return a ^ b;
  }
  return 0;
}

void reduce_all(const std::array<void*, 32>& lanes) {
  const ReduceArguments* first = nullptr;
  std::uint32_t result = 0;
  for (void* const lane : lanes) {
    if (!lane) continue;
    const auto& own = *static_cast<const ReduceArguments*>(lane);
    require(!first || (own.reduction == first->reduction && own.is_signed == first->is_signed),
            "the lanes ask for different reductions");
    result = first ? reduce(own, result, own.value) : own.value;
    first = &own;
  }
  for (void* const lane : lanes) {
    if (lane) static_cast<ReduceArguments*>(lane)->value = result;
  }
}

}  // namespace

const WarpOperation syncwarp_operation{"__syncwarp", [](const std::array<void*, 32>&) {}};
const WarpOperation shuffle_operation{"a warp shuffle", shuffle_lanes};
const WarpOperation vote_operation{"a warp vote", count_votes};
const WarpOperation match_any_operation{"__match_any_sync", match_values};
const WarpOperation match_all_operation{"__match_all_sync", match_values};
const WarpOperation elect_operation{"elect", elect_first};
const WarpOperation reduce_operation{"a warp reduction", reduce_all};

}  // namespace orchard::simt
