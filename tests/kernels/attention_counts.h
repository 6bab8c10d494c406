// Attention counted by the emulator, and what of it no kernel can do without.
#pragma once

#include <fmt/ranges.h>

#include "tests/kernels/attention_test.h"
#include "tests/kernels/kernel_counters.h"
#include "tests/kernels/simt_policy.h"

namespace orchard::testing {

// Counters of one operation on the emulator.
template <class Run>
simt::Counters count(const AttentionCase& c, Run run_operation, int compute_capability = 80,
                     std::size_t shared_bytes_limit = SimtOptions{}.shared_bytes_limit) {
  AttentionProblem p(c);
  const auto device = make_policy_device({.counting = simt::Counting::on,
                                          .compute_capability = compute_capability,
                                          .shared_bytes_limit = shared_bytes_limit});
  const auto stream = device->make_stream();
  AttentionProblemOnDevice on_device(*stream, p);
  run(*stream, on_device.forward());
  stream->synchronize();
  device->reset_counters();
  run_operation(*stream, on_device);
  stream->synchronize();
  return device->counters();
}
inline constexpr auto forward = [](Stream& stream, AttentionProblemOnDevice& p) {
  run(stream, p.forward());
};
inline constexpr auto backward = [](Stream& stream, AttentionProblemOnDevice& p) {
  run(stream, p.backward());
};

// Of q, k, v and forward's and backward's results of a case without unused rows.
struct AttentionSizes {
  std::uint64_t queries = 0, keys = 0;  // bytes of a tensor
  std::uint64_t terms = 0;              // bytes of log_sum_exp
  std::uint64_t visible = 0;            // multiply-adds of a product of visible pairs

  explicit AttentionSizes(const AttentionCase& c) {
    const std::vector<int>& keys_of = c.keys.empty() ? c.queries : c.keys;
    const auto heads = static_cast<std::uint64_t>(c.heads);
    for (std::size_t d = 0; d < c.queries.size(); ++d) {
      const int rows = c.queries[d], cols = keys_of[d];
      for (int i = 0; i < rows; ++i) {
        visible += heads * static_cast<std::uint64_t>(
                               c.head_dim *
                               (c.mask == Mask::full ? cols : std::max(0, i + 1 + cols - rows)));
      }
      terms += 4 * heads * static_cast<std::uint64_t>(rows);
      queries += heads * static_cast<std::uint64_t>(rows * c.head_dim) * size_of(c.dtype);
      keys += static_cast<std::uint64_t>(c.kv_heads * cols * c.head_dim) * size_of(c.dtype);
    }
  }
};

// q, k, v, out and log_sum_exp once.
inline Compulsory of_forward(const AttentionCase& c) {
  const AttentionSizes s(c);
  return {.bytes = 2 * s.queries + 2 * s.keys + s.terms, .tensor_flops = 4 * s.visible};
}

// q, k, v, out, log_sum_exp, d_out and the gradients once; with the scores made for d_q and for d_k and
// d_v.
inline Compulsory of_backward(const AttentionCase& c) {
  const AttentionSizes s(c);
  return {.bytes = 4 * s.queries + 4 * s.keys + s.terms, .tensor_flops = 14 * s.visible};
}

inline std::string text_of(const AttentionCase& c) {
  const auto rows = [](const std::vector<int>& documents) { return fmt::join(documents, " "); };
  return fmt::format("{}, {} heads of {}, {} of keys, {}, rows {}{}{}", name_of(c.dtype), c.heads,
                     c.head_dim, c.kv_heads, c.mask == Mask::full ? "full" : "causal",
                     rows(c.queries), c.keys.empty() ? "" : ", keys ", rows(c.keys));
}

inline void report_forward(const std::string& kernel, const AttentionCase& c,
                           const simt::Counters& counters) {
  report_counters(kernel, text_of(c), counters, of_forward(c));
}
inline void report_backward(const std::string& kernel, const AttentionCase& c,
                            const simt::Counters& counters) {
  report_counters(kernel, text_of(c), counters, of_backward(c));
}

}  // namespace orchard::testing
