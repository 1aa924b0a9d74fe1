"""What MaskFormer and Mask2Former of transformers share: their hosts here are made of the same modules."""

from __future__ import annotations

from typing import Any

from kappaseg_core.errors import UserError
from kappaseg_core.weights.layout import Layout, sizes
from kappaseg_core.weights.renaming import Rule
from kappaseg_core.weights.snapshot import Snapshot
from stage2_segmentation.weights.hf.images import IMAGENET, colours, side_of, whole
from stage2_segmentation.weights.hf.stages import stages_of

PIXELS, TRANSFORMER = r"model\.pixel_level_module\.", r"model\.transformer_module\."
SIDE = 512  # pixels, of the networks published for ADE20K, where the folder does not say it
NEW = {r"branch\..*": "the label branch, which the network had not"}
LOSS = Rule(r"criterion\..*", None, "weights of the classes in its loss")

#: The last row of a class predictor is "no object".
CLASSIFIER = (
    Rule(r"class_predictor\.weight", ("host.classify.cls_emb", "host.classify.no_object"), cut=-1),
    Rule(r"class_predictor\.bias", ("host.classify.cls_bias", "host.classify.no_object_bias"), cut=-1),
)
#: modules that have the same names in the host
DECODERS = (
    Rule(rf"{PIXELS}decoder\.(.*)", r"host.pixel_decoder.\1"),
    Rule(rf"{TRANSFORMER}(.*)", r"host.transformer_module.\1"),
)


def layout_of(
    snapshot: Snapshot, what: str, told: dict[str, Any], assumed: dict[str, Any], rules: tuple[Rule, ...]
) -> Layout:
    """The layout of a mask network. told, assumed: settings of its host.   rules: of what is its own, first.

    Raises UserError.
    """
    backbone = stages_of(snapshot, "model.pixel_level_module.encoder.")
    rows, width = sizes(snapshot.tensors, "class_predictor.weight", 2)
    queries = sizes(snapshot.tensors, "model.transformer_module.queries_embedder.weight", 2)[0]
    told = backbone.told | told | {
        "host.options.width": width, "host.options.queries": queries, "host.options.rank_scale": "none",
    }  # fmt: skip
    side = side_of(snapshot.preprocessing.get("size")) or SIDE
    return Layout(
        what=f"{what} on {told['backbone.name']}, {rows - 1} classes, {queries} queries",
        rules=(LOSS, *CLASSIFIER, *backbone.rules, *rules, *DECODERS),
        num_classes=rows - 1, told=told,
        assumed={"source.train": "complete"} | assumed | colours(snapshot.preprocessing, IMAGENET) | whole(side),
        class_rows=("host.classify.cls_emb", "host.classify.cls_bias"), new=NEW,
        grounds=("folder", "folder or published"),
    )  # fmt: skip


def refuse_other_widths(snapshot: Snapshot, names: dict[str, Any]) -> None:
    """Raise UserError where the widths of the parts differ: the hosts have one. names: of settings → their values."""
    width = sizes(snapshot.tensors, "class_predictor.weight", 2)[1]
    for name, value in names.items():
        if value != width:
            raise UserError(f"its {name} is {value}, and its queries are {width} wide; only equal widths can be taken")
