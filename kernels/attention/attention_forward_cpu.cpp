// Attention forward on the CPU: blockwise with an online softmax (Dao et al. 2022, algorithm 1).
//
// A piece of work is a range of one document's queries in all query heads of one kv head. It packs
// its queries once and then walks over the keys, about 64 at a time: k transposed and v as it is
// are packed and serve every query of the piece; each tile of 64 queries computes S = q·kᵀ, the
// softmax, and out += P·v while S lies in the L1 cache. In bf16 the products take bf16, P among
// them, and sum in fp32; the softmax is fp32, and so is the sum that out is divided by.
//
// FLOPs: 4·head_dim per visible query-key pair in the two products, and about 15 for its
// exponential. Bound by multiply-adds.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention/attention_forward_cpu.cpp"
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

static_assert(max_key_tile % (HWY_MAX_BYTES / sizeof(float)) == 0,
              "the rows of a tile are whole vectors");

// One thread's scratch. `padded` is head_dim rounded up to whole vectors.
template <class Word>
struct Scratch {
  Scratch(Carver& carver, const Heads& heads, std::int64_t padded)
      : keys(carver.take<Word>(padded * max_key_tile)),
        values(carver.take<Word>(max_key_tile * padded)),
        scores(carver.take<float>(query_tile * max_key_tile)),
        queries(carver.take<Word>(heads.group * query_block * padded)),
        out(carver.take<float>(heads.group * query_block * padded)),
        sums(carver.take<float>(heads.group * query_block * lanes())),
        max(carver.take<float>(heads.group * query_block)) {}

  Word* keys;     // [padded, max_key_tile] k transposed
  Word* values;   // [max_key_tile, padded]
  float* scores;  // [query_tile, max_key_tile]; then the probabilities, rows of Word
  Word* queries;  // [group, query_block, padded]
  float* out;     // [group, query_block, padded] not yet divided by the sums
  float* sums;    // [group, query_block, lanes]
  float* max;     // [group, query_block]
};

template <class Product>
class ForwardPiece {
  using T = typename Product::Element;
  using Word = typename Product::Word;

 public:
  ForwardPiece(const AttentionForward& op, const Piece& piece, std::int64_t kv_head,
               const Scratch<Word>& scratch)
      : op_(op),
        heads_(op),
        document_(piece.document),
        kv_head_(kv_head),
        begin_(piece.begin),
        rows_(piece.end - piece.begin),
        padded_(round_up(heads_.head_dim, lanes())),
        s_(scratch),
        q_(op.q.data<T>()),
        k_(op.k.data<T>()),
        v_(op.v.data<T>()),
        out_(op.out.data<T>()),
        log_sum_exp_(op.log_sum_exp.data<float>()) {}

  void run() {
    start();
    const std::int64_t keys = document_.visible_keys(op_.mask, begin_ + rows_ - 1);
    for (std::int64_t key = 0, count = 0; key < keys; key += count) {
      count = next_key_tile(keys - key);
      pack_keys(key, count);
      const std::int64_t first =
          std::max<std::int64_t>(document_.first_query(op_.mask, key) - begin_, 0);
      for (std::int64_t h = 0; h < heads_.group; ++h) {
        for (std::int64_t row = first, rows = 0; row < rows_; row += rows) {
          const bool whole = document_.visible_keys(op_.mask, begin_ + row) >= key + count;
          rows = std::min(whole ? query_tile : diagonal_query_tile, rows_ - row);
          attend(h, row, rows, key, count);
        }
      }
    }
    finish();
  }

 private:
  // The element where row `row` of the piece begins in the group's query head `h`.
  std::int64_t query_element(std::int64_t h, std::int64_t row) const {
    return (document_.query_begin + begin_ + row) * heads_.query_stride +
           (kv_head_ * heads_.group + h) * heads_.head_dim;
  }

  void start() {
    for (std::int64_t h = 0; h < heads_.group; ++h) {
      const std::int64_t slot = h * query_block;
      pack_rows(q_ + query_element(h, 0), heads_.query_stride, rows_, heads_.head_dim,
                s_.queries + slot * padded_, padded_);
      std::fill_n(s_.out + slot * padded_, rows_ * padded_, 0.0f);
      std::fill_n(s_.sums + slot * lanes(), rows_ * lanes(), 0.0f);
      std::fill_n(s_.max + slot, rows_, -infinity);
    }
  }

  void pack_keys(std::int64_t key, std::int64_t count) {
    const std::int64_t first =
        (document_.key_begin + key) * heads_.key_stride + kv_head_ * heads_.head_dim;
    pack_rows(k_ + first, heads_.key_stride, count, heads_.head_dim, s_.values, padded_);
    transpose_tile(s_.values, count, words_for<Word>(heads_.head_dim), padded_, s_.keys,
                   max_key_tile);
    pack_depth(v_ + first, heads_.key_stride, count, heads_.head_dim, s_.values, padded_);
  }

  // The tile of queries from `row` meets the packed keys from `key`.
  void attend(std::int64_t h, std::int64_t row, std::int64_t rows, std::int64_t key,
              std::int64_t count) {
    const auto visible = [&](std::int64_t r) {
      return std::min(document_.visible_keys(op_.mask, begin_ + row + r) - key, count);
    };
    const std::int64_t columns = visible(rows - 1);
    const std::int64_t depth = words_for<Word>(columns);
    const std::int64_t vectors = vectors_for(depth * elements_per_word<Word>);
    const std::int64_t out_vectors = padded_ / lanes();
    const std::int64_t slot = h * query_block + row;
    float* const out = s_.out + slot * padded_;
    tile_gemm<Product, Store::overwrite>(rows, vectors, words_for<Word>(heads_.head_dim),
                                         LeftTile<Word>{s_.queries + slot * padded_, padded_, 1},
                                         s_.keys, max_key_tile, s_.scores, max_key_tile);
    for (std::int64_t r = 0; r < rows; ++r) {
      float* const scores = s_.scores + r * max_key_tile;
      mask_row(scores, visible(r), vectors);
      online_softmax<T>(scores, op_.scale * log2_e, vectors,
                        {s_.max + slot + r, s_.sums + (slot + r) * lanes(), out + r * padded_},
                        out_vectors);
    }
    tile_gemm<Product, Store::add>(
        rows, out_vectors, depth,
        LeftTile<Word>{reinterpret_cast<const Word*>(s_.scores), max_key_tile, 1}, s_.values,
        padded_, out, padded_);
  }

  void finish() {
    for (std::int64_t h = 0; h < heads_.group; ++h) {
      for (std::int64_t row = 0; row < rows_; ++row) {
        const std::int64_t slot = h * query_block + row;
        const float total = sum(load(s_.sums + slot * lanes()));
        // A query that sees no key was never visited: max is -inf and so is its log_sum_exp.
        const Vector inverse = set(total == 0.0f ? 0.0f : 1.0f / total);
        T* const out = out_ + query_element(h, row);
        for_each_vector(heads_.head_dim, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
          store(hn::Mul(load(s_.out + slot * padded_ + i), inverse), out + i, n);
        });
        const std::int64_t token = document_.query_begin + begin_ + row;
        log_sum_exp_[token * heads_.query_heads + kv_head_ * heads_.group + h] =
            (s_.max[slot] + std::log2(total)) * ln_2;
      }
    }
  }

  const AttentionForward& op_;
  const Heads heads_;
  const Document document_;
  const std::int64_t kv_head_, begin_, rows_, padded_;
  const Scratch<Word> s_;
  const T *const q_, *const k_, *const v_;
  T* const out_;
  float* const log_sum_exp_;
};

template <class Product>
void forward(Stream& stream, const AttentionForward& op) {
  using Word = typename Product::Word;
  const Documents documents("AttentionForward", op);
  const Heads heads(op);
  const std::int64_t padded = round_up(heads.head_dim, lanes());
  Carver count(nullptr);
  count.take<Piece>(documents.max_pieces(op.q.dim(0), query_block));
  const std::size_t pieces_bytes = count.used_bytes();
  Scratch<Word>(count, heads, padded);
  const std::size_t scratch_bytes = count.used_bytes() - pieces_bytes;
  std::byte* const workspace =
      stream.workspace(pieces_bytes + scratch_bytes * static_cast<std::size_t>(thread_count()));

  zero_outside(stream, op.out, documents.query_begin(), documents.query_end());
  float* const log_sum_exp = op.log_sum_exp.data<float>();
  std::fill(log_sum_exp, log_sum_exp + documents.query_begin() * heads.query_heads, -infinity);
  std::fill(log_sum_exp + documents.query_end() * heads.query_heads,
            log_sum_exp + op.log_sum_exp.numel(), -infinity);

  const auto pieces =
      documents.cut(Axis::queries, reinterpret_cast<Piece*>(workspace), query_block);
  parallel_tasks(static_cast<std::int64_t>(pieces.size()) * heads.kv_heads, [&](std::int64_t i) {
    Carver carver(workspace + pieces_bytes +
                  scratch_bytes * static_cast<std::size_t>(omp_get_thread_num()));
    ForwardPiece<Product>(op, pieces[static_cast<std::size_t>(i / heads.kv_heads)],
                          i % heads.kv_heads, Scratch<Word>(carver, heads, padded))
        .run();
  });
}

}  // namespace

void attention_forward(Stream& stream, const AttentionForward& op) {
  with_product(op.q.dtype(), [&]<class Product>(Product) { forward<Product>(stream, op); });
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(attention_forward);

void register_attention_forward(OperationTable& table) {
  table.add<AttentionForward>([](Stream& s, const AttentionForward& op) {
    HWY_DYNAMIC_DISPATCH(attention_forward)(s, op);
  });
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
