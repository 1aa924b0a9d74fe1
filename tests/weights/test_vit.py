"""Plain vision transformers from mmsegmentation's and AugReg's names compute what their own programs compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.backbones import build_backbone
from kappaseg_core.config import BackboneConfig
from kappaseg_core.errors import UserError
from kappaseg_core.weights.layout import below
from kappaseg_core.weights.renaming import fitted, renamed
from kappaseg_core.weights.vit import AUGREG, MMCV, vit_settings
from pipelines.import_backbone import import_augreg
from tests.weights.published import mmcv_vit, shaken, under

SIZES: dict[str, Any] = {"img_size": 64, "embed_dim": 16, "depth": 2, "num_heads": 2}


def vit(**sizes: Any) -> nn.Module:
    return shaken(timm.create_model("vit_tiny_patch16_224", num_classes=0, **{**SIZES, **sizes}))


class MmcvBlock(nn.Module):
    """The pre-norm block of mmsegmentation's ViT with nn.MultiheadAttention, which packs queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"attn": nn.MultiheadAttention(width, heads, batch_first=True)})
        self.ffn = nn.ModuleDict({"layers": nn.ModuleList([
            nn.ModuleList([nn.Linear(width, 4 * width)]), nn.Linear(4 * width, width)
        ])})  # fmt: skip

    def forward(self, tokens: Tensor) -> Tensor:
        seen = self.ln1(tokens)
        tokens = tokens + self.attn["attn"](seen, seen, seen, need_weights=False)[0]
        layers: Any = self.ffn["layers"]
        out: Tensor = tokens + layers[1](F.gelu(layers[0][0](self.ln2(tokens))))
        return out


class MmcvVit(nn.Module):
    def __init__(self, width: int = 16, depth: int = 2, heads: int = 2, grid: int = 4) -> None:
        super().__init__()
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(
            torch.zeros(1, 1 + grid * grid, width)
        )  # fmt: skip
        self.patch_embed = nn.ModuleDict({"projection": nn.Conv2d(3, width, 16, 16)})
        self.layers = nn.ModuleList(MmcvBlock(width, heads) for _ in range(depth))
        self.ln1 = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        cells: Any = self.patch_embed["projection"](images)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), cells.flatten(2).mT], 1) + self.pos_embed
        for layer in self.layers:
            tokens = layer(tokens)
        return self.ln1(tokens)[:, 1:].mT.unflatten(2, cells.shape[2:])


def test_a_vit_of_mmsegmentation_gives_the_same_map() -> None:
    theirs = shaken(MmcvVit())
    state = under("backbone.", theirs.state_dict())
    ours = build_backbone(BackboneConfig(name="vit_tiny_patch16_224", options=SIZES)).eval()
    found = renamed(state, below("backbone.", MMCV, "network.model."))
    ours.load_state_dict(fitted(found, ours.state_dict(), source="FILE"))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_names_of_mmsegmentation_go_back_and_forth() -> None:
    state = vit().state_dict()
    there_and_back = renamed(mmcv_vit(state), MMCV)
    assert not there_and_back.unknown and set(there_and_back.tensors) == set(state)


@pytest.mark.parametrize(
    ("width", "blocks", "image", "name"),
    [(192, 12, 512, "vit_tiny_patch16_384"), (384, 12, 384, "vit_small_patch16_384"),
     (768, 12, 512, "vit_base_patch16_384"), (1024, 24, 640, "vit_large_patch16_384")],
)  # fmt: skip
def test_published_sizes_have_their_name(width: int, blocks: int, image: int, name: str) -> None:
    with torch.device("meta"):
        state = timm.create_model(
            "vit_base_patch16_384",
            num_classes=0,
            embed_dim=width,
            depth=blocks,
            img_size=image,
            num_heads=width // 64,
        ).state_dict()
    assert vit_settings(state) == {
        "backbone.kind": "timm", "backbone.name": name, "backbone.options.img_size": image
    }  # fmt: skip


def test_other_sizes_are_options() -> None:
    told = vit_settings(vit(patch_size=8, mlp_ratio=2.5).state_dict())
    assert told["backbone.name"] == "vit_base_patch16_384"
    options = {n.rpartition(".")[2]: v for n, v in told.items() if "options" in n}
    assert options == {"img_size": 64, "embed_dim": 16, "depth": 2, "patch_size": 8, "mlp_ratio": 2.5}


def test_a_distilled_vit_has_two_tokens_before_its_table() -> None:
    with torch.device("meta"):
        state = timm.create_model("deit_base_distilled_patch16_384", num_classes=0).state_dict()
    assert vit_settings(state)["backbone.name"] == "deit_base_distilled_patch16_384"
    assert vit_settings(state)["backbone.options.img_size"] == 384


def test_a_table_of_no_square_is_refused() -> None:
    state = {**vit().state_dict(), "pos_embed": torch.zeros(1, 1 + 12, 16)}
    with pytest.raises(UserError, match="pos_embed is for 12 cells, wanted those of a square image"):
        vit_settings(state)


def augreg_arrays(seed: int = 0, *, heads: int = 2, width: int = 16, grid: int = 4) -> dict[str, Any]:
    """Arrays of a small ViT as Google's program stores them: [in, out] kernels, and an axis of heads."""
    rng = np.random.default_rng(seed)

    def noise(*shape: int) -> Any:
        return rng.normal(size=shape).astype(np.float32)

    arrays = {
        "cls": noise(1, 1, width), "embedding/kernel": noise(16, 16, 3, width), "embedding/bias": noise(width),
        "Transformer/posembed_input/pos_embedding": noise(1, 1 + grid * grid, width),
        "Transformer/encoder_norm/scale": noise(width), "Transformer/encoder_norm/bias": noise(width),
        "head/kernel": noise(width, 7), "head/bias": noise(7), "pre_logits/kernel": noise(width, width),
        "pre_logits/bias": noise(width),
    }  # fmt: skip
    for block in range(2):
        place = f"Transformer/encoderblock_{block}/"
        attention = f"{place}MultiHeadDotProductAttention_1/"
        for name in ("query", "key", "value"):
            arrays[f"{attention}{name}/kernel"] = noise(width, heads, width // heads)
            arrays[f"{attention}{name}/bias"] = noise(heads, width // heads)
        arrays[f"{attention}out/kernel"] = noise(heads, width // heads, width)
        arrays[f"{attention}out/bias"] = noise(width)
        for name in ("LayerNorm_0", "LayerNorm_2"):
            arrays |= {f"{place}{name}/scale": noise(width), f"{place}{name}/bias": noise(width)}
        for name, shape in (("Dense_0", (width, 4 * width)), ("Dense_1", (4 * width, width))):
            arrays |= {
                f"{place}MlpBlock_3/{name}/kernel": noise(*shape),
                f"{place}MlpBlock_3/{name}/bias": noise(shape[1]),
            }
    return arrays


def test_augreg_weights_are_what_timm_makes_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "vit.npz", **augreg_arrays())
    import_augreg(tmp_path / "vit.npz", tmp_path / "vit.safetensors")
    theirs: Any = vit(num_heads=2)
    theirs.load_pretrained(str(tmp_path / "vit.npz"))
    ours = build_backbone(
        BackboneConfig(
            name="vit_base_patch16_384", weights=str(tmp_path / "vit.safetensors"),
            options={"img_size": 64, "embed_dim": 16, "depth": 2, "num_heads": 2},
        )
    )  # fmt: skip
    network: Any = ours.network
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(network.model.state_dict()[name], value, rtol=0, atol=0, msg=name)
    printed = capsys.readouterr().out
    assert "left out: head/kernel, head/bias, pre_logits/kernel, pre_logits/bias" in printed
    assert "'num_heads': 2" in printed and f"weights: {tmp_path / 'vit.safetensors'}" in printed


def test_all_names_of_augreg_are_known() -> None:
    tensors = {name: torch.from_numpy(value) for name, value in augreg_arrays().items()}
    assert not renamed(tensors, AUGREG).unknown
