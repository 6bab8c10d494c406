// How the CPU cuts attention into independent pieces of work: a piece is a range of one document's
// queries (or keys), to be done for one kv head by one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/attention/attention.h"
#include "kernels/attention/document.h"

namespace orchard::cpu {

enum class Axis : std::uint8_t { queries, keys };

struct Piece {
  Document document;
  std::int32_t begin = 0, end = 0;  // rows of the axis that was cut
  std::int64_t cost = 0;            // query-key pairs that see each other
};

// The documents of an operation. Throws when the offsets decrease or leave the tensors.
class Documents {
 public:
  template <class Operation>
  Documents(const char* operation, const Operation& op)
      : Documents(operation, op.query_offsets, op.key_offsets ? op.key_offsets : op.query_offsets,
                  op.mask, op.q.dim(0), op.k.dim(0)) {}

  // An upper bound that does not depend on where the documents end, so that the workspace of equal
  // batches is equal.
  std::size_t max_pieces(std::int64_t rows, std::int64_t block) const {
    return static_cast<std::size_t>(count_ + (rows + block - 1) / block);
  }

  // Every document's queries in one piece.
  std::span<Piece> whole(Piece* memory) const;
  // Every document's queries, or keys, in nearly equal ranges of at most `block`.
  std::span<Piece> cut(Axis axis, Piece* memory, std::int64_t block) const;

  // Rows of q and of k that belong to some document.
  std::int64_t query_begin() const { return query_offsets_[0]; }
  std::int64_t query_end() const { return query_offsets_[count_]; }
  std::int64_t key_begin() const { return key_offsets_[0]; }
  std::int64_t key_end() const { return key_offsets_[count_]; }

 private:
  Documents(const char* operation, const ConstTensor& query_offsets, const ConstTensor& key_offsets,
            Mask mask, std::int64_t query_tokens, std::int64_t key_tokens);
  Document document(std::int64_t i) const;
  Piece piece(const Document& document, Axis axis, std::int64_t begin, std::int64_t end) const;

  const std::int32_t* query_offsets_;
  const std::int32_t* key_offsets_;
  std::int64_t count_;
  Mask mask_;
};

}  // namespace orchard::cpu
