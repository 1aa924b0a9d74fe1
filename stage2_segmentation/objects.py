"""Label map and segments of a whole image, from one look of a network that learns objects.

Segments are made of one view of the whole image, as published. Queries of other windows, scales or of the mirrored
image are other queries, and nothing says which of them are the same object.
"""

from __future__ import annotations

from torch import Tensor

from kappaseg_core.errors import UserError
from kappaseg_core.ranking import OwnRanking, Ranking, to_label_space
from stage2_segmentation.config import InferenceConfig
from stage2_segmentation.inference import Network, Segmented, first_looks, in_image, one_image
from stage2_segmentation.panoptic import Queries, SegmentRule, View, segments_of_queries
from stage2_segmentation.rank_maps import best_ranks
from stage2_segmentation.structures import QueryPrediction


def segmented_objects(
    network: Network, image: Tensor, ranking: Ranking | OwnRanking, plan: InferenceConfig, *,
    size: tuple[int, int], things: Tensor,
) -> Segmented:  # fmt: skip
    """`inference.segmented` with the segments of the image at `size`.   things: bool [K], on the network's device.

    Both are of the same look and ranking. The label map is the network's own semantic rule and not that of the
    segments: it has a label where no query is sure.
    Raises UserError where `plan` has several windows or views.
    """
    refuse_several_views(plan)
    looks, label_scores = first_looks(network, image, plan)
    look = next(iter(looks))
    if isinstance(ranking, OwnRanking):
        ranking = ranking.of(one_image(label_scores))
    prediction = network.segment(look.seen, ranking)
    assert isinstance(prediction, QueryPrediction)
    segments = segments_of_queries(
        Queries(prediction.class_logits[0], prediction.mask_logits[0]), ranking, things,
        View(network.cell, look.view, size), SegmentRule.of(plan.segments),
    )  # fmt: skip
    pieces = [*in_image(prediction, look, network.cell, False, size)]
    label_map = to_label_space(best_ranks([pieces], size)[None], ranking)[0]
    return Segmented(label_map, ranking, label_scores, segments)


def refuse_several_views(plan: InferenceConfig) -> None:
    """Raise UserError, naming the setting, where an image is seen in more than one view of the whole."""
    wanted = {"mode": "whole", "scales": (1.0,), "flip": False}
    for name, value in wanted.items():
        if (found := getattr(plan, name)) != value:
            text, right = (str(list(v) if isinstance(v, tuple) else v).lower() for v in (found, value))
            raise UserError(
                f"inference.{name} = {text}, but objects are found in one view of the whole image; set "
                f"--inference.{name} {right}"
            )
