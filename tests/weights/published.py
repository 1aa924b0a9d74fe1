"""Small state dicts in the published layouts: networks of ours under the names that the published programs give them.

Written independently of kappaseg_core/weights: from our names to theirs, by plain replacement.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]

VIT_NAMES = (
    ("patch_embed.proj.", "patch_embed.projection."), ("blocks.", "layers."),
    (".norm1.", ".ln1."), (".norm2.", ".ln2."),
    (".attn.qkv.weight", ".attn.attn.in_proj_weight"), (".attn.qkv.bias", ".attn.attn.in_proj_bias"),
    (".attn.proj.", ".attn.attn.out_proj."), (".mlp.fc1.", ".ffn.layers.0.0."), (".mlp.fc2.", ".ffn.layers.1."),
)  # fmt: skip
ENCODER_NAMES = (
    ("self_attention.attention.out.", "self_attn.out_proj."), ("self_attention.norm.", "norm1."),
    ("ffn.widen.", "linear1."), ("ffn.narrow.", "linear2."), ("ffn.norm.", "norm2."),
)  # fmt: skip
DECODER_NAMES = (
    ("self_attention.attention.out.", "self_attn.out_proj."), ("self_attention.norm.", "norm1."),
    ("cross_attention.out.", "multihead_attn.out_proj."), ("ffn.widen.", "linear1."), ("ffn.narrow.", "linear2."),
    ("ffn.norm.", "norm3."),
)  # fmt: skip


def shaken(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The same network with other random numbers everywhere, those that start as 0 or 1 included; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                size = 0.3 / max(1, value[0].numel() if value.ndim == 4 else 1) ** 0.5
                value.add_(size * torch.randn(value.shape, generator=generator))
            if name.endswith(("running_var", "bn.weight")):
                value.abs_().add_(0.5)
    return model.eval()


def replaced(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    for ours, theirs in pairs:
        name = name.replace(ours, theirs)
    return name


def mmcv_vit(state: State) -> State:
    """timm's names of a ViT → mmsegmentation's."""
    named = {replaced(name, VIT_NAMES): value for name, value in state.items()}
    return {re.sub(r"^norm\.", "ln1.", name): value for name, value in named.items()}


def part(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def segmenter(state: State) -> State:
    """A plain network of ours → the original Segmenter's file."""
    encoder = part(state, "backbone.network.model.")
    spare = {"head.weight": torch.zeros(1000, 4), "head.bias": torch.zeros(1000)}
    return {**under("encoder.", {**encoder, **spare}), **under("decoder.", mask_transformer(part(state, "host.")))}


def mask_transformer(host: State, *, first_block: int = 0, oracle: bool = False) -> State:
    scale = {"weight": "gamma", "bias": "beta"} if oracle else {"weight": "weight", "bias": "bias"}
    found = {}
    for name, value in host.items():
        if block := re.fullmatch(r"blocks\.(\d+)\.(.*)", name):
            name = f"blocks.{int(block[1]) + first_block}.{block[2]}"
        if name.startswith("rank_scale."):
            name = f"mask_norm.{scale[name.removeprefix('rank_scale.')]}"
        found[name] = value[None] if name == "cls_emb" else value
    return found


def rankseg(state: State, *, oracle: bool = False, oce: bool = False) -> State:
    """A network of ours → RankSeg's file: baseline, known truth, or joint with the branch that it has."""
    branch = part(state, "branch.")
    encoder = "block.norm1.weight" in branch
    head = mask_transformer(part(state, "host."), first_block=1 if encoder else 0, oracle=oracle)
    found = under("backbone.", mmcv_vit(part(state, "backbone.network.model.")))
    if oce:
        found["backbone.cls_emb"] = head.pop("cls_emb")
    for name, value in branch.items():
        if name in ("weight", "bias"):
            name, value = {"weight": "ml_fc.W", "bias": "ml_fc.b"}[name], value[None]
        name = name.replace("block.", "blocks.0.") if name.startswith("block.") else name
        head[name.replace("norm.", "decoder_norm2.") if name.startswith("norm.") else name] = value
    if "hidden.weight" in branch:
        for theirs, ours in (("1.conv", "hidden"), ("2", "linear.linear")):
            head[f"img_cls_head.{theirs}.weight"] = head.pop(f"{ours}.weight")[..., None, None]
            head[f"img_cls_head.{theirs}.bias"] = head.pop(f"{ours}.bias")
    if inside := part(branch, "query2label."):
        head = {name: value for name, value in head.items() if not name.startswith("query2label.")}
        head |= under("img_cls_head.", {**query2label_head(inside), "position_embedding.pe": torch.zeros(1, 8, 4, 4)})
    return {**found, **under("decode_head.", head)}


def query2label_head(head: State) -> State:
    """Our label head → Query2Label's transformer, projection and group-wise linear layer."""
    found: State = {}
    packed: dict[str, list[Tensor]] = {}
    for name, value in head.items():
        if match := re.fullmatch(r"(encoder|decoder)\.(\d+)\.(.*)", name):
            stack, layer, inner = match.groups()
            place = f"transformer.{stack}.layers.{layer}."
            if parts := re.fullmatch(r"(self_attention\.attention|cross_attention)\.(query|key|value)\.(\w+)", inner):
                theirs = "self_attn" if parts[1].startswith("self") else "multihead_attn"
                packed.setdefault(f"{place}{theirs}.in_proj_{parts[3]}", []).append(value)
                continue
            inner = "norm2." + inner.removeprefix("norm.") if inner.startswith("norm.") else inner
            found[place + replaced(inner, ENCODER_NAMES if stack == "encoder" else DECODER_NAMES)] = value
        elif name.startswith("norm."):
            found[f"transformer.decoder.{name}"] = value
        elif name.startswith("project."):
            found[f"input_proj.{name.removeprefix('project.')}"] = (
                value[..., None, None] if name.endswith("weight") else value
            )
        else:
            found[{"queries": "query_embed.weight", "weight": "fc.W", "bias": "fc.b"}[name]] = (
                value if name == "queries" else value[None]
            )
    return found | {name: torch.cat(parts) for name, parts in packed.items()}


def query2label(state: State, trunk: State, positions: Tensor | None = None) -> State:
    """A classifier of ours, its backbone under published names → Query2Label's state dict."""
    spare = {} if positions is None else {"backbone.1.pe": positions}
    return {**trunk, **query2label_head(part(state, "head.")), **spare}


def swin(state: State) -> State:
    """timm's names of a Swin → the published ones: a stage ends with its downsampling."""
    found = {}
    for name, value in state.items():
        name = re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        found[name] = value
    table = next(value for name, value in state.items() if name.endswith("relative_position_bias_table"))
    found["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(4, 4, dtype=torch.int64)
    found["layers.1.blocks.1.attn_mask"] = torch.zeros(2, len(table), 4)
    return under("backbone.0.", found)


def resnet(state: State) -> State:
    """timm's names of a ResNet → those of torchvision's with frozen batch norm, which counts no steps."""
    return under("backbone.0.body.", {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")})


def tresnet(state: State) -> State:
    """timm's names of a TResNet → the published ones, whose convolutions before a blur are one sequence deeper.

    Their scales may be negative: in-place normalisation takes the absolute value, plus 1e-5.
    """
    found = {}
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        blurred = re.match(r"body\.layer[23]\.0\.conv[12]\.|body\.layer4\.0\.conv2\.", name) is not None
        blurred = blurred and not ("layer3" in name and "conv1" in name)
        inside = "0." if blurred else ""
        if name.endswith("bn.weight"):
            value = -(value - 1e-5)
        found[name.replace(".conv.", f".{inside}0.").replace(".bn.", f".{inside}1.")] = value
    return under("backbone.0.body.", found)
