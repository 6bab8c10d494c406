// What threads, warps and blocks must not leave behind. Each message names who started what was left, and
// where, since those that end have no line of their own.
#include <algorithm>
#include <bit>

#include "kernels/core/error.h"
#include "kernels/simt/multiprocessor.h"

namespace orchard::simt {
namespace {

constexpr std::size_t group_warps = 4;

// "at file.cu:12", or "none" of `steps`.
std::string step_at(std::span<const WgmmaQueue::Step> steps, std::size_t i) {
  return i < steps.size() ? "at " + text(steps[i].where) : "none";
}

}  // namespace

void Multiprocessor::check_end(const Thread& thread) const {
  if (const auto left = thread.copies.in_flight(); !left.empty()) {
    fail(
        "{}: returns with {} asynchronous copies that it has not waited for, the first of them at "
        "{}",
        place_of(thread), left.size(), text(left.front().where));
  }
  if (const auto left = thread.bulk.in_flight(); !left.empty()) {
    fail(
        "{}: returns with {} copies out of shared memory that it has not waited for, the first of "
        "them at {}",
        place_of(thread), left.size(), text(left.front().where));
  }
}

void Multiprocessor::check_end(const Warp& warp) const {
  if (warp.wgmma.in_flight() == 0) return;
  fail("{}: its warp returns with {} wgmma that it has not waited for, the first of them at {}",
       place_of(*warp.lanes[0]), warp.wgmma.in_flight(), text(warp.wgmma.first_in_flight()));
}

void Multiprocessor::check_end(const Block& block) const {
  // A copy is over for who has found its mbarrier's phase over, and for nobody else: whether it has
  // happened when the block ends is a matter of time, which AsyncCompletion must not decide.
  for (const std::vector<BulkLoad>* const loads : {&loads_, &unseen_loads_}) {
    for (const BulkLoad& load : *loads) {
      if (shared_.slot_of(load.barrier) != block.slot) continue;
      fail("{}: cp.async.bulk at {}: nobody has waited for it when block ({}, {}, {}) ends",
           place_of(*load.issuer), text(load.where), block.index.x, block.index.y, block.index.z);
    }
  }
  for (std::size_t w = 0; w < block.warps.size(); ++w) {
    const std::size_t first = w / group_warps * group_warps;
    const auto expected = block.warps[first].wgmma.steps(), own = block.warps[w].wgmma.steps();
    const auto difference = std::mismatch(
        expected.begin(), expected.end(), own.begin(), own.end(),
        [](const WgmmaQueue::Step& a, const WgmmaQueue::Step& b) { return a.says == b.says; });
    const auto i = static_cast<std::size_t>(difference.first - expected.begin());
    if (i == expected.size() && i == own.size()) continue;
    fail("{}: warps {} and {} of one warpgroup executed different wgmma or setmaxnreg: {}, and {}",
         place_of(*block.warps[w].lanes[0]), first, w, step_at(expected, i), step_at(own, i));
  }
  for (std::size_t number = 0; number < block.barriers.size(); ++number) {
    const BlockBarrier& barrier = block.barriers[number];
    if (barrier.arrived == 0) continue;
    const auto warp = std::find_if(barrier.warps.begin(), barrier.warps.end(),
                                   [](const BlockBarrier::OfWarp& own) { return own.lanes != 0; });
    const Warp& first = block.warps[static_cast<std::size_t>(warp - barrier.warps.begin())];
    // Who waits has not returned.
    fail("{}: bar.arrive {} at {}: left with {} of {} threads when the block ends",
         place_of(*first.lanes[static_cast<std::size_t>(std::countr_zero(warp->lanes))]), number,
         text(warp->where), barrier.arrived, barrier.expected);
  }
}

void Multiprocessor::check_red_zone(const Block& block) const {
  const std::ptrdiff_t damage = shared_.damage(block.slot, shape_->shared_bytes);
  require(damage < 0, "{} wrote at byte {} of its {} bytes of shared memory", place_of(block),
          shape_->shared_bytes + static_cast<std::size_t>(damage), shape_->shared_bytes);
}

}  // namespace orchard::simt
