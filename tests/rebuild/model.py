"""The model of a checkpoint in NumPy and fp64, written from docs/parameters.md and from nothing else of the repository."""

import json

import h5py
import numpy as np

EPSILON = 1e-5
IMAGE_TOKEN = 4


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def silu(x):
    return x * sigmoid(x)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def rms(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * weight


def layer_norm(x, weight, bias):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * weight + bias


def heads_of(x, heads):
    """[rows, heads·d] to [heads, rows, d]"""
    return x.reshape(len(x), heads, -1).swapaxes(0, 1)


def attend(q, k, v, mask=0.0):
    """Heads of [heads, rows, d] to rows of [rows, heads·d]."""
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]) + mask
    y = np.exp(log_softmax(scores)) @ v
    return y.swapaxes(0, 1).reshape(y.shape[1], -1)


class Model:
    def __init__(self, path):
        with h5py.File(path) as file:
            self.config = json.loads(file.attrs["model"])
            self.stage = int(file.attrs["stage"])
            self.parameters = {name: value[()].astype(np.float64) for name, value in file["parameters"].items()}

    def __getitem__(self, name):
        return self.parameters[name]

    # ---- vision tower and connector ----------------------------------------------------------------------------------

    def vision(self, patches):
        """[P, 3·patch²] of a tile to [P + 1, W]."""
        c = self.config
        x = np.vstack([self["vision.class_token"], patches @ self["vision.patch_embedding"].T])
        x = x + self["vision.positions"]
        x = layer_norm(x, self["vision.ln_pre.weight"], self["vision.ln_pre.bias"])
        outputs = []
        for layer in range(c["vision.layers"]):
            p = f"vision.layers.{layer}."
            n = layer_norm(x, self[p + "attention_norm.weight"], self[p + "attention_norm.bias"])
            q, k, v = (heads_of(n @ self[f"{p}attention.w{i}"].T + self[f"{p}attention.b{i}"], c["vision.heads"]) for i in "qkv")
            x = x + attend(q, k, v) @ self[p + "attention.wo"].T + self[p + "attention.bo"]
            n = layer_norm(x, self[p + "feed_forward_norm.weight"], self[p + "feed_forward_norm.bias"])
            inner = n @ self[p + "feed_forward.w_in"].T + self[p + "feed_forward.b_in"]
            inner = inner * sigmoid(1.702 * inner)
            x = x + inner @ self[p + "feed_forward.w_out"].T + self[p + "feed_forward.b_out"]
            outputs.append(x)
        if c["vision.features"] == 0:
            return layer_norm(x, self["vision.ln_post.weight"], self["vision.ln_post.bias"])
        return outputs[-c["vision.features"]]

    def bottleneck(self, name, x):
        """Pixels [height, width, channels]."""
        p = f"connector.{name}."
        norm = lambda i, y: layer_norm(y, self[f"{p}norm{i}.weight"], self[f"{p}norm{i}.bias"])
        a = silu(norm(1, x @ self[p + "conv1"].T))
        height, width, _ = a.shape
        padded = np.pad(a, ((1, 1), (1, 1), (0, 0)))
        b = sum(padded[r:r + height, s:s + width] * self[p + "conv2"][:, r, s] for r in range(3) for s in range(3))
        b = silu(norm(2, b))
        e = silu(self[p + "se_reduce"] @ b.mean((0, 1)) + self[p + "se_reduce_bias"])
        e = self[p + "se_expand"] @ e + self[p + "se_expand_bias"]
        y = norm(3, b * sigmoid(e) @ self[p + "conv3"].T)
        if p + "shortcut" in self.parameters:
            x = layer_norm(x @ self[p + "shortcut"].T, self[p + "shortcut_norm.weight"], self[p + "shortcut_norm.bias"])
        return silu(y + x)

    def connector(self, features):
        """[P + 1, W] to [out_side², h]."""
        c = self.config
        grid, out = c["vision.side"] // c["vision.patch"], c["connector.out_side"]
        x = (features[1:] + self["connector.positions"]).reshape(grid, grid, -1)
        for i in range(c["connector.depth"]):
            x = self.bottleneck(f"s1.{i}", x)
        bins = [slice(i * grid // out, -((i + 1) * grid // -out)) for i in range(out)]
        x = np.array([[x[rows, columns].mean((0, 1)) for columns in bins] for rows in bins])
        for i in range(c["connector.depth"]):
            x = self.bottleneck(f"s2.{i}", x)
        x = x.reshape(out * out, -1)
        inner = silu(x @ self["connector.readout.w1"].T + self["connector.readout.b1"])
        return inner @ self["connector.readout.w2"].T + self["connector.readout.b2"]

    # ---- decoder -----------------------------------------------------------------------------------------------------

    def rotate(self, x):
        """RoPE of [heads, rows, d]."""
        half = x.shape[-1] // 2
        rates = self.config["decoder.rope_theta"] ** (-np.arange(half) / half)
        angles = np.arange(x.shape[1])[:, None] * rates
        first, second = x[..., :half], x[..., half:]
        return np.concatenate([first * np.cos(angles) - second * np.sin(angles),
                               second * np.cos(angles) + first * np.sin(angles)], -1)

    def attention(self, p, x):
        c = self.config
        q = heads_of(x @ self[p + "wq"].T, c["decoder.heads"])
        k, v = (heads_of(x @ self[p + name].T, c["decoder.kv_heads"]) for name in ("wk", "wv"))
        q, k = self.rotate(rms(q, self[p + "q_norm"])), self.rotate(rms(k, self[p + "k_norm"]))
        group = c["decoder.heads"] // c["decoder.kv_heads"]
        k, v = k.repeat(group, 0), v.repeat(group, 0)
        return attend(q, k, v, np.triu(np.full((len(x), len(x)), -np.inf), 1)) @ self[p + "wo"].T

    def gated(self, p, x):
        return (silu(x @ self[p + "w_gate"].T) * (x @ self[p + "w_up"].T)) @ self[p + "w_down"].T

    def experts(self, p, x):
        c = self.config
        probabilities = np.exp(log_softmax(x @ self[p + "router"].T))
        chosen = np.argsort(-probabilities, axis=-1, kind="stable")[:, :c["moe.top_k"]]
        gates = np.take_along_axis(probabilities, chosen, -1)
        gates = gates / (gates.sum(-1, keepdims=True) + 1e-9)
        places = len(x)
        if c["moe.capacity_factor"] > 0:
            places = max(1, int(len(x) * c["moe.capacity_factor"] / c["moe.experts"]))
        taken = np.zeros(c["moe.experts"], int)
        y = np.zeros_like(x)
        for choice in range(c["moe.top_k"]):
            for row in range(len(x)):
                expert = chosen[row, choice]
                if taken[expert] < places:
                    y[row] += gates[row, choice] * self.gated(f"{p}experts.{expert}.", x[row])
                taken[expert] += 1
        return y

    def logprobs(self, tokens, tiles):
        """ln p of each token after what stands before it. `tiles`: patches of each, as pictures.py makes them."""
        c = self.config
        tokens = np.array(tokens)
        x = self["embedding"][tokens]
        if len(tiles):
            x[tokens == IMAGE_TOKEN] = np.vstack([self.connector(self.vision(tile)) for tile in tiles])
        for layer in range(c["decoder.layers"]):
            p = f"decoder.layers.{layer}."
            x = x + self.attention(p + "attention.", rms(x, self[p + "attention_norm"]))
            sparse = c["moe.experts"] > 0 and layer % c["moe.every"] == c["moe.every"] - 1
            feed_forward = self.experts if sparse else self.gated
            x = x + feed_forward(p + "feed_forward.", rms(x, self[p + "feed_forward_norm"]))
        table = log_softmax(rms(x, self["decoder.final_norm"]) @ self["embedding"].T)
        return [None if i == 0 or token == IMAGE_TOKEN else table[i - 1, token] for i, token in enumerate(tokens)]
