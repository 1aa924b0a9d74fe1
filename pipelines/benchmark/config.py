"""Settings of a benchmark: which schemes, rankers and seeds, over the settings files of the steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kappaseg_core.config import DataConfig, load_config, override, refuse_below
from kappaseg_core.errors import UserError

#: groups whose settings are those of another verb: `--stage2.loop.steps 20` is `--loop.steps 20` of run-stage2
STAGES = ("stage1", "rank", "stage2")
#: settings that the command line may give as words between commas
LISTS = ("seeds", "test_kappas", "only")
#: folder of a seed that holds what a frozen backbone computed
FEATURES = "features"

Settings = dict[str, Any]


@dataclass(frozen=True)
class FilesConfig:
    """Settings files that everything below is laid over, relative to the benchmark's own file."""

    stage1: str = "stage1.yaml"
    rank: str = "rank.yaml"
    stage2: str = "stage2.yaml"


@dataclass(frozen=True)
class SchemeConfig:
    """One row of the table: a network and where its rankings come from, in training and at test."""

    label: str = ""
    """what tables call it; empty = its name"""
    stage2: Settings = field(default_factory=dict)
    """settings of its network, over those of all networks; with `of`, evaluation settings over that network's own"""
    extends: str | None = None
    """scheme whose settings these are laid over"""
    ranker: str | None = None
    """whose label cache it reads (a name in rankers), where a source is `cache`"""
    folds: int = 0
    """0: in-sample rankings of the training images; N ≥ 2: out-of-fold ones"""
    of: str | None = None
    """evaluate that scheme's networks instead of training some"""
    seeds: tuple[int, ...] | None = None
    """null = those of the benchmark"""

    def __post_init__(self) -> None:
        if self.folds == 1 or self.folds < 0:
            raise ValueError(f"folds = {self.folds}, wanted 0 (in-sample) or at least 2")


@dataclass(frozen=True)
class BenchmarkSettings:
    """What holds for all schemes of `kappaseg benchmark CONFIG`.

    A group of settings holds what the verb's own command line would take: `loop.steps: 20` or `loop: {steps: 20}`.
    """

    name: str = "benchmark"
    out: str = "runs/benchmark"
    """folder of everything it makes; shared by all machines of a cluster"""
    data: DataConfig = field(default_factory=DataConfig)
    """the data set of all steps"""
    weights: str | None = None
    """backbone weight file of all networks; null = the backbones are trained from random numbers"""
    files: FilesConfig = field(default_factory=FilesConfig)
    stage1: Settings = field(default_factory=dict)
    """settings of every classifier"""
    rank: Settings = field(default_factory=dict)
    """settings of every ranking"""
    stage2: Settings = field(default_factory=dict)
    """settings of every segmentation network"""
    baseline: str = "baseline"
    """scheme that the others are compared with"""
    only: tuple[str, ...] = ()
    """schemes to do; empty = all"""
    seeds: tuple[int, ...] = (0,)
    test_kappas: tuple[int, ...] = ()
    """further κ at test, for schemes whose ranking is cut; those beyond the vocabulary are left out, and named"""
    gallery: int = 6
    """validation images that are kept as pictures"""
    attempts: int = 3
    """how often a step is started before it counts as failed; it goes on where the attempt before was stopped"""
    threads: int = 1
    """threads of a step (and CPU cores that it reserves in Ray)"""
    gpus: float | None = None
    """GPUs that a step reserves in Ray, a fraction where several may share one; null = one where there are any"""

    def __post_init__(self) -> None:
        refuse_below(0, self, "gallery")
        refuse_below(1, self, "attempts", "threads")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)}, wanted at least one, each once")
        if any(kappa < 1 for kappa in self.test_kappas):
            raise ValueError(f"test_kappas = {list(self.test_kappas)}, wanted whole numbers from 1")


@dataclass(frozen=True)
class BenchmarkConfig(BenchmarkSettings):
    """`kappaseg benchmark CONFIG`."""

    rankers: dict[str, Settings] = field(default_factory=dict)
    """classifiers by name, with settings over those of every classifier"""
    schemes: dict[str, SchemeConfig] = field(default_factory=dict)
    """rows of the table by name"""


def load_benchmark(path: str | Path, settings: Sequence[tuple[str, str]] = ()) -> BenchmarkConfig:
    """The benchmark in a YAML file with `--dotted.key value` laid on top. Raises UserError for the first mistake."""
    own, staged = [], []
    for name, text in settings:
        if name in LISTS and not text.startswith("["):
            own.append((name, f"[{text}]"))
        elif is_staged(name):
            staged.append((name, text))
        else:
            own.append(("weights" if name == "backbone.weights" else name, text))
    config = load_config(BenchmarkConfig, path, own)
    for name, text in staged:
        config = with_setting(config, name, text, source=str(path))
    refuse_unknown(config, str(path))
    return config


def is_staged(name: str) -> bool:
    """Whether this sets one setting of a step: stage2.loop.steps, rankers.R.optim.lr, schemes.S.stage2.loop.steps."""
    first, *rest = name.split(".")
    if first in STAGES:
        return bool(rest)
    return (first == "rankers" and len(rest) > 1) or (first == "schemes" and len(rest) > 2 and rest[1] == "stage2")


def with_setting(config: BenchmarkConfig, name: str, text: str, *, source: str) -> BenchmarkConfig:
    """The configuration with one setting of a step laid over those that it has."""
    first, rest = name.split(".", 1)
    if first in STAGES:
        changes: dict[str, Any] = {first: on_top(getattr(config, first), rest, text)}
        return replace(config, **changes)
    owner, rest = rest.split(".", 1)
    known: Mapping[str, Any] = getattr(config, first)
    if owner not in known:
        raise UserError(f"--{name}: {first} has no {owner!r}; {source} has: {', '.join(known) or 'none'}")
    found = known[owner]
    if first == "rankers":
        return replace(config, rankers={**known, owner: on_top(found, rest, text)})
    changed = replace(found, stage2=on_top(found.stage2, rest.removeprefix("stage2."), text))
    return replace(config, schemes={**known, owner: changed})


def on_top(settings: Settings, name: str, text: str) -> Settings:
    """One more setting, as the last one, so that it wins."""
    parsed: Settings = {}
    override(parsed, "value", text)
    return {**{key: value for key, value in settings.items() if key != name}, name: parsed["value"]}


def refuse_unknown(config: BenchmarkConfig, source: str) -> None:
    """Raise UserError for a name that nothing in the benchmark has, and for schemes that stand on themselves."""
    if not config.schemes:
        raise UserError(f"{source}: schemes is empty, wanted at least one; see configs/quick/benchmark.yaml")
    refuse_shared_folders(config, source)
    wanted = [("baseline", config.baseline, "schemes"), *(("only", name, "schemes") for name in config.only)]
    for name, scheme in config.schemes.items():
        for key, where in (("extends", "schemes"), ("of", "schemes"), ("ranker", "rankers")):
            wanted += [(f"schemes.{name}.{key}", given, where)] if (given := getattr(scheme, key)) else []
    for what, given, where in wanted:
        if given not in (known := getattr(config, where)):
            raise UserError(f"{source}: {what} = {given!r} is unknown; {where} has: {', '.join(known) or 'none'}")
    for name in config.schemes:
        resolved = scheme_of(config, name, source)
        if resolved.of and scheme_of(config, resolved.of, source).of:
            raise UserError(
                f"{source}: schemes.{name}.of = {resolved.of!r} trains no network of its own; name one that does"
            )


def refuse_shared_folders(config: BenchmarkConfig, source: str) -> None:
    """Raise UserError for two names of one folder: OUT/seed-N has one for each scheme, each ranker, and FEATURES."""
    taken = {FEATURES: "the folder of features"}
    for group in ("rankers", "schemes"):
        for name in getattr(config, group):
            if name in taken:
                raise UserError(
                    f"{source}: {group}.{name} and {taken[name]} would have one folder; give it another name"
                )
            taken[name] = f"{group}.{name}"


def scheme_of(config: BenchmarkConfig, name: str, source: str = "benchmark") -> SchemeConfig:
    """A scheme with everything that it extends. Raises UserError for a cycle."""
    chain = [name]
    while parent := config.schemes[chain[-1]].extends:
        if parent in chain:
            raise UserError(
                f"{source}: schemes extend each other: {' → '.join([*chain, parent])}; take one `extends` out"
            )
        chain.append(parent)
    scheme = SchemeConfig()
    for step in reversed(chain):
        own = config.schemes[step]
        scheme = SchemeConfig(
            label=own.label or step, stage2=laid_over(scheme.stage2, own.stage2), ranker=own.ranker or scheme.ranker,
            folds=own.folds or scheme.folds, of=own.of or scheme.of, seeds=own.seeds or scheme.seeds,
        )  # fmt: skip
    return scheme


def laid_over(under: Settings, over: Settings) -> Settings:
    """Both groups of settings as one, by dotted name; what is in `over` comes last, so that it wins."""
    last = flat(over)
    return {name: value for name, value in flat(under).items() if name not in last} | last


def flat(settings: Settings) -> Settings:
    """Settings by dotted name: `loop: {steps: 20}` changes one setting of the group, as `loop.steps: 20` does.

    A group with a `preset`, or under a dotted name, replaces the one that was there, as on the command line.
    """
    found: Settings = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value and "preset" not in value and "." not in name:
            found |= {f"{name}.{inner}": v for inner, v in flat(dict(value)).items()}
        else:
            found[name] = value
    return found


def words(settings: Settings) -> list[tuple[str, str]]:
    """Settings as a command line gives them: names and YAML texts."""
    return [(name, json.dumps(value, ensure_ascii=False)) for name, value in flat(settings).items()]
