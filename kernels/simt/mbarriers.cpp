#include "kernels/simt/mbarriers.h"

#include <utility>

#include "kernels/core/error.h"

namespace orchard::simt {
namespace {

constexpr unsigned field_bits = 20, bytes_bits = 21;
constexpr std::uint64_t field_mask = (1u << field_bits) - 1;
constexpr int most_bytes = (1 << 20) - 1;

}  // namespace

std::uint64_t Mbarriers::pack(const State& state) {
  const auto biased = static_cast<std::uint64_t>(state.bytes + most_bytes);
  return state.pending | std::uint64_t{state.expected} << field_bits | biased << 2 * field_bits |
         std::uint64_t{state.phase} << (2 * field_bits + bytes_bits);
}

Mbarriers::State Mbarriers::unpack(std::uint64_t value) {
  return {
      .pending = static_cast<unsigned>(value & field_mask),
      .expected = static_cast<unsigned>(value >> field_bits & field_mask),
      .bytes = static_cast<int>(value >> 2 * field_bits & ((1u << bytes_bits) - 1)) - most_bytes,
      .phase = static_cast<unsigned>(value >> (2 * field_bits + bytes_bits) & 1)};
}

void Mbarriers::initialise(std::uint64_t* barrier, unsigned arrivals, MbarrierActor actor) {
  require(arrivals > 0 && arrivals <= field_mask, "{} arrivals are not within 1 .. 2^20 - 1",
          arrivals);
  require(!barriers_.count(barrier), "the mbarrier is initialised already");
  *barrier = pack({arrivals, arrivals, 0, 0});
  Barrier& own = barriers_[barrier];
  own.value = *barrier;
  own.actor = actor;
}

Mbarriers::Barrier& Mbarriers::find(std::uint64_t* barrier) {
  const auto found = barriers_.find(barrier);
  require(found != barriers_.end(), "there is no initialised mbarrier");
  require(*barrier == found->second.value, "the mbarrier's memory was overwritten");
  return found->second;
}

std::vector<Thread*> Mbarriers::advance(std::uint64_t* barrier, State state) {
  Barrier& own = barriers_.at(barrier);
  std::vector<Thread*> woken;
  if (state.pending == 0 && state.bytes == 0) {
    state.phase ^= 1;
    state.pending = state.expected;
    own.seen = false;
    own.over = std::exchange(own.arriving, {});
    own.over.known.raise(own.actor.block, own.actor.actor, own.phase++);
    woken = std::exchange(own.waiters, {});
  }
  own.value = *barrier = pack(state);
  return woken;
}

std::vector<Thread*> Mbarriers::arrive(std::uint64_t* barrier, unsigned bytes) {
  const Barrier& own = find(barrier);
  require(own.seen, "phase {} is over, and nobody has waited for it before the arrival in the next",
          own.phase - 1);
  State state = unpack(own.value);
  require(state.pending > 0, "more arrivals than the {} that the phase expects", state.expected);
  require(bytes <= most_bytes && state.bytes + static_cast<int>(bytes) <= most_bytes,
          "a phase counts {} bytes at most", most_bytes);
  state.bytes += static_cast<int>(bytes);
  --state.pending;
  return advance(barrier, state);
}

std::vector<Thread*> Mbarriers::complete(std::uint64_t* barrier, unsigned bytes) {
  State state = unpack(find(barrier).value);
  require(state.bytes - static_cast<int>(bytes) >= -most_bytes,
          "copies bring more bytes than the phase counts");
  state.bytes -= static_cast<int>(bytes);
  return advance(barrier, state);
}

bool Mbarriers::is_over(std::uint64_t* barrier, unsigned parity) {
  require(parity <= 1, "a parity is 0 or 1, not {}", parity);
  Barrier& own = find(barrier);
  const bool over = unpack(own.value).phase != parity;
  own.seen |= over;
  return over;
}

// Which of the phases of this parity is meant: the first that is not known to be over, or the last that
// is. A phase that ends unknown to the waiting thread may as well end later, so that what the wait would
// find two phases on depends on timing.
void Mbarriers::require_near(std::uint64_t* barrier, unsigned parity, const Clock& known) {
  const Barrier& own = find(barrier);
  const Epoch last = known.of(own.actor.block, own.actor.actor);
  const Epoch meant = last % 2 == parity ? last + 1 : last;  // phase 1 has parity 0
  require(
      own.phase <= meant + 1,
      "the wait for phase {} comes when phase {} has begun: a parity tells the current phase from "
      "the one before, and no others",
      meant, own.phase);
}

void Mbarriers::add_waiter(std::uint64_t* barrier, Thread* thread) {
  find(barrier).waiters.push_back(thread);
}

std::string Mbarriers::state(std::uint64_t* barrier) {
  const State state = unpack(find(barrier).value);
  return fmt::format("expects {} of {} arrivals and {} bytes", state.pending, state.expected,
                     state.bytes);
}

}  // namespace orchard::simt
