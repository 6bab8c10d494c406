// The router's operands, and what the last block of a sequence does with what all its slices have left:
// the sums over them, the losses, and the room that is left at each slice in each expert's queue.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/gpu/block.h"
#include "kernels/gpu/last_block.h"
#include "kernels/router/router.h"
#include "kernels/router/router_gpu.h"

namespace orchard::GPU_NAMESPACE {

struct Router {
  const float* logits;  // [tokens, experts]
  Sequences sequences;
  const std::int32_t* replay;  // [tokens, k], or nullptr
  int experts, k;
  float capacity_factor;
  BalanceCounts balance_counts;

  float* probabilities;  // [tokens, experts]
  float* log_sum_exp;    // [tokens]
  std::int32_t* chosen;  // [tokens, k]
  std::int32_t* kept;    // [tokens, k]
  float* gates;          // [tokens, k]
  float* margins;        // [tokens], or nullptr
  float* fractions;      // [sequences, experts]
  float* balance_loss;   // [sequences]
  float* z_loss;         // [sequences]
  std::int32_t* counts;  // [2, experts]

  // Of each slice: the sum of p over its real tokens, its share of the z loss, and its choices of each
  // rank. With a capacity `tally` replaces those by the room that their expert has for them.
  float* slice_mass;            // [slices, experts]
  float* slice_z;               // [slices]
  std::uint8_t* slice_choices;  // [slices, slice_stride], of which [k, experts] are used
  std::int64_t slice_stride;    // whole sectors

  std::int32_t* sequence_counts;  // [sequences, 2, experts]
  unsigned* arrived;              // [sequences + 1], zero: blocks of each sequence, sequences
};
static_assert(slice_tokens <= 255, "a slice's choices of an expert are counted in a byte");

struct TallyStorage {
  int choices[max_top_k][router_threads];  // of a thread's slices
  double mass[router_threads];
  BlockSum<double, router_threads> balance, z;
};

// Calls use(i, column[i · stride]) for i in [begin, end), in order, with several loads in flight.
template <class T, class Use>
__device__ void for_column(const T* column, int begin, int end, std::int64_t stride,
                           const Use& use) {
  constexpr int in_flight = 8;
  for (int first = begin; first < end; first += in_flight) {
    T held[in_flight];
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
      held[i] = first + i < end ? load(column + (first + i) * stride) : T{};
    }
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
      if (first + i < end) use(first + i, held[i]);
    }
  }
}

// Each expert has a column of threads, which share the slices of sequence `s`.
__device__ inline void tally(const Router& op, int s, TallyStorage& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  int columns = 32;
  while (columns < op.experts) columns *= 2;
  const int expert = thread % columns, part = thread / columns, parts = router_threads / columns;
  const std::int64_t first_slice = slices_before(op.sequences, s);
  const TokenRange sequence = whole_sequence(op.sequences, s);
  const int slices = slices_of(sequence), of_part = (slices + parts - 1) / parts;
  const int begin = std::min(slices, part * of_part), end = std::min(slices, begin + of_part);
  const int real_tokens = sequence.real_end - sequence.begin;
  const double real = std::max(1, real_tokens);
  const int capacity =
      op.capacity_factor > 0
          ? static_cast<int>(expert_capacity(real_tokens, op.capacity_factor, op.experts))
          : sequence.end;
  const bool has_expert = expert < op.experts;
  const auto choices_of = [&](int rank) {
    return op.slice_choices + first_slice * op.slice_stride + rank * op.experts + expert;
  };

  for (int j = 0; has_expert && j < op.k; ++j) {
    int choices = 0;
    for_column(choices_of(j), begin, end, op.slice_stride,
               [&](int, int count) { choices += count; });
    shared.choices[j][thread] = choices;
  }
  double mass = 0;
  if (has_expert) {
    for_column(op.slice_mass + first_slice * op.experts + expert, begin, end, op.experts,
               [&](int, float share) { mass += share; });
  }
  shared.mass[thread] = mass;
  __syncthreads();

  double balance = 0;
  if (has_expert) {
    int total = 0, kept = 0, counted = 0;
    for (int j = 0; j < op.k; ++j) {
      int before = 0, of_rank = 0;  // choices of the parts before this one, and of all
      for (int other = 0; other < parts; ++other) {
        const int choices = shared.choices[j][other * columns + expert];
        before += other < part ? choices : 0;
        of_rank += choices;
      }
      if (op.capacity_factor > 0) {
        int room = capacity - kept - before;
        const int most_room = slice_tokens;
        std::uint8_t* const column = choices_of(j);
        for_column(column, begin, end, op.slice_stride, [&](int i, int count) {
          store(column + i * op.slice_stride,
                static_cast<std::uint8_t>(std::max(0, std::min(room, most_room))));
          room -= count;
        });
      }
      total += of_rank;
      kept = std::min(capacity, kept + of_rank);
      if (j == 0 || op.balance_counts == BalanceCounts::all_choices) counted = total;
    }
    if (part == 0) {
      std::int32_t* const counts = op.sequence_counts + 2 * std::int64_t{s} * op.experts;
      store(counts + expert, total);
      store(counts + op.experts + expert, kept);
      const double fraction = counted / real;
      store(op.fractions + static_cast<std::int64_t>(s) * op.experts + expert,
            static_cast<float>(fraction));
      mass = 0;
      for (int other = 0; other < parts; ++other) mass += shared.mass[other * columns + expert];
      balance = fraction * (mass / real);
    }
  }
  double z = 0;
  for (int i = thread; i < slices; i += router_threads) z += load(op.slice_z + first_slice + i);
  balance = block_sum<router_threads>(balance, shared.balance);
  z = block_sum<router_threads>(z, shared.z);
  if (thread > 0) return;
  const int counted_choices = op.balance_counts == BalanceCounts::all_choices ? op.k : 1;
  store(op.balance_loss + s, static_cast<float>(balance * op.experts / counted_choices));
  store(op.z_loss + s, static_cast<float>(z));
}

// The choices of all sequences, when all have been tallied.
__device__ inline void add_counts(const Router& op) {
  for (int i = static_cast<int>(threadIdx.x); i < 2 * op.experts; i += router_threads) {
    int total = 0;
    for_column(op.sequence_counts + i, 0, op.sequences.count, 2 * std::int64_t{op.experts},
               [&](int, int count) { total += count; });
    store(op.counts + i, total);
  }
}

}  // namespace orchard::GPU_NAMESPACE
