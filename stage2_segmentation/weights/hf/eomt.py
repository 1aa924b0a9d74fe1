"""EomtForUniversalSegmentation (Kerssies et al., CVPR 2025), as the start of a network whose tokens are labels.

Its learned queries look for any segment, and a classifier names what they found. The tokens of our host are the kept
labels themselves, and there is no classifier. So the backbone, the finer map and the layers behind the mask tokens go
over, and class embeddings and their scale start anew: a start for training, not a finished network.
"""

from __future__ import annotations

from kappaseg_core.weights.hf import dinov2, linear
from kappaseg_core.weights.layout import Layout, below, sizes
from kappaseg_core.weights.renaming import Rule, renamed
from kappaseg_core.weights.snapshot import Snapshot
from kappaseg_core.weights.vit import MODEL
from stage2_segmentation.weights.hf.images import IMAGENET, colours, windows

BLOCKS = 4  # last ones that the tokens join, where config.json does not say it
TOKENS = "labels are the tokens here, and learned queries have no counterpart"
NEW = {
    r"host\.cls_emb": "embeddings of the labels, in place of learned queries and their classifier",
    r"host\.rank_scale\..*": "the scale of the cosines, which were plain products",
    r"branch\..*": "the label branch, which the network had not",
}

HOST = (
    Rule(r"query\.weight", None, TOKENS),
    Rule(r"class_predictor\.(weight|bias)", None, TOKENS),
    Rule(r"criterion\.empty_weight", None, "weights of the classes in its loss"),
    Rule(r"attn_mask_probs", None, "how often queries keep to their masks, which changes in training"),
    *(linear(rf"mask_head\.fc{n + 1}", f"host.mask_head.{2 * n}") for n in range(3)),
    linear(r"upscale_block\.block\.(\d+)\.conv1", r"host.upscale.\1.up"),
    Rule(r"upscale_block\.block\.(\d+)\.conv2\.weight", r"host.upscale.\1.smooth.weight"),
    linear(r"upscale_block\.block\.(\d+)\.layernorm2d", r"host.upscale.\1.norm"),
)


def layout(snapshot: Snapshot) -> Layout:
    """The network in a folder. Raises UserError."""
    config = snapshot.config
    classes = sizes(snapshot.tensors, "class_predictor.weight", 2)[0] - 1  # its last row is "no object"
    told = dinov2.settings(config, renamed(snapshot.tensors, dinov2.RULES).tensors) | {
        "host.kind": "encoder_only", "host.options.width": None,
        "host.options.blocks": config.get("num_blocks", BLOCKS),
    }  # fmt: skip
    return Layout(
        what=f"EoMT on {told['backbone.name']}, {classes} classes, without its queries",
        rules=(*below("", dinov2.RULES, MODEL), *HOST),
        num_classes=classes, told=told,
        assumed={"source.train": "complete"} | colours(snapshot.preprocessing, IMAGENET)
        | windows(told["backbone.options.img_size"]),
        class_rows=("host.cls_emb",), new=NEW, grounds=("folder", "folder or published"),
    )  # fmt: skip
