"""Numbers that both sides can make: parameters and inputs by formula, so that only results are stored.

value(name, i) = (k - 32768) / 32768 with k the upper 16 bits of splitmix64(fnv1a64(name) + (i + 1) * golden):
exact in fp32. golden_values.h repeats the formula.
"""

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _fnv1a64(text):
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return np.uint64(h)


def _words(name, count):
    with np.errstate(over="ignore"):
        z = _fnv1a64(name) + (np.arange(count, dtype=np.uint64) + np.uint64(1)) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def values(name, *shape):
    """fp64 in [-1, 1)."""
    k = (_words(name, int(np.prod(shape))) >> np.uint64(48)).astype(np.float64)
    return torch.from_numpy((k - 32768) / 32768).reshape(shape)


def pixels(name, *shape):
    """0 ... 255."""
    k = _words(name, int(np.prod(shape))) >> np.uint64(56)
    return torch.from_numpy(k.astype(np.float64)).reshape(shape)


def fill(parameters):
    """Gives each of {our name: torch parameter} its value; the flat order of elements is the same on both sides.
    What the library starts as ones (norm scales) lies around 1, everything else around 0."""
    with torch.no_grad():
        for name, p in parameters.items():
            v = values(name, *p.shape)
            p.copy_(1 + v / 4 if (p == 1).all() else v / 2)
