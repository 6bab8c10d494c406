// wgmma: four warps multiply matrices that lie in shared memory, asynchronously, on the tensor cores of
// sm_90 (sm_90a: no later GPU has it).
//
//   d [64, n] (+)= a [64, 16] · b [16, n], bf16, sums in fp32
// Warp w of the group (4 consecutive warps, the first a multiple of 4) holds rows 16w .. 16w + 15, as
// n / 8 mma tiles: element i of lane l is row l / 4 + 8·(i / 2 % 2), column 8·(i / 4) + 2·(l % 4) + i % 2.
//
// wgmma_fence comes before the first product that uses registers or shared memory that the threads have
// written; wgmma_commit closes a group; wgmma_wait<n> returns when at most the n newest groups are
// pending. Until then the sums must not be touched, nor the operands overwritten. All four warps
// execute the same instructions.
#pragma once

#include <cstdint>

#include "kernels/gpu/gpu.h"
#include "kernels/gpu/tensor_box.h"
#include "kernels/ptx/fence.h"
#ifndef __CUDACC__
#include "kernels/simt/wgmma_queue.h"
#endif

namespace orchard::GPU_NAMESPACE {

// An operand in shared memory whose contiguous dimension is m (of a) or n (of b), not k.
enum class Transposed : std::uint8_t { no, yes };

// How an operand lies in shared memory: in atoms of eight lines of the swizzle's bytes (16 without one),
// each aligned to its size. A line runs along the contiguous dimension, the eight along the other. The
// strides are those from atom to atom (PTX ISA, "Matrix Descriptor"):
//                           leading_bytes             stride_bytes
//   k contiguous            not read                  the next 8 of m or n
//   ... without a swizzle   the next 8 of k           the next 8 of m or n
//   m or n contiguous       the next line of m or n   the next 8 of k
//   ... without a swizzle   the next 8 of k           the next 8 of m or n
struct OperandLayout {
  Swizzle swizzle;
  unsigned leading_bytes, stride_bytes;
};

// Describes 16 of k of an operand so laid out. Where they begin within a line, `address` does, too.
__device__ inline std::uint64_t wgmma_descriptor(unsigned address, OperandLayout layout) {
  const auto field = [](unsigned bytes) { return std::uint64_t{(bytes & 0x3ffff) >> 4}; };
  const unsigned columns = static_cast<unsigned>(layout.swizzle);
  const std::uint64_t code = columns == 8 ? 1 : columns == 4 ? 2 : columns == 2 ? 3 : 0;
  return field(address) | field(layout.leading_bytes) << 16 | field(layout.stride_bytes) << 32 |
         code << 62;
}

// Describes an operand that TMA brought in boxes of 64 elements (128 bytes) a row, with the 128-byte
// swizzle, each box aligned to 1024 bytes.
//   k contiguous: rows are m or n. `address` + 32 bytes is 16 further in k. Boxes do not matter.
//   m or n contiguous: rows are k. `address` + 2048 bytes is 16 further in k; `box_bytes` lead to the
//   next 64 elements of m or n.
__device__ inline std::uint64_t wgmma_descriptor(unsigned address, unsigned box_bytes) {
  return wgmma_descriptor(address, {Swizzle::bytes_128, box_bytes, 8 * 128});
}

#ifdef __CUDACC__

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int pending_groups>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending_groups) : "memory");
}

// Takes registers from the warpgroup, or gives it more, up to or from `count` each thread. Every warp
// of the group executes it.
template <int count>
__device__ __forceinline__ void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
__device__ __forceinline__ void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

template <Transposed a_transposed, Transposed b_transposed>
__device__ __forceinline__ void wgmma_m64k16(float (&d)[32], std::uint64_t a, std::uint64_t b,
                                             bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, p, 1, 1, %35, %36;\n"
      "}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "l"(a), "l"(b), "r"(static_cast<unsigned>(accumulate)), "n"(static_cast<int>(a_transposed)),
        "n"(static_cast<int>(b_transposed)));
}

template <Transposed a_transposed, Transposed b_transposed>
__device__ __forceinline__ void wgmma_m64k16(float (&d)[64], std::uint64_t a, std::uint64_t b,
                                             bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, p, 1, 1, %67, %68;\n"
      "}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),
        "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
        "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]),
        "+f"(d[63])
      : "l"(a), "l"(b), "r"(static_cast<unsigned>(accumulate)), "n"(static_cast<int>(a_transposed)),
        "n"(static_cast<int>(b_transposed)));
}

// As above, with `a` in registers: each warp's 16 rows in the layout of mma's left operand. The array must
// stay, and stay as it is, until the wait.
template <Transposed b_transposed>
__device__ __forceinline__ void wgmma_m64k16(float (&d)[32], const unsigned (&a)[4],
                                             std::uint64_t b, bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n"
      "}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<unsigned>(accumulate)),
        "n"(static_cast<int>(b_transposed)));
}

template <Transposed b_transposed>
__device__ __forceinline__ void wgmma_m64k16(float (&d)[64], const unsigned (&a)[4],
                                             std::uint64_t b, bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n"
      "}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),
        "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
        "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]),
        "+f"(d[63])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<unsigned>(accumulate)),
        "n"(static_cast<int>(b_transposed)));
}

template <Transposed a_transposed, Transposed b_transposed>
__device__ __forceinline__ void wgmma_m64k16(float (&d)[128], std::uint64_t a, std::uint64_t b,
                                             bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
      "{"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
      "%127"
      "}, %128, %129, p, 1, 1, %131, %132;\n"
      "}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),
        "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
        "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]),
        "+f"(d[63]), "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]),
        "+f"(d[70]), "+f"(d[71]), "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]),
        "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]),
        "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]), "+f"(d[89]), "+f"(d[90]),
        "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]), "+f"(d[96]), "+f"(d[97]),
        "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]),
        "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]),
        "+f"(d[110]), "+f"(d[111]), "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]),
        "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), "+f"(d[120]), "+f"(d[121]),
        "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
      : "l"(a), "l"(b), "r"(static_cast<unsigned>(accumulate)), "n"(static_cast<int>(a_transposed)),
        "n"(static_cast<int>(b_transposed)));
}

#else

template <Transposed a_transposed, Transposed b_transposed, std::size_t registers>
void wgmma_m64k16(float (&d)[registers], std::uint64_t a, std::uint64_t b, bool accumulate,
                  Where where = Where::current()) {
  static_assert(registers == 32 || registers == 64 || registers == 128, "n is 64, 128 or 256");
  WgmmaArguments arguments{.d = d,
                           .n = 2 * registers,
                           .a = a,
                           .b = b,
                           .a_is_mn = a_transposed == Transposed::yes,
                           .b_is_mn = b_transposed == Transposed::yes,
                           .accumulate = accumulate,
                           .where = where};
  warp_collective(wgmma_operation, 0xffffffffu, &arguments, where);
}

template <Transposed b_transposed, std::size_t registers>
void wgmma_m64k16(float (&d)[registers], const unsigned (&a)[4], std::uint64_t b, bool accumulate,
                  Where where = Where::current()) {
  static_assert(registers == 32 || registers == 64, "n is 64 or 128");
  WgmmaArguments arguments{.d = d,
                           .n = 2 * registers,
                           .b = b,
                           .b_is_mn = b_transposed == Transposed::yes,
                           .accumulate = accumulate,
                           .a_registers = a,
                           .a_stays = true,
                           .where = where};
  warp_collective(wgmma_operation, 0xffffffffu, &arguments, where);
}

inline void wgmma_fence(Where where = Where::current()) {
  warp_collective(wgmma_fence_operation, 0xffffffffu, nullptr, where);
}

inline void wgmma_commit(Where where = Where::current()) {
  warp_collective(wgmma_commit_operation, 0xffffffffu, nullptr, where);
}

template <unsigned pending_groups>
void wgmma_wait(Where where = Where::current()) {
  unsigned pending = pending_groups;
  warp_collective(wgmma_wait_operation, 0xffffffffu, &pending, where);
}

template <int count>
void shrink_registers(Where where = Where::current()) {
  static_assert(count >= 24 && count <= 256 && count % 8 == 0);
  SetRegistersArguments arguments{count, false};
  warp_collective(set_registers_operation, 0xffffffffu, &arguments, where);
}
template <int count>
void grow_registers(Where where = Where::current()) {
  static_assert(count >= 24 && count <= 256 && count % 8 == 0);
  SetRegistersArguments arguments{count, true};
  warp_collective(set_registers_operation, 0xffffffffu, &arguments, where);
  wait_for_registers(where);
}

#endif

}  // namespace orchard::GPU_NAMESPACE
