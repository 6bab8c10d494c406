#!/usr/bin/env python3
"""Writes optimizer_golden.h: three steps of PyTorch's AdamW and of transformers' AdaFactor, in fp64.

    pip install -r tests/goldens/requirements.txt
    tests/goldens/make_optimizer_golden.py > tests/goldens/optimizer_golden.h

The set-up is repeated in tests/train/optimizer_golden_test.cpp. AdaFactor runs with mm15.md 8.2's settings: no
parameter scale, no relative step, no momentum. The library factors whatever has two dimensions, ours what the
threshold lets pass, so unfactored parameters are handed to it flat.
"""

import torch
import transformers
from reference.header import array, arrays, begin, end
from reference.values import values
from transformers.optimization import Adafactor

SHAPES = {"matrix": (12, 20), "small_matrix": (4, 20), "kernel": (5, 3, 3), "scale": (17,)}
DECAYED = ("matrix", "small_matrix", "kernel")
FACTORED = ("matrix",)
LEARNING_RATES = (1e-2, 3e-2, 2e-2)
CLIP_NORM = 1.0


def parameters():
    return {name: torch.nn.Parameter(values(name, *shape) / 2) for name, shape in SHAPES.items()}


def gradient(name, step, shape):
    """Rows differ in size, and each step's gradients are four times the last one's, so that AdaFactor clips."""
    g = values(f"gradient {step} of {name}", *shape) * 4.0 ** (step - 2)
    return g * (1 + torch.arange(shape[0]) % 3).double().view(-1, *[1] * (len(shape) - 1))


def adamw():
    ps = parameters()
    decayed = [p for name, p in ps.items() if name in DECAYED]
    plain = [p for name, p in ps.items() if name not in DECAYED]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
                                  betas=(0.9, 0.95), eps=1e-8)
    norms = []
    for step, lr in enumerate(LEARNING_RATES, 1):
        for name, p in ps.items():
            p.grad = gradient(name, step, p.shape)
        norms.append(torch.nn.utils.clip_grad_norm_(ps.values(), CLIP_NORM))
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    assert min(norms) > CLIP_NORM
    array("gradient_norms", torch.stack(norms))
    arrays("adamw", ps | {f"{ours}/{name}": optimizer.state[p][theirs] for name, p in ps.items()
                          for ours, theirs in (("m", "exp_avg"), ("v", "exp_avg_sq"))})


def adafactor():
    clipped = 0
    results = {}
    for name, p in parameters().items():
        shape = p.shape
        if name not in FACTORED:
            p = torch.nn.Parameter(p.detach().flatten())
        optimizer = Adafactor([p], lr=1.0, eps=(1e-30, 1e-3), clip_threshold=1.0, decay_rate=-0.8, beta1=None,
                              weight_decay=0.0, scale_parameter=False, relative_step=False)
        for step, lr in enumerate(LEARNING_RATES, 1):
            before = p.detach().clone()
            p.grad = gradient(name, step, shape).view_as(p)
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
            # An update that was clipped has an rms of exactly the threshold. (The first one without factors has, too.)
            rms = (p.detach() - before).square().mean().sqrt().item() / lr
            clipped += step > 1 and abs(rms - 1) < 1e-9
        results[name] = p
        for key in ("exp_avg_sq_row", "exp_avg_sq_col") if name in FACTORED else ("exp_avg_sq",):
            results[f"{key.replace('exp_avg_sq', 'v')}/{name}"] = optimizer.state[p][key]
    assert clipped == 2 * len(SHAPES)
    arrays("adafactor", results)


def main():
    begin("make_optimizer_golden.py",
          f"PyTorch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}")
    adamw()
    adafactor()
    end()


if __name__ == "__main__":
    main()
