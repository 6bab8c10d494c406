#!/usr/bin/env python3
"""What PyTorch and the libraries behind it (cuDNN, FlashAttention, CUTLASS) take for the operations of bench_gpu on the
same GPU: reads the lines of `bench_gpu --json`, times the operations it knows the same way (events around a call, L2
overwritten before it, random data, median of 30) and prints each with our time and the ratio (above 1: ours is faster).

    gpu_operations.py BENCH_GPU_JSONL [--filter TEXT] [--json]

Of several ways that PyTorch offers, each is a line. Backward passes take their gradients as PyTorch keeps them, in bf16.
"""

import argparse
import json
import statistics

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

WARM_UP, CALLS = 3, 30
BF16 = {"device": "cuda", "dtype": torch.bfloat16}
# heads of keys and values, by the name of a workload in bench/gpu/attention_cases.cpp
KV_HEADS = {"tiny": 4, "64.causal": 8, "64.full": 32, "1b": 8, "3b": 8, "7b": 8, "30b": 8, "128.causal": 8, "128.full": 16,
            "vit": 16}


def median_us(flush, call):
    times = []
    for i in range(WARM_UP + CALLS):
        flush.fill_(i)
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        stop.record()
        stop.synchronize()
        if i >= WARM_UP:
            times.append(1e3 * start.elapsed_time(stop))
    return statistics.median(times)


class BackwardOf:
    """The backward pass alone of what `forward` computes."""

    def __init__(self, forward, inputs):
        self.forward, self.inputs, self.y = forward, inputs, None

    def __call__(self):
        if self.y is None:
            self.y = self.forward()
            self.d_y = torch.randn_like(self.y)
        torch.autograd.grad(self.y, self.inputs, self.d_y, retain_graph=True)


def random(*shape, grad=False):
    return torch.randn(*shape, **BF16, requires_grad=grad)


def attention(parts):
    name, direction, _ = parts[1].rsplit(".", 2)
    if "packed" in name or parts[1].endswith("f32"):
        return
    batch, length, heads = map(int, parts[2].split("x"))
    head_dim = int(parts[3])
    kv_heads = KV_HEADS.get(name) or KV_HEADS[name.split(".")[0]]
    q = random(batch, length, heads, head_dim, grad=True).transpose(1, 2)
    k, v = (random(batch, length, kv_heads, head_dim, grad=True).transpose(1, 2) for _ in range(2))
    options = {"is_causal": "causal" in name, "enable_gqa": kv_heads != heads}
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        def run(backend=backend):
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, **options)
        yield backend.name.lower(), run if direction == "forward" else BackwardOf(run, (q, k, v))


def grouped(parts):
    direction = parts[1].rsplit(".", 1)[1]
    experts, rows, k, n = map(int, parts[2].split("x"))
    x, y = random(experts * rows, k), random(experts * rows, n)
    w = random(experts, n, k)
    ends = torch.arange(1, experts + 1, device="cuda", dtype=torch.int32) * rows
    products = {"forward": lambda: F.grouped_mm(x, w.transpose(1, 2), offs=ends),
                "input_gradient": lambda: F.grouped_mm(y, w, offs=ends),
                "weight_gradient": lambda: F.grouped_mm(y.T, x, offs=ends)}
    yield "grouped_mm", products[direction]


def depthwise(parts):
    n, h, w, c = map(int, parts[2].split("x"))
    x = random(n, c, h, w).to(memory_format=torch.channels_last).requires_grad_()
    weight = random(c, 1, 3, 3, grad=True)
    run = lambda: F.conv2d(x, weight, padding=1, groups=c)
    calls = {"forward": run, "input_gradient": BackwardOf(run, x), "weight_gradient": BackwardOf(run, weight)}
    yield "cudnn", calls[parts[1]]


def adaptive_pool(parts):
    n, side, c = map(int, parts[2].split("x"))
    x = random(n, c, side, side).to(memory_format=torch.channels_last).requires_grad_()
    out = int(parts[3].removeprefix("to_"))
    run = lambda: F.adaptive_avg_pool2d(x, out)
    yield "eager", run if parts[1] == "forward" else BackwardOf(run, x)


def norm(parts):
    rows, width = map(int, parts[2].split("x"))
    x, weight, bias = random(rows, width, grad=True), random(width, grad=True), random(width, grad=True)
    if parts[0] == "rms_norm":
        run, inputs = (lambda: F.rms_norm(x, (width,), weight)), (x, weight)
    else:
        run, inputs = (lambda: F.layer_norm(x, (width,), weight, bias)), (x, weight, bias)
    yield "eager", run if parts[1] == "forward" else BackwardOf(run, inputs)


def embedding(parts):
    rows, width = map(int, parts[2].split("x"))
    table = random(49152, width, grad=True)
    # As in bench/gpu/table_cases.cpp: a frequent token and many rare ones.
    tokens = torch.tensor([13 if t % 8 == 0 else t * 2654435761 % 49152 for t in range(rows)], device="cuda")
    run = lambda: F.embedding(tokens, table)
    yield "eager", run if parts[1] == "forward" else BackwardOf(run, table)


OPERATIONS = {"attention": attention, "grouped": grouped, "depthwise": depthwise, "adaptive_pool": adaptive_pool,
              "rms_norm": norm, "layer_norm": norm, "embedding": embedding}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours")
    parser.add_argument("--filter", default="")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    flush = torch.empty(2 * torch.cuda.get_device_properties(0).L2_cache_size // 4, device="cuda")
    with open(args.ours) as lines:
        cases = [json.loads(line) for line in lines]
    for case in cases:
        parts = case["name"].split("/")
        if args.filter not in case["name"] or parts[0] not in OPERATIONS:
            continue
        for way, call in OPERATIONS[parts[0]](parts):
            try:
                peer = median_us(flush, call)
            except RuntimeError as error:  # a way that does not take this shape
                print(f"{case['name']}: {way}: {str(error).splitlines()[0]}")
                continue
            if args.json:
                print(json.dumps({"name": case["name"], "us": case["us"], "peer": way, "peer_us": round(peer, 2),
                                  "ratio": round(peer / case["us"], 3)}), flush=True)
            else:
                print(f"{case['name']:<56} {case['us']:>9.1f} us  x {way} {peer / case['us']:.2f}", flush=True)


if __name__ == "__main__":
    main()
