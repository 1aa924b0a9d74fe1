"""Whole images: windows, scales, mirrored views, one ranking for all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.config import build
from kappaseg_core.errors import UserError
from kappaseg_core.ranking import PADDING_LOGIT, Ranking, complete_ranking, top_kappa
from stage2_segmentation import pixels, rank_maps
from stage2_segmentation.config import InferenceConfig, Stage2Config
from stage2_segmentation.inference import corners, pieces_of_views, segmented
from stage2_segmentation.pixels import Axis, axis_weights, resized_axis
from stage2_segmentation.rank_maps import Piece, best_ranks, can_win, rank_scores
from stage2_segmentation.structures import Prediction, Seen
from tests.tensors import PRIME, Created

K, KAPPA, CELL = 7, 3, 4


class Cells(nn.Module):
    """A network whose logits in a cell depend on that cell's pixels and on the ids of the labels alone, so that what
    it says of a place is the same in every window that holds the cell; mirrored images give mirrored maps."""

    cell = CELL

    def __init__(self, num_classes: int = K) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.table = torch.randn(num_classes, 3, generator=generator)
        self.asked: list[Ranking] = []

    def look(self, images: Tensor) -> Seen:
        return Seen(images)

    def segment(self, seen: Seen, ranking: Ranking) -> Prediction:
        return Prediction(self(seen.features, ranking))

    def forward(self, images: Tensor, ranking: Ranking) -> Tensor:
        self.asked.append(ranking)
        missing = [-side % CELL for side in images.shape[2:]]
        cells = F.avg_pool2d(F.pad(images, (0, missing[1], 0, missing[0])), CELL)
        logits = torch.einsum("bkc,bchw->bkhw", self.table[ranking.labels], cells) * 4
        return logits.masked_fill(~ranking.valid[:, :, None, None], PADDING_LOGIT)


@pytest.fixture
def network() -> Cells:
    return Cells()


def image_of(height: int, width: int) -> Tensor:
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(height))


def ranking_of(kappa: int = KAPPA, num_classes: int = K) -> Ranking:
    return top_kappa(torch.rand(1, num_classes, generator=torch.Generator().manual_seed(kappa)), kappa)


WHOLE = InferenceConfig()
SLIDE = InferenceConfig("slide", window=16, stride=8)


def label_map(
    network: Cells, image: Tensor, ranking: Ranking, plan: InferenceConfig, *, size: tuple[int, int]
) -> Tensor:
    return segmented(network, image, ranking, plan, size=size).label_map


def scores(network: Cells, image: Tensor, ranking: Ranking, plan: InferenceConfig, size: tuple[int, int]) -> Tensor:
    """[κ, H, W]"""
    return torch.cat(list(rank_scores(pieces_of_views(network, image, ranking, plan, size=size), size))).permute(
        2, 0, 1
    )


def pixel_logits(network: Cells, image: Tensor, ranking: Ranking, plan: InferenceConfig) -> Tensor:
    """Logits [κ, H, W] of the image as it is."""
    return scores(network, image, ranking, plan, (image.shape[1], image.shape[2]))


@pytest.mark.parametrize("side", [5, 16, 17, 23, 24, 40])
@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 8), (16, 5), (3, 1)])
def test_windows_cover_every_pixel_and_stay_inside(side: int, window: int, stride: int) -> None:
    seen = torch.zeros(side, 9, dtype=torch.int64)
    places = list(corners(side, 9, window, stride))
    for top, left in places:
        assert 0 <= top <= max(0, side - window)
        assert 0 <= left <= max(0, 9 - window)
        seen[top : top + window, left : left + window] += 1
    assert (seen > 0).all()
    assert len(set(places)) == len(places)


def test_the_last_window_is_moved_inside() -> None:
    assert list(corners(20, 10, 8, 8)) == [(0, 0), (0, 2), (8, 0), (8, 2), (12, 0), (12, 2)]


@pytest.mark.parametrize("stride", [0, -4, 17])
def test_a_stride_that_would_leave_gaps_is_refused(stride: int) -> None:
    with pytest.raises(UserError, match=rf"inference.stride = {stride}, wanted 1 to window = 16"):
        build(Stage2Config, {"inference": {"mode": "slide", "window": 16, "stride": stride}})


@pytest.mark.parametrize("size", [(16, 16), (9, 14)])
def test_one_window_is_the_whole_image(network: Cells, size: tuple[int, int]) -> None:
    image, ranking = image_of(*size), ranking_of()
    assert torch.equal(pixel_logits(network, image, ranking, SLIDE), pixel_logits(network, image, ranking, WHOLE))


@pytest.mark.parametrize("size", [(23, 37), (12, 40)])
def test_sliding_is_the_average_over_all_labels_channels(network: Cells, size: tuple[int, int]) -> None:
    """As the release does it: each window into K channels, sum, divide by the count, largest channel."""
    image, ranking = image_of(*size), ranking_of()
    total, count = torch.zeros(K, *size), torch.zeros(size)
    for top, left in corners(*size, 16, 8):
        rows, columns = slice(top, min(top + 16, size[0])), slice(left, min(left + 16, size[1]))
        full = torch.full((K, rows.stop - rows.start, columns.stop - columns.start), -100.0)
        full[ranking.labels[0]] = pixel_logits(network, image[:, rows, columns], ranking, WHOLE)
        total[:, rows, columns] += full
        count[rows, columns] += 1
    assert torch.equal(label_map(network, image, ranking, SLIDE, size=size), (total / count).argmax(0))
    torch.testing.assert_close(pixel_logits(network, image, ranking, SLIDE), (total / count)[ranking.labels[0]])


def test_cells_that_do_not_see_each_other_make_windows_invisible(network: Cells) -> None:
    """Where windows begin at cells and the logits are not interpolated, sliding says what the whole image says."""
    image, ranking = image_of(24, 40), ranking_of()
    network.cell = 1  # a logit per cell, taken as a pixel
    one_pixel = F.interpolate(image[None], scale_factor=CELL)[0]  # every pixel becomes a cell

    class Pixels(Cells):
        cell = 1

        def forward(self, images: Tensor, ranking: Ranking) -> Tensor:
            return super().forward(F.interpolate(images, scale_factor=CELL), ranking)

    pixels = Pixels()
    expected = network(one_pixel[None], ranking)[0]
    torch.testing.assert_close(pixel_logits(pixels, image, ranking, SLIDE), expected)


@pytest.mark.parametrize("plan", [WHOLE, replace(WHOLE, scales=(0.5, 1.5)), SLIDE])
def test_mirrored_views_change_nothing_for_a_symmetric_network(network: Cells, plan: InferenceConfig) -> None:
    """Width in whole cells and windows; a wrong or missing mirror back shows at once."""
    image, ranking = image_of(24, 32), ranking_of()
    plain = scores(network, image, ranking, plan, (24, 32))
    mirrored = scores(network, image, ranking, replace(plan, flip=True), (24, 32))
    plain = plain.softmax(0) if len(plan.scales) == 1 else plain
    torch.testing.assert_close(mirrored, plain, rtol=1e-4, atol=1e-5)


def test_several_views_are_averaged_after_the_softmax(network: Cells) -> None:
    image, ranking, size = image_of(23, 30), ranking_of(), (46, 60)
    plan = InferenceConfig(scales=(1.0, 0.5, 1.5), flip=True)
    expected = torch.zeros(KAPPA, *size)
    for height, width in ((23, 30), (12, 15), (34, 45)):
        for mirrored in (False, True):
            view = F.interpolate(image[None], (height, width), mode="bilinear") if height != 23 else image[None]
            view = view.flip(3) if mirrored else view
            cells = network(view, ranking)
            up = F.interpolate(cells, scale_factor=CELL, mode="bilinear")[..., :height, :width]
            up = up.flip(3) if mirrored else up
            expected += F.interpolate(up, size, mode="bilinear").softmax(1)[0] / 6
    torch.testing.assert_close(scores(network, image, ranking, plan, size), expected)
    ranks = expected.argmax(0)
    assert torch.equal(label_map(network, image, ranking, plan, size=size), ranking.labels[0][ranks])


def test_all_views_of_an_image_are_asked_for_the_same_labels(network: Cells) -> None:
    ranking = ranking_of()
    plan = InferenceConfig("slide", window=16, stride=8, scales=(1.0, 1.5), flip=True)
    label_map(network, image_of(30, 40), ranking, plan, size=(30, 40))
    assert sum(len(asked) for asked in network.asked) == 2 * (3 * 4 + 5 * 7)
    for asked in network.asked:
        for ours, given in ((asked.labels, ranking.labels), (asked.scores, ranking.scores)):
            assert torch.equal(ours, given.expand_as(ours))
        assert asked.valid.all()


@pytest.mark.parametrize("plan", [WHOLE, SLIDE, replace(SLIDE, flip=True, scales=(0.75, 1.0))])
def test_only_labels_of_the_ranking_are_predicted(network: Cells, plan: InferenceConfig) -> None:
    """Padding ranks stand for label 0, which is not kept here."""
    labels, valid = torch.tensor([[4, 2, 0, 0]]), torch.tensor([[True, True, False, False]])
    found = label_map(network, image_of(23, 30), Ranking(labels, valid.float(), valid), plan, size=(23, 30))
    assert set(found.unique().tolist()) == {2, 4}
    shorter = Ranking(labels[:, :2], valid[:, :2].float(), valid[:, :2])
    assert torch.equal(found, label_map(network, image_of(23, 30), shorter, plan, size=(23, 30)))


def test_an_image_without_labels_still_gives_a_map(network: Cells) -> None:
    none = Ranking(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bool))
    assert label_map(network, image_of(8, 9), none, WHOLE, size=(8, 9)).unique().tolist() == [0]


def test_the_map_has_the_asked_size(network: Cells) -> None:
    for plan in (WHOLE, SLIDE):
        assert label_map(network, image_of(20, 30), ranking_of(), plan, size=(31, 45)).shape == (31, 45)


def test_with_all_labels_it_is_the_plain_argmax(network: Cells) -> None:
    image = image_of(20, 28)
    expected = pixel_logits(network, image, complete_ranking(1, K), WHOLE).argmax(0)
    shuffled = ranking_of(K)
    assert shuffled.labels[0].tolist() != list(range(K))
    assert torch.equal(label_map(network, image, shuffled, WHOLE, size=(20, 28)), expected)


@pytest.mark.parametrize("plan", [WHOLE, replace(SLIDE, flip=True, scales=(0.75, 1.0))])
def test_no_tensor_has_an_axis_of_all_labels(plan: InferenceConfig) -> None:
    network, ranking = Cells(PRIME), ranking_of(num_classes=PRIME)
    with Created() as created:
        label_map(network, image_of(23, 30), ranking, plan, size=(23, 30))
    assert len(created.tensors) > 5
    assert created.shapes_with(PRIME) == []


@pytest.mark.parametrize("size", [(20, 24), (13, 17), (33, 50), (2, 3)])
@pytest.mark.parametrize("strip", [1, 7, 10**9])
def test_looking_at_ranks_that_can_win_alone_changes_nothing(
    size: tuple[int, int], strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Smooth cells, as networks give them, and rough ones; padding ranks."""
    monkeypatch.setitem(pixels.STRIP, "cpu", strip * size[1] * 9)
    monkeypatch.setattr(rank_maps, "FEW", 1.1)
    rough = torch.randn(5, 6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    smooth = torch.linspace(-2, 1.9, 5)[:, None, None] * rough[0, 0] + torch.linspace(-1, 1.2, 6)[:, None] * rough[1, 1]
    for cells in (rough, smooth, 50 * smooth):
        cells[..., 7:] = PADDING_LOGIT
        rows, columns = (
            Axis.of(resized_axis(axis_weights(count, CELL, CELL * count), side), cells)
            for count, side in zip(cells.shape[:2], size, strict=True)
        )
        piece = Piece(cells, rows, columns, alone=True)
        up = F.interpolate(cells.permute(2, 0, 1)[None], scale_factor=CELL, mode="bilinear")
        plain = F.interpolate(up, size, mode="bilinear")[0]
        found = best_ranks([[piece]], size)
        assert torch.equal(found, best_ranks([[replace(piece, alone=False)]], size))
        assert torch.equal(found, plain.argmax(0))


@pytest.mark.parametrize("plan", [WHOLE, SLIDE, replace(WHOLE, scales=(0.5, 1.0), flip=True)])
def test_autocast_around_it_leaves_the_upsampling_in_single_precision(plan: InferenceConfig) -> None:
    """A network run in bf16 gives logits; between two cells, bf16 cannot tell their weighted means apart."""

    class InSingle(Cells):
        def forward(self, images: Tensor, ranking: Ranking) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return super().forward(images, ranking)

    image, ranking, size = image_of(61, 77), ranking_of(5), (122, 154)
    wanted = label_map(InSingle(), image, ranking, plan, size=size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(label_map(InSingle(), image, ranking, plan, size=size), wanted)


@pytest.mark.parametrize("few", [0.0, 1.1])
def test_a_network_that_went_wrong_still_gives_a_map(few: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a training whose loss became NaN is not ended by its evaluation, but seen in its numbers."""
    monkeypatch.setattr(rank_maps, "FEW", few)
    network = Cells()
    network.table.fill_(torch.nan)
    found = label_map(network, image_of(23, 30), ranking_of(), WHOLE, size=(23, 30))
    assert found.shape == (23, 30)


def test_views_are_added_one_at_a_time(network: Cells) -> None:
    """Twelve views, and no tensor that holds four of them at all pixels and ranks (the largest is an image)."""
    plan = InferenceConfig(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True)
    with Created() as created:
        label_map(network, image_of(23, 30), ranking_of(), plan, size=(23, 30))
    assert max(tensor.numel() for tensor in created.tensors) < 4 * KAPPA * 23 * 30


def test_few_ranks_are_upsampled_where_few_can_win() -> None:
    cells = torch.full((8, 8, 30), -1.0)
    cells[..., [3, 17]] = 0.0
    cells[:4, :, 3], cells[4:, :, 17] = 1.0, 1.0
    contested = can_win(cells)
    assert [found.nonzero()[:, 0].tolist() for found in contested] == [[3], [3], [3, 17], [3, 17], [17], [17]]
