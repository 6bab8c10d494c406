// The accesses to memory that a kernel's source makes without a call of ours: a[i], a member, a copy of
// a struct. The kernels are compiled with -fsanitize=thread, which puts a call before each, and
// linked without its library: these functions are the calls. (Linux checks its kernel this way, as
// KCSAN.) Vector types may come in pieces, so these accesses are checked, and not counted.
//
// Not seen are variables of which the compiler knows that no other thread has their address.
#include <cstring>

#include "kernels/simt/multiprocessor.h"

namespace {

using orchard::simt::Access;

// The compiler takes its calls for functions that do not throw: a kernel's frames have nothing to
// destroy, so the error of a fault passes them all the same.
inline void announce(const void* address, std::size_t bytes, Access kind,
                     const void* return_address) {
  // Watched addresses are a kernel's that runs.
  if (orchard::simt::watched.contains(address)) {
    orchard::simt::active->plain_access(address, bytes, kind, return_address);
  }
}

}  // namespace

// NOLINTBEGIN(bugprone-reserved-identifier, cert-dcl37-c, cert-dcl51-cpp): the names are the
// compiler's.
#define ORCHARD_ANNOUNCE(bytes)                                           \
  void __tsan_read##bytes(void* address) {                                \
    announce(address, bytes, Access::read, __builtin_return_address(0));  \
  }                                                                       \
  void __tsan_write##bytes(void* address) {                               \
    announce(address, bytes, Access::write, __builtin_return_address(0)); \
  }                                                                       \
  void __tsan_unaligned_read##bytes(void* address) {                      \
    announce(address, bytes, Access::read, __builtin_return_address(0));  \
  }                                                                       \
  void __tsan_unaligned_write##bytes(void* address) {                     \
    announce(address, bytes, Access::write, __builtin_return_address(0)); \
  }

extern "C" {

ORCHARD_ANNOUNCE(1)
ORCHARD_ANNOUNCE(2)
ORCHARD_ANNOUNCE(4)
ORCHARD_ANNOUNCE(8)
ORCHARD_ANNOUNCE(16)

void __tsan_read_range(void* address, std::size_t bytes) {
  announce(address, bytes, Access::read, __builtin_return_address(0));
}
void __tsan_write_range(void* address, std::size_t bytes) {
  announce(address, bytes, Access::write, __builtin_return_address(0));
}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_init() {}

// Host code around the launches uses these.
std::uint8_t __tsan_atomic8_load(const volatile std::uint8_t* address, int) {
  return __atomic_load_n(address, __ATOMIC_SEQ_CST);
}
std::uint32_t __tsan_atomic32_load(const volatile std::uint32_t* address, int) {
  return __atomic_load_n(address, __ATOMIC_SEQ_CST);
}
std::uint32_t __tsan_atomic32_fetch_add(volatile std::uint32_t* address, std::uint32_t value, int) {
  return __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST);
}
std::uint32_t __tsan_atomic32_fetch_sub(volatile std::uint32_t* address, std::uint32_t value, int) {
  return __atomic_fetch_sub(address, value, __ATOMIC_SEQ_CST);
}
std::uint64_t __tsan_atomic64_load(const volatile std::uint64_t* address, int) {
  return __atomic_load_n(address, __ATOMIC_SEQ_CST);
}

}  // extern "C"
// NOLINTEND(bugprone-reserved-identifier, cert-dcl37-c, cert-dcl51-cpp)
