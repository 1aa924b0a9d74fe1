"""Folders of photos and masks: what the numbers in the files become, and what is said where a file is wrong."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from kappaseg_core.config import DataConfig
from kappaseg_core.errors import UserError
from kappaseg_core.scenes import images, open_scenes
from kappaseg_core.scenes.flaws import MissingMask, SizesDiffer, UnknownValues
from kappaseg_core.scenes.folder import FolderScenes

if TYPE_CHECKING:
    from .conftest import DataFolder

OneScene = Callable[..., FolderScenes]
SHAPE = 5, 7
ROTATE_90 = 6  # EXIF orientation: turn clockwise to see it upright


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def steps(dtype: type[np.generic], values: list[int]) -> np.ndarray:
    """A mask [5, 7] in which each value fills some pixels of the first rows; the rest is 0."""
    mask = np.zeros(SHAPE, dtype)
    for row, value in enumerate(values):
        mask[row, : row + 2] = value
    return mask


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# What files become


def test_ids_of_an_eight_bit_mask_stay_and_its_ignore_value_becomes_minus_one(one_scene: OneScene) -> None:
    mask = one_scene(steps(np.uint8, [4, 255, 1]))[0].mask
    assert mask.dtype == np.int32
    assert np.array_equal(mask, steps(np.int32, [4, -1, 1]))


def test_255_is_a_class_of_sixteen_bit_masks_that_ignore_65535(folder: DataFolder, one_scene: OneScene) -> None:
    folder.write_classes([f"class {label}" for label in range(301)])
    mask = one_scene(steps(np.uint16, [255, 300, 65535]), ignore=65535)[0].mask
    assert np.array_equal(mask, steps(np.int32, [255, 300, -1]))


def test_another_ignore_value_is_taken_at_its_word(one_scene: OneScene) -> None:
    mask = one_scene(steps(np.uint8, [4, 99]), ignore=99)[0].mask
    assert np.array_equal(mask, steps(np.int32, [4, -1]))


def test_the_id_map_gives_classes_to_values(one_scene: OneScene) -> None:
    mask = one_scene(steps(np.uint8, [7, 40, 41, 255]), id_map={0: 2, 7: 0, 40: 4, 41: -1})[0].mask
    expected = steps(np.int32, [0, 4, -1, -1])
    expected[steps(np.uint8, [1, 1, 1, 1]) == 0] = 2
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_palette_masks_give_their_indices_not_their_colours(one_scene: OneScene, folder: DataFolder, bits: int) -> None:
    one_scene()
    picture = Image.fromarray(steps(np.uint8, [3, 1, 2]))
    picture.putpalette([(37 * byte) % 256 for byte in range(3 * 2**bits)])  # which also makes it a palette picture
    path = folder.write_mask("x", picture)
    assert path.read_bytes()[24:26] == bytes([bits, 3])  # bit depth, colour type "palette"
    assert np.array_equal(folder.open()[0].mask, steps(np.int32, [3, 1, 2]))


@pytest.mark.parametrize(("bits", "highest"), [(1, 1), (2, 3), (4, 4)])
def test_grey_masks_below_eight_bits_give_the_stored_values(one_scene: OneScene, bits: int, highest: int) -> None:
    """The file is made by hand: Pillow writes no grey PNG of 2 or 4 bits."""
    stored = steps(np.uint8, [highest, 1, 1])
    assert np.array_equal(read_mask(one_scene, grey_png(stored, bits)), stored)


def read_mask(one_scene: OneScene, data: bytes) -> np.ndarray:
    scenes = one_scene()
    scenes.mask_path(0).write_bytes(data)
    return scenes[0].mask


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """PNG specification, sections 7 and 11: rows of packed values, each after a filter byte 0."""
    import struct
    import zlib

    height, width = values.shape
    planes = np.unpackbits(values[..., None], axis=2)[:, :, 8 - bits :].reshape(height, width * bits)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in planes)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_grey_photo_has_three_equal_channels(one_scene: OneScene) -> None:
    grey = np.arange(35, dtype=np.uint8).reshape(SHAPE)
    image = one_scene(photo=grey)[0].image
    assert image.dtype == np.uint8
    assert np.array_equal(image, np.stack([grey] * 3))


def test_the_high_byte_of_a_sixteen_bit_photo_is_kept(one_scene: OneScene) -> None:
    grey = (np.arange(35, dtype=np.uint16) * 1000).reshape(SHAPE)
    assert np.array_equal(one_scene(photo=grey)[0].image[1], grey >> 8)


def test_colours_under_transparency_stay(one_scene: OneScene) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (*SHAPE, 4), np.uint8)
    assert np.array_equal(one_scene(photo=colours)[0].image, colours[..., :3].transpose(2, 0, 1))


def test_a_cmyk_photo_becomes_rgb(folder: DataFolder, one_scene: OneScene) -> None:
    one_scene()
    (folder.root / "images" / "x.png").unlink()
    folder.write_photo("x.jpg", Image.new("CMYK", SHAPE[::-1], (0, 255, 255, 0)))
    red = folder.open()[0].image
    assert red.shape == (3, *SHAPE)
    assert red[0].min() > 240 and red[1:].max() < 15


def test_a_photo_with_exif_rotation_is_turned_upright(folder: DataFolder, one_scene: OneScene) -> None:
    one_scene()
    stored = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), np.uint8)
    folder.write_photo("x.png", stored, exif=exif(ROTATE_90))
    folder.write_mask("x", np.ones(SHAPE[::-1], np.uint8))
    assert np.array_equal(folder.open()[0].image, np.rot90(stored, -1).transpose(2, 0, 1))


def test_other_folders_hold_the_files_where_the_options_say_so(folder: DataFolder, one_scene: OneScene) -> None:
    one_scene(steps(np.uint8, [4]))
    for name in ("images", "masks"):
        (folder.root / name).rename(folder.root / f"other_{name}")
    assert folder.open(images="other_images", masks="other_masks")[0].mask[0, 0] == 4


def test_splits_keep_the_order_of_their_lines(filled: DataFolder) -> None:
    assert filled.open("train").image_ids == ("c", "a", "b")
    assert filled.open("val").image_ids == ("é", "d")


def test_text_files_from_windows_read_alike(filled: DataFolder) -> None:
    for path in (filled.root / "classes.txt", filled.root / "splits" / "train.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    scenes = filled.open("train")
    assert scenes.image_ids == ("c", "a", "b")
    assert scenes.class_names == tuple(f"class {label}" for label in range(5))


def test_an_image_is_read_where_its_mask_is_missing(filled: DataFolder) -> None:
    scenes = filled.open()
    scenes.mask_path(0).unlink()
    assert scenes.image(0).shape == (3, 7, 7)
    with pytest.raises(MissingMask, match=r"mask .*c\.png does not exist; add it or take its id out of split 'train'"):
        scenes[0]


def test_the_fingerprint_knows_images_and_ids_not_their_order_or_masks(filled: DataFolder) -> None:
    first = filled.open().fingerprint()
    filled.write_split("train", ["a", "b", "c"])
    filled.write_mask("a", np.zeros((5, 9), np.uint8))
    assert filled.open().fingerprint() == first
    filled.write_split("train", ["a", "b"])
    assert filled.open().fingerprint() != first
    filled.write_split("train", ["a", "b", "c"])
    with filled.open().image_path(0).open("ab") as file:
        file.write(b"\0")
    assert filled.open().fingerprint() != first


# Bad scenes


def test_a_value_without_meaning_is_named_with_its_file_and_pixels(one_scene: OneScene) -> None:
    scenes = one_scene(steps(np.uint8, [9, 17]))
    with pytest.raises(UnknownValues) as error:
        scenes[0]
    line = one_line(error)
    assert str(scenes.mask_path(0)) in line
    assert "value 9 (2 pixels), 17 (3 pixels), not a class id (K = 5: 0..4), and the ignore value is 255" in line
    assert error.value.counts == {9: 2, 17: 3}


def test_255_needs_to_be_stated(one_scene: OneScene) -> None:
    with pytest.raises(UnknownValues, match=r"there is no ignore value; set data\.options\.ignore"):
        one_scene(steps(np.uint8, [255]), ignore=None)[0]


def test_a_value_outside_the_id_map_is_named(one_scene: OneScene) -> None:
    with pytest.raises(UnknownValues, match=r"value 2 \(2 pixels\), not in data\.options\.id_map"):
        one_scene(steps(np.uint8, [2]), id_map={0: 1, 1: 0})[0]


def test_a_mask_of_another_size_is_named_with_both_sizes(one_scene: OneScene) -> None:
    scenes = one_scene(np.zeros((5, 8), np.uint8))
    with pytest.raises(SizesDiffer) as error:
        scenes[0]
    assert "is 5x7 (height x width), mask" in one_line(error)
    assert "is 5x8; make them the same size" in one_line(error)


def test_a_mask_that_lies_as_the_photo_was_stored_is_explained(folder: DataFolder, one_scene: OneScene) -> None:
    one_scene()
    folder.write_photo("x.png", np.zeros((*SHAPE, 3), np.uint8), exif=exif(ROTATE_90))
    with pytest.raises(SizesDiffer) as error:
        folder.open()[0]
    assert "is 7x5 (height x width) with its EXIF rotation applied" in one_line(error)
    assert "turn the mask upright too" in one_line(error)


def picture_bytes(name: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(file, name)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning")  # Pillow's own, before it raises
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_a_truncated_image_is_named_not_half_read(one_scene: OneScene, kind: str, share: float) -> None:
    scenes, data = one_scene(), picture_bytes(kind)
    scenes.image_path(0).write_bytes(data[: int(share * len(data))])
    for read in (scenes.__getitem__, scenes.image):
        with pytest.raises(UserError, match=re.escape(str(scenes.image_path(0)))) as error:
            read(0)
        assert "replace the file or take its id out of the split" in one_line(error)


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_picture_is_named(one_scene: OneScene, data: bytes) -> None:
    scenes = one_scene()
    scenes.mask_path(0).write_bytes(data)
    with pytest.raises(UserError, match=re.escape(str(scenes.mask_path(0)))) as error:
        scenes[0]
    assert "replace the file" in one_line(error)


def test_a_colour_mask_is_refused(one_scene: OneScene) -> None:
    with pytest.raises(UserError, match=r"colour picture \(mode RGB\), wanted class ids .*; convert its colours"):
        one_scene(np.zeros((*SHAPE, 3), np.uint8))[0]


def test_a_picture_that_would_fill_the_memory_is_refused(one_scene: OneScene, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = one_scene()
    monkeypatch.setattr(images, "MAX_PIXELS", 34)
    with pytest.raises(UserError, match="has 5x7 pixels, the limit is 34; shrink it"):
        scenes[0]


# Bad folders


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ignore": 2}, ["data.options.ignore = 2", "class 'road'", "K = 5", "null"]),
        ({"ignore": 70000}, ["data.options.ignore = 70000", "0..65535"]),
        ({"id_map": {1: 5}}, ["data.options.id_map", "class 5", "mask value 1", "0..4", "correct the map"]),
        ({"id_map": {-3: 1}}, ["data.options.id_map", "mask value -3", "0..65535"]),
        ({"ignored": 255}, ["data.options.ignored", "did you mean ignore?"]),
        ({"ignore": "no"}, ["data.options.ignore = 'no'", "wanted a whole number"]),
    ],
)
def test_a_bad_option_is_named_with_its_value(one_scene: OneScene, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        one_scene(**options)
    assert [word for word in words if word not in one_line(error)] == []


def remove(*parts: str) -> Callable[[Path], object]:
    return lambda root: root.joinpath(*parts).unlink()


def write(text: str, *parts: str) -> Callable[[Path], object]:
    return lambda root: root.joinpath(*parts).write_text(text)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (remove("classes.txt"), ["class file: ", "classes.txt does not exist", "write one class name per line there"]),
        (write("a\n\nb\n", "classes.txt"), ["classes.txt: line 2 is empty", "write a name there"]),
        (write("", "classes.txt"), ["has 0 names", "wanted 1..65536"]),
        (remove("splits", "train.txt"), ["split 'train'", "train.txt does not exist", "there are: val"]),
        (write("\n", "splits", "train.txt"), ["split 'train'", "lists no image", "write one image id per line"]),
        (write("a\nz\n", "splits", "train.txt"), ["image z of split 'train' is not in", "add it or take its id out"]),
        (write("a.jpg\n", "splits", "train.txt"), ["image a.jpg of split 'train'", "write a, without the ending"]),
        (write("a\nb\na\n", "splits", "train.txt"), ["split 'train' lists image a 2 times", "keep one"]),
        (write("", "images", "a.PNG"), ["image a of split 'train' has 2 files", "a.PNG, a.jpg", "keep one"]),
        (write("y\nz\n", "splits", "train.txt"), ["image y of", "and 1 more; `kappaseg data check` lists them"]),
        (lambda root: (root / "images").rename(root / "pictures"), ["image folder", "data.options.images"]),
        (lambda root: (root / "classes.txt").write_bytes(b"caf\xe9\n"), ["classes.txt cannot be read as UTF-8"]),
    ],
)
def test_a_flaw_of_the_folder_is_one_line_with_a_next_step(
    filled: DataFolder, spoil: Callable[[Path], object], words: list[str]
) -> None:
    spoil(filled.root)
    with pytest.raises(UserError) as error:
        filled.open("train")
    assert [word for word in words if word not in one_line(error)] == []


@pytest.mark.parametrize(
    ("root", "words"),
    [("", "^data.root is empty"), ("{}/none", "none does not exist"), ("{}/classes.txt", "classes.txt is no folder")],
)
def test_a_missing_root_is_named(filled: DataFolder, root: str, words: str) -> None:
    with pytest.raises(UserError, match=f"{words}.*; set") as error:
        open_scenes(DataConfig(root=root.format(filled.root)), "train")
    assert "folder" in one_line(error)


def test_an_unknown_kind_lists_the_kinds_there_are() -> None:
    with pytest.raises(UserError, match=r"'foldr' is unknown; did you mean folder.* folder, packed, synthetic"):
        open_scenes(DataConfig(kind="foldr"), "train")
    with pytest.raises(UserError, match="'images' is unknown"):  # a module of the package, yet no kind of scenes
        open_scenes(DataConfig(kind="images"), "train")
