"""The benchmark's page: whole, self-contained, and with the numbers of results.json."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from kappaseg_core.errors import UserError
from pipelines.benchmark import figures, tables
from pipelines.benchmark.page import write_page
from pipelines.benchmark.results import write_results
from pipelines.cli import main
from pipelines.results_doc import format_rows
from tests.pipelines.benchmark.made_up import SHOWN, MadeUp, data_set, make_up
from tests.pipelines.test_report import Page


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole benchmark with its data set, results and page. Not to be changed: copy it."""
    home = tmp_path_factory.mktemp("made")
    out = make_up(home / "out", data=data_set(home / "data"))
    write_results(out)
    write_page(out)
    return out


@pytest.fixture(scope="module")
def text(made: Path) -> str:
    return (made / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


@pytest.fixture(scope="module")
def results(made: Path) -> dict[str, Any]:
    return dict(json.loads((made / "results.json").read_text()))


def words_of(page: Page) -> list[str]:
    return [word.strip() for word in page.words if word.strip()]


def test_every_tag_is_closed(page: Page) -> None:
    assert page.open == []


def test_nothing_is_loaded_from_outside_and_nothing_is_run(text: str, page: Page) -> None:
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.seen}
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.attributes("src"))
    assert all(address.startswith("#") for name in ("href", "xlink:href") for address in page.attributes(name))
    assert not re.search(r"url\((?!#)|@import", text)
    assert not [name for _, attributes in page.seen for name in attributes if name.startswith("on")]


def test_every_reference_on_the_page_has_its_place(page: Page) -> None:
    places = page.attributes("id")
    assert len(places) == len(set(places))
    wanted = {address[1:] for name in ("href", "xlink:href") for address in page.attributes(name)}
    assert wanted <= set(places)
    assert {"result", "claims", "cost", "labels", "figures", "examples", "classes", "runs", "settings"} <= wanted


def test_the_numbers_of_the_page_are_those_of_the_results(page: Page, results: dict[str, Any]) -> None:
    words = set(words_of(page))
    schemes = results["schemes"].values()
    for name, scale in (("miou", 100), ("map", 100), ("coverage", 100), ("train_seconds", 1), ("latency_p50_ms", 1)):
        column = [None if entry[name] is None else scale * entry[name] for entry in schemes]
        assert {cell for (cell,) in format_rows([(value,) for value in column])} <= words, name
    for entry in schemes:
        assert f"{100 * entry['miou']:.2f}" in words  # behind its bar


def test_every_claim_is_on_the_page_with_its_verdict(page: Page, results: dict[str, Any]) -> None:
    words = words_of(page)
    for claim in results["claims"]:
        assert words[words.index(claim["claim"]) + 1] == f"{tables.MARKS[claim['verdict']]} {claim['verdict']}"


def test_every_step_is_on_the_page_with_its_directory(page: Page, results: dict[str, Any]) -> None:
    words = set(words_of(page))
    assert all({run["step"], run["run"], run["fingerprint"][:12]} <= words for run in results["runs"])


def test_labels_that_are_not_there_differ_by_colour_and_by_mark_and_by_word(text: str) -> None:
    rows = re.findall(r'<li class="(there|absent)">(.*?)</li>', text)
    assert {kind for kind, _ in rows} == {"there", "absent"}
    for kind, row in rows:
        assert ("✓" in row, "✗" in row) == (kind == "there", kind == "absent")
        assert (">in the image<" in row) == (kind == "there")


def test_each_example_shows_image_truth_and_the_four_main_schemes(page: Page) -> None:
    pictures = [attributes for tag, attributes in page.seen if tag == "img"]
    assert len(pictures) == 6 * SHOWN
    assert all(attributes["alt"] for attributes in pictures)
    captions = words_of(page)
    first = captions.index("Image")
    shown = [word for word in captions[first:] if word in {"Image", "Truth"} or word.startswith("scheme ")]
    assert shown[:6] == ["Image", "Truth", "scheme plain", "scheme two", "scheme both", "scheme told"]


def test_wide_tables_can_be_scrolled_with_the_keyboard(page: Page) -> None:
    scrolled = [attributes for _, attributes in page.seen if attributes.get("class", "").startswith("scroll")]  # type: ignore[union-attr]
    assert scrolled
    assert all(attributes.get("tabindex") == "0" and attributes.get("aria-label") for attributes in scrolled)


def test_names_are_shown_as_they_are_and_not_read_as_tags(text: str) -> None:
    assert "label &lt;0&gt;" in text
    assert "label <0>" not in text


def test_the_page_is_the_same_when_it_is_made_again(made: Path, text: str, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    assert write_page(out).read_text("utf-8") == text


def test_without_the_data_set_the_rankings_stay_and_the_pictures_are_named_as_missing(
    made: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    plan = json.loads((out / "plan.json").read_text())
    plan["config"]["data"]["root"] = str(tmp_path / "nowhere")
    (out / "plan.json").write_text(json.dumps(plan))
    found = Page(write_page(out).read_text("utf-8"))
    assert not [tag for tag, _ in found.seen if tag == "img"]
    assert "Ranked by scheme both" in words_of(found)
    assert any(word.startswith("pictures: the data set cannot be read here") for word in words_of(found))


def test_a_benchmark_of_one_seed_and_two_schemes_has_a_page(tmp_path: Path) -> None:
    two = {"plain": MadeUp("complete", 0.4), "both": MadeUp("joint", 0.6, labels="encoder")}
    out = make_up(tmp_path / "out", two, seeds=(0,))
    table = tables.accuracy_table(write_results(out))
    assert table is not None and "95 % over seeds" not in table.columns
    found = Page(write_page(out).read_text("utf-8"))
    assert found.open == []
    assert {"claims", "missing"} <= set(found.attributes("id"))


def test_a_benchmark_in_which_nothing_is_done_has_a_page(tmp_path: Path) -> None:
    out = make_up(tmp_path / "out", {"plain": MadeUp("complete", 0.4)}, seeds=(0,))
    shutil.rmtree(out / "steps")
    write_results(out)
    found = Page(write_page(out).read_text("utf-8"))
    assert found.open == []
    assert "measure-plain-seed-0: not done" in words_of(found)


def test_a_page_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"results\.json cannot be read"):
        write_page(tmp_path)


def sized(results: dict[str, Any], classes: int, seconds: float) -> dict[str, Any]:
    """The same results of a vocabulary of another size."""
    schemes = {name: {**entry, "train_cpu_seconds": seconds} for name, entry in results["schemes"].items()}
    return {**results, "data": {**results["data"], "num_classes": classes}, "schemes": schemes}


def test_costs_stand_against_k_where_there_are_several_sizes(results: dict[str, Any]) -> None:
    several = [sized(results, 600, 20.0), sized(results, 150, 10.0)]
    curve = figures.cost_curves(several)[0]
    assert curve.series["scheme both"] == ([150, 600], [10.0, 20.0])
    table = tables.cost_against_k(several)
    assert table is not None
    assert [row[:2] for row in table.rows][:2] == [("scheme both", 150), ("scheme both", 600)]
    assert figures.cost_curves([results]) == [] and tables.cost_against_k([results]) is None


def test_other_benchmarks_join_the_page(made: Path, results: dict[str, Any], tmp_path: Path) -> None:
    out, other = Path(shutil.copytree(made, tmp_path / "out")), tmp_path / "other"
    other.mkdir()
    (other / "results.json").write_text(json.dumps(sized(results, 150, 10.0)))
    sentence = "Cost against the size of the vocabulary"
    assert main(["report", str(out)]) == 0
    assert sentence not in words_of(Page((out / "report.html").read_text("utf-8")))
    assert main(["report", str(out), "--beside", str(other)]) == 0
    assert sentence in words_of(Page((out / "report.html").read_text("utf-8")))


def test_a_benchmark_beside_it_that_is_none_is_named(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(shutil.copytree(made, tmp_path / "out")), "--beside", str(tmp_path / "no")]) == 2
    assert "no/results.json cannot be read" in capsys.readouterr().err


def test_bars_are_as_long_as_their_values(text: str) -> None:
    svg = ElementTree.fromstring(
        figures.bars_svg("T", [figures.Bar("a <1>", 40.0), figures.Bar("b", 10.0, (5.0, 15.0))])
    )
    first, second = (float(rect.attrib["width"]) for rect in svg.iter("{http://www.w3.org/2000/svg}rect"))
    assert first / second == pytest.approx(4)
    assert "a <1> 40.00; b 10.00" in (svg[0].text or "")


def test_markdown_tables_hold_the_same_figures(results: dict[str, Any]) -> None:
    document = tables.results_tables(results)
    row = next(line for line in document.splitlines() if line.startswith("| scheme both"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == f"{100 * results['schemes']['both']['miou']:.1f}"
    assert document.count("**") == 2 * 6


def test_gains_and_losses_by_label_are_against_the_baseline(results: dict[str, Any]) -> None:
    table = tables.class_tables(results)[-1]
    base, told = (results["schemes"][name]["class_iou"] for name in ("plain", "told"))
    gains = {name: 100 * (b - a) for name, a, b in zip(results["classes"]["names"], base, told, strict=True)}
    assert {str(row[0]): row[-1] for row in table.rows} == pytest.approx(gains, abs=1e-3)  # rounded to 1e-6 before
    assert [row[-1] for row in table.rows] == pytest.approx(sorted(gains.values(), reverse=True), abs=1e-3)
