// The emulator's side of kernels/gpu/gpu.h: CUDA's language for the host compiler. Names and
// meanings are CUDA's (CUDA C++ Programming Guide, chapter "C++ Language Extensions").
#pragma once

#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <tuple>
#include <type_traits>
#include <utility>

#include "kernels/core/dtype.h"
#include "kernels/simt/front_end.h"
#include "kernels/simt/runtime.h"
#include "kernels/simt/types.h"

// Words that nvcc understands and that mean nothing here.
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __grid_constant__
#define __launch_bounds__(...)

namespace orchard::simt {

// NOLINTBEGIN(bugprone-reserved-identifier): the names are CUDA's.

// ---- the block -------------------------------------------------------------------------------

inline void __syncthreads(Where where = Where::current()) {
  block_barrier(where);
}

template <class Storage>
Storage& shared_storage(Where where = Where::current()) {
  return *static_cast<Storage*>(shared_memory(sizeof(Storage), where));
}

// ---- global memory ---------------------------------------------------------------------------

template <class T>
inline constexpr bool one_access =
    std::is_trivially_copyable_v<T>&& std::has_single_bit(sizeof(T)) && sizeof(T) <= 16;

template <std::size_t bytes>
using Bits = std::tuple_element_t<
    static_cast<std::size_t>(std::countr_zero(bytes)),
    std::tuple<std::uint8_t, std::uint16_t, std::uint32_t, std::uint64_t, Bits128>>;

// (Not std::bit_cast: its own line would be the place of a plain read of `value`.)
template <class T>
Bits<sizeof(T)> bits_of(const T& value) {
  Bits<sizeof(T)> bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

template <class T>
T load(const T* address, Where where = Where::current()) {
  static_assert(one_access<T>, "one instruction moves 1, 2, 4, 8 or 16 bytes");
  return std::bit_cast<T>(load_bits<Bits<sizeof(T)>>(address, where));
}

template <class T>
T load_readonly(const T* address, Where where = Where::current()) {
  return load(address, where);
}

template <class T>
void store(T* address, const std::type_identity_t<T>& value, Where where = Where::current()) {
  static_assert(one_access<T>, "one instruction moves 1, 2, 4, 8 or 16 bytes");
  store_bits(address, bits_of(value), where);
}

// Atomic operations, on global or shared memory. Each returns what was there.
template <class T, class Change>
T change_atomically(T* address, const Change& change, Where where) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  atomic_access(address, sizeof(T), where);
  T before;
  std::memcpy(&before, address, sizeof(T));
  const T after = change(before);
  std::memcpy(address, &after, sizeof(T));
  return before;
}

// A sum of floats depends on the order.
template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value, Where where = Where::current()) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, float>);
  if constexpr (std::is_same_v<T, float>) {
    return change_atomically(
        address, [value](float before) { return before + value; }, where);
  } else {
    // As unsigned: it wraps around.
    return change_atomically(
        address,
        [value](T before) {
          return static_cast<T>(static_cast<unsigned>(before) + static_cast<unsigned>(value));
        },
        where);
  }
}

template <class T>
T atomicMax(T* address, std::type_identity_t<T> value, Where where = Where::current()) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);
  return change_atomically(
      address, [value](T before) { return before < value ? value : before; }, where);
}

template <class T>
T atomicExch(T* address, std::type_identity_t<T> value, Where where = Where::current()) {
  return change_atomically(
      address, [value](T) { return value; }, where);
}

template <class T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value,
            Where where = Where::current()) {
  static_assert(std::is_integral_v<T>);
  return change_atomically(
      address, [=](T before) { return before == expected ? value : before; }, where);
}

// What the thread wrote before is seen by who reads, after a fence of his own, what its next atomic
// operations leave.
inline void __threadfence() {
  fence_memory();
}

// ---- shared memory ---------------------------------------------------------------------------

template <class T>
T load_shared(const T* address, Where where = Where::current()) {
  static_assert(one_access<T>, "one instruction moves 1, 2, 4, 8 or 16 bytes");
  return std::bit_cast<T>(load_shared_bits<Bits<sizeof(T)>>(address, where));
}

template <class T>
void store_shared(T* address, const std::type_identity_t<T>& value,
                  Where where = Where::current()) {
  static_assert(one_access<T>, "one instruction moves 1, 2, 4, 8 or 16 bytes");
  store_shared_bits(address, bits_of(value), where);
}

// The address of shared memory as instructions take it.
inline unsigned shared_address(const void* pointer) {
  return shared_address_of(pointer);
}

// ---- the warp --------------------------------------------------------------------------------

struct ShuffleArguments {
  std::uint64_t value;
  unsigned source;  // lane
  std::uint64_t result;
};
struct VoteArguments {
  bool predicate;
  unsigned ballot;
};

struct ElectArguments {
  bool elected;
};
enum class Reduction : std::uint8_t { add, min, max, bit_and, bit_or, bit_xor };
struct ReduceArguments {
  std::uint32_t value;  // and the result
  Reduction reduction;
  bool is_signed;
};
struct MatchArguments {
  std::uint64_t value;
  unsigned same;  // lanes that bring the same
};

extern const WarpOperation shuffle_operation, vote_operation, elect_operation, reduce_operation,
    match_any_operation, match_all_operation;

inline unsigned lane_index() {
  return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % warpSize;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, Where where = Where::current()) {
  warp_collective(syncwarp_operation, mask, nullptr, where);
}

template <class T>
T shuffle(unsigned mask, T value, unsigned source, Where where) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
  ShuffleArguments arguments{0, source, 0};
  std::memcpy(&arguments.value, &value, sizeof(T));
  warp_collective(shuffle_operation, mask, &arguments, where);
  std::memcpy(&value, &arguments.result, sizeof(T));
  return value;
}

// `width` (a power of two) cuts the warp into sections; a lane whose source would leave its section
// keeps its own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize,
              Where where = Where::current()) {
  const unsigned lane = lane_index(), size = static_cast<unsigned>(width);
  return shuffle(mask, value, lane / size * size + static_cast<unsigned>(source) % size, where);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize,
                  Where where = Where::current()) {
  const unsigned lane = lane_index(), size = static_cast<unsigned>(width);
  const unsigned source = lane ^ static_cast<unsigned>(lane_mask);
  // As the hardware clamps: earlier sections may be read, later ones may not.
  return shuffle(mask, value, source >= (lane / size + 1) * size ? lane : source, where);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                   Where where = Where::current()) {
  const unsigned lane = lane_index(), size = static_cast<unsigned>(width);
  return shuffle(mask, value, lane % size + delta < size ? lane + delta : lane, where);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                 Where where = Where::current()) {
  const unsigned lane = lane_index(), size = static_cast<unsigned>(width);
  return shuffle(mask, value, lane % size >= delta ? lane - delta : lane, where);
}

inline unsigned __ballot_sync(unsigned mask, bool predicate, Where where = Where::current()) {
  VoteArguments arguments{predicate, 0};
  warp_collective(vote_operation, mask, &arguments, where);
  return arguments.ballot;
}

inline bool __any_sync(unsigned mask, bool predicate, Where where = Where::current()) {
  return __ballot_sync(mask, predicate, where) != 0;
}

inline bool __all_sync(unsigned mask, bool predicate, Where where = Where::current()) {
  return __ballot_sync(mask, predicate, where) == mask;
}

// Lanes that are at this call together, the own one among them: which ones, a GPU leaves open, and here
// the order of threads decides.
inline unsigned __activemask(Where where = Where::current()) {
  return active_lanes(where);
}

// The lanes that bring the same bits.
template <class T>
unsigned match(const WarpOperation& operation, unsigned mask, T value, Where where) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "lanes compare 4 or 8 bytes");
  MatchArguments arguments{0, 0};
  std::memcpy(&arguments.value, &value, sizeof(T));
  warp_collective(operation, mask, &arguments, where);
  return arguments.same;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, Where where = Where::current()) {
  return match(match_any_operation, mask, value, where);
}
// The mask if all lanes bring the same, else 0.
template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* all, Where where = Where::current()) {
  *all = match(match_all_operation, mask, value, where) == mask;
  return *all ? mask : 0;
}

// The result of all lanes of the mask, in each.
template <class T>
T reduce_lanes(unsigned mask, T value, Reduction reduction, Where where) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);
  ReduceArguments arguments{static_cast<std::uint32_t>(value), reduction, std::is_signed_v<T>};
  warp_collective(reduce_operation, mask, &arguments, where);
  return static_cast<T>(arguments.value);
}
template <class T>
T __reduce_add_sync(unsigned mask, T value, Where where = Where::current()) {
  return reduce_lanes(mask, value, Reduction::add, where);
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, Where where = Where::current()) {
  return reduce_lanes(mask, value, Reduction::min, where);
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, Where where = Where::current()) {
  return reduce_lanes(mask, value, Reduction::max, where);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, Where where = Where::current()) {
  return reduce_lanes(mask, value, Reduction::bit_and, where);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, Where where = Where::current()) {
  return reduce_lanes(mask, value, Reduction::bit_or, where);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value, Where where = Where::current()) {
  return reduce_lanes(mask, value, Reduction::bit_xor, where);
}

// ---- arithmetic ------------------------------------------------------------------------------

// The position of the lowest set bit, from 1 on; 0 when there is none.
inline int __ffs(int bits) {
  return __builtin_ffs(bits);
}
inline float __uint_as_float(unsigned bits) {
  return std::bit_cast<float>(bits);
}
inline unsigned __float_as_uint(float value) {
  return std::bit_cast<unsigned>(value);
}
inline int min(int a, int b) {
  return a < b ? a : b;
}
inline int __popc(unsigned bits) {
  return std::popcount(bits);
}
// Without an FMA unit in what the compiler may assume of the CPU, the library's is a call. The product
// is exact as a double; the sum, rounded to a double, goes on to the float that it is nearest to,
// unless it has come to lie halfway between two. Outside the normal floats, halves lie elsewhere.
inline float fmaf(float a, float b, float c) {
  const double sum = double{a} * double{b} + double{c};
  const auto bits = std::bit_cast<std::uint64_t>(sum);
  constexpr std::uint64_t exponent_of_least = 1023 - 126, normal_exponents = 254;
  constexpr std::uint64_t lost = (std::uint64_t{1} << 29) - 1, half = std::uint64_t{1} << 28;
  const bool is_normal = (bits >> 52 & 0x7ff) - exponent_of_least < normal_exponents;
  if (!is_normal || (bits & lost) == half) [[unlikely]]
    return std::fma(a, b, c);
  return static_cast<float>(sum);
}
// CUDA's has a maximum error of 2 units in the last place; this one is within 1.
inline float rsqrtf(float value) {
  return 1.0f / std::sqrt(value);
}
// CUDA's is within 2 units in the last place and gives 0 for divisors beyond 2^126; this one rounds
// correctly.
inline float __fdividef(float dividend, float divisor) {
  return dividend / divisor;
}

// ---- launch ----------------------------------------------------------------------------------

template <class... Parameters, class... Arguments>
void launch(Stream& stream, const LaunchShape& shape, void (*kernel)(Parameters...),
            Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...),
                "kernel parameters travel as bytes");
  const auto copies = std::make_shared<const std::tuple<Parameters...>>(arguments...);
  KernelCall call{[kernel, copies] { std::apply(kernel, *copies); },
                  reinterpret_cast<const void*>(kernel)};
  std::apply(
      [&](const Parameters&... parameters) {
        (call.parameters.push_back(std::as_bytes(std::span(&parameters, 1))), ...);
      },
      *copies);
  enqueue(stream, shape, std::move(call));
}

// NOLINTEND(bugprone-reserved-identifier)

}  // namespace orchard::simt
