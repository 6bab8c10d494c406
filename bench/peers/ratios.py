#!/usr/bin/env python3
"""The table of compare.sh: best round of each program, and ours over each peer."""

import json
import sys
from collections import defaultdict


def main():
    best = defaultdict(dict)  # (model, family of dtypes) -> program -> best line
    for text in open(sys.argv[1]):
        line = json.loads(text)
        program = f"{line['peer']} {line['variant']} {line['dtype']}" if "peer" in line else "Orchard"
        programs = best[line["model"], line["dtype"].removesuffix("-weights")]
        if program not in programs or line["tokens_per_s"] > programs[program]["tokens_per_s"]:
            programs[program] = line
    print(f"{'model':9} {'dtype':5} {'program':44} {'tokens/s':>9} {'of peak':>8} {'memory MB':>10} "
          f"{'speed ratio':>12} {'memory ratio':>13}")
    for (model, dtype), programs in best.items():
        ours = programs.get("Orchard")
        for program, line in sorted(programs.items(), key=lambda item: -item[1]["tokens_per_s"]):
            ratios = ""
            if ours and line is not ours:
                ratios = (f"{ours['tokens_per_s'] / line['tokens_per_s']:11.2f}x "
                          f"{line['peak_memory_bytes'] / ours['peak_memory_bytes']:12.2f}x")
            print(f"{model:9} {dtype:5} {program:44} {line['tokens_per_s']:9.0f} {line['fraction_of_peak']:8.1%} "
                  f"{line['peak_memory_bytes'] / 1e6:10.0f} {ratios}")


if __name__ == "__main__":
    main()
