"""Configuration errors name the dotted path, the value seen and what was wanted."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from kappaseg_core.config import LoopConfig, build, fingerprint, load_config, override, to_plain
from kappaseg_core.errors import UserError


@dataclass(frozen=True)
class Inner:
    size: int = 3
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    name: str | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    many: tuple[int, ...] = ()
    table: dict[int, int] = field(default_factory=dict)
    loop: LoopConfig = field(default_factory=LoopConfig)


def test_values_reach_nested_dataclasses_with_their_types() -> None:
    config = build(Outer, {"inner": {"rate": 1, "size": 7}, "pair": [1, "1e-4"], "many": [1, 2], "table": {5: -1}})
    assert config == Outer(Inner(7, 1.0), None, (1.0, 1e-4), (1, 2), {5: -1})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"iner": {}}, ["unknown setting iner", "did you mean inner?"]),
        ({"inner": {"sise": 1}}, ["inner.sise", "did you mean size?"]),
        ({"inner": {"size": "large"}}, ["inner.size = 'large'", "whole number"]),
        ({"inner": {"size": True}}, ["inner.size = True", "whole number"]),
        ({"inner": {"rate": "fast"}}, ["inner.rate = 'fast'", "a number"]),
        ({"inner": {"kind": "c"}}, ["inner.kind = 'c'", "'a', 'b'"]),
        ({"inner": 5}, ["inner", "group of settings", "5"]),
        ({"name": 5.5}, ["name = 5.5", "text"]),
        ({"pair": [1]}, ["pair = [1]", "list of 2"]),
        ({"many": [1, "x"]}, ["many[1] = 'x'"]),
        ({"table": {"x": 1}}, ["table = 'x'", "whole number"]),
        ({"loop": {"steps": 0}}, ["loop.steps = 0", "at least 1"]),
        ({"loop": {"batch_size": 3, "accumulate": 2}}, ["loop.batch_size = 3", "accumulate = 2"]),
    ],
)
def test_a_bad_value_is_one_line_with_path_value_and_wish(values: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build(Outer, values, source="some.yaml")
    message = str(caught.value)
    assert message.startswith("some.yaml: ")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_overrides_lie_on_top_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("inner: {size: 4, rate: 0.1}\nname: first\n")
    config = load_config(Outer, file, [("inner.rate", "2e-3"), ("name", "null"), ("pair", "[3, 4]")])
    assert config.inner == Inner(4, 2e-3)
    assert config.name is None
    assert config.pair == (3.0, 4.0)


def test_an_override_does_not_change_the_mapping_it_was_copied_from() -> None:
    shared = {"size": 1}
    values = {"inner": shared}
    override(values, "inner.size", "2")
    assert values == {"inner": {"size": 2}}
    assert shared == {"size": 1}


@pytest.mark.parametrize("text", ["- a\n- b\n", "key: [1, 2\n"])
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"c\.yaml"):
        load_config(Outer, file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_config(Outer, tmp_path / "none.yaml")


def test_plain_values_build_the_same_configuration_again() -> None:
    config = Outer(Inner(9, 0.25, "b"), "x", (2.0, 3.0), (4,), {1: 2})
    assert build(Outer, to_plain(config)) == config


def test_the_fingerprint_ignores_key_order_and_sees_values() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_configurations_are_checked_without_torch() -> None:
    code = (
        "import sys, stage1_multilabel.config, stage2_segmentation.config, pipelines.cli\n"
        "assert not {'torch', 'ray', 'fastapi'} & set(sys.modules), set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_settings_of_a_run_directory_can_be_given_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("model: m\nconfig: {steps: 7}\ninputs: {}\nclass_names: [a]\n")
    assert load_config(LoopConfig, tmp_path, [("batch_size", "3")]) == LoopConfig(steps=7, batch_size=3)
    with pytest.raises(UserError, match="cannot be read"):
        load_config(LoopConfig, tmp_path / "..")
