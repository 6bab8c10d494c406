"""Decoder by Hugging Face's Qwen3 (QK-norm, grouped queries, half-split RoPE, SwiGLU, tied embedding) with its
RMSNorm taken from PyTorch, because Qwen3's computes in fp32; the mixture of experts written from its formulas
(mm15.md 1.5.1), since no library has GShard's capacity together with losses per sequence."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Qwen3Config, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm

from .values import fill


class Experts(nn.Module):
    def __init__(self, hidden, ffn, experts, top_k=2, capacity_factor=0.0, counts="first_choice", at="moe"):
        super().__init__()
        self.at, self.top_k, self.capacity_factor, self.counts = at, top_k, capacity_factor, counts
        self.router = nn.Parameter(torch.empty(experts, hidden, dtype=torch.float64))
        config = Qwen3Config(hidden_size=hidden, intermediate_size=ffn)
        self.experts = nn.ModuleList(Qwen3MLP(config).double() for _ in range(experts))
        self.real_rows = None  # of each sequence; set by the caller
        fill(self.names())

    def names(self):
        names = {f"{self.at}.router": self.router}
        for e, expert in enumerate(self.experts):
            names |= {f"{self.at}.experts.{e}.w_gate": expert.gate_proj.weight,
                      f"{self.at}.experts.{e}.w_up": expert.up_proj.weight,
                      f"{self.at}.experts.{e}.w_down": expert.down_proj.weight}
        return names

    def forward(self, x):
        """x: [sequences, length, hidden]. Leaves what it counted in self.statistics."""
        outputs, self.statistics = [], []
        for sequence, real in zip(x, self.real_rows):
            y, statistics = self._sequence(sequence[:real])
            outputs.append(F.pad(y, (0, 0, 0, len(sequence) - real)))
            self.statistics.append(statistics)
        return torch.stack(outputs)

    def _sequence(self, x):
        tokens, experts = len(x), len(self.experts)
        logits = x @ self.router.T
        p = logits.softmax(-1)
        ranked, order = p.sort(-1, descending=True)
        chosen, top = order[:, :self.top_k], ranked[:, :self.top_k]
        if self.top_k < experts:  # a near tie would be decided by rounding
            assert (top[:, -1] - ranked[:, self.top_k]).min() > 1e-4
        assert (ranked[:, :-1] - ranked[:, 1:])[:, :self.top_k - 1].min() > 1e-4
        gates = top / (top.sum(-1, keepdim=True) + 1e-9)

        capacity = max(1, int(tokens * self.capacity_factor / experts)) if self.capacity_factor else tokens
        used, kept = [0] * experts, torch.zeros_like(chosen, dtype=torch.bool)
        for rank in range(self.top_k):
            first = used.copy()  # kept choices of lower ranks
            seen = [0] * experts
            for t in range(tokens):
                e = chosen[t, rank].item()
                kept[t, rank] = first[e] + seen[e] < capacity
                used[e] += kept[t, rank].item()
                seen[e] += 1

        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            weight = (gates * (kept & (chosen == e))).sum(-1)
            y = y + weight[:, None] * expert(x)

        one_hot = F.one_hot(chosen, experts).double()
        counted = one_hot[:, 0] if self.counts == "first_choice" else one_hot.sum(1) / self.top_k
        balance = experts**2 * (counted.mean(0) * p.mean(0)).mean()
        z = logits.logsumexp(-1).square().sum()
        return y, {"balance": balance, "z": z, "chosen": chosen, "before": one_hot.sum((0, 1)),
                   "after": (one_hot * kept[..., None]).sum((0, 1))}


class Language(nn.Module):
    def __init__(self, layers, hidden, ffn, heads, kv_heads, head_dim, vocabulary, moe=None):
        super().__init__()
        self.qwen = Qwen3Model(Qwen3Config(
            hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=kv_heads, head_dim=head_dim, vocab_size=vocabulary, rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 5e5}, attention_bias=False,
            attn_implementation="sdpa", use_cache=False)).double()
        for module in list(self.qwen.modules()):
            for child, part in module.named_children():
                if isinstance(part, Qwen3RMSNorm):
                    setattr(module, child, nn.RMSNorm(part.weight.shape, eps=1e-5, dtype=torch.float64))
        self.sparse = []
        if moe:
            for i, layer in enumerate(self.qwen.layers):
                if i % 2 == 1:
                    layer.mlp = Experts(hidden, ffn, at=f"decoder.layers.{i}.feed_forward", **moe)
                    self.sparse.append(layer.mlp)
        fill(self.names())

    def names(self):
        names = {"embedding": self.qwen.embed_tokens.weight, "decoder.final_norm": self.qwen.norm.weight}
        for i, layer in enumerate(self.qwen.layers):
            at, attention = f"decoder.layers.{i}", layer.self_attn
            names |= {f"{at}.attention_norm": layer.input_layernorm.weight,
                      f"{at}.feed_forward_norm": layer.post_attention_layernorm.weight,
                      f"{at}.attention.wq": attention.q_proj.weight, f"{at}.attention.wk": attention.k_proj.weight,
                      f"{at}.attention.wv": attention.v_proj.weight, f"{at}.attention.wo": attention.o_proj.weight,
                      f"{at}.attention.q_norm": attention.q_norm.weight,
                      f"{at}.attention.k_norm": attention.k_norm.weight}
            if isinstance(layer.mlp, Experts):
                names |= layer.mlp.names()
            else:
                names |= {f"{at}.feed_forward.w_gate": layer.mlp.gate_proj.weight,
                          f"{at}.feed_forward.w_up": layer.mlp.up_proj.weight,
                          f"{at}.feed_forward.w_down": layer.mlp.down_proj.weight}
        return names

    def forward(self, x, documents, real_rows):
        """x: [sequences, length, hidden] embedded; documents: lengths, sequence by sequence. Returns the normalised
        output."""
        for experts in self.sparse:
            experts.real_rows = real_rows
        sequences, length = x.shape[:2]
        ids = torch.repeat_interleave(torch.arange(len(documents)), torch.tensor(documents)).view(sequences, length)
        positions = torch.cat([torch.arange(n) for n in documents]).view(sequences, length)
        allowed = (ids[:, :, None] == ids[:, None, :]) & (positions[:, :, None] >= positions[:, None, :])
        mask = torch.zeros(sequences, 1, length, length, dtype=x.dtype).masked_fill(~allowed[:, None], float("-inf"))
        return self.qwen(inputs_embeds=x, attention_mask=mask, position_ids=positions).last_hidden_state
