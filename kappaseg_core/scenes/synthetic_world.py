"""What all synthetic scenes share: how often labels occur, in whose company, and what they look like.

Legend: K labels, T scene types, n labels per type.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kappaseg_core.seeding import seed_of

SHIFT = 2.7  # of the Zipf–Mandelbrot weights (r + SHIFT)^-zipf; see synthetic.py
LABELS_PER_TYPE = 30  # long enough that company alone does not name the labels, short against K; ≤ K/2 for small K
LABELS_PER_NEW_TYPE = 10  # one scene type per 10 labels, so that each label is at home in one type and lists overlap
FEWEST_TYPES = 8  # also for small K
TEXTURES = 4  # none, checks, dots, net

# Looks: ranges of uniform draws. Lengths are image widths, colours are in [0, 1].
HUE = (0.0, 1.0)  # the whole circle
SATURATION = (0.2, 0.75)  # neither grey alone nor neon
BRIGHTNESS = (0.3, 0.9)  # room for light and noise before values clip
HUE_STEP = 1 / 6  # the second colour of a label lies within 60 degrees of the first: patterns, not flags
WAVELENGTH = (
    1 / 12,
    1 / 4,
)  # a grating has 3 to 12 periods per width: 5 to 16 pixels at 64, 2.7 to 8 at the least size 32
TEXTURE_WAVELENGTH = (1 / 16, 1 / 9)  # finer than most gratings, 4 pixels at 64
SHARPNESS = (0.5, 4.0)  # of tanh(s·cos): from a sine to a stripe
TEXTURE_STRENGTH = (0.04, 0.15)  # around the noise of a pixel, visible over a region


@dataclass(frozen=True)
class Looks:
    """Appearance per label. middle and swing: f32 [3, K], colour = middle ± swing; the others [K]."""

    middle: np.ndarray
    swing: np.ndarray
    angle: np.ndarray
    wavelength: np.ndarray
    sharpness: np.ndarray
    texture: np.ndarray
    texture_angle: np.ndarray
    texture_wavelength: np.ndarray
    texture_strength: np.ndarray


@dataclass(frozen=True)
class World:
    """Scene types and looks.

    popularity: f64 [K], probability of each label in one draw: p(l) ∝ (r_l + SHIFT)^-zipf, r_l = 1, 2, … its rank.
    labels: i32 [T, n], the labels of each type.      weights: f64 [T, n], the probabilities of a draw within the type.
    types_up_to: f64 [T], cumulative probabilities of the types.

    With c_l the number of types that list label l, a type draws l in proportion to p(l)/c_l, and the type itself is
    drawn in proportion to the sum of these weights. Then one draw yields l with probability exactly p(l):
    Σ_t P(t) P(l|t) = Σ_{t lists l} p(l)/c_l = p(l). (Drawing the further labels of a scene without repetition makes the
    most frequent ones a little rarer.)
    """

    popularity: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    types_up_to: np.ndarray
    looks: Looks


def make_world(seed: int, classes: int, zipf: float) -> World:
    """The world of a seed with K = classes labels."""
    rng = np.random.default_rng(seed_of(seed, "synthetic world", classes))
    popularity = np.empty(classes)
    popularity[rng.permutation(classes)] = (np.arange(1, classes + 1) + SHIFT) ** -zipf
    popularity /= popularity.sum()
    labels = _company(rng, popularity)
    weights = (popularity / np.bincount(labels.ravel(), minlength=classes))[labels]
    types = weights.sum(1)
    up_to = np.cumsum(types)
    return World(popularity, labels, weights / types[:, None], up_to / up_to[-1], _looks(rng, classes))


def _company(rng: np.random.Generator, popularity: np.ndarray) -> np.ndarray:
    """The label lists of the scene types, i32 [T, n].

    Every label is at home in one type (dealt out at random, so none is left over); the rest of each list is drawn by
    popularity, so frequent labels are shared by many types.
    """
    classes = len(popularity)
    types = max(FEWEST_TYPES, round(classes / LABELS_PER_NEW_TYPE))
    length = min(LABELS_PER_TYPE, max(classes // 2, min(classes, 4)))
    up_to = np.cumsum(popularity)
    dealt = rng.permutation(classes).tolist()
    lists = []
    for scene_type in range(types):
        listed = dict.fromkeys(dealt[scene_type::types])
        while len(listed) < length:
            drawn = np.searchsorted(up_to, rng.random(2 * length) * up_to[-1], side="right").tolist()
            listed.update(dict.fromkeys(drawn))
        lists.append(list(listed)[:length])
    return np.array(lists, dtype=np.int32)


def _looks(rng: np.random.Generator, classes: int) -> Looks:
    hue, saturation, brightness = (rng.uniform(*span, classes) for span in (HUE, SATURATION, BRIGHTNESS))
    first = _rgb(hue, saturation, brightness)
    hue = hue + rng.uniform(-HUE_STEP, HUE_STEP, classes)
    second = _rgb(hue, rng.uniform(*SATURATION, classes), rng.uniform(*BRIGHTNESS, classes))
    return Looks(
        middle=((first + second) / 2).astype(np.float32),
        swing=((first - second) / 2).astype(np.float32),
        angle=rng.uniform(0, np.pi, classes),
        wavelength=_log_uniform(rng, WAVELENGTH, classes),
        sharpness=rng.uniform(*SHARPNESS, classes).astype(np.float32),
        texture=rng.integers(TEXTURES, size=classes),
        texture_angle=rng.uniform(0, np.pi / 2, classes),
        texture_wavelength=_log_uniform(rng, TEXTURE_WAVELENGTH, classes),
        texture_strength=rng.uniform(*TEXTURE_STRENGTH, classes).astype(np.float32),
    )


def _log_uniform(rng: np.random.Generator, span: tuple[float, float], count: int) -> np.ndarray:
    return np.exp(rng.uniform(np.log(span[0]), np.log(span[1]), count))


def _rgb(hue: np.ndarray, saturation: np.ndarray, brightness: np.ndarray) -> np.ndarray:
    """HSV → RGB, [3, n]: channel c = brightness·(1 - saturation·clip(min(k, 4 - k), 0, 1)), k = (c + 6·hue) mod 6,
    with c = 5, 3, 1 for red, green, blue."""
    k = (np.array([5.0, 3.0, 1.0])[:, None] + 6 * hue) % 6
    return brightness * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1))
