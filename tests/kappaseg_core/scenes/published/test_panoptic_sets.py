"""What is particular to published sets whose objects are told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from kappaseg_core.errors import UserError
from kappaseg_core.scenes.published import ade20k_panoptic, coco_panoptic, names_sha256
from kappaseg_core.scenes.published.ade20k import CLASSES
from pipelines.cli import main
from tests.kappaseg_core.scenes.published.conftest import MAKERS, SetSizes
from tests.kappaseg_core.scenes.published.miniatures import ade20k_panoptic as ade
from tests.kappaseg_core.scenes.published.miniatures import coco_panoptic as coco


def test_the_numbers_of_the_sets_are_those_published() -> None:
    """panopticapi lists 80 things and 53 kinds of stuff; the challenge of ADE20K 100 things, flag the last of them."""
    assert (sum(ade20k_panoptic.THINGS), len(ade20k_panoptic.STUFF)) == (100, 50)
    first = [name for name, thing in zip(CLASSES, ade20k_panoptic.THINGS, strict=True) if thing]
    assert first[:4] == ["bed", "windowpane", "cabinet", "person"] and first[-1] == "flag"
    assert len(coco_panoptic.CLASSES) == 133 and names_sha256(coco_panoptic.CLASSES) == coco_panoptic.CLASSES_SHA256


def test_an_object_of_two_classes_is_a_flaw(tmp_path: Path) -> None:
    made = ade.make(tmp_path)
    file = made.source / "annotations_instance" / "training" / "ADE_train_00000002.png"
    ade.draw_instances(file, [[100, 2], [2, 0]], [[1, 1], [3, 0]])
    item = ade20k_panoptic.find(made.source, ade20k_panoptic.Options()).items[1]
    with pytest.raises(UserError, match="has object 1 of two classes"):
        ade20k_panoptic.label_map(item, ade20k_panoptic.Options())


def test_other_things_than_those_of_coco_are_refused(tmp_path: Path) -> None:
    made = coco.make(tmp_path)
    coco.with_other_things(tmp_path)
    with pytest.raises(UserError, match="has other categories or other things than COCO's"):
        coco_panoptic.find(made.source, coco_panoptic.Options())


@pytest.mark.parametrize("name", ["coco_panoptic", "ade20k_panoptic"])
def test_an_instance_map_that_is_gone_is_made_again_and_nothing_else(
    name: str, tmp_path: Path, set_sizes: SetSizes, capsys: pytest.CaptureFixture[str]
) -> None:
    miniature = MAKERS[name](tmp_path / "source")
    set_sizes(miniature, miniature.counts)
    to = tmp_path / "to"
    assert main(miniature.words(to)) == 0
    assert f"kappaseg data check {to} --data.options.instances instances" in capsys.readouterr().out
    gone = sorted((to / "instances").iterdir())[0]
    before = gone.read_bytes()
    gone.unlink()
    assert main(miniature.words(to)) == 0
    assert "1 images made now; complete" in capsys.readouterr().out and gone.read_bytes() == before
