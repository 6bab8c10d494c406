// What the tests of attention share: a problem, both operations on a device's copy of it, and the
// definition of what they compute.
#pragma once

#include <limits>

#include "kernels/attention/attention.h"
#include "tests/kernels/device_test.h"
#include "tests/kernels/same_precision.h"

namespace orchard::testing {

struct AttentionCase {
  DType dtype;
  std::int64_t heads, kv_heads, head_dim;
  std::vector<int> queries;    // length of each document
  std::vector<int> keys = {};  // empty: as queries
  Mask mask = Mask::causal;
  int unused_rows = 0;  // before the first document and after the last
  double logits = 1;    // standard deviation of the scores
};

inline void PrintTo(const AttentionCase& c, std::ostream* os) {
  *os << name_of(c.dtype) << " heads " << c.heads << "/" << c.kv_heads << " of " << c.head_dim
      << (c.mask == Mask::causal ? " causal" : " full") << " queries";
  for (const int n : c.queries) *os << " " << n;
  *os << " keys";
  for (const int n : c.keys) *os << " " << n;
}

inline std::vector<int> offsets_of(const std::vector<int>& lengths, int first) {
  std::vector<int> offsets(lengths.size() + 1, first);
  for (std::size_t i = 0; i < lengths.size(); ++i) offsets[i + 1] = offsets[i] + lengths[i];
  return offsets;
}

// The operands of one case.
struct AttentionProblem {
  explicit AttentionProblem(const AttentionCase& parameters)
      : c(parameters),
        query_offset(offsets_of(c.queries, c.unused_rows)),
        key_offset(offsets_of(c.keys.empty() ? c.queries : c.keys, c.unused_rows)),
        query_shape{query_offset.back() + c.unused_rows, c.heads, c.head_dim},
        key_shape{key_offset.back() + c.unused_rows, c.kv_heads, c.head_dim},
        q(random_normal(c.dtype, query_shape, 1, c.logits)),
        k(random_normal(c.dtype, key_shape, 2)),
        v(random_normal(c.dtype, key_shape, 3)),
        d_out(random_normal(c.dtype, query_shape, 4)),
        query_offsets(integers({std::ssize(query_offset)}, query_offset)),
        key_offsets(integers({std::ssize(key_offset)}, key_offset)),
        out(c.dtype, query_shape),
        log_sum_exp(DType::f32, {query_shape[0], c.heads}),
        d_q(c.dtype, query_shape),
        d_k(c.dtype, key_shape),
        d_v(c.dtype, key_shape) {}

  float scale() const { return static_cast<float>(1 / std::sqrt(c.head_dim)); }
  bool same_results(const AttentionProblem& other) const {
    return out == other.out && log_sum_exp == other.log_sum_exp && d_q == other.d_q &&
           d_k == other.d_k && d_v == other.d_v;
  }

  AttentionCase c;
  std::vector<int> query_offset, key_offset;
  Shape query_shape, key_shape;
  Guarded q, k, v, d_out, query_offsets, key_offsets;
  Guarded out, log_sum_exp, d_q, d_k, d_v;
};

// A device's copy of a problem, and both operations on it.
class AttentionProblemOnDevice {
 public:
  AttentionProblemOnDevice(Stream& stream, AttentionProblem& problem)
      : stream_(stream),
        problem_(problem),
        q_(stream, problem.q),
        k_(stream, problem.k),
        v_(stream, problem.v),
        d_out_(stream, problem.d_out),
        query_offsets_(stream, problem.query_offsets),
        key_offsets_(stream, problem.key_offsets),
        out_(stream, problem.out),
        log_sum_exp_(stream, problem.log_sum_exp),
        d_q_(stream, problem.d_q),
        d_k_(stream, problem.d_k),
        d_v_(stream, problem.d_v) {}

  AttentionForward forward() {
    AttentionForward op{.q = q_,
                        .k = k_,
                        .v = v_,
                        .query_offsets = query_offsets_,
                        .mask = problem_.c.mask,
                        .scale = problem_.scale(),
                        .out = out_,
                        .log_sum_exp = log_sum_exp_};
    if (!problem_.c.keys.empty()) op.key_offsets = key_offsets_.tensor();
    return op;
  }
  AttentionBackward backward() {
    AttentionBackward op{.q = q_,
                         .k = k_,
                         .v = v_,
                         .out = out_,
                         .log_sum_exp = log_sum_exp_,
                         .d_out = d_out_,
                         .query_offsets = query_offsets_,
                         .mask = problem_.c.mask,
                         .scale = problem_.scale(),
                         .d_q = d_q_,
                         .d_k = d_k_,
                         .d_v = d_v_};
    if (!problem_.c.keys.empty()) op.key_offsets = key_offsets_.tensor();
    return op;
  }
  // Results in the problem's host tensors.
  void run_both() {
    run(stream_, forward());
    run(stream_, backward());
    for (OnDevice* const result : {&out_, &log_sum_exp_, &d_q_, &d_k_, &d_v_}) result->download();
    stream_.synchronize();
  }

 private:
  Stream& stream_;
  AttentionProblem& problem_;
  OnDevice q_, k_, v_, d_out_, query_offsets_, key_offsets_;
  OnDevice out_, log_sum_exp_, d_q_, d_k_, d_v_;
};

inline void run_both(Stream& stream, AttentionProblem& problem) {
  AttentionProblemOnDevice(stream, problem).run_both();
}
inline void run_both(AttentionProblem& problem) {
  run_both(*cpu_device().make_stream(), problem);
}

// The definition, with the whole score matrix. Backward has forward's results as they are stored: out in
// the dtype, log_sum_exp in fp32. In bf16 the operations round what the tensor cores take, too, the
// probabilities and the gradients of the scores. Beside every result stands the
// size of its terms: results cancel (a query that sees one key has d_q = 0), their rounding errors do
// not.
template <class Real>
class AttentionResults {
 public:
  std::vector<Real> out, log_sum_exp, d_q, d_k, d_v;
  std::vector<double> out_terms, d_q_terms, d_k_terms, d_v_terms;

  explicit AttentionResults(const AttentionProblem& p)
      : out(p.out.size()),
        log_sum_exp(p.log_sum_exp.size(), -std::numeric_limits<Real>::infinity()),
        d_q(p.d_q.size()),
        d_k(p.d_k.size()),
        d_v(p.d_v.size()),
        out_terms(out.size()),
        d_q_terms(d_q.size()),
        d_k_terms(d_k.size()),
        d_v_terms(d_v.size()),
        dtype_(p.c.dtype) {
    for (std::size_t d = 0; d + 1 < p.query_offset.size(); ++d) {
      const std::int64_t queries = p.query_offset[d + 1] - p.query_offset[d];
      const std::int64_t keys = p.key_offset[d + 1] - p.key_offset[d];
      for (std::int64_t h = 0; h < p.c.heads; ++h) {
        for (std::int64_t i = 0; i < queries; ++i) {
          const std::int64_t seen =
              p.c.mask == Mask::full ? keys : std::max<std::int64_t>(0, i + 1 + keys - queries);
          if (seen > 0) row(p, p.query_offset[d] + i, p.key_offset[d], seen, h);
        }
      }
    }
  }

 private:
  static Real at(const Guarded& tensor, std::int64_t i) { return static_cast<Real>(tensor.at(i)); }
  Real rounded(Real value) const { return rounded_between(dtype_, value); }

  void row(const AttentionProblem& p, std::int64_t token, std::int64_t first_key, std::int64_t keys,
           std::int64_t h) {
    const std::int64_t dim = p.c.head_dim;
    const std::int64_t query = (token * p.c.heads + h) * dim;
    const auto key = [&](std::int64_t j) {
      return ((first_key + j) * p.c.kv_heads + h / (p.c.heads / p.c.kv_heads)) * dim;
    };
    const Real scale = p.scale();
    // term[j]: root of the sum of squares of what d_probability[j] is the sum of.
    std::vector<Real> score(keys), probability(keys), d_probability(keys);
    std::vector<double> term(keys);
    Real max = -std::numeric_limits<Real>::infinity(), total = 0, dot = 0;
    double dot_term = 0;
    for (std::int64_t j = 0; j < keys; ++j) {
      for (std::int64_t e = 0; e < dim; ++e) {
        const Real product = at(p.d_out, query + e) * at(p.v, key(j) + e);
        score[j] += at(p.q, query + e) * at(p.k, key(j) + e);
        d_probability[j] += product;
        term[j] += product * product;
      }
      term[j] = std::sqrt(term[j]);
      score[j] *= scale;
      max = std::max(max, score[j]);
    }
    for (std::int64_t j = 0; j < keys; ++j) total += probability[j] = std::exp(score[j] - max);
    log_sum_exp[token * p.c.heads + h] = max + std::log(total);
    for (std::int64_t j = 0; j < keys; ++j) {
      probability[j] /= total;
      for (std::int64_t e = 0; e < dim; ++e) {
        out[query + e] += rounded(probability[j]) * at(p.v, key(j) + e);
        out_terms[query + e] += probability[j] * std::abs(p.v.at(key(j) + e));
      }
    }
    for (std::int64_t e = 0; e < dim; ++e) {
      const Real product = at(p.d_out, query + e) * rounded(out[query + e]);
      dot += product;
      dot_term += product * product;
    }
    for (std::int64_t j = 0; j < keys; ++j) {
      probability[j] = std::exp(score[j] - log_sum_exp[token * p.c.heads + h]);
      const Real d_score = rounded(probability[j] * (d_probability[j] - dot));
      const double d_score_term = scale * probability[j] * (term[j] + std::sqrt(dot_term));
      for (std::int64_t e = 0; e < dim; ++e) {
        d_q[query + e] += scale * d_score * at(p.k, key(j) + e);
        d_k[key(j) + e] += scale * d_score * at(p.q, query + e);
        d_v[key(j) + e] += rounded(probability[j]) * at(p.d_out, query + e);
        d_q_terms[query + e] += d_score_term * std::abs(p.k.at(key(j) + e));
        d_k_terms[key(j) + e] += d_score_term * std::abs(p.q.at(query + e));
        d_v_terms[key(j) + e] += probability[j] * std::abs(p.d_out.at(query + e));
      }
    }
  }

  DType dtype_;
};

}  // namespace orchard::testing
