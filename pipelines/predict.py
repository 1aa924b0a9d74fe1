"""`kappaseg predict`: images that no data set holds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from kappaseg_core.checkpoint import read_record
from kappaseg_core.errors import UserError
from kappaseg_core.files import no_empty_folders, write_atomic, writing
from kappaseg_core.placement import Placement, place
from kappaseg_core.progress import Meter, say
from kappaseg_core.ranking import OwnRanking, Ranking, complete_ranking
from kappaseg_core.scenes.images import photo
from kappaseg_core.scenes.panoptic_files import Categories
from label_cache import class_difference
from pipelines.draw import Found, labels_found, overlay
from pipelines.draw_segments import counted, segment_overlay
from pipelines.evaluate import changed
from pipelines.segment_files import SegmentFiles
from pipelines.tables import show_table
from stage1_multilabel.live import LiveClassifier
from stage1_multilabel.rank import Ranker
from stage2_segmentation.config import Stage2Config
from stage2_segmentation.evaluate import load_segmentation, segment_image
from stage2_segmentation.model import SegmentationModel
from stage2_segmentation.objects import refuse_several_views
from stage2_segmentation.sources import SourceInputs, service


def predict_images(
    run: Path,
    images: Sequence[Path],
    to: Path,
    *,
    settings: Sequence[tuple[str, str]] = (),
    classifier: Path | None = None,
) -> None:
    """Segment image files: TO/NAME.png (overlay with a legend of the labels found) and TO/NAME.labels.png (label ids).

    Of a network that learns objects the overlay shows segments, and they are written as COCO's panoptic files:
    TO/panoptic/NAME.png and TO/panoptic.json, which lists the images of this call.

    Images that the run has never seen have no row in a cache, so a network that was trained on one is given the ranking
    of its classifier, live; a joint network ranks by itself. An oracle's network has no truth here and is refused.
    """
    model, training, class_names = load_segmentation(run)
    config = changed(training, settings)
    here = place(config.loop)
    things = things_found(run, model, config)
    files = None if things is None else SegmentFiles(to, Categories.of(class_names, things))
    names = named_apart(images)
    pictures = [read_photo(path) for path in images]
    rank = live_ranking(config, class_names, classifier, here)
    rows = []
    with no_empty_folders(to), Meter("segmenting", len(images), unit="image") as meter:
        with writing(to):
            to.mkdir(parents=True, exist_ok=True)
        for path, name, picture in zip(images, names, pictures, strict=True):
            ranking = rank(picture)
            result = segment_image(
                model.to(here.device), torch.from_numpy(picture), ranking, config.inference, here, things
            )
            found = result.label_map.numpy()
            if files is None or result.segments is None:
                drawn = overlay(picture, found, class_names)
                rows.append([path.name, describe(labels_found(found, class_names), result.ranking)])
            else:
                drawn = segment_overlay(picture, result.segments, files.categories)
                rows.append([path.name, describe(counted(result.segments, files.categories), result.ranking)])
                files.add(name, result.segments)
            write_atomic(to / f"{name}.png", partial(drawn.save, format="PNG"))
            write_atomic(to / f"{name}.labels.png", partial(save_labels, found, len(class_names)))
            meter.advance()
        if files is not None:
            files.finish()
    show_table(f"written to {to}", ["image", "labels found, by area"], rows)


def things_found(run: Path, model: SegmentationModel, config: Stage2Config) -> tuple[bool, ...] | None:
    """Which labels are things, where the network tells their objects apart; else None. Raises UserError."""
    if not model.learns_objects:
        return None
    refuse_several_views(config.inference)
    record = read_record(run)
    if "things" not in record:
        raise UserError(
            f"{run / 'run.yaml'} does not say which classes have objects; add a list of their names, things"
        )
    return tuple(name in record["things"] for name in record["class_names"])


def named_apart(images: Sequence[Path]) -> list[str]:
    """The results' names: each file's without its ending. Raises UserError where two would be the same."""
    names = [path.stem for path in images]
    for name, path in zip(names, images, strict=True):
        if names.count(name) > 1:
            raise UserError(
                f"two images are called {name} ({path}, …); their results would overwrite each other, rename one"
            )
    return names


def save_labels(found: NDArray[Any], num_classes: int, target: Path) -> None:
    """Label ids as a PNG: 8-bit for up to 256 labels, else 16-bit, so that all maps of a vocabulary are of one kind."""
    Image.fromarray(found.astype(np.uint8 if num_classes <= 256 else np.uint16)).save(target, "PNG")


def describe(found: Sequence[Found], ranking: Ranking) -> str:
    """The labels of an image in words, with their ranks."""
    rank_of = {label: rank for rank, label in enumerate(ranking.labels[0].tolist(), 1)}
    return ", ".join(
        f"{one.name} {100 * one.share:.0f} %" + (f" (rank {rank_of[one.label]})" if one.label in rank_of else "")
        for one in found
    )


def live_ranking(config: Stage2Config, class_names: tuple[str, ...], classifier: Path | None, here: Placement) -> Any:
    """Image u8 [3, H, W] → Ranking, for images outside every data set."""
    if config.source.url is not None and config.source.at_test != "service":
        raise UserError(f"a service is named ({config.source.url}), and nobody asks it; add --source service")
    if config.source.at_test == "service" and classifier is not None:
        raise UserError(f"--classifier {classifier} and --source service: one of them ranks; leave one out")
    if config.source.at_test == "complete" and classifier is None:
        return lambda picture: complete_ranking(1, len(class_names))
    kappa = config.source.kept(len(class_names), at_test=True)
    if kappa > len(class_names):
        raise UserError(f"κ = {kappa}, but there are only {len(class_names)} classes; lower --source.test_kappa")
    if config.source.at_test == "joint" and classifier is None:
        own = OwnRanking(kappa)
        return lambda picture: own
    if config.source.at_test == "oracle" and classifier is None:
        raise UserError("this run is tested on the ground truth, which a new image does not have; add --classifier RUN")
    if config.source.at_test == "service" and classifier is None:
        return service_ranking(config.source.url, class_names, kappa)
    if config.source.cache is not None and classifier is None:
        raise UserError(
            f"this run is tested on the rankings in {config.source.cache}, which do not say where their classifier "
            "lies; add --classifier RUN"
        )
    ranker = Ranker.of(classifier or Path(config.out) / "stage1")
    if difference := class_difference(class_names, ranker.class_names):
        raise UserError(
            f"classifier {ranker.run} has another class list than the run: {difference}; "
            "give the one that it was trained with"
        )
    say(f"ranking with {ranker.run}, κ = {kappa}")
    return LiveClassifier.of(ranker, kappa, Placement(device=here.device))


def service_ranking(url: str | None, class_names: tuple[str, ...], kappa: int) -> Any:
    """Image u8 [3, H, W] → Ranking, by the classifier of a ranking service."""
    source = service.build(SourceInputs(kappa, class_names, splits={}, cache=Path(), url=url))
    say(f"ranking with the service at {url}, κ = {kappa}")
    return source.live


def read_photo(path: Path) -> NDArray[Any]:
    """An image file as u8 [3, H, W], upright RGB. Raises UserError."""
    try:
        return photo(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"image {path} cannot be read: {(error.strerror or str(error)).lower()}") from None
