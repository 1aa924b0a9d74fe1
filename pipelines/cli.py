"""`kappaseg VERB …`: one function per verb, each a few lines over the package that does the work.

A mistake ends in one line on standard error and exit status 2. Heavy packages are imported inside the verbs, so that
settings are checked, and labels looked up, without torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from kappaseg_core.config import build, load_config, override
from kappaseg_core.errors import UserError
from label_cache.errors import CacheError
from pipelines.arguments import apart, data_at, settings_help, split_settings
from pipelines.bench.arguments import add_network
from pipelines.bench.data_flags import add_data_flags
from pipelines.import_arguments import add_import, run_import
from pipelines.panoptic_arguments import add_panoptic, run_panoptic
from pipelines.plan.arguments import add_plan
from pipelines.scale_config import add_flags, scale_of

EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130
#: verbs that go on from what they had saved
RESUME = frozenset(("demo", "run-stage1", "rank", "run-stage2", "run-joint", "benchmark", "evaluate"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; gives the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["data", "prepare"]:
        words.append("--help")  # which lists the sets
    parser = build_parser()
    try:
        own, settings = words, list[str]()
        chosen = parser.verbs.get(words[0]) if words else None
        if chosen is not None and len(words) > 1:
            chosen = chosen.verbs.get(words[1], chosen)
        if chosen is not None and chosen.get_default("settings"):
            own, settings = apart(words, chosen.flags())
        arguments, rest = parser.parse_known_args(own)
        if rest:
            raise UserError(f"argument {rest[0]!r} was not expected; see kappaseg {arguments.verb} --help")
        return int(arguments.run(arguments, settings) or 0)
    except (UserError, CacheError) as error:
        print(f"kappaseg: {one_line(error)}", file=sys.stderr)
        return EXIT_MISTAKE
    except KeyboardInterrupt:
        goes_on = words[0] in RESUME or words[:2] == ["data", "prepare"]
        how = "; the same command goes on from the last saved step" if goes_on else ""
        print(f"kappaseg: stopped{how}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return 0


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours: one line. Flags are not abbreviated. verbs: the parser of each."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **keywords})
        self.verbs: dict[str, Parser] = {}

    def flags(self) -> set[str]:
        return {flag for action in self._actions for flag in action.option_strings}

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def build_parser() -> Parser:
    parser = Parser(prog="kappaseg", description="Rank the labels of an image, then classify pixels among the best κ.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)

    demo = verb(verbs, "demo", run_demo, "the whole story on synthetic scenes, in minutes, ending with an HTML report")
    demo.add_argument("--out", help="folder for everything it makes (default: demo, or demo-quick with --quick)")
    demo.add_argument("--quick", action="store_true", help="a minute, to see that it runs; its numbers mean nothing")

    for name, run, kind, text in (
        ("run-stage1", run_stage1, "stage1_multilabel.config:Stage1Config", "train a multi-label classifier"),
        ("rank", run_rank, "stage1_multilabel.config:RankConfig", "write the label cache with a classifier"),
        ("run-stage2", run_stage2, "stage2_segmentation.config:Stage2Config", "train a segmentation network"),
        ("run-joint", run_joint, "stage2_segmentation.config:Stage2Config", "train one network for both tasks"),
    ):
        stage = verb(verbs, name, run, text, settings=kind)
        stage.add_argument("config", metavar="CONFIG", help="YAML file, for example configs/quick/stage1.yaml")
        if run is not run_rank:
            add_flags(stage)

    benchmark = verb(
        verbs, "benchmark", run_benchmark, "train and measure all schemes side by side, ending with one table and page",
        settings="pipelines.benchmark.config:BenchmarkSettings",
    )  # fmt: skip
    benchmark.add_argument("config", metavar="CONFIG", help="YAML file, for example configs/quick/benchmark.yaml")
    benchmark.add_argument("--local", action="store_true", help="one step after the other, without Ray")
    benchmark.add_argument("--ray.address", dest="address", metavar="A", help="run on the Ray cluster at HOST:PORT")
    benchmark.add_argument("--submit", metavar="ADDRESS", help="hand it to a cluster's job server, http://HOST:8265")

    report = verb(verbs, "report", run_report, "make the table and page of a benchmark again, from its records")
    report.add_argument("out", metavar="DIR", help="output folder of kappaseg benchmark")
    report.add_argument(
        "--beside", metavar="DIR", action="append", default=[], type=Path,
        help="a benchmark of another vocabulary, for cost against its size; may be given several times",
    )  # fmt: skip

    evaluate = verb(
        verbs, "evaluate", run_evaluate, "measure trained networks on the validation split",
        settings="stage2_segmentation.config:Stage2Config",
    )  # fmt: skip
    evaluate.add_argument(
        "what", metavar="RUN", nargs="?", help="run directory, output folder of a chain, or its CONFIG"
    )
    evaluate.add_argument(
        "--alpha", type=float, metavar="A",
        help="κ per image: keep the labels that hold at least the share 1-A of the pixels of an image, on average",
    )  # fmt: skip
    evaluate.add_argument(
        "--calibration", metavar="SPLIT", help="split to choose κ on (default: half of the validation images)"
    )
    evaluate.add_argument(
        "--segments", metavar="DIR",
        help="new folder for the segments found, as COCO's panoptic files (networks that learn objects)",
    )  # fmt: skip

    predict = verb(
        verbs, "predict", run_predict, "segment images and draw the labels found",
        settings="stage2_segmentation.config:Stage2Config",
    )  # fmt: skip
    predict.add_argument("what", metavar="RUN", help="run directory that run-stage2 wrote")
    predict.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    predict.add_argument(
        "--to", default="predictions", metavar="DIR", help="where the pictures go (default: predictions)"
    )
    predict.add_argument("--classifier", metavar="RUN", help="classifier that ranks (default: stage1 beside RUN)")
    predict.add_argument(
        "--source", metavar="NAME", help="where rankings come from, for example service (--source.test)"
    )
    predict.add_argument("--url", help="address of the ranking service, for --source service (--source.url)")

    export = verb(verbs, "export", run_export, "write a trained network as one file that runs without this project")
    export.add_argument("what", metavar="RUN", help="run directory of a classifier or a segmentation network")
    export.add_argument("--format", required=True, choices=("torch-export", "onnx"), help="of the file")
    export.add_argument("--to", required=True, metavar="DIR", help="new folder for network, card and class names")
    export.add_argument("--kappa", type=int, metavar="N", help="labels kept (default: as tested; a classifier: all)")
    export.add_argument("--size", metavar="HxW", help="pixels of the images, or the side of squares (as tested)")

    serve = verb(
        verbs, "serve", run_serve, "classifier, label look-ups and segmentation over HTTP, with a page to see them",
        settings="pipelines.service.config:ServeConfig",
    )  # fmt: skip
    serve.add_argument("--classifier", metavar="RUN", help="classifier that ranks new images (OUT/stage1)")
    serve.add_argument(
        "--cache", metavar="DIR", action="append", default=[],
        help="label cache to look up, DIR or NAME=DIR; may be given several times",
    )  # fmt: skip
    serve.add_argument("--segmenter", metavar="RUN", help="network that segments (OUT/stage2-…)")
    serve.add_argument("--host", help="address to listen on (default: 127.0.0.1); others than loopback need a token")
    serve.add_argument("--port", type=int, help="default: 8000; 0 = any free one")
    serve.add_argument("--token-file", metavar="FILE", help="tokens that are let in, one a line")
    serve.add_argument(
        "--cors", metavar="ORIGIN", action="append", default=[], help="origin of another page that may ask"
    )

    add_import(
        verb(
            verbs, "import-weights", run_import, "a published checkpoint as a run directory",
            settings="stage2_segmentation.config:Stage2Config",
        )
    )  # fmt: skip

    lookup = verb(verbs, "lookup", run_lookup, "the ranked labels of images, from a cache (needs no torch)")
    lookup.add_argument("cache", metavar="CACHE", help="cache directory, for example OUT/labels")
    lookup.add_argument("ids", metavar="ID", nargs="+", help="image ids")
    lookup.add_argument("--kappa", type=int, help="labels to show (default: 10, or all where fewer are stored)")
    lookup.add_argument("--json", action="store_true", help="print JSON")

    cache = verb(verbs, "cache", run_cache, "what a label cache holds, and whether it is whole")
    cache.add_argument("action", choices=("info", "check"))
    cache.add_argument("cache", metavar="CACHE")

    data = verb(
        verbs,
        "data",
        run_data,
        "check a data set, pack it into one HDF5 file, or prepare a published one (`kappaseg data prepare` lists them)",
        settings="kappaseg_core.config:DataConfig",
    )
    data.add_argument("action", choices=("check", "pack", "prepare"))
    data.add_argument("root", metavar="ROOT", help="folder of the data set, or a packed file; prepare: name of the set")
    data.add_argument("destination", metavar="FILE", nargs="?", help="pack: the file to write")
    data.add_argument("--splits", nargs="+", metavar="SPLIT", help="default: all (check), train and val (pack)")
    preparing = data.add_argument_group("prepare")
    preparing.add_argument("--source", metavar="DIR", help="where the archives of the set were unpacked")
    preparing.add_argument("--to", metavar="DIR", help="folder to write: images/, masks/, splits/, classes.txt")
    preparing.add_argument(
        "--photos", choices=("link", "copy"), help="link to the photos of --source (default), or copy"
    )
    preparing.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    preparing.add_argument("--partial", action="store_true", default=None, help="take a source that lacks images")

    add_plan(
        verb(
            verbs, "plan", run_plan, "look at a data set and write settings for it that fit into this machine",
            settings="kappaseg_core.config:DataConfig",
        )
    )  # fmt: skip

    add_panoptic(
        verb(
            verbs, "panoptic", run_panoptic, "segments: write those of a data set, measure predicted ones, draw them",
            settings="kappaseg_core.config:DataConfig",
        )
    )  # fmt: skip

    bench = verb(verbs, "bench", None, "what parts of the pipeline cost on this machine")
    parts = bench.add_subparsers(dest="part", required=True, metavar="PART", parser_class=Parser)
    for name, run, text, add in (
        ("network", run_bench_network, "time and memory of a network against the number of labels", add_network),
        (
            "data",
            run_bench_data,
            "how fast images are read, decoded, augmented; whether the device waits",
            add_data_flags,
        ),
    ):
        part = verb(parts, name, run, text, settings="stage2_segmentation.config:Stage2Config")
        bench.verbs[name] = part
        add(part)

    cost = verb(verbs, "cost", run_cost, "parameters and MACs of the published configurations, beside the paper's")
    cost.add_argument("--only", default="", metavar="WORD", help="those with WORD in their name, for example joint")
    cost.add_argument("--json", action="store_true", help="print JSON")
    parser.verbs = verbs.choices
    return parser


def verb(
    verbs: Any, name: str, run: Callable[[argparse.Namespace, list[str]], int | None] | None, text: str, *,
    settings: str = "",
) -> Parser:  # fmt: skip
    """A sub-command; with `settings` ("module:Dataclass") it takes --dotted.key value and lists them in its help.

    run: None = it has parts, which run.
    """
    parser: Parser = verbs.add_parser(name, help=text, description=text, add_help=not settings)
    parser.set_defaults(run=run, settings=settings or None)
    if settings:
        parser.add_argument(
            "-h", "--help", action=SettingsHelp, settings=settings, nargs=0, help="show all settings and exit"
        )
    return parser


class SettingsHelp(argparse.Action):
    """--help of a verb that takes settings: its own words, then every setting."""

    def __init__(self, settings: str, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.settings = settings

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> NoReturn:
        import importlib

        module, name = self.settings.split(":")
        parser.print_help()
        if getattr(namespace, "action", None) == "prepare":
            from pipelines.prepare import show_sets

            show_sets()
            raise SystemExit(0)
        print("\nsettings, over those of CONFIG or RUN where there is one:\n")
        print(settings_help(getattr(importlib.import_module(module), name), parser.prog))
        raise SystemExit(0)


def run_demo(arguments: argparse.Namespace, rest: list[str]) -> None:
    from pipelines.demo import demo

    out = arguments.out or ("demo-quick" if arguments.quick else "demo")
    print(demo(Path(out), quick=arguments.quick))


def run_stage1(arguments: argparse.Namespace, rest: list[str]) -> None:
    from stage1_multilabel.config import Stage1Config

    scale = scale_of(arguments)
    config = load_config(Stage1Config, arguments.config, split_settings(rest))
    from pipelines.scale import launch
    from pipelines.show import show_summary
    from stage1_multilabel.train import train_classifier

    show_summary(launch(train_classifier, config, scale))


def without_weights(settings: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Settings of a step that takes its network from a run; a chain may be given the same words at every step."""
    kept = [(name, value) for name, value in settings if name != "backbone.weights"]
    if len(kept) < len(settings):
        print("kappaseg: --backbone.weights is for training; this step uses the weights of the run", file=sys.stderr)
    return kept


def run_rank(arguments: argparse.Namespace, rest: list[str]) -> None:
    from stage1_multilabel.config import RankConfig

    config = load_config(RankConfig, arguments.config, without_weights(split_settings(rest)))
    from pipelines.show import show_cache
    from stage1_multilabel.rank import rank_images

    show_cache(rank_images(config))


def run_stage2(arguments: argparse.Namespace, rest: list[str]) -> None:
    from stage2_segmentation.config import Stage2Config

    scale = scale_of(arguments)
    config = load_config(Stage2Config, arguments.config, split_settings(rest))
    from pipelines.scale import launch
    from pipelines.show import show_summary
    from stage2_segmentation.train import train_segmentation

    show_summary(launch(train_segmentation, config, scale))


def run_joint(arguments: argparse.Namespace, rest: list[str]) -> None:
    """run-stage2 with a network that ranks for itself: source.train joint, and a label branch."""
    from stage2_segmentation.config import joint_config

    scale = scale_of(arguments)
    config = joint_config(arguments.config, split_settings(rest))
    from pipelines.scale import launch
    from pipelines.show import show_summary
    from stage2_segmentation.train import train_segmentation

    show_summary(launch(train_segmentation, config, scale))


def run_benchmark(arguments: argparse.Namespace, rest: list[str]) -> int:
    from pipelines.benchmark.run import benchmark, submit

    settings = split_settings(rest)
    if arguments.submit:
        print(submit(arguments.submit, arguments.config, settings))
        return 0
    return benchmark(arguments.config, settings, local=arguments.local, address=arguments.address)


def run_report(arguments: argparse.Namespace, rest: list[str]) -> None:
    from pipelines.benchmark.run import report

    report(Path(arguments.out), arguments.beside)


def run_evaluate(arguments: argparse.Namespace, rest: list[str]) -> None:
    from pipelines.evaluate import evaluate_runs, runs_and_settings

    runs, settings = runs_and_settings(arguments.what, without_weights(split_settings(rest)))
    segments = Path(arguments.segments) if arguments.segments else None
    evaluate_runs(runs, settings, alpha=arguments.alpha, calibration=arguments.calibration, segments=segments)


def run_predict(arguments: argparse.Namespace, rest: list[str]) -> None:
    from pipelines.predict import predict_images

    classifier = Path(arguments.classifier) if arguments.classifier else None
    settings = without_weights(split_settings(rest))
    short = {"source.test": arguments.source, "source.url": arguments.url}
    settings += [(name, value) for name, value in short.items() if value is not None]
    predict_images(
        Path(arguments.what), [Path(image) for image in arguments.images], Path(arguments.to),
        settings=settings, classifier=classifier,
    )  # fmt: skip


def run_export(arguments: argparse.Namespace, rest: list[str]) -> None:
    from pipelines.export.run import export_run

    export_run(
        Path(arguments.what), Path(arguments.to), form=arguments.format, kappa=arguments.kappa, size=arguments.size
    )


def run_serve(arguments: argparse.Namespace, rest: list[str]) -> int:
    values: dict[str, Any] = {"caches": arguments.cache, "cors": arguments.cors}
    given = {name: getattr(arguments, name) for name in ("classifier", "segmenter", "host", "port", "token_file")}
    values |= {name: value for name, value in given.items() if value is not None}
    for name, text in split_settings(rest):
        override(values, name, text)
    from pipelines.service.config import ServeConfig

    config = build(ServeConfig, values, source="command line")
    config.tokens()
    try:
        from pipelines.service.run import serve
    except ModuleNotFoundError as error:
        raise UserError(
            f"kappaseg serve needs {error.name}, which is missing; pip install 'kappaseg[service]'"
        ) from None
    return serve(config)


def run_lookup(arguments: argparse.Namespace, rest: list[str]) -> None:
    from pipelines.look_up import print_labels

    print_labels(Path(arguments.cache), arguments.ids, arguments.kappa, as_json=arguments.json)


def run_cache(arguments: argparse.Namespace, rest: list[str]) -> int:
    from pipelines.look_up import check_cache, print_info

    return print_info(Path(arguments.cache)) if arguments.action == "info" else check_cache(Path(arguments.cache))


def run_data(arguments: argparse.Namespace, rest: list[str]) -> int:
    if arguments.action == "prepare":
        from pipelines.prepare import prepare_data

        return prepare_data(arguments, split_settings(rest))
    for flag in ("source", "to", "photos", "workers", "partial"):
        if getattr(arguments, flag) is not None:
            raise UserError(f"--{flag} is for data prepare; see kappaseg data --help")
    data = data_at(arguments.root, split_settings(rest))
    from pipelines.data import check_data, pack_data

    if arguments.action == "check":
        return check_data(data, arguments.splits)
    if not arguments.destination:
        raise UserError("data pack needs the file to write; write kappaseg data pack ROOT FILE.h5")
    return pack_data(data, arguments.splits or [data.train, data.val], Path(arguments.destination))


def run_plan(arguments: argparse.Namespace, rest: list[str]) -> None:
    settings = split_settings(rest)
    if arguments.check and (arguments.root or arguments.out or settings):
        raise UserError(
            "plan --check FILE takes the data set from FILE and writes nothing; leave out DATA, its settings and --out"
        )
    if not arguments.check and not arguments.root:
        raise UserError("plan needs DATA, the folder of a data set, or --check FILE; see kappaseg plan --help")
    data = data_at(arguments.root or "", settings)
    from pipelines.plan.run import Wishes, check_file, plan

    given = {name: value for name, value in vars(arguments).items() if name in Wishes.__dataclass_fields__}
    wishes = Wishes(**{**given, "out": Path(arguments.out or "plan")})
    if arguments.check:
        check_file(Path(arguments.check), wishes)
    else:
        plan(data, wishes)


def run_bench_network(arguments: argparse.Namespace, rest: list[str]) -> None:
    from pipelines.bench.network import bench_network

    bench_network(arguments, split_settings(rest))


def run_bench_data(arguments: argparse.Namespace, rest: list[str]) -> None:
    from pipelines.bench.data import bench_data

    bench_data(arguments.config, split_settings(rest), arguments)


def run_cost(arguments: argparse.Namespace, rest: list[str]) -> None:
    from pipelines.published.cost import show_cost

    show_cost(arguments.only, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
