// Stacks for fibers, kept from block to block: making a fiber on a warm stack costs nanoseconds,
// on fresh pages microseconds.
#pragma once

#include <boost/context/stack_context.hpp>
#include <cstddef>
#include <vector>

#include "kernels/simt/stack_switch.h"

namespace orchard::simt {

class StackPool {
 public:
  StackPool() = default;
  ~StackPool();
  StackPool(const StackPool&) = delete;
  StackPool& operator=(const StackPool&) = delete;

  void grow_to(std::size_t count);

  // The allocator that boost::context::fiber asks for: hands out stack `i`, which stays the pool's.
  struct Slot {
    boost::context::stack_context stack;
    StackBounds bounds() const {
      return {static_cast<const std::byte*>(stack.sp) - stack.size, stack.size};
    }
    boost::context::stack_context allocate() const { return stack; }
    void deallocate(boost::context::stack_context&) const noexcept {}
  };
  Slot slot(std::size_t i) const;

 private:
  std::vector<std::byte*> stacks_;
};

}  // namespace orchard::simt
