"""Backbones (placeholder until the real module lands)."""

import importlib
from torch import nn
Backbone = nn.Module


def build_backbone(config, *, image_size=None):
    return importlib.import_module(f"{__name__}.{config.kind}").build(config, image_size=image_size)
