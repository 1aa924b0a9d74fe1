"""The HTML page: whole, self-contained, and in the right order."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from kappaseg_core.errors import UserError
from kappaseg_core.ranking import IGNORE
from pipelines.curves import Curve, curve_svg, in_words
from pipelines.draw import labels_found
from pipelines.report import Example, RankedLabel, Report, Step, Table, agreement, legend_rows, write_report

NAMES = ("sky <1>", "tree", "road & path", "car")
TRUTH = np.array([[0, 0, 0, 1, 1], [2, 2, 2, 2, IGNORE], [3, 3, 3, 3, 3]])
MAP = np.array([[0, 0, 0, 1, 1], [2, 2, 2, 1, 1], [3, 3, 0, 0, 0]])
EXAMPLE = Example(
    "photo <7>", np.full((3, 3, 5), 90, np.uint8), TRUTH, {"cache": MAP, "oracle": TRUTH.clip(0)},
    (RankedLabel(2, 0.9, True), RankedLabel(1, 0.25, False)),
)  # fmt: skip
CURVE = Curve(
    "Loss <a> & $b$", "step", "loss", {"total": ([1, 2, 3], [3.0, 2.0, float("nan")])}, note="Lower is better."
)
TABLE = Table("Segmentation", ("scheme", "mIoU"), (("cache", 14.2), ("complete", 6.125)), "Same steps.")
STEP = Step("Train <it>", "kappaseg run-stage1 a.yaml --out 'x y'", 61.2, 812.4, {"mAP, %": 45.678, "images": 12345})
REPORT = Report(
    title="What was done & found",
    intro=("Words <first>.",),
    headline=Table("Result", ("scheme", "mIoU"), (("oracle", 30.0),)),
    findings=("It works.",),
    examples=(EXAMPLE,),
    curves=(CURVE,),
    tables=(TABLE,),
    steps=(STEP,),
    class_names=NAMES,
    footer="seed 0",
)


class Page(HTMLParser):
    """Tags that are opened and closed, all attributes, and the text outside of tags."""

    VOID = ("meta", "img", "br", "input", "link", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.seen if name in attrs]


def written(folder: Path, report: Report = REPORT) -> str:
    write_report(folder / "report.html", report)
    return (folder / "report.html").read_text("utf-8")


def test_every_tag_is_closed(tmp_path: Path) -> None:
    assert Page(written(tmp_path)).open == []


def test_nothing_is_loaded_from_outside(tmp_path: Path) -> None:
    text = written(tmp_path)
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.seen}
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.attributes("src"))
    assert all(address.startswith("#") for name in ("href", "xlink:href") for address in page.attributes(name))
    assert not re.search(r"url\((?!#)|@import", text)


def test_every_reference_on_the_page_has_its_place(tmp_path: Path) -> None:
    page = Page(written(tmp_path))
    places = page.attributes("id")
    assert len(places) == len(set(places))
    wanted = {address[1:] for name in ("href", "xlink:href") for address in page.attributes(name)}
    assert wanted <= set(places)
    assert {"examples", "curves", "tables", "steps"} <= wanted


def test_the_result_comes_before_everything_else(tmp_path: Path) -> None:
    words = "\n".join(Page(written(tmp_path)).words)
    order = ["Words <first>.", "Result", "It works.", "photo <7>", "Lower is better.", "Segmentation", "Same steps.",
             "Train <it>", "seed 0"]  # fmt: skip
    at = [words.index(part) for part in order]
    assert at == sorted(at)


def test_figures_are_shown_as_people_read_them(tmp_path: Path) -> None:
    words = [word.strip() for word in Page(written(tmp_path)).words]
    assert {"14.2", "6.1", "45.7", "12,345", "1 min 1 s · 812 MiB"} <= set(words)


def test_every_picture_says_what_it_shows_and_can_be_read(tmp_path: Path) -> None:
    pictures = [attrs for tag, attrs in Page(written(tmp_path)).seen if tag == "img"]
    assert [str(p["alt"]).split(":")[0] for p in pictures] == [
        "Image photo <7>", "Label map, Truth", "Label map, cache", "Label map, oracle"
    ]  # fmt: skip
    assert "car 33.3 %" in str(pictures[1]["alt"])
    for picture in pictures:
        decoded = Image.open(io.BytesIO(base64.b64decode(str(picture["src"]).split(",", 1)[1])))
        assert decoded.width / decoded.height == pytest.approx(5 / 3, rel=0.01)


def test_parts_that_are_not_there_leave_no_heading_and_no_link(tmp_path: Path) -> None:
    page = Page(written(tmp_path, Report("Nothing yet")))
    assert not {"h2", "table", "img", "svg", "footer"} & {tag for tag, _ in page.seen}
    assert page.attributes("href") == []


def test_a_page_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*report\.html"):
        write_report(tmp_path / "nowhere" / "report.html", REPORT)


def test_agreement_counts_labelled_pixels_alone() -> None:
    assert agreement(MAP, TRUTH) == pytest.approx(10 / 14)
    assert agreement(TRUTH, TRUTH) == 1
    assert agreement(MAP, np.full_like(TRUTH, IGNORE)) == 0


def test_a_legend_shows_a_label_that_only_one_map_has_and_sums_the_rest() -> None:
    many = np.arange(20)[None]
    rows = legend_rows(
        [labels_found(many, [f"l{i}" for i in range(21)]), labels_found(many * 0 + 20, [""] * 20 + ["z"])]
    )
    assert [row[1] for row in rows] == ["z", *(f"l{i}" for i in range(11)), "9 more"]
    assert rows[0][2] == [0.0, 1.0]
    assert rows[-1][2] == pytest.approx([9 / 20, 0])
    assert np.sum([row[2] for row in rows], axis=0) == pytest.approx([1, 1])


def test_a_curve_is_one_drawing_in_the_colours_of_the_page() -> None:
    drawing = curve_svg(CURVE)
    ElementTree.fromstring(drawing)
    assert "currentColor" in drawing and "#010203" not in drawing
    assert "font-family" not in drawing
    assert re.findall(r"Loss &lt;a&gt; &amp; \$b\$", drawing)


def test_two_curves_of_one_page_share_no_names() -> None:
    other = Curve("Another", "step", "loss", {"total": ([1, 2], [3.0, 2.0])})
    first, second = (set(re.findall(r' id="([^"]+)"', curve_svg(curve))) for curve in (CURVE, other))
    assert first and second and not first & second


def test_a_curve_is_told_in_words() -> None:
    curve = Curve("Coverage", "κ", "share", {"a": ([1, 5], [0.25, 0.5]), "none": ([], [])})
    assert in_words(curve) == "Coverage. share over κ: a from 0.250 at 1.00 to 0.500 at 5.00"


@pytest.mark.parametrize("names", [("a", "b", "c"), ("a ranking with a long name", "another one with a long name")])
def test_a_legend_of_lines_stays_inside_the_drawing(names: tuple[str, ...]) -> None:
    drawing = ElementTree.fromstring(curve_svg(Curve("C", "x", "y", {name: ([1, 2], [1.0, 2.0]) for name in names})))
    width = float(drawing.attrib["viewBox"].split()[2])
    texts = [node for node in drawing.iter("{http://www.w3.org/2000/svg}text") if node.text in names]
    assert len(texts) == len(names)
    for text in texts:
        place = text.attrib.get("x") or re.findall(r"translate\(([\d.]+)", text.attrib["transform"])[0]
        assert float(place) + 6.5 * len(text.text or "") < width
