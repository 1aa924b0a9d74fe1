"""Label heads: the final map of a backbone → one logit per label.

query2label.py   a query per label           pooled.py      one linear layer
group.py         a query per group of labels  shortlist.py  a linear layer picks, a query head scores the picked ones

Legend: B images, C backbone channels, h w cells, T = h·w, K all labels, k the labels scored now, D width.
"""

from __future__ import annotations

from typing import Any

from kappaseg_core.errors import UserError
from kappaseg_core.label_heads.group import GroupDecoder
from kappaseg_core.label_heads.pooled import PooledLinear
from kappaseg_core.label_heads.query2label import Query2Label
from kappaseg_core.label_heads.shortlist import Shortlisted

LabelHead = Query2Label | PooledLinear | GroupDecoder | Shortlisted

LAYERS = {
    # Our reading of the paper's parameter count and FLOPs (Table 3, He et al. 2022), which does not state the sizes.
    "rankseg": {"ffn": 4096, "heads": 4, "encoder_layers": 0, "decoder_layers": 2},
    "official": {"ffn": 8192, "heads": 4, "encoder_layers": 1, "decoder_layers": 2},
    # The label branch of the released joint head ("2x TransDec", Table 6), on any backbone.
    "fast": {"width": 768, "project": True, "ffn": 2048, "heads": 8, "encoder_layers": 0, "decoder_layers": 2},
}
PRESETS: dict[str, dict[str, Any]] = {name: {**sizes, "dropout": 0.1} for name, sizes in LAYERS.items()}
PRESETS["gap"] = {"dropout": 0.0, "pooling": "mean"}
PRESETS["lse"] = {"dropout": 0.0, "pooling": "log_sum_exp"}
#: ML-Decoder's sizes
PRESETS["group"] = {
    "width": 768, "project": True, "ffn": 2048, "heads": 8, "decoder_layers": 1, "dropout": 0.1,
    "groups": None, "grouping": "index", "group_seed": 0,
}  # fmt: skip


def build_head(
    name: str, in_channels: int, num_classes: int, *, shortlist: int | None = None, shortlist_by: str = "gap",
    shortlist_weight: float = 1.0, **overrides: Any,
) -> LabelHead:  # fmt: skip
    """The head of a preset, with some of its settings replaced; with `shortlist`, behind a linear layer that picks.

    The width is the backbone's unless preset or override says otherwise; features are projected where the two differ,
    and always in `fast` and `group`. Raises UserError for an unknown preset or a setting that the preset does not have.
    """
    if name not in PRESETS:
        raise UserError(f"head preset {name!r} is unknown; wanted one of {', '.join(PRESETS)}")
    if shortlist is not None:
        first = build_head(shortlist_by, in_channels, num_classes)
        then = build_head(name, in_channels, num_classes, **overrides)
        return Shortlisted(first, then, shortlist, num_classes=num_classes, weight=shortlist_weight)
    settings = PRESETS[name] | overrides
    if "pooling" in settings:
        if unknown := settings.keys() - PRESETS[name].keys():
            raise UserError(f"head preset {name!r} has no {', '.join(sorted(unknown))}; it takes dropout alone")
        return PooledLinear(in_channels, num_classes, **settings)
    settings = {"width": in_channels, "chunk": None} | settings
    settings = {"project": settings["width"] != in_channels} | settings
    if "groups" in PRESETS[name]:
        if unknown := settings.keys() - PRESETS[name].keys() - {"chunk"}:
            raise UserError(f"head preset {name!r} has no {', '.join(sorted(unknown))}")
        return GroupDecoder(in_channels, num_classes, **settings)
    if unknown := settings.keys() & {"groups", "grouping", "group_seed"}:
        raise UserError(f"head preset {name!r} has no {', '.join(sorted(unknown))}; preset group has")
    return Query2Label(in_channels, num_classes, **settings)
