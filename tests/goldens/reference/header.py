"""Writes results as a C++ header of constants."""

import torch

from .values import values

WIDTH = 100


def begin(script, libraries):
    print(f"// Made by {script} with {libraries}. Do not edit.")
    print('#pragma once\n\n#include "tests/goldens/golden_values.h"\n')
    print("// clang-format off\nnamespace orchard::testing::golden {\n")


def end():
    print("}  // namespace orchard::testing::golden")


def array(name, tensor, type="double"):
    texts = [f"{v:.7g}" if type == "double" else str(int(v)) for v in tensor.detach().reshape(-1).tolist()]
    print(f"inline constexpr {type} {name}[] = {{")
    line = " "
    for text in texts:
        if len(line) + len(text) + 2 > WIDTH:
            print(line)
            line = " "
        line += f" {text},"
    print(f"{line}\n}};\n")


def arrays(name, tensors):
    """Whole tensors under the names that the test knows them by."""
    variables = {of: f"{name}_{of.replace('/', '_')}" for of in tensors}
    for of, t in tensors.items():
        array(variables[of], t)
    print(f"inline constexpr Values {name}[] = {{")
    for of, variable in variables.items():
        print(f'  {{"{of}", {variable}}},')
    print("};\n")


def summaries(name, tensors):
    """A tensor as its norm and its products with two directions, which any misplaced or wrong element changes."""
    print(f"inline constexpr Summary {name}[] = {{")
    for of, t in tensors.items():
        t = t.detach().reshape(-1)
        first, second = (t @ values(f"{which} direction of {of}", len(t)) for which in ("first", "second"))
        print(f'  {{"{of}", {t.norm().item():.7g}, {first.item():.7g}, {second.item():.7g}}},')
    print("};\n")


def gradients(name, parameters, **others):
    summaries(name, {n: p.grad for n, p in parameters.items()} | {n: t.grad for n, t in others.items()})


def probed(y, name):
    """sum(y * r) with r by formula, whose gradient with respect to y is r."""
    return (y * values(f"d {name}", *y.shape)).sum()
