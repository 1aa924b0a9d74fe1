"""UperNetForSemanticSegmentation on Swin, ConvNeXt or ResNet."""

from __future__ import annotations

from kappaseg_core.weights.layout import Layout
from kappaseg_core.weights.snapshot import Snapshot
from stage2_segmentation.weights.hf.head import NEW, SPARE, heads
from stage2_segmentation.weights.hf.images import IMAGENET, colours, side_of, whole
from stage2_segmentation.weights.hf.stages import stages_of

BACKBONE = "backbone."
SIDE = 512  # pixels, of the published networks, where the folder does not say it


def layout(snapshot: Snapshot) -> Layout:
    """The network in a folder. Raises UserError."""
    backbone, head = stages_of(snapshot, BACKBONE), heads(snapshot.config, snapshot.tensors)
    told = backbone.told | head.told
    side = side_of(snapshot.preprocessing.get("size")) or SIDE
    return Layout(
        what=f"UPerNet on {told['backbone.name']}, {head.num_classes} classes",
        rules=(*backbone.rules, *head.rules),
        num_classes=head.num_classes, told=told,
        assumed={"source.train": "complete"} | head.assumed | colours(snapshot.preprocessing, IMAGENET) | whole(side),
        class_rows=head.class_rows, spare=SPARE, new=NEW, grounds=("folder", "folder or published"),
    )  # fmt: skip
