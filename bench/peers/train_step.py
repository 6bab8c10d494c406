#!/usr/bin/env python3
"""Training speed of `tiny`, `tiny-moe` and `1b` in PyTorch, as one JSON line with the keys of
bench_train_step --json.

    train_step.py [--model tiny|tiny-moe|1b] [--dtype f32|bf16|bf16-weights] [--run eager|compile]
                  [--experts loop|grouped] [--loss plain|chunked] [--sequence 512] [--micro-batch 8] [--steps 10]
                  [--threads 2] [--device cpu|cuda]

bf16 is autocast over fp32 weights, what tutorials teach and what keeps fp32 masters as ours does; bf16-weights holds
weights, gradients and optimizer state in bf16: smaller, but not the same arithmetic. AdamW is the fused one, gradients
are clipped by their global norm, and the first steps (compilation among them) are not counted.
"""

import argparse
import json
import os
import resource
import statistics
import time

import torch
from model import CONFIGS, Model, training_flops

WARM_UP = 4


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=CONFIGS, default="tiny")
    parser.add_argument("--dtype", choices=("f32", "bf16", "bf16-weights"), default="f32")
    parser.add_argument("--run", choices=("eager", "compile"), default="eager")
    parser.add_argument("--experts", choices=("loop", "grouped"), default="loop")
    parser.add_argument("--loss", choices=("plain", "chunked"), default="plain")
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args()


def now(device):
    """Seconds, once what was queued is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def gemm_peak(dtype, device):
    """FLOP/s of the quickest of some large products."""
    best = 0
    sizes = [(2048, 2048, 2048), (4096, 1024, 1024), (4096, 512, 2048)]
    if device == "cuda":
        sizes.append((8192, 8192, 8192))
    for m, n, k in sizes:
        a, b = torch.randn(m, k, device=device).to(dtype), torch.randn(n, k, device=device).to(dtype)
        for _ in range(5):
            start = now(device)
            torch.nn.functional.linear(a, b)
            best = max(best, 2 * m * n * k / (now(device) - start))
    return best


def make_optimizer(model):
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), eps=1e-8, fused=True)


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(1)
    config = CONFIGS[args.model]
    config.expert_kernel, config.chunked_loss = args.experts, args.loss == "chunked"
    model = Model(config, args.sequence)
    if args.dtype == "bf16-weights":
        model = model.bfloat16()
    model = model.to(args.device)
    optimizer = make_optimizer(model)
    step_model = torch.compile(model) if args.run == "compile" else model
    tokens = torch.randint(config.vocabulary, (args.micro_batch, args.sequence), device=args.device)

    seconds, phases, loss = [], {"forward": 0.0, "backward": 0.0, "optimizer": 0.0}, None
    for step in range(WARM_UP + args.steps):
        times = [now(args.device)]
        with torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bf16"):
            loss, router_losses = step_model(tokens)
        times.append(now(args.device))
        (loss + router_losses).backward()
        times.append(now(args.device))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(now(args.device))
        if step < WARM_UP:
            continue
        seconds.append(times[-1] - times[0])
        for name, begin, end in zip(phases, times, times[1:]):
            phases[name] += (end - begin) / args.steps

    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if args.device == "cuda":
        memory = torch.cuda.max_memory_allocated()
    median = statistics.median(seconds)
    flops = training_flops(config, args.micro_batch, args.sequence) / median
    peak = gemm_peak(torch.float32 if args.dtype == "f32" else torch.bfloat16, args.device)
    variant = [args.run] + ([args.experts] if config.experts else []) + ([args.loss] if config.chunked_loss else [])
    print(json.dumps({
        "peer": f"PyTorch {torch.__version__.split('+')[0]}", "variant": " ".join(variant),
        "allocator": os.path.basename(os.environ.get("LD_PRELOAD", "")) or "libc",
        "model": args.model, "dtype": args.dtype, "threads": args.threads, "sequence": args.sequence,
        "micro_batch": args.micro_batch, "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_s": args.micro_batch * args.sequence / median, "step_s_median": median, "step_s_min": min(seconds),
        "model_gflop_per_s": flops / 1e9, "gemm_peak_gflop_per_s": peak / 1e9, "fraction_of_peak": flops / peak,
        "peak_memory_bytes": memory, "forward_s": phases["forward"], "backward_s": phases["backward"],
        "optimizer_s": phases["optimizer"], "loss": loss.item()}))


if __name__ == "__main__":
    main()
