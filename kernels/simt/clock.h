// Vector clocks: what somebody knows of the progress of others (Lamport 1978; Mattern 1989).
//
// The actors of a block are its threads, its warps (for what they run asynchronously) and its
// mbarriers (for the copies that they count); each counts epochs of its own. A clock holds an epoch
// for every actor that it has heard of. Most clocks of a block are equal most of the time -- after
// a barrier -- so epochs are shared and copied when one clock changes.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace orchard::simt {

using Epoch = std::uint32_t;

class Clock {
 public:
  // The latest epoch known of an actor; 0: none.
  Epoch of(std::uint32_t block, std::uint32_t actor) const {
    const Chunk* const chunk = find(block);
    return chunk && actor < chunk->epochs->size() ? (*chunk->epochs)[actor] : 0;
  }

  // Learns what `other` knows.
  void join(const Clock& other);
  // Learns that an actor has come to `epoch`.
  void raise(std::uint32_t block, std::uint32_t actor, Epoch epoch);

  bool same_as(const Clock& other) const {
    return first_.epochs == other.first_.epochs && first_.block == other.first_.block &&
           rest_.empty() && other.rest_.empty();
  }

 private:
  using Epochs = std::vector<Epoch>;  // by actor; 0 behind its end
  struct Chunk {
    std::uint32_t block = 0;
    std::shared_ptr<Epochs> epochs;
  };

  const Chunk* find(std::uint32_t block) const {
    if (first_.epochs && first_.block == block) return &first_;
    for (const Chunk& chunk : rest_) {
      if (chunk.block == block) return &chunk;
    }
    return nullptr;
  }
  Chunk& find_or_add(std::uint32_t block);

  // Of one block as a rule; of several where blocks wait for each other.
  Chunk first_;
  std::vector<Chunk> rest_;
};

}  // namespace orchard::simt
