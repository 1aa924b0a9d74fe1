"""Procedural scenes with K labels: no files, any K, the same picture wherever it is drawn.

Scene i of a split depends on (options, split, i) and on nothing else; what labels look like and which occur together
depends on (seed, classes, zipf) alone, so splits share one world. Geometry is measured in image widths: the same scene
drawn at 64 and at 256 pixels is the same picture.

What makes ranking labels learnable, and a large K hard (`World`, `Looks`):
  frequencies   Zipf–Mandelbrot: the label of frequency rank r = 1, 2, … is drawn with weight (r + 2.7)^-zipf. With
                2.7 (Mandelbrot's value for words) the most frequent label is in 46 % of the images at K = 64 and in
                30 % at 512, much as "person" is in COCO. The order of class ids
                says nothing about frequency.
  company       a scene shows one scene type and takes its 4 to 8 labels from that type's list of 30. Types share
                frequent labels; rare labels belong to one or two. So a label that is seen makes others likely.
  appearance    two colours, a grating between them and a small texture, all drawn once per label; every region varies
                them a little and every image has its own light, so labels overlap more the more there are.

With `objects`, labels of odd id are things: each is drawn as 1 to `objects` regions, which are its objects, and the
others are stuff. These are other scenes than those of the same seed without objects.

Every number below was fixed before any method was compared on these scenes; a change of one is a new VERSION.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kappaseg_core.config import fingerprint
from kappaseg_core.errors import UserError
from kappaseg_core.ranking import IGNORE
from kappaseg_core.scenes.synthetic_world import World, make_world
from kappaseg_core.seeding import seed_of
from kappaseg_core.structures import Scene

#: Part of the fingerprint: scenes of another version are other data.
VERSION = 1

REGIONS = (4, 8)  # labels per scene, both included; COCO-Stuff photos have 8 in the mean, smaller pictures hold fewer
REACH = (0.7, 1.4)  # a region's reach relative to its neighbours': areas differ up to fourfold, objects beside stuff
WAVE = 0.02  # borders wave by 2 % of the width: not straight, yet smooth at 64 pixels
WAVES = 2.5  # waves per width
TINT = 0.05  # deviation of a region's colours from its label's: nearest labels differ by 0.08 at K = 64, 0.04 at 512
TURN = 0.1  # deviation of a region's grating direction, in radians (6 degrees; directions fill 180)
STRETCH = 0.1  # deviation of a region's wavelength, relative (wavelengths span a factor of 3)
GAIN = 0.15  # channel gains of an image lie in 1 ± 0.15: exposure and white balance, a fifth of a stop
RAMP = 0.15  # light falls off by up to ± 15 % across the image


@dataclass(frozen=True)
class Options:
    """Size and difficulty of the world."""

    classes: int = 64
    """K, the number of labels"""
    train: int = 400
    """images of the split train"""
    val: int = 100
    """images of the split val"""
    size: int = 64
    """height and width in pixels"""
    seed: int = 0
    """another seed is another world: other looks, other company, other scenes"""
    zipf: float = 1.0
    """exponent of the label frequencies; 0 = all equally frequent"""
    noise: float = 0.06
    """deviation of the pixel noise, with 1 = white; 0.06 is weaker than most textures"""
    ignore: float = 0.03
    """share of pixels without a label, those nearest to a border (COCO-Stuff leaves 3 % unlabelled)"""
    objects: int | None = None
    """at most so many objects of each thing in a scene, told apart; null = no objects, one region per label"""

    def __post_init__(self) -> None:
        for name, least in (("classes", 2), ("train", 1), ("val", 1), ("size", 32)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)}, wanted at least {least}")
        if self.objects is not None and self.objects < 1:
            raise ValueError(f"objects = {self.objects}, wanted at least 1, or null")
        for name, below in (("zipf", 3.0), ("noise", 1.0), ("ignore", 1.0)):
            if not 0 <= getattr(self, name) < below:
                raise ValueError(f"{name} = {getattr(self, name)}, wanted at least 0 and below {below}")


def open_scenes(root: str, split: str, options: Options) -> SyntheticScenes:
    """The scenes of split train or val. `root` is not used: there are no files."""
    if split not in ("train", "val"):
        raise UserError(f"split {split!r} is not there; synthetic scenes have the splits train and val")
    return SyntheticScenes(split, options)


class SyntheticScenes:
    """A split of the world; scenes are drawn when asked for."""

    def __init__(self, split: str, options: Options) -> None:
        self.split, self.options = split, options
        self.class_names = tuple(f"label_{label:04d}" for label in range(options.classes))
        self.image_ids = tuple(f"{split}-{index:06d}" for index in range(getattr(options, split)))
        thing = (label % 2 == 1 for label in range(options.classes))
        self.things = None if options.objects is None else tuple(thing)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Scene:
        index = range(len(self))[index]
        rng, _, labels = self._draw(index)
        if self.options.objects is not None:
            labels = labels.repeat(np.where(labels % 2 == 1, rng.integers(1, self.options.objects + 1, len(labels)), 1))
        regions, margin = _regions(rng, len(labels), self.options.size)
        mask = labels[regions]
        unlabelled = round(self.options.ignore * margin.size) if len(labels) > 1 else 0
        mask.flat[np.argpartition(margin, unlabelled, axis=None)[:unlabelled]] = IGNORE
        instances = None
        if self.options.objects is not None:
            instances = np.where((mask != IGNORE) & (mask % 2 == 1), regions + 1, 0).astype(np.int32)
        picture = _paint(rng, self.world, labels, regions, self.options.noise)
        return Scene(picture, mask, self.image_ids[index], instances)

    def image(self, index: int) -> np.ndarray:
        """The image alone, u8 [3, H, W]."""
        return self[index].image

    def drawn(self, index: int) -> tuple[int, np.ndarray]:
        """The scene type and the labels drawn for a scene, i32 [n]; a label may yet be left without a pixel."""
        _, scene_type, labels = self._draw(range(len(self))[index])
        return scene_type, labels

    def fingerprint(self) -> str:
        """sha256 over the version and all options that this split depends on."""
        options = {name: getattr(self.options, name) for name in ("classes", "size", "seed", "zipf", "noise", "ignore")}
        if self.options.objects is not None:  # scenes without are those that were there before objects
            options["objects"] = self.options.objects
        return fingerprint({"synthetic": VERSION, "split": self.split, "images": len(self), **options})

    @property
    def world(self) -> World:
        """What all scenes share; made at the first use in each process."""
        return _world(self.options.seed, self.options.classes, self.options.zipf)

    def _draw(self, index: int) -> tuple[np.random.Generator, int, np.ndarray]:
        rng = np.random.default_rng(seed_of(self.options.seed, "synthetic scene", self.split, index))
        world = self.world
        scene_type = int(np.searchsorted(world.types_up_to, rng.random(), side="right"))
        listed, weights = world.labels[scene_type], world.weights[scene_type]
        count = min(int(rng.integers(REGIONS[0], REGIONS[1] + 1)), len(listed))
        return rng, scene_type, rng.choice(listed, count, replace=False, p=weights)


_world = lru_cache(maxsize=4)(make_world)


def _regions(rng: np.random.Generator, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Region of each pixel [size, size] and its distance margin to the next region, in widths, f32 [size, size].

    A Voronoi diagram with a reach per site (multiplicative weights), drawn in coordinates that wave a little.
    """
    sites = rng.random((count, 2, 1, 1), dtype=np.float32)
    reach = rng.uniform(*REACH, (count, 1, 1)).astype(np.float32)
    phases = (2 * np.pi * rng.random(2)).astype(np.float32)
    places = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / size
    waves = WAVE * np.sin(2 * np.pi * WAVES * places + phases[:, None], dtype=np.float32)
    y, x = places[:, None] + waves[0][None, :], places[None, :] + waves[1][:, None]
    distance = np.sqrt((y - sites[:, 0]) ** 2 + (x - sites[:, 1]) ** 2) / reach
    nearest = distance.argmin(0)
    if count == 1:
        return nearest, np.ones((size, size), np.float32)
    first, second = np.partition(distance, 1, axis=0)[:2]
    return nearest, second - first


def _paint(rng: np.random.Generator, world: World, labels: np.ndarray, regions: np.ndarray, noise: float) -> np.ndarray:
    """The picture of the regions, u8 [3, size, size]: each label's look, varied per region, in one light."""
    size, looks, count = len(regions), world.looks, len(labels)
    places = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / size
    y, x = places[:, None], places[None, :]

    def along(turns: np.ndarray, wavelengths: np.ndarray) -> np.ndarray:
        """Phase of a wave in every pixel: each region has its own direction, wavelength and start."""
        kx, ky = 2 * np.pi * np.cos(turns) / wavelengths, 2 * np.pi * np.sin(turns) / wavelengths
        start = 2 * np.pi * rng.random(count)
        kx, ky, start = (part.astype(np.float32)[regions] for part in (kx, ky, start))
        return kx * x + ky * y + start

    turn = TURN * rng.standard_normal(count)
    stretch = np.exp(STRETCH * rng.standard_normal(count))
    tint = TINT * rng.standard_normal((3, count))
    middle = (looks.middle[:, labels] + tint).astype(np.float32)[:, regions]
    swing = looks.swing[:, labels][:, regions]
    sharpness = looks.sharpness[labels][regions]
    grating = np.tanh(sharpness * np.cos(along(looks.angle[labels] + turn, looks.wavelength[labels] * stretch)))
    across, upward = (
        np.cos(along(looks.texture_angle[labels] + turn + quarter, looks.texture_wavelength[labels] * stretch))
        for quarter in (0.0, np.pi / 2)
    )
    texture = np.choose(
        looks.texture[labels][regions],
        (np.zeros_like(across), across * upward, np.maximum(across + upward - 0.5, 0), np.maximum(across, upward)),
    )
    picture = middle + swing * grating + looks.texture_strength[labels][regions] * texture

    fall = 2 * np.pi * rng.random()
    ramp = np.float32(RAMP * rng.random()) * (np.cos(fall) * (2 * x - 1) + np.sin(fall) * (2 * y - 1))
    gain = rng.uniform(1 - GAIN, 1 + GAIN, (3, 1, 1)).astype(np.float32)
    picture = picture * gain * (1 + ramp.astype(np.float32))
    picture += np.float32(noise) * rng.standard_normal(picture.shape, dtype=np.float32)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
