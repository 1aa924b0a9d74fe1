"""The 171 classes of COCO-Stuff: 80 things, then 91 kinds of stuff, in the order of their ids 1..182."""

from __future__ import annotations

from pathlib import Path

from kappaseg_core.errors import UserError
from kappaseg_core.scenes.published.layout import names, numbered_names

CLASSES = names("""
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking
meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie,
suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis
racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog,
pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell
phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush,
banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile,
cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other,
floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel, ground-other,
hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow,
plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea,
shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table, tent, textile-other,
towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood,
water-other, waterdrops, window-blind, window-other, wood
""")
CLASSES_SHA256 = "8ea44449837dceb30923012b201fe0152adc612160d0d040c9cfcd77e95f6801"

#: ids of 1..182 that no image has: street sign, hat, shoe, eye glasses, plate, mirror, window, desk, door, blender, …
UNUSED = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91))
#: id → class id
CLASS_IDS = {raw: label for label, raw in enumerate(raw for raw in range(1, 183) if raw not in UNUSED)}


def compare_names(path: Path) -> None:
    """Raises UserError where the published list of ids has other names than ours; nothing where there is no list."""
    theirs = numbered_names(path)
    for raw, label in CLASS_IDS.items():
        if theirs and theirs.get(raw) != CLASSES[label]:
            raise UserError(f"{path} calls class {raw} {theirs.get(raw)!r}, wanted {CLASSES[label]!r}; unpack it again")
