// The wgmma instructions that a warp has issued and not yet waited for.
//
// A warp's share of m64nNk16 is its 16 rows, which need nothing of the other three warps; what must
// agree between them is the sequence of instructions, which each warp writes down. From issue to wait
// the accumulators hold poison, and the sums are kept aside: a kernel that touches them too early is
// found. So is one that changes a left operand in registers; one that only reads it is not.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kernels/simt/runtime.h"

namespace orchard::simt {

// The contiguous dimension of an operand in shared memory is k, or m (of a), n (of b).
struct WgmmaArguments {
  float* d;  // [n / 2]
  int n;
  std::uint64_t a, b;  // matrix descriptors
  bool a_is_mn, b_is_mn;
  bool accumulate;                        // else d is overwritten
  const unsigned* a_registers = nullptr;  // [4] of a lane: a lies there, not in shared memory
  // They are there until the wait. Not so in the text of PTX, whose registers the assembler assigns.
  bool a_stays = false;
  Where where;
};

// The bits of an accumulator in flight.
constexpr std::uint32_t wgmma_poison = 0xffa5a5a5;

class WgmmaQueue {
 public:
  void reset() { *this = WgmmaQueue(); }

  void fence() { fenced_ = true; }
  void issue(const std::array<void*, 32>& lanes, std::span<const std::byte> shared,
             unsigned warp_of_group, bool at_once);
  void commit();
  void wait(std::size_t pending_groups, std::span<const std::byte> shared);

  // How many nobody has waited for, and where the first of them is.
  std::size_t in_flight() const { return products_.size() - done_; }
  Where first_in_flight() const { return products_[done_].arguments.where; }

  // An instruction that all warps of a group must execute alike, told from others by what it says.
  struct Step {
    std::array<std::uint64_t, 3> says;
    Where where;
  };
  void note(const Step& step) { steps_.push_back(step); }
  std::span<const Step> steps() const { return steps_; }

 private:
  // The registers of 32 lanes, and the sums that they will hold.
  struct Accumulator {
    std::array<float*, 32> registers;
    std::vector<float> sums;  // [16, n]
    std::size_t in_flight;
  };
  struct LeftRegisters {
    std::array<const unsigned*, 32> at;
    std::array<std::array<unsigned, 4>, 32> bits;  // at issue
    explicit LeftRegisters(const std::array<void*, 32>& lanes);
    void require_unchanged() const;
  };
  struct Product {
    WgmmaArguments arguments;  // of lane 0
    std::vector<float> a;      // [16, 16], where it came in registers
    unsigned warp_of_group;
    bool happened;
    std::optional<LeftRegisters> left;  // to be watched until the wait
  };

  Accumulator& accumulator(const std::array<void*, 32>& lanes, int n);
  void perform(Product& product, std::span<const std::byte> shared);
  void finish(const Product& product);

  std::vector<Accumulator> accumulators_;
  std::vector<Product> products_;  // cut at group_ends_
  std::vector<std::size_t> group_ends_;
  std::size_t done_ = 0, done_groups_ = 0;
  bool fenced_ = false;
  std::vector<Step> steps_;
};

struct SetRegistersArguments {
  unsigned count;
  bool grow;
};

// What a warp does together; the argument of the wait is a pointer to the number of groups.
extern const WarpOperation wgmma_operation, wgmma_fence_operation, wgmma_commit_operation,
    wgmma_wait_operation, set_registers_operation;

}  // namespace orchard::simt
