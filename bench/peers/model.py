"""`tiny`, `tiny-moe` and the decoder of `1b` as a PyTorch user would write them: library kernels wherever one exists, experts looped over
as in transformers' Mixtral or, with a library that has it, one grouped product for all."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class Config:
    layers: int = 7
    hidden: int = 512
    ffn: int = 1408
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 64
    vocabulary: int = 8192
    experts: int = 0  # in layers 1, 3, 5, ...
    top_k: int = 2
    rope_theta: float = 5e5
    balance_weight: float = 0.01
    z_weight: float = 0.001
    expert_kernel: str = "loop"  # or "grouped"
    chunked_loss: bool = False

    def is_sparse(self, layer):
        return self.experts > 0 and layer % 2 == 1


CONFIGS = {
    "tiny": Config(),
    "tiny-moe": Config(experts=8),
    "1b": Config(layers=24, hidden=2048, ffn=5632, heads=16, kv_heads=8, head_dim=128, vocabulary=49152),
}


def rotation(length, head_dim, theta):
    frequencies = theta ** (-torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(length).float(), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        inner, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.qkv = nn.Linear(c.hidden, inner + 2 * kv, bias=False)
        self.out = nn.Linear(inner, c.hidden, bias=False)
        self.q_norm = nn.RMSNorm(c.head_dim, eps=1e-5)
        self.k_norm = nn.RMSNorm(c.head_dim, eps=1e-5)

    def forward(self, x, cos, sin):
        c = self.c
        q, k, v = self.qkv(x).unflatten(-1, (-1, c.head_dim)).split([c.heads, c.kv_heads, c.kv_heads], dim=2)
        q = rotate(self.q_norm(q).transpose(1, 2), cos, sin)
        k = rotate(self.k_norm(k).transpose(1, 2), cos, sin)
        v = v.transpose(1, 2)
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2))


class SwiGlu(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate = nn.Linear(c.hidden, c.ffn, bias=False)
        self.up = nn.Linear(c.hidden, c.ffn, bias=False)
        self.down = nn.Linear(c.ffn, c.hidden, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Experts(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.router = nn.Linear(c.hidden, c.experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(c.experts, 2 * c.ffn, c.hidden))
        self.down = nn.Parameter(torch.empty(c.experts, c.hidden, c.ffn))

    def forward(self, x):
        """Returns y and this layer's weighted balance and z losses."""
        c, shape = self.c, x.shape
        logits = self.router(x).float()
        p = logits.softmax(-1)
        top, chosen = p.topk(c.top_k, dim=-1)
        gates = (top / top.sum(-1, keepdim=True)).flatten(0, 1)
        first = F.one_hot(chosen[..., 0], c.experts).float()  # [sequences, length, experts]
        balance = c.experts * (first.mean(1) * p.mean(1)).sum(-1).mean()
        loss = c.balance_weight * balance + c.z_weight * logits.logsumexp(-1).square().mean()
        x, chosen = x.flatten(0, 1), chosen.flatten(0, 1)
        run = self._grouped if c.expert_kernel == "grouped" else self._loop
        return run(x, chosen, gates).view(shape), loss

    def _loop(self, x, chosen, gates):
        y = torch.zeros_like(x)
        for e in range(self.c.experts):
            token, rank = torch.where(chosen == e)
            gate, up = F.linear(x[token], self.gate_up[e]).chunk(2, dim=-1)
            rows = F.linear(F.silu(gate) * up, self.down[e])
            y.index_add_(0, token, (rows * gates[token, rank, None]).to(y.dtype))
        return y

    def _grouped(self, x, chosen, gates):
        order = chosen.flatten().argsort(stable=True)
        token = order // self.c.top_k
        ends = torch.bincount(chosen.flatten(), minlength=self.c.experts).cumsum(0).to(torch.int32)
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        gate, up = F.grouped_mm(x[token].to(dtype), self.gate_up.to(dtype).transpose(1, 2), offs=ends).chunk(2, dim=-1)
        rows = F.grouped_mm(F.silu(gate) * up, self.down.to(dtype).transpose(1, 2), offs=ends)
        return torch.zeros_like(x).index_add_(0, token, (rows * gates.flatten()[order, None]).to(x.dtype))


class Block(nn.Module):
    def __init__(self, c, layer):
        super().__init__()
        self.sparse = c.is_sparse(layer)
        self.attention_norm = nn.RMSNorm(c.hidden, eps=1e-5)
        self.attention = Attention(c)
        self.feed_forward_norm = nn.RMSNorm(c.hidden, eps=1e-5)
        self.feed_forward = Experts(c) if self.sparse else SwiGlu(c)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.attention_norm(x), cos, sin)
        y = self.feed_forward(self.feed_forward_norm(x))
        y, loss = y if self.sparse else (y, 0.0)
        return x + y, loss


class Model(nn.Module):
    def __init__(self, c, length):
        super().__init__()
        self.c = c
        self.embedding = nn.Embedding(c.vocabulary, c.hidden)
        self.blocks = nn.ModuleList(Block(c, i) for i in range(c.layers))
        self.norm = nn.RMSNorm(c.hidden, eps=1e-5)
        cos, sin = rotation(length, c.head_dim, c.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                residual = name.endswith(("out.weight", "down.weight", "down"))
                nn.init.normal_(p, std=0.02 / (2 * c.layers) ** 0.5 if residual else 0.02)

    def forward(self, tokens):
        """tokens: [sequences, length]. Returns the cross-entropy of predicting each next token and the routers'
        losses."""
        x, extra = self.embedding(tokens), 0.0
        for block in self.blocks:
            x, loss = block(x, self.cos, self.sin)
            extra = extra + loss
        x = self.norm(x)[:, :-1].flatten(0, 1)
        targets = tokens[:, 1:].flatten()
        if self.c.chunked_loss:
            loss = F.linear_cross_entropy(x, self.embedding.weight.to(x.dtype), targets,
                                          options=nn.LinearCrossEntropyOptions())
        else:
            loss = F.cross_entropy(F.linear(x, self.embedding.weight).float(), targets)
        return loss, extra


def training_flops(c, sequences, length):
    """What the mathematics needs, as models/flops.cpp counts it: three times the products with weights, 3.5 times
    (causal) attention."""
    tokens, inner, kv = sequences * length, c.heads * c.head_dim, c.kv_heads * c.head_dim
    products = attention = 0
    for layer in range(c.layers):
        products += 2 * tokens * c.hidden * (2 * inner + 2 * kv)
        attention += 2 * tokens * length * inner
        products += 2 * tokens * (c.top_k if c.is_sparse(layer) else 1) * 3 * c.hidden * c.ffn
        products += 2 * tokens * c.hidden * c.experts if c.is_sparse(layer) else 0
    products += 2 * sequences * (length - 1) * c.hidden * c.vocabulary
    return 3 * products + 3.5 * attention
