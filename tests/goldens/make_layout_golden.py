#!/usr/bin/env python3
"""Writes layout_golden.h: which lane holds which element of the tensor cores' operands, and where
shared memory keeps them, by CuTe's layout algebra.

    tests/goldens/make_layout_golden.py > tests/goldens/layout_golden.h

A layout maps a coordinate to shape and stride; an integer coordinate is taken apart with the first
mode running fastest (CUTLASS, "CuTe Layouts" and "CuTe Layout Algebra"). The shapes and strides are
those of the traits of each instruction in CUTLASS (mma_traits_sm80.hpp, copy_traits_sm75.hpp,
mma_traits_sm90_gmma.hpp); the formulas of the PTX manual, which the emulator follows, are not used.
"""


def flatten(x):
    return [z for y in x for z in flatten(y)] if isinstance(x, tuple) else [x]


class Layout:
    def __init__(self, shape, stride):
        self.shape, self.stride = shape, stride

    def size(self):
        out = 1
        for extent in flatten(self.shape):
            out *= extent
        return out

    def mode(self, i):
        return Layout(self.shape[i], self.stride[i])

    def __call__(self, *coordinates):
        if len(coordinates) > 1:
            return sum(self.mode(i)(c) for i, c in enumerate(coordinates))
        index, out = coordinates[0], 0
        for extent, stride in zip(flatten(self.shape), flatten(self.stride)):
            out += index % extent * stride
            index //= extent
        return out


def swizzle(bits, base, shift):
    """Swizzle<bits, base, shift>: those bits from base + shift on are added, modulo 2, to those from base on."""
    mask = ((1 << bits) - 1) << (base + shift)
    return lambda x: x ^ (x & mask) >> shift


def table(name, comment, values):
    print(f"// {comment}")
    rows, cols = len(values), len(values[0])
    print(f"inline constexpr std::uint16_t {name}[{rows}][{cols}] = {{")
    for row in values:
        print("    {" + ", ".join(str(v) for v in row) + "},")
    print("};\n")


def by_lane(layout):
    return [[layout(lane, value) for value in range(layout.mode(1).size())]
            for lane in range(layout.mode(0).size())]


# (lane, value) -> m + 16 k; n + 8 k; m + 16 n
MMA_A = Layout(((4, 8), (2, 2, 2)), ((32, 1), (16, 8, 128)))
MMA_B = Layout(((4, 8), (2, 2)), ((16, 1), (8, 64)))
MMA_C = Layout(((4, 8), (2, 2)), ((32, 1), (16, 8)))
# (lane, bit of its registers) -> bit of the matrices, whose rows of 128 bits the lanes bring
LDSM_N = Layout((32, (32, 4)), (32, (1, 1024)))
LDSM_T = Layout(((4, 8), (16, 2, 4)), ((256, 16), (1, 128, 1024)))
# (thread, value) -> m + 64 n, of 16 columns
WGMMA_C = Layout(((4, 8, 4), (2, 2, 2)), ((128, 1, 16), (64, 8, 512)))
# The atoms of wgmma's operands, by the bits of their swizzle: Layout_{K,MN}_{INTER,SW32,SW64,SW128}_Atom_Bits.
# Bits of shared memory of (mn, bit of k) and of (bit of mn, k)
ATOMS_K = [Layout((8, 128 << bits), (128 << bits, 1)) for bits in range(4)]
ATOMS_MN = [Layout((128 << bits, 8), (1, 128 << bits)) for bits in range(4)]
# GMMA::LayoutType of INTERLEAVE, B32, B64, B128: what a descriptor says of its swizzle
LAYOUT_TYPES = [0, 3, 2, 1]


def elements_of_registers(layout):
    return [[layout(lane, 16 * element) // 16 for element in range(8)] for lane in range(32)]


def chunks(atoms, of_line_and_bit):
    """Of each swizzle, the bytes of 8 lines of 8 chunks of 16 bytes: as many atoms as that takes, one after the
    other (tile_to_shape of the atom)."""
    out = []
    for bits, atom in enumerate(atoms):
        move, width = swizzle(bits, 4, 3), 128 << bits
        for line in range(8):
            places = [divmod(128 * chunk, width) for chunk in range(8)]
            # An atom's 8 lines of `width` bits are `width` bytes.
            out.append([number * width + move(atom(*of_line_and_bit(line, bit)) // 8) for number, bit in places])
    return out


print("""// Made by make_layout_golden.py, from CuTe's layout algebra.
#pragma once

#include <cstdint>

namespace orchard::testing::layout_golden {
""")
table("mma_a", "m + 16 k of value v of a lane, in mma.m16n8k16's left operand.", by_lane(MMA_A))
table("mma_b", "n + 8 k, in its right operand.", by_lane(MMA_B))
table("mma_c", "m + 16 n, in its result.", by_lane(MMA_C))
table("ldmatrix", "8 row + column, of value v of a lane after ldmatrix.x4; row r is lane r's.",
      elements_of_registers(LDSM_N))
table("ldmatrix_trans", "The same after ldmatrix.x4.trans.", elements_of_registers(LDSM_T))
table("wgmma_c", "m + 64 n, of value v of a thread, in the first 16 columns of wgmma's result.", by_lane(WGMMA_C))
table("operand_k", "Byte of 16 bytes of k in wgmma's operand, k contiguous: [8 s + mn % 8][k / 8 % 8]; s is 0\n"
      "// without a swizzle; 1, 2, 3 with that of 32, 64, 128 bytes.", chunks(ATOMS_K, lambda line, bit: (line, bit)))
table("operand_mn", "Byte of 16 bytes of mn, mn contiguous: [8 s + k % 8][mn / 8 % 8].",
      chunks(ATOMS_MN, lambda line, bit: (bit, line)))
table("descriptor_swizzle", "The two highest bits of an operand's descriptor, [s].", [[t] for t in LAYOUT_TYPES])
print("}  // namespace orchard::testing::layout_golden")
