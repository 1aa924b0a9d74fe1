"""Figures as text, and result files as one Markdown document."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kappaseg_core.errors import UserError
from pipelines.results_doc import (
    Cell,
    ResultTable,
    Section,
    figure_columns,
    format_number,
    format_percent,
    format_rows,
    format_seconds,
    format_spread,
    markdown_table,
    read_results,
    write_results,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12345, "12,345"), (0.01234, "0.0123"), (0.0000123, "1.23e-05"), (45.678, "45.7"), (999.9, "1,000"),
        (99.96, "100"), (-0.5, "-0.500"), (0.0, "0"), (None, "–"), (math.nan, "–"), (math.inf, "∞"), (-math.inf, "-∞"),
        (True, "yes"), (False, "no"), ("as it is", "as it is"),
    ],
)  # fmt: skip
def test_a_figure_has_three_digits_that_count(value: Cell, text: str) -> None:
    assert format_number(value) == text


@given(st.floats(1e-3, 1e6))
def test_a_figure_read_back_is_off_by_less_than_half_a_percent(value: float) -> None:
    assert float(format_number(value).replace(",", "")) == pytest.approx(value, rel=0.005)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (192, "3 min 12 s"),
        (3599.6, "1 h 0 min"), (7500, "2 h 5 min"),
    ],
)  # fmt: skip
def test_a_duration_rolls_over_where_it_is_rounded_up(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_one_run_has_no_spread() -> None:
    assert format_spread([4.25]) == "4.2"
    assert format_spread([4.0, 6.0]) == f"5.0 ± {statistics.stdev([4, 6]):.1f}"


def test_a_missing_share_is_a_dash_and_others_are_percent() -> None:
    assert [format_percent(share) for share in (None, math.nan, 0.1234, 1.0)] == ["–", "–", "12.3", "100.0"]


def test_a_column_has_one_number_of_decimals() -> None:
    assert format_rows([("a", 45.678, 3), ("b", 5.0, 12345)]) == [["a", "45.7", "3"], ["b", "5.0", "12,345"]]


def test_a_column_whose_smallest_figure_would_vanish_keeps_its_digits() -> None:
    assert format_rows([(45.6,), (0.0012,)]) == [["45.6"], ["0.00120"]]


def test_columns_of_figures_and_gaps_stand_to_the_right() -> None:
    rows: list[tuple[Cell, ...]] = [("x", 1.5, None, "3 min", "-2.0", True), ("y", None, 2, "5 s", "–1", False)]
    assert figure_columns("abcdef", rows) == (False, True, True, True, True, False)


def test_a_table_is_aligned_and_its_bars_are_escaped() -> None:
    table = markdown_table(["scheme", "mIoU"], [["cache | κ = 5", 14.2], ["complete", 6.125]])
    assert table == (
        "| scheme         | mIoU |\n| -------------- | ---: |\n| cache \\| κ = 5 | 14.2 |\n| complete       |  6.1 |"
    )


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="has 1 cells, wanted 2: a, b"):
        markdown_table(["a", "b"], [["x"]])


def test_the_document_names_the_command_and_file_of_every_table(tmp_path: Path) -> None:
    table = ResultTable(
        ("run", "mIoU"), (("one", 0.5),), ("kappaseg evaluate out",), ("out/evaluation.json",), "A note."
    )
    write_results(tmp_path / "results.md", [Section("Real photos", ("Some words.",), (table,))], title="Numbers")
    text = (tmp_path / "results.md").read_text("utf-8")
    order = ["# Numbers", "## Real photos", "Some words.", "| one", "A note.", "```sh\nkappaseg evaluate out\n```",
             "Read from `out/evaluation.json`."]  # fmt: skip
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_a_damaged_result_file_is_one_clear_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(UserError, match=r"bad\.json") as error:
        read_results(tmp_path / "bad.json")
    assert "\n" not in str(error.value)


def test_a_missing_result_file_names_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run the command that writes it again"):
        read_results(tmp_path / "none.json")
