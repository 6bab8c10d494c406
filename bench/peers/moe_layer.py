#!/usr/bin/env python3
"""One mixture-of-experts layer, forward and backward, in PyTorch on the CPU with a loop over the experts (or grouped
products), as one JSON line with the keys of bench_moe_layer --json.

    moe_layer.py [--experts-kernel loop|grouped] [--tokens 4096] [--hidden 512] [--ffn 1024] [--experts 64] [--top-k 2]
                 [--steps 10] [--threads 1]
"""

import argparse
import json
import statistics
import time
from types import SimpleNamespace

import torch
from model import Experts

WARM_UP = 2


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--experts-kernel", choices=("loop", "grouped"), default="loop")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--ffn", type=int, default=1024)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(1)
    layer = Experts(SimpleNamespace(hidden=args.hidden, ffn=args.ffn, experts=args.experts, top_k=args.top_k,
                                    balance_weight=0.01, z_weight=0.001, expert_kernel=args.experts_kernel))
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.02)
    x = torch.randn(1, args.tokens, args.hidden, requires_grad=True)
    d_y = torch.randn(1, args.tokens, args.hidden)
    seconds = []
    for _ in range(WARM_UP + args.steps):
        layer.zero_grad(set_to_none=True)
        x.grad = None
        start = time.perf_counter()
        y, loss = layer(x)
        torch.autograd.backward((y, loss), (d_y, torch.ones_like(loss)))
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"name": "layer", "peer": f"PyTorch {torch.__version__.split('+')[0]}",
                      "variant": args.experts_kernel, "ep": 1, "threads": args.threads, "tokens": args.tokens,
                      "hidden": args.hidden, "ffn": args.ffn, "experts": args.experts, "top_k": args.top_k,
                      "seconds": statistics.median(seconds[WARM_UP:])}))


if __name__ == "__main__":
    main()
