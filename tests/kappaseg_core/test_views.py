"""Stored features of a frozen backbone: the same as computed live, and never taken for others."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kappaseg_core.backbones import build_backbone
from kappaseg_core.config import BackboneConfig, DataConfig, LoopConfig
from kappaseg_core.handover import Normalisation, View
from kappaseg_core.placement import Placement
from kappaseg_core.seeding import seed_of, seeded
from kappaseg_core.structures import Scene
from kappaseg_core.views import ViewBank, selected, training_bank

HERE = Placement()
VIEWS, SIZE = 3, 8


@dataclass(frozen=True)
class Augment:
    flip: float = 0.5


@dataclass(frozen=True)
class Config:
    """The settings that training configurations share."""

    out: str
    data: DataConfig = field(default_factory=DataConfig)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(cached_views=VIEWS, seed=4))
    augment: Augment = field(default_factory=Augment)
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(kind="small_cnn", name="4", frozen=True))
    init: str | None = None


class Scenes:
    """Five images of one colour each; the fingerprint does not depend on their order, as in every scene set."""

    split, class_names = "train", ("a", "b")

    def __init__(self, order: str = "01234") -> None:
        self.image_ids = tuple(f"i{n}" for n in order)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Scene:
        number = int(self.image_ids[index][1:])
        mask = np.full((SIZE, SIZE), number % 2, np.int32)
        return Scene(np.full((3, SIZE, SIZE), 50 * number, np.uint8), mask, self.image_ids[index])

    def image(self, index: int) -> np.ndarray:
        return self[index].image

    def fingerprint(self) -> str:
        return "five colours"


class Noisy:
    """Views: the image with noise drawn from the seed; the target says which image and which noise it is."""

    def __init__(self, scenes: Scenes) -> None:
        self.scenes, self.made = scenes, 0

    def __len__(self) -> int:
        return len(self.scenes)

    def make(self, index: int, seed: int) -> tuple[View, np.ndarray, str]:
        self.made += 1
        scene = self.scenes[index]
        with seeded(seed):
            noise = torch.randint(0, 50, (3, SIZE, SIZE), dtype=torch.uint8)
        mask = scene.mask.astype(np.int16) + np.int16(10 * (seed % 1000))
        return View(torch.from_numpy(scene.image) + noise, Normalisation((0.5,) * 3, (0.2,) * 3)), mask, scene.image_id


def backbone_of(config: Config) -> nn.Module:
    torch.manual_seed(seed_of(config.loop.seed, "init"))
    return build_backbone(config.backbone)


def bank_of(config: Config, scenes: Scenes | None = None, target: str = "mask") -> tuple[ViewBank, Noisy]:
    scenes = scenes or Scenes()
    examples = Noisy(scenes)
    return training_bank(config, target, examples, scenes, backbone_of(config), HERE), examples


def test_stored_features_are_the_live_ones(tmp_path: Path) -> None:
    """Every view of every image, in half precision; the target is the view's own."""
    config, scenes = Config(str(tmp_path)), Scenes()
    bank, _ = bank_of(config, scenes)
    examples, backbone = Noisy(scenes), backbone_of(config).eval()
    assert len(bank) == len(scenes)
    for index in range(len(scenes)):
        for view in range(VIEWS):
            (features,), target, image_id = bank.make(index, view)
            image, mask, name = examples.make(index, seed_of(4, "view", index, view))
            with torch.no_grad():
                live = backbone(image.normalised()[None])[0]
            assert image_id == name
            assert np.array_equal(target, mask)
            assert features.dtype == torch.float32
            torch.testing.assert_close(features, live, rtol=2e-3, atol=2e-3)


def test_the_seed_picks_the_view(tmp_path: Path) -> None:
    bank, _ = bank_of(Config(str(tmp_path)))
    views = [bank.make(2, seed)[0][0] for seed in range(VIEWS)]
    assert not torch.equal(views[0], views[1])
    for seed in (5, 11, 2**62 + 1):
        assert torch.equal(bank.make(2, seed)[0][0], views[seed % VIEWS])


def test_a_loader_worker_opens_the_bank_anew(tmp_path: Path) -> None:
    """Its files may be larger than the memory of a worker that is handed a copy."""
    bank, _ = bank_of(Config(str(tmp_path)))
    handed = pickle.dumps(bank)
    assert len(handed) < 1000
    (features,), target, image_id = pickle.loads(handed).make(1, 5)
    (own,), own_target, own_id = bank.make(1, 5)
    assert torch.equal(features, own) and torch.equal(target, own_target) and image_id == own_id


def test_views_are_made_in_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a bank is the same whatever the number of threads."""
    threads, make = [], Noisy.make

    def counted(self: Noisy, index: int, seed: int) -> Any:
        threads.append(torch.get_num_threads())
        return make(self, index, seed)

    monkeypatch.setattr(Noisy, "make", counted)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        bank_of(Config(str(tmp_path)))
        assert set(threads) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_same_settings_find_the_bank_again(tmp_path: Path) -> None:
    config = Config(str(tmp_path))
    first, examples = bank_of(config)
    assert examples.made == len(Scenes()) * VIEWS
    second, examples = bank_of(replace(config, loop=replace(config.loop, steps=7, batch_size=2, loader_workers=1)))
    assert examples.made == 0
    assert torch.equal(first.make(3, 1)[0][0], second.make(3, 1)[0][0])


@pytest.mark.parametrize(
    "change",
    [
        lambda c: replace(c, loop=replace(c.loop, seed=5)),
        lambda c: replace(c, loop=replace(c.loop, cached_views=2)),
        lambda c: replace(c, augment=Augment(0.0)),
        lambda c: replace(c, data=DataConfig(options={"ignore": 3})),
        lambda c: replace(c, backbone=replace(c.backbone, level=4)),
        lambda c: replace(c, backbone=replace(c.backbone, name="6")),
    ],
    ids=["seed", "views", "augment", "options", "level", "name"],
)
def test_other_settings_have_another_bank(tmp_path: Path, change: Any) -> None:
    config = Config(str(tmp_path))
    first, _ = bank_of(config)
    second, examples = bank_of(change(config))
    assert first.folder != second.folder
    assert examples.made > 0


def test_another_target_has_another_bank(tmp_path: Path) -> None:
    config = Config(str(tmp_path))
    assert bank_of(config, target="mask")[0].folder != bank_of(config, target="labels")[0].folder


def test_images_in_another_order_are_not_mixed_up(tmp_path: Path) -> None:
    """Two scene sets with the same fingerprint may hold their images in different orders."""
    config, shuffled = Config(str(tmp_path)), Scenes("31420")
    bank_of(config)
    bank, _ = bank_of(config, shuffled)
    for index in range(5):
        _, target, image_id = bank.make(index, 0)
        assert image_id == shuffled.image_ids[index]
        assert target[0, 0] % 10 == int(image_id[1]) % 2


def test_an_interrupted_bank_is_made_anew(tmp_path: Path) -> None:
    config = Config(str(tmp_path))

    class Failing(Noisy):
        def make(self, index: int, seed: int) -> tuple[View, np.ndarray, str]:
            if self.made == 10:
                raise KeyboardInterrupt
            return super().make(index, seed)

    with pytest.raises(KeyboardInterrupt):
        training_bank(config, "mask", Failing(Scenes()), Scenes(), backbone_of(config), HERE)
    assert [p.name for p in (tmp_path / "features").iterdir()] == []
    bank, examples = bank_of(config)
    assert examples.made == len(Scenes()) * VIEWS
    assert json.loads((bank.folder / "bank.json").read_text())["views"] == VIEWS


def test_selected_examples_are_numbered_anew() -> None:
    some = selected(Noisy(Scenes()), [4, 1])
    assert len(some) == 2
    assert [some.make(index, 0)[2] for index in range(2)] == ["i4", "i1"]
