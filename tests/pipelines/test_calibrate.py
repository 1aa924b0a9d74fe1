"""κ per image, chosen on half of the validation images and judged on the other half."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from kappaseg_core.conformal import calibrate
from kappaseg_core.ranking import OwnRanking, Ranking, top_kappa
from pipelines.calibrate import Calibrated, apart, padded
from pipelines.cli import main
from tests.pipelines.conftest import STORED, Chain


def evaluated(chain: Chain, run: str, *words: str) -> dict[str, Any]:
    before = set((chain.out / run).glob("evaluation-*.json"))
    assert main(["evaluate", str(chain.out / run), *words]) == 0
    (made,) = set((chain.out / run).glob("evaluation-*.json")) - before
    return {"file": made.name, **json.loads(made.read_text("utf-8"))}


def test_a_run_is_judged_on_the_other_half(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(chain, "stage2-cache", "--alpha", "0.6")
    assert found["file"] == "evaluation-cache-alpha0.6.json"
    assert found["images"] == 1
    assert found["calibration"]["images"] == 1
    assert 1 <= found["mean_kappa"] <= STORED
    assert "stage2-cache: all 3 stored ranks lose" in capsys.readouterr().out, "one image, 0.75 of it covered"


def test_a_joint_network_chooses_among_its_own_ranks(chain: Chain) -> None:
    assert main(chain.words("run-joint", "--labels.options", "{pooled: 2, heads: 2}")) == 0
    found = evaluated(chain, "stage2-joint", "--alpha", "0.5", "--loop.seed", "1")
    assert 1 <= found["mean_kappa"] <= 4
    assert found["calibration"]["bound"] <= 0.5 or found["calibration"]["capped"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--alpha", "0.1"], "1 calibration images cannot promise alpha = 0.1, wanted at least 9"),
        (["--alpha", "7"], "alpha = 7.0, wanted a share above 0"),
        (["--alpha", "0.6", "--calibration", "train"], "are among training images, which the ranking knows"),
        (
            ["--alpha", "0.6", "--calibration", "train@0of2"],
            "3 of its 3 images are among training images, which the ranking knows, for example a0",
        ),
        (
            ["--alpha", "0.6", "--calibration", "val"],
            "2 of its 2 images are among the images it is judged on, for exam",
        ),
        (["--alpha", "0.6", "--calibration", "nosuch"], "nosuch"),
        (["--alpha", "much"], "invalid float value: 'much'"),
        (["--calibration", "val"], "--calibration val is for --alpha, which is not given; add it or leave both out"),
        (["--alpha", "0.6", "--source.test_kappa", "2"], "--alpha chooses κ for each image, --source.test_kappa one"),
    ],
)
def test_what_cannot_be_promised_is_one_line(
    chain: Chain, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    before = chain.files()
    assert main(["evaluate", str(chain.out / "stage2-cache"), *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kappaseg: ")]
    assert message in line
    assert chain.files() == before


def test_images_without_a_label_are_nothing_to_calibrate_on(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("v0", "v1"):
        with Image.open(chain.mask(name)) as mask:
            size = mask.size
        Image.new("L", size, 255).save(chain.mask(name))
    words = ["--alpha", "0.6", "--data.root", str(chain.data)]
    assert main(["evaluate", str(chain.out / "stage2-cache"), *words]) == 2
    assert "no image to calibrate on, of val, has a labelled pixel" in capsys.readouterr().err


def test_the_halves_are_disjoint_and_do_not_depend_on_the_order() -> None:
    class Named:
        class_names, split = ("a",), "val"

        def __init__(self, ids: list[str]) -> None:
            self.image_ids = tuple(ids)

    ids = [f"image-{n}" for n in range(7)]
    first, second = apart(Named(ids))  # type: ignore[arg-type]
    assert (len(first), len(second)) == (4, 3)
    assert set(first.image_ids) | set(second.image_ids) == set(ids)
    again, _ = apart(Named(ids[::-1]))  # type: ignore[arg-type]
    assert set(again.image_ids) == set(first.image_ids)


def test_a_calibrated_source_keeps_what_the_calibration_keeps() -> None:
    scores = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))
    pixels = (torch.rand(40, 6, generator=torch.Generator().manual_seed(1)) < scores).long()
    ranking = top_kappa(scores, 6)
    calibration = calibrate(ranking, pixels, alpha=0.1)

    class Whole:
        fingerprint = "whole"

        def __call__(self, image_ids: object, mask: object, image: object = None) -> Ranking:
            return ranking[:1]

    class Own(Whole):
        def __call__(self, image_ids: object, mask: object, image: object = None) -> Any:
            return OwnRanking(6)

    kept = Calibrated(Whole(), calibration, "whole")(["i"], None)
    own = Calibrated(Own(), calibration, "own")(["i"], None)
    assert isinstance(kept, Ranking) and isinstance(own, OwnRanking)
    assert torch.equal(kept.labels, calibration.keep(ranking[:1]).labels)
    assert torch.equal(own.of(scores[:1]).labels, kept.labels)
    assert kept.valid.sum() < 6


def test_padding_is_no_rank() -> None:
    wide = padded(top_kappa(torch.tensor([[0.2, 0.7, 0.1]]), 2), 4)
    assert wide.labels.tolist() == [[1, 0, 0, 0]]
    assert wide.valid.tolist() == [[True, True, False, False]]


def test_the_folder_of_the_run_says_where_its_calibration_was_made(chain: Chain) -> None:
    """Written beside the run with everything that the promise depends on."""
    found = evaluated(chain, "stage2-cache", "--alpha", "0.6")
    assert set(found["calibration"]) >= {"alpha", "threshold", "images", "risk", "bound", "mean_kappa", "capped"}
    assert Path(found["run"]).name == "stage2-cache"
