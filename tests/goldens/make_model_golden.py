#!/usr/bin/env python3
"""Writes model_golden.h: outputs, losses and gradients of the model at toy size, in fp64, by public PyTorch models.

    pip install -r tests/goldens/requirements.txt
    tests/goldens/make_model_golden.py > tests/goldens/model_golden.h

The configurations are repeated in tests/models/golden_test.cpp.
"""

import timm
import torch
import transformers
from reference.header import array, begin, end, gradients, probed, summaries
from reference.language import Experts, Language
from reference.towers import Connector, Vision
from reference.values import pixels, values
from torch.nn import functional as F
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeConfig, Qwen3MoeSparseMoeBlock

VISION = dict(layers=2, width=16, heads=2, mlp_width=24, patch=2, side=10)
CONNECTOR = dict(grid=5, width=16, hidden=12, depth=1, out_side=2, llm_width=16)
LANGUAGE = dict(layers=2, hidden=16, ffn=32, heads=4, kv_heads=2, head_dim=8, vocabulary=40)

# Two packed sequences of 16 rows: a document with two pictures, then two documents (the second with a picture) and
# padding. Negative: visual row -1 - source.
SOURCES = [1, -1, -2, -3, -4, 10, 11, -5, -6, -7, -8, 12, 13, 14, 15, 2,
           1, 20, 21, 2, 1, -9, -10, -11, -12, 22, 23, 2, 3, 3, 3, 3]
DOCUMENTS = [16, 4, 8, 4]
REAL_ROWS = [16, 12]
TARGETS = {4: 10, 5: 11, 10: 12, 11: 13, 12: 14, 13: 15, 14: 2, 16: 20, 17: 21, 18: 2, 24: 22, 25: 23, 26: 2}
BALANCE_WEIGHT, Z_WEIGHT = 0.01, 0.001


def vision():
    tower = Vision(**VISION)
    pictures = pixels("pictures", 2, VISION["side"], VISION["side"], 3)
    summaries("vision_other_features", {f: tower(pictures, f) for f in ("last", "penultimate")})
    y = tower(pictures)
    array("vision", y)
    # The class token's output is dropped: its gradient is zero.
    probed(y[:, 1:], "vision").backward()
    gradients("vision_gradients", tower.names())


def connector(name, config):
    model = Connector(**config)
    x = values(name, 2, config["grid"] ** 2 + 1, config["width"]).requires_grad_()
    y = model(x)
    array(name, y)
    probed(y, name).backward()
    gradients(f"{name}_gradients", model.names(), x=x)


def decoder():
    model = Language(**LANGUAGE)
    x = values("decoder", 2, 16, LANGUAGE["hidden"]).requires_grad_()
    y = model(x, DOCUMENTS, REAL_ROWS)
    array("decoder", y)
    probed(y, "decoder").backward()
    names = model.names()
    del names["embedding"]
    gradients("decoder_gradients", names, x=x)


def check_against_qwen3_moe(experts, x):
    """Dropless routing of our own making against the library's, where both exist."""
    n, ffn = len(experts.experts), experts.experts[0].intermediate_size
    block = Qwen3MoeSparseMoeBlock(Qwen3MoeConfig(
        hidden_size=x.shape[-1], moe_intermediate_size=ffn, num_experts=n, num_experts_per_tok=experts.top_k,
        norm_topk_prob=True)).double()
    with torch.no_grad():
        block.gate.weight.copy_(experts.router)
        for e, expert in enumerate(experts.experts):
            block.experts.gate_up_proj[e] = torch.cat([expert.gate_proj.weight, expert.up_proj.weight])
            block.experts.down_proj[e] = expert.down_proj.weight
        experts.real_rows = [x.shape[1]] * len(x)
        torch.testing.assert_close(block(x), experts(x), rtol=0, atol=1e-6)  # its softmax is fp32


def mixture(name, **config):
    model = Experts(LANGUAGE["hidden"], LANGUAGE["ffn"], **config)
    x = values(name, 2, 16, LANGUAGE["hidden"]).requires_grad_()
    if not config.get("capacity_factor"):
        check_against_qwen3_moe(model, x)
    model.real_rows = REAL_ROWS
    y = model(x)
    s = model.statistics
    array(name, y)
    array(f"{name}_balance", torch.stack([q["balance"] for q in s]))
    array(f"{name}_z", torch.stack([q["z"] for q in s]))
    array(f"{name}_counts", torch.stack([sum(q["before"] for q in s), sum(q["after"] for q in s)]), "int")
    array(f"{name}_chosen", torch.cat([q["chosen"] for q in s]), "int")  # of real tokens only
    (probed(y, name) + sum(0.5 * q["balance"] + 0.25 * q["z"] for q in s)).backward()
    gradients(f"{name}_gradients", model.names(), x=x)


def multimodal(name, moe):
    tower, bridge, language = Vision(**VISION), Connector(**CONNECTOR), Language(**LANGUAGE, moe=moe)
    sources = torch.tensor(SOURCES)
    visual = bridge(tower(pixels("pictures", 3, VISION["side"], VISION["side"], 3))).flatten(0, 1)
    table = language.names()["embedding"]
    x = torch.where((sources < 0)[:, None], visual[(-1 - sources).clamp(min=0)], table[sources.clamp(min=0)])
    h = language(x.view(2, 16, -1), DOCUMENTS, REAL_ROWS).flatten(0, 1)
    losses = F.cross_entropy(h[list(TARGETS)] @ table.T, torch.tensor(list(TARGETS.values())), reduction="none")
    statistics = [q for experts in language.sparse for q in experts.statistics]
    balance = sum(q["balance"] for q in statistics) / len(REAL_ROWS)
    z = sum(q["z"] for q in statistics) / sum(REAL_ROWS)
    total = losses.mean() + BALANCE_WEIGHT * balance + Z_WEIGHT * z
    total.backward()
    array(f"{name}_losses", losses)
    array(f"{name}_total", total)
    gradients(f"{name}_gradients", tower.names() | bridge.names() | language.names())


def main():
    begin("make_model_golden.py",
          f"PyTorch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, timm {timm.__version__}")
    vision()
    connector("connector", CONNECTOR)
    connector("deep_connector", CONNECTOR | dict(grid=7, depth=3, out_side=3))
    decoder()
    mixture("moe_dropless", experts=4)
    mixture("moe_capacity", experts=4, capacity_factor=1.0)
    mixture("moe_top3", experts=6, top_k=3, capacity_factor=1.25, counts="all_choices")
    multimodal("multimodal", dict(experts=4))
    multimodal("multimodal_capacity", dict(experts=4, capacity_factor=1.0))
    end()


if __name__ == "__main__":
    main()
