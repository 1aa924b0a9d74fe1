"""BeitForSemanticSegmentation: UPerNet on a pyramid of four blocks' maps."""

from __future__ import annotations

from kappaseg_core.errors import UserError
from kappaseg_core.weights.hf import beit, linear
from kappaseg_core.weights.layout import Layout, below
from kappaseg_core.weights.renaming import Rule, renamed
from kappaseg_core.weights.snapshot import Snapshot
from kappaseg_core.weights.vit import MODEL
from stage2_segmentation.weights.hf.head import NEW, SPARE, heads
from stage2_segmentation.weights.hf.images import HALVES, colours, windows

BACKBONE = "beit."
MAPS = (3, 5, 7, 11)  # where config.json does not say them: those of the base model
NOT_READ = "a block behind the last one whose map is read"

PYRAMID = (
    linear(r"(?:fpn\.fpn1\.conv_transpose1|fpn1\.0)", "host.levels.finest.0"),
    Rule(
        r"(?:fpn\.fpn1\.normalization|fpn1\.1)\.(weight|bias|running_mean|running_var|num_batches_tracked)",
        r"host.levels.finest.1.\1",
    ),
    linear(r"(?:fpn\.fpn1\.conv_transpose2|fpn1\.3)", "host.levels.finest.3"),
    linear(r"(?:fpn\.fpn2|fpn2\.0)", "host.levels.finer"),
)


def layout(snapshot: Snapshot) -> Layout:
    """The network in a folder. Raises UserError.

    BEiT's own program reads the maps behind blocks 3, 5, 7 and 11, counted from 0. transformers has these numbers in
    out_indices, but counts from the embeddings, and takes one less: it reads blocks 1, 3, 5 and 9. Here the maps are
    those that transformers reads, so that both compute the same; host.options.blocks says others.
    """
    inside = {name: value for name, value in snapshot.tensors.items() if name.startswith(BACKBONE)}
    found = renamed(inside, below(BACKBONE, beit.RULES, "")).tensors
    head = heads(snapshot.config, snapshot.tensors)
    told = beit.settings(snapshot.config, found) | head.told
    numbers = [number - 2 for number in snapshot.config.get("out_indices") or MAPS]
    if min(numbers) < 0:
        raise UserError("it reads its embeddings (out_indices below 2), wanted the maps of four blocks")
    side = told["backbone.options.img_size"]
    return Layout(
        what=f"UPerNet on {told['backbone.name']}, {head.num_classes} classes",
        rules=(*below(BACKBONE, beit.RULES, MODEL), *PYRAMID, *head.rules),
        num_classes=head.num_classes, told=told,
        assumed={"source.train": "complete", "host.options.blocks": numbers} | head.assumed
        | colours(snapshot.preprocessing, HALVES) | windows(side),
        class_rows=head.class_rows, spare=SPARE | {r"backbone\.network\.model\.blocks\..*": NOT_READ}, new=NEW,
        grounds=("folder", "folder or published"),
    )  # fmt: skip
