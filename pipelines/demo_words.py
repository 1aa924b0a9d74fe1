"""What a demo found, in plain words, whichever way it went."""

from __future__ import annotations

from collections.abc import Mapping

from stage2_segmentation.evaluate import Evaluation

#: what a network chooses among, for people
NAMES = {
    "complete": "all labels (complete)",
    "cache": "best ranked (cache)",
    "oracle": "labels there (oracle)",
    "told": "complete, told the labels at test",
}
#: differences of mIoU below this say nothing: one seed, a few hundred images
NOISE_POINTS = 2.0


def findings(
    scores: Mapping[str, Evaluation],
    *,
    prior_coverage: float,
    kappa: int,
    num_classes: int,
    seconds: Mapping[str, float],
) -> tuple[str, ...]:
    """Sentences on the ranking, on ranking against the plain baseline, and on the oracle.

    scores: evaluations of complete, cache, oracle and "told" (shares in 0..1).   prior_coverage: pixel coverage at κ of
    the ranking by frequency, in 0..1.   seconds: of the trainings, by name.
    """
    return (
        ranking_words(scores["cache"], prior_coverage, kappa),
        comparison_words(scores, kappa, num_classes, seconds),
        oracle_words(scores),
    )


def ranking_words(cache: Evaluation, prior_coverage: float, kappa: int) -> str:
    """Is the ranking better than knowing how common labels are?"""
    own, prior = 100 * cache.pixel_coverage, 100 * prior_coverage
    start = "Stage one has learnt to look" if own > prior else "Stage one has learnt nothing that helps"
    return (
        f"{start}: the best {kappa} labels of its ranking hold {own:.1f} % of the pixels of unseen images, the {kappa} "
        f"most common labels {prior:.1f} %. What the ranking misses, stage two cannot get right: "
        f"{100 * (1 - cache.class_coverage):.1f} % of an average label's pixels."
    )


def comparison_words(
    scores: Mapping[str, Evaluation], kappa: int, num_classes: int, seconds: Mapping[str, float]
) -> str:
    """Did ranking first help?"""
    plain, ranked = 100 * scores["complete"].mIoU, 100 * scores["cache"].mIoU
    gain = ranked - plain
    measured = f"{ranked:.1f} % mIoU with the best {kappa} labels, {plain:.1f} % with all {num_classes}"
    cost = (
        f"stage two took {seconds['cache']:.0f} s instead of {seconds['complete']:.0f} s, "
        f"and stage one {seconds['stage1']:.0f} s before it"
    )
    if gain > NOISE_POINTS:
        return (
            f"Ranking first helped: {measured} after equally many steps of stage two ({cost}). Whether the plain "
            "network would catch up if it trained for stage one's time as well, this run does not show."
        )
    if gain < -NOISE_POINTS:
        return f"Ranking first did not help: {measured} after equally many steps ({cost}). {why_not(scores)}"
    return (
        f"Ranking first made no clear difference: {measured}, and one seed cannot tell {abs(gain):.1f} points from "
        f"chance ({cost})."
    )


def why_not(scores: Mapping[str, Evaluation]) -> str:
    bound, plain = scores["cache"].class_coverage, scores["complete"].mIoU
    if bound < plain:
        return f"It could not: its ranking allows {100 * bound:.1f} % at most."
    return f"Its ranking would have allowed {100 * bound:.1f} %, so the loss lies in stage two."


def oracle_words(scores: Mapping[str, Evaluation]) -> str:
    """What would a perfect ranking bring?"""
    oracle, told = 100 * scores["oracle"].mIoU, 100 * scores["told"].mIoU
    best = 100 * max(scores["cache"].mIoU, scores["complete"].mIoU)
    start = f"Choosing only among the labels that are there gives {oracle:.1f} %"
    room = (
        f", {oracle - best:.1f} points above the better of the two: that much a perfect ranking could still bring."
        if oracle > best
        else ", no more than the better of the two."
    )
    return f"{start}{room} The plain network, told at test which labels are there, reaches {told:.1f} %."
