#include "kernels/attention/pieces.h"

#include <algorithm>

namespace orchard::cpu {
namespace {

void check_offsets(const char* operation, const char* name, const std::int32_t* offsets,
                   std::int64_t documents, std::int64_t tokens) {
  require(offsets[0] >= 0 && offsets[documents] <= tokens,
          "{}: {} covers rows [{}, {}), the tensor has {}", operation, name, offsets[0],
          offsets[documents], tokens);
  for (std::int64_t i = 0; i < documents; ++i) {
    require(offsets[i] <= offsets[i + 1], "{}: {}[{}] = {} is above the next offset, {}", operation,
            name, i, offsets[i], offsets[i + 1]);
  }
}

// The longest first, so that no thread starts a long piece when the others are done.
std::span<Piece> largest_first(Piece* begin, Piece* end) {
  std::sort(begin, end, [](const Piece& a, const Piece& b) {
    if (a.cost != b.cost) return a.cost > b.cost;
    if (a.document.query_begin != b.document.query_begin)
      return a.document.query_begin < b.document.query_begin;
    return a.begin < b.begin;
  });
  return {begin, end};
}

}  // namespace

Documents::Documents(const char* operation, const ConstTensor& query_offsets,
                     const ConstTensor& key_offsets, Mask mask, std::int64_t query_tokens,
                     std::int64_t key_tokens)
    : query_offsets_(query_offsets.data<std::int32_t>()),
      key_offsets_(key_offsets.data<std::int32_t>()),
      count_(query_offsets.dim(0) - 1),
      mask_(mask) {
  check_offsets(operation, "query_offsets", query_offsets_, count_, query_tokens);
  check_offsets(operation, "key_offsets", key_offsets_, count_, key_tokens);
}

Document Documents::document(std::int64_t i) const {
  return {query_offsets_[i], query_offsets_[i + 1] - query_offsets_[i], key_offsets_[i],
          key_offsets_[i + 1] - key_offsets_[i]};
}

Piece Documents::piece(const Document& d, Axis axis, std::int64_t begin, std::int64_t end) const {
  // Along either axis what is seen grows or shrinks evenly, so the mean of the ends is the mean.
  const auto pairs_of = [&](std::int64_t i) {
    return axis == Axis::queries ? d.visible_keys(mask_, i) : d.queries - d.first_query(mask_, i);
  };
  const std::int64_t cost = (end - begin) * (pairs_of(begin) + pairs_of(end - 1)) / 2;
  return {d, static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end), cost};
}

std::span<Piece> Documents::whole(Piece* memory) const {
  for (std::int64_t i = 0; i < count_; ++i) {
    const Document d = document(i);
    memory[i] = piece(d, Axis::queries, 0, d.queries);
  }
  return largest_first(memory, memory + count_);
}

std::span<Piece> Documents::cut(Axis axis, Piece* memory, std::int64_t block) const {
  Piece* next = memory;
  for (std::int64_t i = 0; i < count_; ++i) {
    const Document d = document(i);
    const std::int64_t rows = axis == Axis::queries ? d.queries : d.keys;
    const std::int64_t ranges = (rows + block - 1) / block;
    for (std::int64_t r = 0; r < ranges; ++r) {
      *next++ = piece(d, axis, rows * r / ranges, rows * (r + 1) / ranges);
    }
  }
  return largest_first(memory, next);
}

}  // namespace orchard::cpu
