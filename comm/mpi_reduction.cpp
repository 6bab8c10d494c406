#include "comm/mpi_reduction.h"

#include <algorithm>
#include <new>

#include "kernels/collective/rank_sum_cpu.h"

namespace orchard {
namespace {

// Scratch stays near the caches, and a segment is long enough to hide the wait between segments.
constexpr std::size_t segment_bytes = std::size_t{4} << 20;
// Up to here a second trip costs more than sending everybody everything.
constexpr std::size_t replicated_bytes = std::size_t{8} << 10;
// Pieces of an even cut begin on cache lines.
constexpr std::int64_t piece_alignment = 32;

// A vector that crosses cache lines costs two loads; a copy between processes works page by page.
constexpr std::align_val_t scratch_alignment{4096};

std::int64_t divided_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace

void MpiReduction::Release::operator()(std::byte* scratch) const {
  ::operator delete(scratch, scratch_alignment);
}

void MpiReduction::all_reduce(Tensor buffer, const Ticket& ticket) {
  dtype_ = buffer.dtype();
  element_bytes_ = size_of(dtype_);
  all_ = static_cast<const std::byte*>(buffer.raw());
  result_ = static_cast<std::byte*>(buffer.raw());
  elements_ = buffer.numel();
  edges_.clear();
  replicated_ =
      buffer.size_bytes() * static_cast<std::size_t>(place().size - 1) <= replicated_bytes;
  gathers_ = !replicated_;
  segments_ = divided_up(static_cast<std::int64_t>(buffer.size_bytes()),
                         static_cast<std::int64_t>(segment_bytes));
  start(ticket);
}

void MpiReduction::reduce_scatter(ConstTensor all, Tensor mine,
                                  std::span<const std::int64_t> counts, const Ticket& ticket) {
  dtype_ = all.dtype();
  element_bytes_ = size_of(dtype_);
  all_ = static_cast<const std::byte*>(all.raw());
  result_ = static_cast<std::byte*>(mine.raw());
  elements_ = all.numel();
  edges_.assign(1, 0);
  for (const std::int64_t count : counts) edges_.push_back(edges_.back() + count);
  replicated_ = gathers_ = false;
  const std::int64_t longest = counts.empty() ? 0 : *std::ranges::max_element(counts);
  segments_ = divided_up(longest * place().size * static_cast<std::int64_t>(element_bytes_),
                         static_cast<std::int64_t>(segment_bytes));
  start(ticket);
}

void MpiReduction::start(const Ticket& ticket) {
  scatter_tag_ = tag_of(ticket, 0);
  gather_tag_ = tag_of(ticket, 1);
  segments_ = std::max<std::int64_t>(segments_, 1);
  segment_ = 0;
  post_scattering();
  launch(ticket);
}

MpiReduction::Range MpiReduction::piece(int r) const {
  const auto part = [](std::int64_t n, std::int64_t i, std::int64_t of) { return n * i / of; };
  if (!edges_.empty()) {
    const auto place_of_r = static_cast<std::size_t>(r);
    const std::int64_t first = edges_[place_of_r], count = edges_[place_of_r + 1] - first;
    return {first + part(count, segment_, segments_), first + part(count, segment_ + 1, segments_)};
  }
  const Range segment{part(elements_, segment_, segments_),
                      part(elements_, segment_ + 1, segments_)};
  if (replicated_) return segment;
  const std::int64_t units = divided_up(segment.count(), piece_alignment);
  const auto edge = [&](int i) {
    return std::min(segment.begin + part(units, i, place().size) * piece_alignment, segment.end);
  };
  return {edge(r), edge(r + 1)};
}

const std::byte* MpiReduction::at(std::int64_t element) const {
  return all_ + static_cast<std::size_t>(element) * element_bytes_;
}

std::byte* MpiReduction::scratch_of(int r) const {
  const auto slot = static_cast<std::size_t>(r < place().rank ? r : r - 1);
  return scratch_.get() +
         slot * static_cast<std::size_t>(piece(place().rank).count()) * element_bytes_;
}

void MpiReduction::post_scattering() {
  phase_ = Phase::scattering;
  const int rank = place().rank, size = place().size;
  const std::size_t own_bytes = static_cast<std::size_t>(piece(rank).count()) * element_bytes_;
  const std::size_t needed = own_bytes * static_cast<std::size_t>(size - 1);
  if (needed > scratch_bytes_) {
    scratch_.reset(static_cast<std::byte*>(::operator new(needed, scratch_alignment)));
    scratch_bytes_ = needed;
  }
  for (int i = 1; i < size; ++i) {
    const int from = (rank + size - i) % size;
    receive(scratch_of(from), own_bytes, from, scatter_tag_);
  }
  for (int i = 1; i < size; ++i) {
    const int to = (rank + i) % size;
    const Range theirs = piece(to);
    send(at(theirs.begin), static_cast<std::size_t>(theirs.count()) * element_bytes_, to,
         scatter_tag_);
  }
}

void MpiReduction::sum() {
  const Range own = piece(place().rank);
  sources_.clear();
  for (int r = 0; r < place().size; ++r)
    sources_.push_back(r == place().rank ? at(own.begin) : scratch_of(r));
  // In a reduce-scatter result_ is where this rank's first element goes.
  const std::int64_t first = edges_.empty() ? 0 : edges_[static_cast<std::size_t>(place().rank)];
  cpu::sum_in_rank_order(dtype_,
                         result_ + static_cast<std::size_t>(own.begin - first) * element_bytes_,
                         sources_, own.count());
}

void MpiReduction::post_gathering() {
  phase_ = Phase::gathering;
  const int rank = place().rank, size = place().size;
  const auto post = [&](int owner, auto&& message) {
    const Range range = piece(owner);
    message(result_ + static_cast<std::size_t>(range.begin) * element_bytes_,
            static_cast<std::size_t>(range.count()) * element_bytes_);
  };
  for (int i = 1; i < size; ++i) {
    const int from = (rank + size - i) % size;
    post(from,
         [&](std::byte* data, std::size_t bytes) { receive(data, bytes, from, gather_tag_); });
  }
  for (int i = 1; i < size; ++i) {
    const int to = (rank + i) % size;
    post(rank, [&](std::byte* data, std::size_t bytes) { send(data, bytes, to, gather_tag_); });
  }
}

bool MpiReduction::next_phase() {
  if (phase_ == Phase::scattering) {
    sum();
    if (gathers_) {
      post_gathering();
      return true;
    }
  }
  if (++segment_ >= segments_) return false;
  post_scattering();
  return true;
}

}  // namespace orchard
