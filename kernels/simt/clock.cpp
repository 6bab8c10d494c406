#include "kernels/simt/clock.h"

#include <algorithm>

namespace orchard::simt {
namespace {

// What may be changed: a copy, if others hold it too.
std::vector<Epoch>& own(std::shared_ptr<std::vector<Epoch>>& epochs) {
  if (epochs.use_count() > 1) epochs = std::make_shared<std::vector<Epoch>>(*epochs);
  return *epochs;
}

}  // namespace

Clock::Chunk& Clock::find_or_add(std::uint32_t block) {
  if (const Chunk* const known = find(block)) return const_cast<Chunk&>(*known);
  Chunk& fresh = first_.epochs ? rest_.emplace_back() : first_;
  fresh.block = block;
  return fresh;
}

void Clock::join(const Clock& other) {
  const auto join_chunk = [this](const Chunk& from) {
    if (!from.epochs) return;
    Chunk& to = find_or_add(from.block);
    if (to.epochs == from.epochs) return;
    if (!to.epochs) {
      to.epochs = from.epochs;
      return;
    }
    std::vector<Epoch>& epochs = own(to.epochs);
    if (epochs.size() < from.epochs->size()) epochs.resize(from.epochs->size());
    const Epoch* const source = from.epochs->data();
    for (std::size_t i = 0, n = from.epochs->size(); i < n; ++i) {
      epochs[i] = std::max(epochs[i], source[i]);
    }
  };
  join_chunk(other.first_);
  for (const Chunk& chunk : other.rest_) join_chunk(chunk);
}

void Clock::raise(std::uint32_t block, std::uint32_t actor, Epoch epoch) {
  Chunk& chunk = find_or_add(block);
  if (!chunk.epochs) chunk.epochs = std::make_shared<Epochs>();
  Epochs& epochs = own(chunk.epochs);
  if (epochs.size() <= actor) epochs.resize(actor + 1);
  epochs[actor] = std::max(epochs[actor], epoch);
}

}  // namespace orchard::simt
