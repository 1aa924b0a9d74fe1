"""From a benchmark's settings to its steps. Pure: the same settings and inputs give the same plan; what several schemes
share is one step.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kappaseg_core.config import fingerprint, load_config, to_plain
from kappaseg_core.errors import UserError
from pipelines.benchmark.config import FEATURES, BenchmarkConfig, SchemeConfig, Settings, flat, scheme_of, words
from pipelines.benchmark.inputs import Inputs, weights_sha256
from pipelines.benchmark.plan import Plan, Step
from stage1_multilabel.config import RankConfig, Stage1Config
from stage2_segmentation.config import Stage2Config

T = TypeVar("T", Stage1Config, RankConfig, Stage2Config)

#: sources that give all labels that they know of, so that κ at test changes nothing
UNCUT = ("complete", "oracle")
#: settings that the benchmark itself decides, for every step
OURS = ("data", "out", "name", "init", "fold", "folds", "classifier", "cache", "loop.seed", "source.cache")
#: what a scheme with `of` may change: settings of an evaluation
EVALUATION = ("source.test", "source.test_kappa", "inference", "loop.precision", "loop.device")
#: stands for inputs that are not read yet, while settings are checked
UNREAD = Inputs(data="", classes=2**31)


def expand(config: BenchmarkConfig, inputs: Inputs, out: Path, files: Path) -> Plan:
    """The steps of a benchmark.   files: folder of the settings files. Raises UserError for the first mistake."""
    builder = Builder(Plan(config, inputs, out), files)
    names = [name for name in config.schemes if not config.only or name in config.only]
    for name in names:
        builder.add_scheme(name)
    builder.add_cost(names)
    return builder.plan


@dataclass(frozen=True)
class Builder:
    """Fills a plan, scheme by scheme."""

    plan: Plan
    files: Path
    networks: dict[tuple[str, int], Stage2Config] = field(default_factory=dict)

    @property
    def config(self) -> BenchmarkConfig:
        return self.plan.config

    def add_scheme(self, name: str) -> None:
        """Networks of all seeds, what they stand on, and their measurements."""
        scheme, seeds = scheme_of(self.config, name), self.seeds(name)
        test = self.test_config(name, seeds[0])
        reads = "cache" in (test.source.train, test.source.at_test)
        self.plan.schemes[name] = {
            "label": scheme.label, "source": test.source.train, "test": test.source.at_test, "of": scheme.of,
            "ranker": scheme.ranker if reads else None, "folds": scheme.folds if reads else 0,
        }  # fmt: skip
        for seed in seeds:
            for kappa in (None, *self.further_kappas(name, test)):
                self.add_measure(name, seed, kappa)

    def add_features(self, target: str, config: Stage1Config | Stage2Config, seed: int) -> tuple[str, ...]:
        """The step that computes a frozen backbone's features, where there is one: its id, or nothing."""
        if not (config.loop.cached_views and config.backbone.is_frozen):
            return ()
        sha256, plain = weights_sha256(config.backbone.weights), to_plain(config)
        backbone = {k: v for k, v in plain["backbone"].items() if k not in ("weights", "frozen", "checkpointing")}
        loop = {k: plain["loop"][k] for k in ("cached_views", "seed", "precision", "device")}
        decides = [target, backbone, loop, plain["augment"], *maps_of(plain.get("host"))]
        name = f"features-{target}-{fingerprint([*decides, sha256])[:6]}-seed-{seed}"
        step = Step(name, "features", f"seed-{seed}/{FEATURES}", {"target": target, **plain}, seed=seed)
        return (self.plan.add(step, decides=decides, weights=sha256).id,)

    def add_classifier(self, ranker: str, seed: int) -> Step:
        config = self.load(
            Stage1Config, f"rankers.{ranker}", self.config.stage1, self.config.rankers[ranker],
            {"out": self.path(f"seed-{seed}"), "loop.seed": seed},
        )  # fmt: skip
        step = Step(
            f"stage1-{ranker}-seed-{seed}", "stage1", f"seed-{seed}/{ranker}/stage1", to_plain(config),
            self.add_features("labels", config, seed), ranker=ranker, seed=seed,
        )  # fmt: skip
        return self.plan.add(step, weights=weights_sha256(config.backbone.weights))

    def add_ranking(self, scheme: SchemeConfig, seed: int) -> Step:
        """The label cache that a scheme reads. The classifiers of folds are part of it."""
        assert scheme.ranker is not None
        home, ending = f"seed-{seed}/{scheme.ranker}", f"-folds-{scheme.folds}" if scheme.folds else ""
        classifier, folder = self.add_classifier(scheme.ranker, seed), f"{home}/labels{ending}"
        out = f"{home}/folds-{scheme.folds}" if scheme.folds else home
        last = {"out": self.path(out), "classifier": self.path(classifier.folder), "cache": self.path(folder)}
        config = self.load(RankConfig, "rank", self.config.rank, {}, {**last, "folds": scheme.folds})
        name = f"rank-{scheme.ranker}{ending}-seed-{seed}"
        step = Step(name, "rank", folder, to_plain(config), (classifier.id,), ranker=scheme.ranker, seed=seed)
        return self.plan.add(step)

    def add_network(self, name: str, seed: int) -> Step:
        config = self.train_config(name, seed)
        needs = self.add_features("mask", config, seed)
        if "cache" in (config.source.train, config.source.at_test):
            needs += (self.add_ranking(scheme_of(self.config, name), seed).id,)
        step = Step(
            f"train-{name}-seed-{seed}", "train", f"seed-{seed}/{name}", to_plain(config), needs, scheme=name, seed=seed
        )
        return self.plan.add(step, weights=weights_sha256(config.backbone.weights))

    def add_measure(self, name: str, seed: int, kappa: int | None) -> Step:
        """A network under a scheme's evaluation settings.   kappa: at test, instead of the scheme's own."""
        scheme, ending = scheme_of(self.config, name), f"-kappa-{kappa}" if kappa else ""
        network = self.add_network(scheme.of or name, seed)
        needs: tuple[str, ...] = (network.id,)
        settings = flat(scheme.stage2) if scheme.of else {}
        if self.test_config(name, seed).source.at_test == "cache":
            ranking = self.add_ranking(scheme, seed)
            needs += (ranking.id,)
            settings["source.cache"] = self.path(ranking.folder)
        if kappa:
            settings["source.test_kappa"] = kappa
        if self.config.data.root:
            settings["data.root"] = self.config.data.root
        values = {"run": network.folder, "settings": [list(pair) for pair in words(settings)]}
        step = Step(
            f"measure-{name}-seed-{seed}{ending}", "measure", f"measures/{name}-seed-{seed}{ending}",
            {**values, "gallery": self.config.gallery}, needs, scheme=name, seed=seed, kappa=kappa,
        )  # fmt: skip
        decides = [network.folder, words({k: v for k, v in settings.items() if k not in ("source.cache", "data.root")})]
        return self.plan.add(step, decides=[*decides, self.config.gallery])

    def add_cost(self, names: list[str]) -> None:
        """One step over the networks of all schemes that train one, first seed of each."""
        runs: dict[str, Step] = {}
        classifiers: dict[str, Step] = {}
        for name in names:
            if self.plan.schemes[name]["of"] is None:
                seed = self.seeds(name)[0]
                runs[name] = self.plan.steps[f"train-{name}-seed-{seed}"]
                if ranker := self.plan.schemes[name]["ranker"]:
                    classifiers[name] = self.plan.steps[f"stage1-{ranker}-seed-{seed}"]
        if runs:
            settings: Settings = {
                kind: {name: step.folder for name, step in steps.items()}
                for kind, steps in (("runs", runs), ("classifiers", classifiers))
            }
            settings["baseline"] = self.config.baseline if self.config.baseline in runs else None
            needs = tuple(dict.fromkeys(step.id for step in (*runs.values(), *classifiers.values())))
            self.plan.add(Step("cost", "cost", "cost", settings, needs))

    def seeds(self, name: str) -> tuple[int, ...]:
        scheme = scheme_of(self.config, name)
        trained = self.seeds(scheme.of) if scheme.of else self.config.seeds
        seeds = scheme.seeds or trained
        if scheme.of and (more := sorted(set(seeds) - set(trained))):
            raise UserError(
                f"schemes.{name}.seeds: {scheme.of} is not trained with seed {more[0]}; give it that seed too"
            )
        return seeds

    def further_kappas(self, name: str, test: Stage2Config) -> list[int]:
        """κ at test beside the scheme's own, where its ranking is cut."""
        classes = self.plan.inputs.classes
        if test.source.at_test in UNCUT:
            return []
        if left_out := [kappa for kappa in self.config.test_kappas if kappa > classes]:
            shown = ", ".join(map(str, left_out))
            note = f"test_kappas {shown}: there are only {classes} classes; left out"
            self.plan.notes += [note] if note not in self.plan.notes else []
        own = test.source.kept(classes, at_test=True)
        return [kappa for kappa in self.config.test_kappas if kappa <= classes and kappa != own]

    def train_config(self, name: str, seed: int) -> Stage2Config:
        """Settings of the network that a scheme trains."""
        if known := self.networks.get((name, seed)):
            return known
        scheme = scheme_of(self.config, name)
        last: Settings = {"out": self.path(f"seed-{seed}"), "loop.seed": seed}
        if scheme.ranker:
            ending = f"-folds-{scheme.folds}" if scheme.folds else ""
            last["source.cache"] = self.path(f"seed-{seed}/{scheme.ranker}/labels{ending}")
        config = self.load(Stage2Config, f"schemes.{name}", self.config.stage2, scheme.stage2, last)
        self.networks[name, seed] = config
        return config

    def test_config(self, name: str, seed: int) -> Stage2Config:
        """Settings under which a scheme is measured. Raises UserError where it cannot be."""
        scheme = scheme_of(self.config, name)
        if not scheme.of:
            test = self.train_config(name, seed)
        else:
            trained = scheme_of(self.config, scheme.of)
            test = self.load(Stage2Config, f"schemes.{name}", self.config.stage2, trained.stage2, scheme.stage2)
            for key in flat(scheme.stage2):
                if not any(key == known or key.startswith(f"{known}.") for known in EVALUATION):
                    raise UserError(
                        f"schemes.{name}: {key} is part of the network of {scheme.of}; an evaluation can change "
                        f"{', '.join(EVALUATION)}"
                    )
        if "cache" in (test.source.train, test.source.at_test) and not (scheme.ranker or scheme.of):
            raise UserError(f"schemes.{name}: its rankings are from a label cache; set its ranker to one of rankers")
        if test.source.at_test == "cache" and not scheme.ranker:
            raise UserError(
                f"schemes.{name}: rankings at test are from a label cache; set its ranker to one of rankers"
            )
        return test

    def load(self, kind: type[T], where: str, common: Settings, own: Settings, last: Settings) -> T:
        """A step's settings: its file, the benchmark's data and weights, then what each argument lays on top."""
        file = {Stage1Config: "stage1", RankConfig: "rank", Stage2Config: "stage2"}[kind]
        for group, settings in ((file, common), (where, own)):
            for name in flat(settings):
                if any(name == key or name.startswith(f"{key}.") for key in OURS):
                    raise UserError(f"{group}.{name}: the benchmark itself decides this; take it out")
        given: list[tuple[str, str]] = [("data", json.dumps(to_plain(self.config.data)))]
        if kind is not RankConfig:
            given.append(("backbone.weights", json.dumps(self.config.weights)))
        try:
            path = self.files / getattr(self.config.files, file)
            return load_config(kind, path, [*given, *words(common), *words(own), *words(last)])
        except UserError as error:
            raise UserError(f"{where}: {error}") from None

    def path(self, folder: str) -> str:
        return str(self.plan.out / folder)


def maps_of(host: Settings | None) -> tuple[Any, ...]:
    """What decides the maps that a host is given, where they are not the Segmenter's. Each host says so itself
    (stage2_segmentation.hosts.wants_of), but not without loading torch."""
    if host is None or host["kind"] == "segmenter":
        return ()
    return host["kind"], host["options"].get("blocks")


def checked(config: BenchmarkConfig, out: Path, files: Path) -> None:
    """Raise UserError for a mistake in the settings, before anything is read."""
    expand(config, UNREAD, out, files)
