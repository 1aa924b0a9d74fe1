"""How fast photos and label maps become training batches: ours beside the plain way, step by step.

    OMP_NUM_THREADS=1 python benchmarks/feeding.py

Pictures are made here: photos of 480 x 640 and the like with the noise and the JPEG quality of a camera's, label maps
in blobs. Each variant runs in a process of its own, in turns (A B C A B C); figures are processor time of one process
per image, as a loader worker has it. The result is benchmarks/results/feeding.json.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments import machine
from PIL import Image
from plain_feeding import in_whole_images
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as F

from kappaseg_core.allocator import keep_freed_memory
from kappaseg_core.handover import collate
from kappaseg_core.scenes import folder, packed
from kappaseg_core.scenes.images import photo
from kappaseg_core.seeding import seeded
from kappaseg_core.structures import Scene
from pipelines.benchmark.inference_memory import apart
from stage2_segmentation.augment import TrainExamples
from stage2_segmentation.config import AugmentConfig
from stage2_segmentation.photometric import in_strips, with_contrast, with_hue

RESULTS = Path(__file__).parent / "results" / "feeding.json"
SIZES = ((480, 640), (427, 640), (640, 480), (375, 500), (640, 427), (512, 683))
CLASSES, IMAGES, QUALITY, GRAIN = 171, 48, 92, 6
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 16  # images that are held while the next are made


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--data", type=Path, help="a folder data set to measure on instead of pictures made here")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        if given.data is None:
            apart(draw, Path(name))  # whatever this process did with its memory, those divided from it would inherit
        pictures = Pictures(given.data or Path(name), Path(name) / "all.h5")
        apart(pictures.pack)
        record = {
            "command": "OMP_NUM_THREADS=1 python benchmarks/feeding.py", "machine": machine(), "turns": given.turns,
            "bytes": apart(pictures.handed_over),
            "comparisons": {title: in_turns(pictures, variants, given.turns) for title, variants in VARIANTS.items()},
        }  # fmt: skip
    given.out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


class Pictures:
    """What variants work on, made where it is asked for. Rows run over the first pictures again and again."""

    def __init__(self, root: Path, file: Path) -> None:
        self.root, self.file = root, file
        self.augment = AugmentConfig()  # crops of 512, scaled by 0.5 to 2: the published one

    def pack(self) -> None:
        packed.pack([self.scenes], self.file)

    @cached_property
    def scenes(self) -> folder.FolderScenes:
        return folder.open_scenes(str(self.root), "train", folder.Options())

    @cached_property
    def stored(self) -> packed.PackedScenes:
        return packed.open_scenes(str(self.file), "train", packed.Options())

    @cached_property
    def files(self) -> list[bytes]:
        return [self.scenes.image_bytes(row) for row in range(self.count)]

    @cached_property
    def decoded(self) -> list[Scene]:
        return [self.scenes[row] for row in range(self.count)]

    @cached_property
    def examples(self) -> TrainExamples:
        return TrainExamples(self.scenes, self.augment, MEAN, STD)

    @cached_property
    def crop(self) -> Tensor:
        return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 512, 512), dtype=np.uint8))

    @property
    def count(self) -> int:
        return min(IMAGES, len(self.scenes))

    def file_of(self, row: int) -> bytes:
        return self.files[row % self.count]

    def scene(self, row: int) -> Scene:
        return self.decoded[row % self.count]

    def plain_view(self, scene: Scene, seed: int) -> object:
        with seeded(seed):
            return in_whole_images(scene, self.augment, MEAN, STD)

    def our_view(self, row: int) -> object:
        with seeded(row):
            return self.examples.view(self.scene(row))

    def handed_over(self) -> dict[str, int]:
        """Bytes per image that go from a loader worker to the device, ours and as tasks take them."""
        handed = collate([self.examples.make(0, 0)], target="mask")
        batch = handed.batch("cpu")
        return {"ours": size(handed.pixels) + size(handed.mask), "plain": size(batch.image) + size(batch.mask)}


@dataclass(frozen=True)
class Variant:
    """What is done for a row.   kept: in a process that keeps the memory it frees, as a loader worker does."""

    step: Callable[[Pictures, int], object]
    kept: bool = False


#: comparison → variants by name, the plain one first
VARIANTS: dict[str, dict[str, Variant]] = {
    "a photo decoded": {
        "Pillow": Variant(lambda of, row: photo(of.file_of(row), "")),
        "Pillow, freed memory kept": Variant(lambda of, row: photo(of.file_of(row), ""), kept=True),
        "torchvision, freed memory kept": Variant(lambda of, row: by_torchvision(of.file_of(row)), kept=True),
        "Pillow at half the size, freed memory kept": Variant(lambda of, row: halved(of.file_of(row)), kept=True),
    },
    "photo and label map, read and decoded": {
        "folder": Variant(lambda of, row: of.scenes[row % of.count]),
        "folder, freed memory kept": Variant(lambda of, row: of.scenes[row % of.count], kept=True),
        "packed, freed memory kept": Variant(lambda of, row: of.stored[row % of.count], kept=True),
    },
    "hue of 512 x 512 pixels": {
        "torchvision": Variant(lambda of, row: F.adjust_hue(of.crop, 0.03)),
        "ours": Variant(lambda of, row: in_strips(lambda strip: with_hue(strip, 0.03), of.crop)),
    },
    "saturation of 512 x 512 pixels": {
        "torchvision": Variant(lambda of, row: F.adjust_saturation(of.crop, 1.2)),
        "ours": Variant(lambda of, row: in_strips(lambda strip: F.adjust_saturation(strip, 1.2), of.crop)),
    },
    "contrast of 512 x 512 pixels": {
        "torchvision": Variant(lambda of, row: F.adjust_contrast(of.crop, 1.2)),
        "ours": Variant(lambda of, row: with_contrast(of.crop, 1.2)),
    },
    "augmentation of stage two": {
        "plain": Variant(lambda of, row: of.plain_view(of.scene(row), row)),
        "ours": Variant(lambda of, row: of.our_view(row)),
        "ours, freed memory kept": Variant(lambda of, row: of.our_view(row), kept=True),
    },
    "all of it, from file to crop": {
        "plain": Variant(lambda of, row: of.plain_view(of.scenes[row % of.count], row)),
        "ours, freed memory kept": Variant(lambda of, row: of.examples.make(row % of.count, row), kept=True),
    },
}


def in_turns(pictures: Pictures, variants: dict[str, Variant], turns: int) -> list[dict[str, Any]]:
    """Processor seconds per image of each variant, one figure for each turn."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(turns):
        for name, variant in variants.items():
            found[name].append(float(f"{apart(seconds_per_image, pictures, variant):.4g}"))
    for name, values in found.items():
        print(f"{name:42} {1000 * statistics.median(values):8.2f} ms", flush=True)
    return [{"name": name, "cpu_seconds": values} for name, values in found.items()]


def seconds_per_image(pictures: Pictures, variant: Variant) -> float:
    """For a process that ends afterwards. Results live as long as in a batch."""
    if variant.kept:
        keep_freed_memory()
    results: deque[object] = deque(maxlen=BATCH)
    for row in range(-BATCH, IMAGES):
        if row == 0:
            started = time.process_time()
        results.append(variant.step(pictures, row))
    return (time.process_time() - started) / IMAGES


def by_torchvision(data: bytes) -> Tensor:
    decoded: Tensor = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    return decoded


def halved(data: bytes) -> np.ndarray:
    """A JPEG decoded at half its size, which is averaging blocks and not what resizing gives."""
    picture = Image.open(io.BytesIO(data))
    picture.draft("RGB", (picture.width // 2, picture.height // 2))
    return np.array(picture)


def size(tensor: Tensor | None) -> int:
    assert tensor is not None
    return tensor.element_size() * tensor.numel()


def draw(root: Path) -> None:
    """A folder data set of drawn pictures: smooth colours and grain, which make JPEG files as large as a camera's."""
    for name in ("images", "masks", "splits"):
        (root / name).mkdir()
    names = [f"{number:03}" for number in range(IMAGES)]
    for number, name in enumerate(names):
        random = np.random.default_rng(number)
        height, width = SIZES[number % len(SIZES)]
        coarse = Image.fromarray(random.integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        grain = random.normal(0, GRAIN, smooth.shape)
        Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(
            root / "images" / f"{name}.jpg", quality=QUALITY
        )
        labels = Image.fromarray(random.integers(0, CLASSES, (height // 60, width // 60), dtype=np.uint8))
        warped = labels.rotate(random.uniform(5, 40), expand=False).resize((width, height), Image.Resampling.NEAREST)
        warped.save(root / "masks" / f"{name}.png")
    (root / "classes.txt").write_text("".join(f"class {label}\n" for label in range(CLASSES)), "utf-8")
    (root / "splits" / "train.txt").write_text("\n".join(names) + "\n", "utf-8")


if __name__ == "__main__":
    main()
