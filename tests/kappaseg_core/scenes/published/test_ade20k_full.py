"""ADE20K-Full: its table, its index, and the size of its images."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kappaseg_core.errors import UserError
from kappaseg_core.scenes.images import label_map, photo
from kappaseg_core.scenes.published.ade20k_full import CATEGORIES, CLASSES, Options, find
from kappaseg_core.scenes.published.ade20k_index import CONVERT
from kappaseg_core.scenes.published.shrinking import bilinear, nearest, shrunk_shape
from pipelines.cli import main
from tests.kappaseg_core.scenes.published.conftest import SetSizes
from tests.kappaseg_core.scenes.published.miniature import draw_photo
from tests.kappaseg_core.scenes.published.miniatures.ade20k_full import VARIANTS, draw_colours, index, make_release


def test_names_follow_the_alphabet_where_categories_do() -> None:
    """The index is sorted, but for what was added at its end: a wrong number or name would stand out of line."""
    names = [CLASSES[CATEGORIES[category]] for category in sorted(CATEGORIES) if category < 3100]
    assert len(names) == 827
    assert names == sorted(names)


def test_the_release_is_found_from_the_folder_above_too(tmp_path: Path) -> None:
    make_release(tmp_path / "ADE20K_2021_17_01")
    assert len(find(tmp_path, Options()).items) == 3


def test_an_index_that_was_converted_as_the_line_says_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_release(tmp_path)
    code = CONVERT.split('python -c "')[1].removesuffix('"')
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "CONVERT", "exec"), {})
    (tmp_path / "index_ade20k.pkl").write_bytes(b"damaged")
    assert len(find(tmp_path, Options()).items) == 3


def test_the_release_goes_before_what_was_made_of_it_which_lies_beside_it(tmp_path: Path) -> None:
    make_release(tmp_path)
    VARIANTS["prepared"](tmp_path)
    assert {item.mask.suffix for item in find(tmp_path, Options()).items} == {".png"}
    shutil.rmtree(tmp_path / "images")
    assert {item.mask.suffix for item in find(tmp_path, Options()).items} == {".tif"}


class Trap:
    def __reduce__(self) -> Any:
        return os.mkdir, ("trace",)


def test_an_index_that_would_run_something_is_refused_with_how_to_convert_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_release(tmp_path / "source")
    (tmp_path / "source" / "index_ade20k.pkl").write_bytes(pickle.dumps({**index(), "description": Trap()}))
    monkeypatch.chdir(tmp_path)
    assert main(["data", "prepare", "ade20k_full", "--source", "source", "--to", "to"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "asks for posix.mkdir" in line and "index_ade20k.json" in line and "python -c" in line
    assert not Path("trace").exists() and not Path("to").exists()


@pytest.mark.parametrize(
    "content, what",
    [
        (["no", "dict"], "is no index of ADE20K"),
        ({"folder": [], "filename": []}, "objectnames is no list of strings"),
        ({**index(), "filename": ["ADE_val_00000001.jpg"]}, "3 folders, but 1 files"),
        ({**index(), "folder": ["images/../../etc"] * 3}, "wanted ADE_….jpg below images"),
        ({**index(), "folder": ["/etc"] * 3}, "wanted ADE_….jpg below images"),
        ({**index(), "filename": ["../x.jpg"] * 3}, "wanted ADE_….jpg below images"),
        ({**index(), "objectnames": ["wall"] * 100}, "847 of 847 categories have another name, like 2978, 'nothing'"),
        ({**index(), "objectnames": index()["objectnames"][1:]}, "have another name"),  # type: ignore[index]
    ],
)
def test_an_index_of_something_else_is_one_line(content: object, what: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "index_ade20k.json").write_text(json.dumps(content, default=lambda array: array.tolist()))
    with pytest.raises(UserError) as caught:
        find(tmp_path, Options())
    assert what in str(caught.value) and "\n" not in str(caught.value)


def test_a_source_without_index_and_masks_says_what_to_get(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no index_ade20k\.pkl .* no train/label, .*ADE20K_2021_17_01\.zip"):
        find(tmp_path, Options())


def test_photos_and_masks_are_made_smaller_together_and_small_ones_are_linked(
    tmp_path: Path, set_sizes: SetSizes
) -> None:
    miniature = make_release(tmp_path / "source")
    set_sizes(miniature, miniature.counts)
    large = next(path for image_id, path in miniature.photos.items() if image_id.startswith("ADE_val"))
    draw_photo(large, (8, 12))
    draw_colours(large.with_name(f"{large.stem}_seg.png"), np.repeat([[2978] * 5 + [3148] * 7], 8, axis=0).tolist())
    to = tmp_path / "to"
    assert main(miniature.words(to, "--options.short_side", "4")) == 0
    written = to / "images" / large.name
    assert not written.is_symlink() and photo(written.read_bytes(), "photo").shape == (3, 4, 6)
    mask = label_map((to / "masks" / f"{large.stem}.png").read_bytes(), "mask")
    assert mask.tolist() == [[0, 0, 0, 846, 846, 846]] * 4
    assert (to / "images" / "ADE_train_00000001.jpg").is_symlink()
    assert main(miniature.words(tmp_path / "full", "--options.short_side", "null")) == 0
    assert (tmp_path / "full" / "images" / large.name).is_symlink()


@pytest.mark.parametrize("size, wanted", [((600, 700), (512, 597)), ((700, 600), (597, 512)), ((512, 900), (512, 900))])
def test_the_shorter_side_becomes_512_and_nothing_grows(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert shrunk_shape(*size, 512) == wanted


@pytest.mark.parametrize("shape", [(4, 6), (5, 7), (7, 9), (8, 12)])
def test_shrinking_is_bilinear_without_a_mean_and_nearest_by_the_lower_corner(shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    planes = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    wanted = torch.nn.functional.interpolate(planes, shape, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    assert (torch.from_numpy(bilinear(picture, shape)).float() - wanted).abs().max() <= 0.51
    ids = picture[:, :, 0].astype(np.int32)
    wanted = torch.nn.functional.interpolate(torch.from_numpy(ids)[None, None].float(), shape, mode="nearest")[0, 0]
    assert nearest(ids, shape).tolist() == wanted.int().tolist()


def test_a_short_side_of_no_pixels_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "prepare", "ade20k_full", "--source", str(tmp_path), "--to", str(tmp_path / "to")]
    assert main([*words, "--options.short_side", "0"]) == 2
    assert "short_side = 0, wanted at least 1 pixel" in capsys.readouterr().err


def test_a_mask_whose_photo_is_of_another_size_is_told_before_it_is_made_smaller(
    tmp_path: Path, set_sizes: SetSizes, capsys: pytest.CaptureFixture[str]
) -> None:
    miniature = make_release(tmp_path / "source")
    set_sizes(miniature, miniature.counts)
    draw_photo(miniature.photos["ADE_val_00000001"], (8, 12))
    assert main(miniature.words(tmp_path / "to", "--options.short_side", "4")) == 2
    assert "is 8x12 (height x width), its label map is 1x3" in capsys.readouterr().out
