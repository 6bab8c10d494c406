// Attention backward on the CPU (Dao et al. 2022, algorithm 4). With P = exp(scale·q·kᵀ - lse),
// recomputed tile by tile, and D = rowsum(d_out ∘ out):
//
//   d_v = Pᵀ·d_out    dS = P ∘ (d_out·vᵀ - D)    d_q = scale·dS·k    d_k = scale·dSᵀ·q
//
// A piece of work walks over tiles of 64 keys and, inside, over tiles of 64 queries of all query
// heads of one kv head. So d_k and d_v are summed in a fixed order (head, query), and d_q in order
// of keys. When there are fewer documents and heads than threads, the gradients are made in two
// passes of smaller pieces: d_k and d_v by ranges of keys, then d_q by ranges of queries. Every
// element is one chain of additions in an order that tiles and pieces do not change, so both plans
// give the same bits. In bf16 the products take bf16, P and dS among them, and sum in fp32, two
// terms at a time: tiles begin at even queries and keys, so that the pairs are the same, too.
//
// FLOPs: 10·head_dim per visible query-key pair (14 in two passes). Bound by multiply-adds.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention/attention_backward_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include <algorithm>
#include <cmath>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_cpu.h"
#include "kernels/attention/pieces.h"
#include "kernels/attention/softmax-inl.h"
#include "kernels/attention/tile_gemm-inl.h"
#include "kernels/cpu/parallel.h"
#include "kernels/device/device.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {
namespace {

enum class Gradients { d_q, d_k_and_d_v, all };

static_assert(max_key_tile % (HWY_MAX_BYTES / sizeof(float)) == 0,
              "the rows of a tile are whole vectors");

// One thread's scratch. `padded` is head_dim rounded up to whole vectors. "Depth" stands for rows
// that run along the depth of a product; in f32 they are packed like any.
template <class Word>
struct Scratch {
  Scratch(Carver& carver, std::int64_t padded)
      : keys(carver.take<Word>(max_key_tile * padded)),
        keys_transposed(carver.take<Word>(padded * max_key_tile)),
        values_transposed(carver.take<Word>(padded * max_key_tile)),
        d_keys(carver.take<float>(max_key_tile * padded)),
        d_values(carver.take<float>(max_key_tile * padded)),
        queries(carver.take<Word>(query_tile * padded)),
        d_out(carver.take<Word>(query_tile * padded)),
        queries_depth(one_form ? queries : carver.take<Word>(query_tile * padded)),
        d_out_depth(one_form ? d_out : carver.take<Word>(query_tile * padded)),
        probabilities(carver.take<float>(query_tile * max_key_tile)),
        d_scores(carver.take<float>(query_tile * max_key_tile)),
        d_scores_depth(one_form ? reinterpret_cast<Word*>(d_scores)
                                : carver.take<Word>(query_tile * max_key_tile)) {}

  static constexpr bool one_form = elements_per_word<Word> == 1;

  Word* keys;               // [max_key_tile, padded] depth
  Word* keys_transposed;    // [padded, max_key_tile]
  Word* values_transposed;  // [padded, max_key_tile]
  float* d_keys;            // [max_key_tile, padded] of d_k / scale
  float* d_values;          // [max_key_tile, padded]
  Word* queries;            // [query_tile, padded]
  Word* d_out;              // [query_tile, padded]
  Word* queries_depth;      // [query_tile, padded]
  Word* d_out_depth;        // [query_tile, padded]
  float* probabilities;     // [query_tile, max_key_tile]; then depth, of Word
  float* d_scores;          // [query_tile, max_key_tile]; then rows of Word
  Word* d_scores_depth;     // [query_tile, max_key_tile]
};

// What all pieces share, in the workspace.
struct Shared {
  float* d_q;         // [heads, query_tokens, padded] of d_q / scale
  const float* dots;  // [query_tokens, heads] D
};

struct Range {
  std::int64_t begin, end;
};

template <class Product>
class BackwardPiece {
  using T = typename Product::Element;
  using Word = typename Product::Word;

 public:
  BackwardPiece(const AttentionBackward& op, const Document& document, std::int64_t kv_head,
                const Shared& shared, const Scratch<Word>& scratch)
      : op_(op),
        heads_(op),
        document_(document),
        kv_head_(kv_head),
        padded_(round_up(heads_.head_dim, lanes())),
        shared_(shared),
        s_(scratch),
        query_tokens_(op.q.dim(0)),
        q_(op.q.data<T>()),
        k_(op.k.data<T>()),
        v_(op.v.data<T>()),
        d_out_(op.d_out.data<T>()),
        log_sum_exp_(op.log_sum_exp.data<float>()),
        d_q_(op.d_q.data<T>()),
        d_k_(op.d_k.data<T>()),
        d_v_(op.d_v.data<T>()) {}

  // The gradients `wanted` that these queries and keys of the document give each other. d_q asks
  // for all keys, d_k and d_v for all queries.
  template <Gradients wanted>
  void run(Range queries, Range keys) {
    if (wanted != Gradients::d_k_and_d_v) zero_d_q(queries);
    for (std::int64_t key = keys.begin, count = 0; key < keys.end; key += count) {
      count = next_key_tile(keys.end - key);
      const std::int64_t seeing = document_.first_query(op_.mask, key);
      const std::int64_t first = std::max(seeing - seeing % elements_per_word<Word>, queries.begin);
      pack_keys(key, count);
      std::fill_n(s_.d_keys, count * padded_, 0.0f);
      std::fill_n(s_.d_values, count * padded_, 0.0f);
      for (std::int64_t h = 0; h < heads_.group; ++h) {
        for (std::int64_t row = first, rows = 0; row < queries.end; row += rows) {
          const bool whole = document_.visible_keys(op_.mask, row) >= key + count;
          rows = std::min(whole ? query_tile : diagonal_query_tile, queries.end - row);
          visit<wanted>(h, row, rows, key, count);
        }
      }
      if (wanted != Gradients::d_q) store_keys(key, count);
    }
    if (wanted != Gradients::d_k_and_d_v) store_queries(queries);
  }

 private:
  std::int64_t query_head(std::int64_t h) const { return kv_head_ * heads_.group + h; }
  std::int64_t query_element(std::int64_t h, std::int64_t row) const {
    return (document_.query_begin + row) * heads_.query_stride + query_head(h) * heads_.head_dim;
  }
  std::int64_t key_element(std::int64_t key) const {
    return (document_.key_begin + key) * heads_.key_stride + kv_head_ * heads_.head_dim;
  }
  float* d_q(std::int64_t h, std::int64_t row) const {
    return shared_.d_q + (query_head(h) * query_tokens_ + document_.query_begin + row) * padded_;
  }

  void zero_d_q(Range queries) {
    for (std::int64_t h = 0; h < heads_.group; ++h) {
      std::fill(d_q(h, queries.begin), d_q(h, queries.end), 0.0f);
    }
  }

  void pack_keys(std::int64_t key, std::int64_t count) {
    const std::int64_t first = key_element(key), depth = words_for<Word>(heads_.head_dim);
    const auto transpose = [&](const T* rows, Word* out) {
      pack_rows(rows + first, heads_.key_stride, count, heads_.head_dim, s_.keys, padded_);
      transpose_tile(s_.keys, count, depth, padded_, out, max_key_tile);
    };
    transpose(v_, s_.values_transposed);
    transpose(k_, s_.keys_transposed);
    pack_depth(k_ + first, heads_.key_stride, count, heads_.head_dim, s_.keys, padded_);
  }

  void pack_queries(const T* source, std::int64_t rows, Word* tile, Word* tile_depth) {
    pack_depth(source, heads_.query_stride, rows, heads_.head_dim, tile_depth, padded_);
    if (tile != tile_depth)
      pack_rows(source, heads_.query_stride, rows, heads_.head_dim, tile, padded_);
  }

  template <Gradients wanted>
  void visit(std::int64_t h, std::int64_t row, std::int64_t rows, std::int64_t key,
             std::int64_t count) {
    const std::int64_t columns =
        std::min(document_.visible_keys(op_.mask, row + rows - 1) - key, count);
    const std::int64_t depth = words_for<Word>(columns), row_depth = words_for<Word>(rows);
    const std::int64_t vectors = vectors_for(depth * elements_per_word<Word>);
    const std::int64_t out_vectors = padded_ / lanes();
    pack_queries(q_ + query_element(h, row), rows, s_.queries, s_.queries_depth);
    pack_queries(d_out_ + query_element(h, row), rows, s_.d_out, s_.d_out_depth);
    const auto scores = [&](const Word* left, const Word* right, float* c) {
      tile_gemm<Product, Store::overwrite>(rows, vectors, words_for<Word>(heads_.head_dim),
                                           LeftTile<Word>{left, padded_, 1}, right, max_key_tile, c,
                                           max_key_tile);
    };
    scores(s_.queries, s_.keys_transposed, s_.probabilities);
    scores(s_.d_out, s_.values_transposed, s_.d_scores);
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t visible = document_.visible_keys(op_.mask, row + r) - key;
      softmax_backward(h, row + r, std::min(visible, columns), vectors,
                       s_.probabilities + r * max_key_tile, s_.d_scores + r * max_key_tile);
    }
    const auto* const probabilities = reinterpret_cast<const Word*>(s_.probabilities);
    const auto* const d_scores = reinterpret_cast<const Word*>(s_.d_scores);
    if constexpr (!Scratch<Word>::one_form) round_scores(rows, vectors);
    if (wanted != Gradients::d_q) {
      const auto add = [&](const Word* left, const Word* right, float* c) {
        tile_gemm<Product, Store::add>(columns, out_vectors, row_depth,
                                       LeftTile<Word>{left, 1, max_key_tile}, right, padded_, c,
                                       padded_);
      };
      add(probabilities, s_.d_out_depth, s_.d_values);
      add(s_.d_scores_depth, s_.queries_depth, s_.d_keys);
    }
    if (wanted != Gradients::d_k_and_d_v) {
      tile_gemm<Product, Store::add>(rows, out_vectors, depth,
                                     LeftTile<Word>{d_scores, max_key_tile, 1}, s_.keys, padded_,
                                     d_q(h, row), padded_);
    }
  }

  // One row: scores become probabilities, d_probabilities become d_scores (but for the factor
  // scale).
  void softmax_backward(std::int64_t h, std::int64_t row, std::int64_t visible,
                        std::int64_t vectors, float* scores, float* d_probabilities) {
    if (visible <= 0) {
      // Its log_sum_exp may be -inf.
      std::fill_n(scores, vectors * lanes(), 0.0f);
      std::fill_n(d_probabilities, vectors * lanes(), 0.0f);
      return;
    }
    const std::int64_t i = (document_.query_begin + row) * heads_.query_heads + query_head(h);
    const Vector log2_sum = set(log_sum_exp_[i] * log2_e);
    const Vector dot = set(shared_.dots[i]), scale = set(op_.scale * log2_e);
    mask_row(scores, visible, vectors);
    for (std::int64_t v = 0; v < vectors; ++v) {
      float* const score = scores + v * lanes();
      float* const d_probability = d_probabilities + v * lanes();
      const Vector p = power_of_two(hn::Sub(hn::Mul(load(score), scale), log2_sum));
      store(p, score);
      store(hn::Mul(p, hn::Sub(load(d_probability), dot)), d_probability);
    }
  }

  // To bf16: two rows of probabilities become one of pairs, in place; two rows of d_scores one of
  // pairs beside them, and each a row of bf16 in place.
  void round_scores(std::int64_t rows, std::int64_t vectors) {
    for (std::int64_t r = 0; r < rows; r += 2) {
      const std::int64_t count = std::min<std::int64_t>(2, rows - r);
      float* const d_scores = s_.d_scores + r * max_key_tile;
      pair_rows(s_.probabilities + r * max_key_tile, count, vectors,
                reinterpret_cast<Word*>(s_.probabilities) + r / 2 * max_key_tile);
      pair_rows(d_scores, count, vectors, s_.d_scores_depth + r / 2 * max_key_tile);
      for (std::int64_t i = 0; i < count; ++i) {
        float* const row = d_scores + i * max_key_tile;
        for (std::int64_t v = 0; v < vectors; ++v)
          store(load(row + v * lanes()), reinterpret_cast<T*>(row) + v * lanes());
      }
    }
  }

  static void pair_rows(const float* row, std::int64_t count, std::int64_t vectors, Word* pairs) {
    const hn::Rebind<std::uint32_t, Floats> d;
    for (std::int64_t i = 0; i < vectors * lanes(); i += lanes()) {
      auto pair = hn::PromoteTo(d, to_words(load(row + i)));
      if (count == 2) {
        const auto odd = hn::PromoteTo(d, to_words(load(row + max_key_tile + i)));
        pair = hn::Or(pair, hn::ShiftLeft<16>(odd));
      }
      hn::StoreU(pair, d, reinterpret_cast<std::uint32_t*>(pairs) + i);
    }
  }

  void store_rows(const float* from, float factor, std::int64_t rows, T* to,
                  std::int64_t to_stride) {
    for (std::int64_t r = 0; r < rows; ++r) {
      for_each_vector(heads_.head_dim, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
        store(hn::Mul(load(from + i), set(factor)), to + i, n);
      });
      from += padded_;
      to += to_stride;
    }
  }

  void store_keys(std::int64_t key, std::int64_t count) {
    store_rows(s_.d_keys, op_.scale, count, d_k_ + key_element(key), heads_.key_stride);
    store_rows(s_.d_values, 1.0f, count, d_v_ + key_element(key), heads_.key_stride);
  }

  void store_queries(Range queries) {
    for (std::int64_t h = 0; h < heads_.group; ++h) {
      store_rows(d_q(h, queries.begin), op_.scale, queries.end - queries.begin,
                 d_q_ + query_element(h, queries.begin), heads_.query_stride);
    }
  }

  const AttentionBackward& op_;
  const Heads heads_;
  const Document document_;
  const std::int64_t kv_head_, padded_;
  const Shared shared_;
  const Scratch<Word> s_;
  const std::int64_t query_tokens_;
  const T *const q_, *const k_, *const v_, *const d_out_;
  const float* const log_sum_exp_;
  T *const d_q_, *const d_k_, *const d_v_;
};

template <class T>
void dots_of_rows(const AttentionBackward& op, float* dots, std::int64_t begin, std::int64_t end) {
  const std::int64_t head_dim = op.q.dim(2);
  const T* out = op.out.data<T>() + begin * head_dim;
  const T* d_out = op.d_out.data<T>() + begin * head_dim;
  for (std::int64_t row = begin; row < end; ++row) {
    Vector dot = zero();
    for_each_vector(head_dim, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      dot = hn::MulAdd(load(out + i, n), load(d_out + i, n), dot);
    });
    dots[row] = sum(dot);
    out += head_dim;
    d_out += head_dim;
  }
}

// Whether two passes over finer pieces end before one pass: they do 7 products instead of 5, but
// one pass takes at least as long as its largest piece.
bool two_passes_are_faster(std::span<const Piece> whole_documents, std::int64_t kv_heads) {
  if (whole_documents.empty()) return false;
  std::int64_t total = 0;
  for (const Piece& piece : whole_documents) total += piece.cost * kv_heads;
  const std::int64_t share = total / thread_count();
  return 5 * std::max(whole_documents.front().cost, share) > 7 * share;
}

template <class Product>
void backward(Stream& stream, const AttentionBackward& op) {
  using T = typename Product::Element;
  using Word = typename Product::Word;
  using Work = BackwardPiece<Product>;
  const Documents documents("AttentionBackward", op);
  const Heads heads(op);
  const std::int64_t padded = round_up(heads.head_dim, lanes());
  const std::int64_t query_rows = op.q.dim(0) * heads.query_heads;

  Carver count(nullptr);
  Scratch<Word>(count, padded);
  const std::size_t scratch_bytes = count.used_bytes();
  const auto carve = [&](Carver& carver, float*& d_q, float*& dots, Piece*& pieces) {
    carver.take<std::byte>(static_cast<std::int64_t>(scratch_bytes) * thread_count());
    d_q = carver.take<float>(query_rows * padded);
    dots = carver.take<float>(query_rows);
    pieces = carver.take<Piece>(
        static_cast<std::int64_t>(std::max(documents.max_pieces(op.q.dim(0), query_block),
                                           documents.max_pieces(op.k.dim(0), key_tile))));
  };
  float *d_q, *dots;
  Piece* pieces;
  Carver sizes(nullptr);
  carve(sizes, d_q, dots, pieces);
  std::byte* const workspace = stream.workspace(sizes.used_bytes());
  Carver carver(workspace);
  carve(carver, d_q, dots, pieces);

  zero_outside(stream, op.d_q, documents.query_begin(), documents.query_end());
  zero_outside(stream, op.d_k, documents.key_begin(), documents.key_end());
  zero_outside(stream, op.d_v, documents.key_begin(), documents.key_end());
  parallel_for(query_rows, 64, [&](std::int64_t begin, std::int64_t end) {
    dots_of_rows<T>(op, dots, begin, end);
  });

  const auto for_each_piece = [&](std::span<const Piece> list, const auto& body) {
    parallel_tasks(static_cast<std::int64_t>(list.size()) * heads.kv_heads, [&](std::int64_t i) {
      Carver own(workspace + scratch_bytes * static_cast<std::size_t>(omp_get_thread_num()));
      const Piece& piece = list[static_cast<std::size_t>(i / heads.kv_heads)];
      body(piece,
           Work(op, piece.document, i % heads.kv_heads, {d_q, dots}, Scratch<Word>(own, padded)));
    });
  };
  const auto whole = documents.whole(pieces);
  if (!two_passes_are_faster(whole, heads.kv_heads)) {
    for_each_piece(whole, [](const Piece& piece, Work work) {
      work.template run<Gradients::all>({0, piece.document.queries}, {0, piece.document.keys});
    });
    return;
  }
  for_each_piece(documents.cut(Axis::keys, pieces, key_tile), [](const Piece& piece, Work work) {
    work.template run<Gradients::d_k_and_d_v>({0, piece.document.queries},
                                              {piece.begin, piece.end});
  });
  for_each_piece(documents.cut(Axis::queries, pieces, query_block),
                 [&op](const Piece& piece, Work work) {
                   const std::int64_t seen = piece.document.visible_keys(op.mask, piece.end - 1);
                   work.template run<Gradients::d_q>({piece.begin, piece.end}, {0, seen});
                 });
}

}  // namespace

void attention_backward(Stream& stream, const AttentionBackward& op) {
  with_product(op.q.dtype(), [&]<class Product>(Product) { backward<Product>(stream, op); });
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(attention_backward);

void register_attention_backward(OperationTable& table) {
  table.add<AttentionBackward>([](Stream& s, const AttentionBackward& op) {
    HWY_DYNAMIC_DISPATCH(attention_backward)(s, op);
  });
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
