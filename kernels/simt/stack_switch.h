// AddressSanitizer must be told when execution moves to another stack. Without it, all of this is
// empty.
#pragma once

#include <cstddef>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace orchard::simt {

struct StackBounds {
  const void* bottom = nullptr;
  std::size_t size = 0;
};

#ifdef __SANITIZE_ADDRESS__

// Exists around the switch: made before leaving, destroyed after coming back.
class StackSwitch {
 public:
  explicit StackSwitch(StackBounds to) {
    __sanitizer_start_switch_fiber(&fake_, to.bottom, to.size);
  }
  ~StackSwitch() { __sanitizer_finish_switch_fiber(fake_, nullptr, nullptr); }
  StackSwitch(const StackSwitch&) = delete;
  StackSwitch& operator=(const StackSwitch&) = delete;

 private:
  void* fake_ = nullptr;
};

// First thing on a new stack; tells which stack execution came from.
inline StackBounds enter_stack() {
  StackBounds from;
  __sanitizer_finish_switch_fiber(nullptr, &from.bottom, &from.size);
  return from;
}

// Last thing on a stack that is not entered again.
inline void leave_stack(StackBounds to) {
  __sanitizer_start_switch_fiber(nullptr, to.bottom, to.size);
}

// Forgets the frames that an earlier fiber left on the stack.
inline void renew_stack(StackBounds stack) {
  __asan_unpoison_memory_region(stack.bottom, stack.size);
}

#else

class StackSwitch {
 public:
  explicit StackSwitch(StackBounds) {}
  ~StackSwitch() {}  // not trivial, or the guard would be an unused variable
};
inline StackBounds enter_stack() {
  return {};
}
inline void leave_stack(StackBounds) {}
inline void renew_stack(StackBounds) {}

#endif

}  // namespace orchard::simt
