#!/usr/bin/env python3
"""How long the tiles of attention on sm_90a take by different deals to blocks, in a model without a GPU: a tile
takes `start` and then one unit for each tile of columns that it multiplies. Prints the time of the last block over
that of blocks which all end together (docs/notes/attention-schedule.md).

usage: bench/attention_schedule.py [--blocks 132] [--start 2] [--lead 2] [--units]

--units: what a unit of forward 128 was in microseconds, by the rates of docs/notes/gpu-h100.md, measured with a
block a tile. The `start` for which the shapes agree is the one to believe."""

import argparse
import heapq


def packed(tokens):
    """The documents of bench/gpu/attention_cases.cpp."""
    lengths, length = [], tokens // 2
    while tokens > 0:
        lengths.append(min(length, tokens))
        tokens -= lengths[-1]
        length = max(length * 3 // 4, 100)
    return lengths


# lengths, causal, heads, kv_heads
SHAPES = {
    "8 x 2048 causal": ([2048] * 8, True, 16, 8),
    "4 x 4096 causal": ([4096] * 4, True, 24, 8),
    "2 x 8192 causal": ([8192] * 2, True, 32, 8),
    "4 x 4096 full": ([4096] * 4, False, 16, 16),
    "packed, 24 heads": (packed(16384), True, 24, 8),
    "packed, 32 heads": (packed(16384), True, 32, 8),
    "16 x 2048 causal, 8 heads": ([2048] * 16, True, 8, 4),
}


MEASURED_TFLOPS = {
    "8 x 2048 causal": 445,
    "4 x 4096 causal": 527,
    "2 x 8192 causal": 565,
    "4 x 4096 full": 545,
    "packed, 24 heads": 540,
    "packed, 32 heads": 557,
}


def up(a, b):
    return -(-a // b)


def of_queries(shape, rows, columns):
    """Tiles of columns of each tile of queries, in the order of the queue: from the last document's end on."""
    lengths, causal, heads, _ = shape
    return [up(min(first + rows, n) if causal else n, columns)
            for n in reversed(lengths) for first in reversed(range(0, n, rows)) for _ in range(heads)]


def of_keys(shape, rows, columns):
    lengths, causal, heads, kv_heads = shape
    return [up(n - first if causal else n, columns) * (heads // kv_heads)
            for n in lengths for first in range(0, n, rows) for _ in range(kv_heads)]


def backward(shape, head_dim):
    """In tiles of 64 x 64 of d_k and d_v, 8 products; d_q's 128 x 128 is 6 of twice the columns."""
    return of_keys(shape, 128, 64) + [1.5 * n for n in of_queries(shape, 128, 128)]


def queue(tiles, blocks, start, lead):
    """Who is free takes the next; `lead`: units before its end, when it has asked for its last copies."""
    free = [(0.0, 0.0)] * blocks  # when it asks, when it is done
    for n in tiles:
        _, done = heapq.heappop(free)
        end = done + start + n
        heapq.heappush(free, (end - min(lead, n), end))
    return max(end for _, end in free)


def dealt(tiles, blocks, start, snake):
    done = [0.0] * blocks
    for i, n in enumerate(tiles):
        turn, place = divmod(i, blocks)
        done[blocks - 1 - place if snake and turn % 2 else place] += start + n
    return max(done)


def print_units(blocks, start):
    for name, rate in MEASURED_TFLOPS.items():
        lengths, causal, heads, _ = SHAPES[name]
        flops = 4 * 128 * heads * sum(n * (n + 1) / 2 if causal else n * n for n in lengths)
        units = queue(of_queries(SHAPES[name], 128, 128), blocks, start, 0)
        print(f"{name}: {flops / (rate * 1e6) / units:.2f} us")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=132)
    parser.add_argument("--start", type=float, default=2)
    parser.add_argument("--lead", type=float, default=2)
    parser.add_argument("--units", action="store_true")
    options = parser.parse_args()
    blocks, start = options.blocks, options.start
    if options.units:
        return print_units(blocks, start)
    passes = {
        "forward 64": lambda shape: of_queries(shape, 192, 128),
        "forward 128": lambda shape: of_queries(shape, 128, 128),
        "backward": lambda shape: backward(shape, 128),
    }
    print("| pass, shape | tiles | a block a tile | queue | queue, a tile ahead | every n-th | to and fro |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, tiles_of in passes.items():
        for shape_name, shape in SHAPES.items():
            tiles = tiles_of(shape)
            even = (sum(tiles) + start * len(tiles)) / blocks
            times = [queue(tiles, blocks, start, 0), queue(tiles, blocks, start, options.lead),
                     queue(tiles, blocks, start, 1e9), dealt(tiles, blocks, start, False),
                     dealt(tiles, blocks, start, True)]
            print(f"| {name}, {shape_name} | {len(tiles)} | " + " | ".join(f"{t / even:.3f}" for t in times) + " |")


if __name__ == "__main__":
    main()
