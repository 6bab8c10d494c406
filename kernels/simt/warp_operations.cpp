// Shuffles and votes: pure functions of what the lanes bring.
#include "kernels/core/error.h"
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

}  // namespace

const WarpOperation syncwarp_operation{"__syncwarp", [](const std::array<void*, 32>&) {}};
const WarpOperation shuffle_operation{"a warp shuffle", shuffle_lanes};
const WarpOperation vote_operation{"a warp vote", count_votes};

}  // namespace orchard::simt
