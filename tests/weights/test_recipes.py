"""The published recipes under configs/ and the published files: a recipe fits the file of its own network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kappaseg_core.config import load_config
from kappaseg_core.weights.renaming import fitted, renamed
from pipelines.import_settings import settings_for
from stage1_multilabel.classifier import build_classifier
from stage1_multilabel.config import Stage1Config
from stage1_multilabel.weights import query2label
from stage2_segmentation.config import Stage2Config, joint_config
from stage2_segmentation.model import build_segmentation
from stage2_segmentation.weights import rankseg
from tests.weights import published

ROOT = Path(__file__).parents[2]
CLASSES = 150  # more than any recipe keeps
TRUNKS = {"swin": published.swin, "resn": published.resnet, "tres": published.tresnet}


def recipes(pattern: str) -> list[str]:
    found = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").glob(f"*/{pattern}.yaml"))
    return [name for name in found if "independent" not in name]  # of these networks no file was published


def built(config: Stage2Config) -> torch.nn.Module:
    """On the meta device: shapes without numbers."""
    with torch.device("meta"):
        return build_segmentation(replace(config, backbone=replace(config.backbone, weights=None)), CLASSES)


@pytest.mark.parametrize("name", recipes("segmenter_vit_*"))
def test_a_recipe_of_rankseg_fits_the_file_of_its_network(name: str) -> None:
    path = ROOT / name
    config = joint_config(path, []) if "_joint" in name else load_config(Stage2Config, path)
    oracle, oce = config.source.train == "oracle", config.class_tokens == "backbone"
    state = published.rankseg(built(config).state_dict(), oracle=oracle, oce=oce)
    layout = rankseg.layout(state)
    told = settings_for(Stage2Config, layout, [], recipe=path, source=Path("FILE"))
    wanted = built(told).state_dict()
    assert fitted(renamed(state, layout.rules), wanted, source=name).keys() == wanted.keys()
    assert told.inference == config.inference and told.backbone.mean == config.backbone.mean
    assert (told.labels.head, told.source.train) == (config.labels.head, config.source.train)


@pytest.mark.parametrize("name", recipes("query2label_*"))
def test_a_recipe_of_query2label_fits_the_file_of_its_network(name: str) -> None:
    config = load_config(Stage1Config, ROOT / name)

    def network(wanted: Stage1Config) -> Any:
        backbone, size = replace(wanted.backbone, weights=None, frozen=False), wanted.augment.image_size
        with torch.device("meta"):
            return build_classifier(backbone, wanted.head, num_classes=CLASSES, image_size=size)

    ours = network(config).state_dict()
    trunk = TRUNKS[config.backbone.name[:4]](published.part(ours, "backbone.network.model."))
    state = published.query2label(ours, trunk)
    layout = query2label.layout(state)
    settings = [] if config.head.heads else [("head.heads", "4")]
    told = settings_for(Stage1Config, layout, settings, recipe=ROOT / name, source=Path("FILE"))
    wanted = network(told).state_dict()
    assert fitted(renamed(state, layout.rules), wanted, source=name).keys() == wanted.keys()
    assert told.backbone.name == config.backbone.name
