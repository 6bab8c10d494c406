#!/usr/bin/env python3
"""Writes resize_golden.h: pictures and tables resized by Pillow and OpenCV.

    pip install pillow numpy opencv-python-headless
    tests/goldens/make_resize_golden.py > tests/goldens/resize_golden.h

Pillow's BICUBIC (a = -0.5, antialias) in mode F, one channel at a time, does not round between the
passes. OpenCV's INTER_CUBIC (a = -0.75, half-pixel centres, edge clamped, no antialias) computes
what PyTorch's interpolate(mode="bicubic", align_corners=False) does. The inputs are formulas that
the test repeats.
"""

import cv2
import numpy as np
from PIL import Image

PICTURES = [  # (in_height, in_width, height, width)
    (13, 17, 13, 17),  # same size: nothing changes
    (9, 7, 14, 11),    # grow
    (37, 53, 11, 9),   # shrink
    (61, 6, 5, 13),    # shrink one side, grow the other
    (1, 5, 3, 2),      # a single row
    (40, 3, 1, 1),     # a single pixel
]
TABLES = [  # (rows, cols, width, new_rows, new_cols)
    (4, 4, 2, 7, 7),
    (6, 5, 1, 3, 8),
    (1, 3, 2, 2, 5),
]


def picture(height, width):
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return ((y * 7919 + x * 104729 + c * 1299709 + (y * x * 31) % 97 * 53) % 251 + (x + y) % 2 * 4).astype(np.uint8)


def table(rows, cols, width):
    i = np.arange(rows * cols * width).reshape(rows, cols, width)
    return ((i * 37 + i * i * 11) % 101 / 50.0 - 1.0).astype(np.float32)


def values(array, digits):
    texts = [f"{v:.{digits}f}f" for v in array.reshape(-1)]
    lines, line = [], " "
    for text in texts:
        if len(line) + len(text) + 2 > 100:
            lines.append(line)
            line = " "
        line += f" {text},"
    return "\n".join(lines + [line])


def emit(name, fields, array, digits):
    print(f"inline constexpr float {name}_values[] = {{\n{values(array, digits)}\n}};")
    return f"    {{{', '.join(map(str, fields))}, {name}_values}},"


def main():
    print("// Made by make_resize_golden.py with Pillow and OpenCV. Do not edit.")
    print("#pragma once\n")
    print("// clang-format off")
    print("namespace orchard::testing::golden {\n")
    print("struct Picture { int in_height, in_width, height, width; const float* values; };")
    print("struct Table { int rows, cols, width, new_rows, new_cols; const float* values; };\n")
    entries = []
    for index, (in_height, in_width, height, width) in enumerate(PICTURES):
        source = picture(in_height, in_width).astype(np.float32)
        channels = [Image.fromarray(source[:, :, c], mode="F").resize((width, height), Image.BICUBIC) for c in range(3)]
        result = np.clip(np.stack([np.asarray(c) for c in channels], axis=2), 0, 255)
        entries.append(emit(f"picture{index}", PICTURES[index], result, 3))
    print("inline constexpr Picture pictures[] = {")
    print("\n".join(entries) + "\n};\n")
    entries = []
    for index, (rows, cols, width, new_rows, new_cols) in enumerate(TABLES):
        result = cv2.resize(table(rows, cols, width), (new_cols, new_rows), interpolation=cv2.INTER_CUBIC)
        entries.append(emit(f"table{index}", TABLES[index], result, 6))
    print("inline constexpr Table tables[] = {")
    print("\n".join(entries) + "\n};\n")
    print("}  // namespace orchard::testing::golden")


if __name__ == "__main__":
    main()
