// What the race checker remembers of each piece of a memory: its last write, and the reads and atomic
// operations since.
//
// A cell stands for 1 to 16 aligned bytes: as many as every access so far has touched together. The
// first narrower access splits the cells of its sixteen bytes. So the memory of vector accesses costs
// one cell each sixteen bytes, and that of single bytes is still told apart.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "kernels/simt/clock.h"
#include "kernels/simt/site.h"

namespace orchard::simt {

enum class Proxy : std::uint8_t { generic, async };

// One access. `when` is the epoch of the thread; of an asynchronous operation, its number, from which
// the checker learns whether it is over.
struct RecordedAccess {
  Site site;
  std::uint32_t block = 0;
  std::uint32_t when = 0;    // 0: there was none
  std::uint16_t thread = 0;  // of the block; the one that issued it, of an asynchronous operation
  bool is_operation = false;
  Proxy proxy = Proxy::generic;

  explicit operator bool() const { return when != 0; }
};

// Accesses that do not exclude each other: reads, or atomic operations. None is ordered before all
// others.
class AccessSet {
 public:
  AccessSet() = default;
  AccessSet(const AccessSet& other)
      : first_(other.first_),
        rest_(other.rest_ ? std::make_unique<Accesses>(*other.rest_) : nullptr) {}
  AccessSet(AccessSet&&) = default;
  AccessSet& operator=(AccessSet&&) = default;
  ~AccessSet() = default;

  // Adds an access in place of an earlier one of the same thread or kind of operation. Now and then
  // drops members that `is_superseded` by it.
  template <class IsSuperseded>
  void add(const RecordedAccess& access, const IsSuperseded& is_superseded) {
    if (!first_ || same_actor(first_, access)) {
      first_ = access;
      return;
    }
    if (!rest_) {
      if (is_superseded(first_)) {
        first_ = access;
        return;
      }
      rest_ = std::make_unique<Accesses>();
    }
    // Threads mostly come in turn, so the newest are looked at first.
    for (std::size_t i = rest_->size(); i-- > 0;) {
      if (same_actor((*rest_)[i], access)) {
        (*rest_)[i] = access;
        return;
      }
    }
    if (rest_->size() == rest_->capacity()) std::erase_if(*rest_, is_superseded);
    rest_->push_back(access);
  }

  // The first member for which `predicate` holds, or nullptr.
  template <class Predicate>
  const RecordedAccess* find(const Predicate& predicate) const {
    if (!first_) return nullptr;
    if (predicate(first_)) return &first_;
    if (!rest_) return nullptr;
    for (const RecordedAccess& access : *rest_) {
      if (predicate(access)) return &access;
    }
    return nullptr;
  }

  void clear() {
    first_ = {};
    rest_.reset();
  }

 private:
  using Accesses = std::vector<RecordedAccess>;
  static bool same_actor(const RecordedAccess& a, const RecordedAccess& b) {
    return a.thread == b.thread && a.block == b.block && a.is_operation == b.is_operation;
  }

  RecordedAccess first_;
  std::unique_ptr<Accesses> rest_;
};

struct RaceCell {
  RecordedAccess write;
  AccessSet reads, atomics;
};

// The cells of one memory, by offset.
class RaceCells {
 public:
  void clear() {
    pages_.clear();
    last_ = nullptr;
  }

  // Calls action(cell, offset of its first byte) for all cells of the bytes.
  template <class Action>
  void visit(std::size_t begin, std::size_t bytes, const Action& action) {
    const std::size_t end = begin + bytes;
    while (begin < end) {
      const std::size_t line_begin = begin / line_bytes * line_bytes;
      const std::size_t stop = end < line_begin + line_bytes ? end : line_begin + line_bytes;
      Line& line = line_at(begin);
      const std::size_t touched = (begin | stop) & (line_bytes - 1);
      const std::size_t grain = touched ? touched & ~(touched - 1) : line_bytes;
      line.split_to(grain);
      for (; begin < stop; begin += line.grain) {
        action(line.cells[begin % line_bytes / line.grain], begin);
      }
    }
  }

 private:
  static constexpr std::size_t line_bytes = 16, page_bytes = 4096;

  struct Line {
    std::unique_ptr<RaceCell[]> cells;
    std::size_t grain = 0;  // bytes of a cell

    void split_to(std::size_t wanted) {
      if (grain != 0 && grain <= wanted) return;
      auto fresh = std::make_unique<RaceCell[]>(line_bytes / wanted);
      for (std::size_t i = 0; grain != 0 && i < line_bytes / wanted; ++i) {
        const RaceCell& whole = cells[i * wanted / grain];
        fresh[i].write = whole.write;
        fresh[i].reads = AccessSet(whole.reads);
        fresh[i].atomics = AccessSet(whole.atomics);
      }
      cells = std::move(fresh);
      grain = wanted;
    }
  };
  using Page = std::array<Line, page_bytes / line_bytes>;

  Line& line_at(std::size_t offset) {
    const std::size_t number = offset / page_bytes;
    if (!last_ || number != last_number_) {
      std::unique_ptr<Page>& page = pages_[number];
      if (!page) page = std::make_unique<Page>();
      last_ = page.get();
      last_number_ = number;
    }
    return (*last_)[offset % page_bytes / line_bytes];
  }

  std::unordered_map<std::size_t, std::unique_ptr<Page>> pages_;
  Page* last_ = nullptr;
  std::size_t last_number_ = 0;
};

}  // namespace orchard::simt
