"""PNG files to the patches of their tiles, written from docs/parameters.md."""

import struct
import zlib

import numpy as np

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def write_png(path, pixels):
    """[height, width, 3 or 4] of 8 bits."""
    height, width, channels = pixels.shape
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[channels], 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def on_white(pixels):
    """[height, width, 3 or 4] to RGB."""
    rgb, alpha = pixels[..., :3].astype(int), pixels[..., 3:].astype(int)
    return rgb if alpha.shape[-1] == 0 else (rgb * alpha + 255 * (255 - alpha) + 127) // 255


def cubic(x):
    a, x = -0.5, np.abs(x)
    return np.where(x < 1, ((a + 2) * x - (a + 3)) * x * x + 1, np.where(x < 2, a * (((x - 5) * x + 8) * x - 4), 0))


def filter_matrix(size_in, size_out):
    scale = size_in / size_out
    wide = max(1, scale)
    matrix = np.zeros((size_out, size_in))
    for i in range(size_out):
        centre = (i + 0.5) * scale
        inputs = np.arange(max(0, int(centre - 2 * wide + 0.5)), min(size_in, int(centre + 2 * wide + 0.5)))
        weights = cubic((inputs - centre + 0.5) / wide)
        matrix[i, inputs] = weights / weights.sum()
    return matrix


def resize(picture, height, width):
    rows, columns = filter_matrix(picture.shape[0], height), filter_matrix(picture.shape[1], width)
    return np.clip(np.einsum("yY,xX,YXc->yxc", rows, columns, picture, optimize=True), 0, 255)


def round_half_up(numerator, denominator):
    return max(1, (2 * numerator + denominator) // (2 * denominator))


def dynamic_grid(height, width, options):
    """rows, columns, and the picture's size on them."""
    side = options["side"]
    grids = [(rows, tiles // rows) for tiles in range(options["min_tiles"], options["max_tiles"] + 1)
             for rows in range(1, tiles + 1) if tiles % rows == 0]
    covering, shrunk = [], []
    for rows, columns in grids:
        fit = min((rows * side, height), (columns * side, width), key=lambda s: s[0] / s[1])
        longer = (columns * side, width) if width >= height else (rows * side, height)
        scale = fit if options["grid_reading"] == "fit" else longer
        h, w = (round_half_up(length * scale[0], scale[1]) for length in (height, width))
        if height <= h <= rows * side and width <= w <= columns * side:
            covering.append((rows * columns * side * side - h * w, rows, columns, h, w))
        scale = min(fit, (1, 1), key=lambda s: s[0] / s[1])
        h, w = (round_half_up(length * scale[0], scale[1]) for length in (height, width))
        shrunk.append((-scale[0] / scale[1], rows, columns, h, w))
    return min(covering or shrunk, key=lambda candidate: candidate[0])[1:]


def patches_of(canvas, side, patch):
    """Normalised pixels [rows·side, columns·side, 3] to [tiles, P, 3·patch²]."""
    rows, columns, grid = canvas.shape[0] // side, canvas.shape[1] // side, side // patch
    tiles = canvas.reshape(rows, grid, patch, columns, grid, patch, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    return tiles.reshape(rows * columns, grid * grid, 3 * patch * patch)


def tiles_of(pixels, count, options):
    """Patches [tiles, P, 3·patch²] of a picture of a document with `count` pictures."""
    picture, side, patch = on_white(pixels), options["side"], options["patch"]
    normalised = lambda h, w: (resize(picture, h, w) / 255 - MEAN) / STD
    overview = patches_of(normalised(side, side), side, patch)
    if options["tiling"] == "whole" or count >= options["split_below_pictures"]:
        return overview
    if options["tiling"] == "fixed":
        return np.concatenate([patches_of(normalised(2 * side, 2 * side), side, patch), overview])
    rows, columns, height, width = dynamic_grid(*picture.shape[:2], options)
    if (rows, columns) == (1, 1):
        return overview
    canvas = np.zeros((rows * side, columns * side, 3))
    canvas[:height, :width] = normalised(height, width)
    return np.concatenate([patches_of(canvas, side, patch), overview])
