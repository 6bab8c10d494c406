// The files that make up the CPU's router.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/router/router.h"

namespace orchard::cpu {

// One routing group: tokens [begin, real_end) take part, [real_end, end) are padding.
struct Sequence {
  std::int64_t begin, real_end, end;
};

inline Sequence sequence_at(const std::int32_t* offsets, const std::int32_t* real_tokens,
                            std::int64_t index) {
  return {offsets[index], offsets[index] + real_tokens[index], offsets[index + 1]};
}

// Calls body(s, part) for every sequence s that meets the tokens [begin, end), where `part` is the
// sequence cut to these tokens.
template <class Body>
void for_each_sequence_part(const ConstTensor& sequence_offsets, const ConstTensor& real_tokens,
                            std::int64_t begin, std::int64_t end, const Body& body) {
  const std::int32_t* const offsets = sequence_offsets.data<std::int32_t>();
  const std::int64_t sequences = real_tokens.dim(0);
  std::int64_t s = std::upper_bound(offsets, offsets + sequences + 1, begin) - offsets - 1;
  for (; s < sequences && offsets[s] < end; ++s) {
    const Sequence whole = sequence_at(offsets, real_tokens.data<std::int32_t>(), s);
    const std::int64_t first = std::max(whole.begin, begin), last = std::min(whole.end, end);
    body(s, Sequence{first, std::clamp(whole.real_end, first, last), last});
  }
}

// Rows [begin, end) of probabilities and log_sum_exp.
void softmax_rows(const RouterForward&, std::int64_t begin, std::int64_t end);

// Rows [begin, end) of d_logits, all of them real tokens of sequence `s`.
void gradient_rows(const RouterBackward&, std::int64_t s, std::int64_t begin, std::int64_t end);

}  // namespace orchard::cpu
