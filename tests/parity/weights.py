"""Published parameter names → ours."""

from __future__ import annotations

import re

from torch import Tensor

from stage2_segmentation.hosts.segmenter import Segmenter

#: The rank scale under the names of the mask transformer, and under those of the ground-truth head.
SCALE = {
    "mask_norm.weight": "rank_scale.weight", "mask_norm.bias": "rank_scale.bias",
    "mask_norm.gamma": "rank_scale.weight", "mask_norm.beta": "rank_scale.bias",
}  # fmt: skip


def load_mask_transformer(host: Segmenter, state: dict[str, Tensor], *, first_block: int = 0) -> None:
    """The published mask transformer's weights; its blocks from `first_block` on are the host's."""
    ours = {}
    for name, value in state.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.*)", name)
        if block:
            name = f"blocks.{int(block[1]) - first_block}.{block[2]}"
        name = SCALE.get(name, name)
        ours[name] = value[0] if name == "cls_emb" else value
    wanted = host.state_dict().keys()
    host.load_state_dict({name: value for name, value in ours.items() if name in wanted})


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights below a prefix, under their names without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
