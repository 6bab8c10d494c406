"""Vision tower by Hugging Face's CLIP, connector by timm's RegNet stage: what Honeybee's C-Abstractor is made of."""

import torch
from timm.layers import LayerNorm2d
from timm.models.regnet import RegStage
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from .values import fill

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float64)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float64)


class Vision(nn.Module):
    def __init__(self, layers, width, heads, mlp_width, patch, side):
        super().__init__()
        self.clip = CLIPVisionModel(CLIPVisionConfig(
            hidden_size=width, intermediate_size=mlp_width, num_hidden_layers=layers, num_attention_heads=heads,
            image_size=side, patch_size=patch, hidden_act="quick_gelu", layer_norm_eps=1e-5)).double()
        fill(self.names())

    def names(self):
        clip = self.clip
        names = {"vision.patch_embedding": clip.embeddings.patch_embedding.weight,
                 "vision.class_token": clip.embeddings.class_embedding,
                 "vision.positions": clip.embeddings.position_embedding.weight}
        norms = {"vision.ln_pre": clip.pre_layrnorm, "vision.ln_post": clip.post_layernorm}
        for i, layer in enumerate(clip.encoder.layers):
            at = f"vision.layers.{i}"
            norms |= {f"{at}.attention_norm": layer.layer_norm1, f"{at}.feed_forward_norm": layer.layer_norm2}
            for which, linear in {"q": layer.self_attn.q_proj, "k": layer.self_attn.k_proj,
                                  "v": layer.self_attn.v_proj, "o": layer.self_attn.out_proj}.items():
                names |= {f"{at}.attention.w{which}": linear.weight, f"{at}.attention.b{which}": linear.bias}
            names |= {f"{at}.feed_forward.w_in": layer.mlp.fc1.weight, f"{at}.feed_forward.b_in": layer.mlp.fc1.bias,
                      f"{at}.feed_forward.w_out": layer.mlp.fc2.weight, f"{at}.feed_forward.b_out": layer.mlp.fc2.bias}
        for name, norm in norms.items():
            names |= {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}
        return names

    def forward(self, pictures, features="post_norm"):
        """pictures: [tiles, side, side, 3], 0 ... 255. Returns [tiles, patches + 1, width]."""
        x = ((pictures / 255 - MEAN) / STD).permute(0, 3, 1, 2)
        out = self.clip(x, output_hidden_states=True)
        if features == "post_norm":
            return self.clip.post_layernorm(out.last_hidden_state)
        return out.hidden_states[-1 if features == "last" else -2]


class Connector(nn.Module):
    def __init__(self, grid, width, hidden, depth, out_side, llm_width):
        super().__init__()
        stage = dict(stride=1, dilation=1, act_layer=nn.SiLU, norm_layer=LayerNorm2d)
        self.grid, self.out_side = grid, out_side
        self.positions = nn.Parameter(torch.empty(grid * grid, width))
        self.s1 = RegStage(depth, width, hidden, **stage)
        self.s2 = RegStage(depth, hidden, hidden, **stage)
        self.readout = nn.Sequential(nn.Linear(hidden, llm_width), nn.SiLU(), nn.Linear(llm_width, llm_width))
        self.double()
        fill(self.names())

    def names(self):
        names = {"connector.positions": self.positions,
                 "connector.readout.w1": self.readout[0].weight, "connector.readout.b1": self.readout[0].bias,
                 "connector.readout.w2": self.readout[2].weight, "connector.readout.b2": self.readout[2].bias}
        for stage in ("s1", "s2"):
            for i, block in enumerate(getattr(self, stage).children()):
                at = f"connector.{stage}.{i}"
                convolutions = {("conv1", "norm1"): block.conv1, ("conv2", "norm2"): block.conv2,
                                ("conv3", "norm3"): block.conv3}
                if not isinstance(block.downsample, nn.Identity):
                    convolutions |= {("shortcut", "shortcut_norm"): block.downsample}
                for (conv, norm), module in convolutions.items():
                    assert module.bn.eps == 1e-5, module
                    names |= {f"{at}.{conv}": module.conv.weight, f"{at}.{norm}.weight": module.bn.weight,
                              f"{at}.{norm}.bias": module.bn.bias}
                names |= {f"{at}.se_reduce": block.se.fc1.weight, f"{at}.se_reduce_bias": block.se.fc1.bias,
                          f"{at}.se_expand": block.se.fc2.weight, f"{at}.se_expand_bias": block.se.fc2.bias}
        return names

    def forward(self, features):
        """features: [tiles, patches + 1, width], class token first. Returns [tiles, tokens, llm_width]."""
        x = features[:, 1:] + self.positions
        x = self.s1(x.transpose(1, 2).unflatten(2, (self.grid, self.grid)))
        x = self.s2(F.adaptive_avg_pool2d(x, self.out_side))
        return self.readout(x.flatten(2).transpose(1, 2))
