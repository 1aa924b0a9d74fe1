"""Mistakes on the command line: status 2, one line that says what to do, and no file changed.

`refused` (conftest) checks all three; the texts given to it are the value seen, the value wanted or the next step.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipelines.cli import main

TRAINING = ("run-stage1", "run-stage2")
CHAIN = ("run-stage1", "rank", "run-stage2")


# Settings


@pytest.mark.parametrize("verb", CHAIN)
def test_a_mistyped_setting_is_refused_with_the_name_that_was_meant(chain: Any, refused: Any, verb: str) -> None:
    refused(chain, chain.words(verb, "--data.rot", "x"), "unknown setting data.rot; did you mean root?")


def test_a_mistyped_setting_in_a_file_is_refused_with_its_dotted_path(chain: Any, refused: Any) -> None:
    file = Path(chain.settings("stage1"))
    file.write_text(file.read_text() + "optim: {learning_rate: 0.1}\n")
    refused(chain, chain.words("run-stage1"), str(file), "unknown setting optim.learning_rate; known here: kind, lr,")


@pytest.mark.parametrize(
    ("verb", "name", "value", "wanted"),
    [
        ("run-stage1", "optim.lr", "fast", "optim.lr = 'fast', wanted a number"),
        ("run-stage1", "loop.steps", "1.5", "loop.steps = 1.5, wanted a whole number"),
        ("run-stage1", "loop.steps", "0", "loop.steps = 0, wanted at least 1"),
        ("run-stage1", "head.preset", "quick", "head.preset = 'quick', wanted one of 'rankseg', 'official'"),
        ("rank", "kappa", "0", "kappa = 0, wanted at least 1"),
        ("rank", "folds", "1", "folds = 1, wanted 0 (in-sample) or at least 2"),
        ("rank", "precision", "fp16", "precision = 'fp16', wanted one of 'fp32', 'bf16'"),
        ("run-stage2", "source.kappa", "0", "source.kappa = 0, wanted at least 1"),
        ("run-stage2", "source.test_kappa", "-1", "source.test_kappa = -1, wanted at least 1"),
        (
            "run-stage2",
            "source.train",
            "cahce",
            "source = 'cahce' is unknown; did you mean cache?",
        ),
        (
            "run-stage2",
            "source.fade",
            "0.5",
            "fade = 0.5, but missed labels are ignored throughout; set missed = force",
        ),
        ("run-stage2", "augment.crop", "0", "augment.crop = 0, wanted at least 1"),
        (
            "run-stage2",
            "augment.scale",
            "[2, 1]",
            "augment.scale = [2.0, 1.0], wanted two numbers above 0, the smaller",
        ),
        ("run-stage2", "inference.short_side", "-3", "inference.short_side = -3, wanted at least 1"),
        ("run-stage2", "loss.stride", "600", "loss.stride = 600 takes no pixel of a crop of"),
        ("run-stage2", "host.options.dropout", "2", "host.options.dropout = 2.0, wanted a share from 0 to 1"),
        ("run-stage2", "host.options.width", "0", "host.options.width = 0, wanted at least 1"),
        ("run-joint", "labels.options.heads", "3", "labels.options.heads = 3, wanted a divisor of the host's width"),
        ("run-joint", "labels.options.pooled", "-1", "labels.options.pooled = -1, wanted at least 0"),
        ("run-joint", "labels.loss.negatives", "2", "labels.head = encoder does not score some labels alone"),
        ("run-stage1", "loss.negatives", "0", "loss.negatives = 0, wanted at least 1"),
        ("run-stage1", "head.shortlist", "4", "head shortlist 4 of 4 labels, wanted 1 to 3"),
        ("run-stage1", "head.groups", "2", "head.groups = 2 does nothing without preset group"),
        ("run-joint", "labels.head", "none", "a network without a label branch cannot rank; use encoder, projected"),
        ("run-stage2", "host.options.widht", "9", "unknown setting host.options.widht; did you mean width?"),
        ("run-stage2", "data.options.ignored", "9", "unknown setting data.options.ignored; did you mean ignore?"),
        ("run-stage2", "data.kind", "foldre", "data.kind = 'foldre' is unknown; did you mean folder?"),
        ("run-stage2", "backbone.kind", "small_cn", "backbone.kind = 'small_cn' is unknown; did you mean small_cnn?"),
    ],
)
def test_a_setting_of_another_type_or_range_is_refused(
    chain: Any, refused: Any, verb: str, name: str, value: str, wanted: str
) -> None:
    refused(chain, chain.words(verb, f"--{name}", value), wanted)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("data: {root: [}", "cannot be read: while parsing"),
        ("- data", "wanted `key: value` lines, found list"),
        ("data: photos", "wanted a group of settings, found 'photos'"),
    ],
)
def test_a_settings_file_that_is_not_one_is_refused(chain: Any, refused: Any, content: str, wanted: str) -> None:
    (chain.home / "odd.yaml").write_text(content)
    refused(chain, ["run-stage1", "odd.yaml"], "odd.yaml", wanted)


def test_a_settings_file_that_does_not_exist_is_refused(chain: Any, refused: Any) -> None:
    refused(chain, ["run-stage1", "no.yaml"], "configuration no.yaml does not exist; see the files under configs/")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], "required: VERB; see kappaseg --help"),
        (["rnak"], "invalid choice: 'rnak'"),
        (["rank"], "required: CONFIG; see kappaseg rank --help"),
        (["rank", "rank.yaml", "more"], "argument 'more' was not expected; see kappaseg rank --help"),
        (["rank", "rank.yaml", "--out"], "setting --out has no value; write --out VALUE"),
        (["lookup", "out/labels", "v0", "--kapa", "2"], "was not expected; see kappaseg lookup --help"),
        (["lookup", "out/labels", "v0", "--kappa", "two"], "invalid int value: 'two'; see kappaseg lookup --help"),
        (["predict", "out/stage2-cache"], "required: IMAGE; see kappaseg predict --help"),
        (["data", "pack", "data"], "needs the file to write; write kappaseg data pack ROOT FILE.h5"),
    ],
)
def test_a_command_that_is_none_is_refused(chain: Any, refused: Any, words: list[str], wanted: str) -> None:
    refused(chain, words, wanted)


# Data sets


@pytest.mark.parametrize("verb", CHAIN)
def test_a_data_root_that_is_not_there_is_refused(chain: Any, refused: Any, verb: str) -> None:
    wanted = "data.root nowhere does not exist; set it to the folder with images/, masks/ and classes.txt"
    refused(chain, chain.words(verb, "--data.root", "nowhere"), wanted)


def test_a_data_root_that_is_not_given_is_refused(chain: Any, refused: Any) -> None:
    refused(chain, ["run-stage1", "stage1.yaml", "--out", "new"], "data.root is empty", "set data.root")


@pytest.mark.parametrize("verb", CHAIN)
def test_a_split_that_is_not_there_is_refused_with_those_that_are(chain: Any, refused: Any, verb: str) -> None:
    refused(chain, chain.words(verb, "--data.val", "test"), "split 'test'", "test.txt does not exist; there are: train")


@pytest.mark.parametrize("verb", CHAIN)
def test_a_missing_class_file_is_refused(chain: Any, refused: Any, verb: str) -> None:
    (chain.data / "classes.txt").unlink()
    refused(chain, chain.words(verb), "classes.txt does not exist; write one class name per line there")


def test_a_missing_photo_is_refused(chain: Any, refused: Any) -> None:
    chain.photo("a3").unlink()
    refused(chain, chain.words("run-stage1"), "image a3 of split 'train' is not in", "take its id out of the split")


Damage = Callable[[Any], None]


def unknown_id(chain: Any) -> None:
    mask = Image.open(chain.mask("a2"))
    mask.putpixel((3, 5), 77)
    mask.save(chain.mask("a2"))


def other_size(chain: Any) -> None:
    Image.open(chain.mask("a2")).crop((0, 0, 20, 30)).save(chain.mask("a2"))


def truncated(chain: Any) -> None:
    data = chain.photo("a2").read_bytes()
    chain.photo("a2").write_bytes(data[: len(data) // 2])


DAMAGES = [
    (unknown_id, "masks/a2.png holds value 77 (1 pixel), not a class id (K = 4: 0..3), and the ignore value is 255"),
    (other_size, "a2.jpg is 36x44 (height x width), mask"),
    (truncated, "a2.jpg is damaged: "),
]


@pytest.mark.parametrize(("damage", "wanted"), DAMAGES)
@pytest.mark.parametrize("verb", TRAINING)
def test_a_damaged_scene_stops_training_and_leaves_nothing(
    fresh: Any, refused: Any, damage: Damage, wanted: str, verb: str
) -> None:
    damage(fresh)
    words = fresh.words(verb, *(("--source.train", "complete") if verb == "run-stage2" else ()))
    refused(fresh, words, wanted, begun=verb == "run-stage1")  # which has read the masks


@pytest.mark.parametrize("damage", [truncated, unknown_id])
def test_a_damaged_scene_found_by_a_loader_process_is_one_line_too(fresh: Any, refused: Any, damage: Damage) -> None:
    damage(fresh)
    words = fresh.words("run-stage2", "--source.train", "complete", "--loop.loader_workers", "1")
    line = refused(fresh, words, dict(DAMAGES)[damage])
    assert line.startswith(("kappaseg: image ", "kappaseg: mask "))


def test_a_damaged_scene_stops_the_feature_bank_and_leaves_nothing(fresh: Any, refused: Any) -> None:
    truncated(fresh)
    words = fresh.words("run-stage1", "--backbone.frozen", "true", "--loop.cached_views", "1")
    refused(fresh, words, "a2.jpg is damaged: ", begun=True)


@pytest.mark.parametrize(("damage", "wanted"), DAMAGES)
def test_a_damaged_scene_stops_packing_and_leaves_nothing(
    chain: Any, refused: Any, damage: Damage, wanted: str
) -> None:
    damage(chain)
    refused(chain, ["data", "pack", "data", "packed.h5"], wanted, begun=True)


def test_a_mistake_in_a_late_scene_keeps_what_was_learnt_before(fresh: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Validation comes after step 3, the last save after step 2."""
    data = fresh.photo("v1").read_bytes()
    fresh.photo("v1").write_bytes(data[: len(data) // 2])
    for start in range(2):
        assert main(fresh.words("run-stage2", "--source.train", "complete")) == 2
        *progress, line = capsys.readouterr().err.splitlines()
        assert line.startswith("kappaseg: image ") and "v1.jpg is damaged" in line
        assert ("stage2-complete: continuing at step 2" in progress) is (start == 1)


# Caches


def test_a_cache_of_other_images_is_refused(chain: Any, refused: Any) -> None:
    chain.photo("a1").write_bytes(chain.photo("a2").read_bytes())
    words = chain.words("run-stage2", "--name", "other")
    refused(chain, words, "does not fit: data set fingerprint of split train is", "there and", "kappaseg rank")
    refused(chain, chain.words("rank", "--folds", "2"), "another configuration: inputs.train is", begun=True)


def test_a_cache_with_another_class_list_is_refused(chain: Any, refused: Any) -> None:
    (chain.data / "classes.txt").write_text("sky\nroad\nbush\ncar\n")
    wanted = "class 2 is 'tree' there and 'bush' here"
    refused(chain, chain.words("run-stage2", "--name", "other"), "class list is", wanted)
    refused(chain, chain.words("rank"), "class 2 is 'tree' there and 'bush' here", "a classifier of this data set")
    refused(
        chain, ["evaluate", "out", "--data.root", "data"], "another class list", "class 2 is 'tree' there", "'bush'"
    )


def test_a_cache_without_the_split_is_refused(chain: Any, refused: Any) -> None:
    (chain.data / "splits" / "test.txt").write_text("v0\n")
    wanted = "it holds the splits train, val, wanted test"
    refused(chain, chain.words("run-stage2", "--name", "other", "--data.val", "test"), wanted)
    refused(chain, ["evaluate", "out", "--data.root", "data", "--data.val", "test"], wanted)


def test_a_cache_of_another_classifier_is_not_written_over(chain: Any, refused: Any) -> None:
    assert main(chain.words("run-stage1", "--out", "second", "--loop.seed", "1")) == 0
    words = chain.words("rank", "--classifier", "second/stage1")
    refused(chain, words, "holds a cache of something else: ", "model is", "delete it or choose another directory")


def test_a_cache_made_anew_does_not_serve_a_run_that_was_trained_on_another(chain: Any, refused: Any) -> None:
    assert main(chain.words("run-stage1", "--out", "second", "--loop.seed", "1")) == 0
    cache = ["--cache", "second/labels"]
    assert main(chain.words("rank", "--classifier", "second/stage1", *cache)) == 0
    (chain.out / "labels").rename(chain.home / "old labels")
    (chain.home / "second" / "labels").rename(chain.out / "labels")
    main(["lookup", "out/labels", "v0"])  # its index
    named = ["--source.cache", "out/labels"]
    for words in (chain.words("run-stage2"), chain.words("run-stage2", "--name", "fresh")):
        refused(chain, words, "is from classifier", "the one beside it is", "rank again", "out/labels to use it")
    refused(chain, chain.words("run-stage2", *named), "another configuration: ")
    assert main(chain.words("run-stage2", "--name", "fresh", *named)) == 0
    refused(
        chain,
        ["evaluate", "out/stage2-cache"],
        "stage2-cache was trained on rankings",
        "or name this one with --source.cache",
    )
    for cache in ("out/labels", "old labels"):
        assert main(["evaluate", "out/stage2-cache", "--source.cache", cache]) == 0
    names = {path.name for path in (chain.out / "stage2-cache").glob("evaluation-*")}
    assert {"evaluation-cache-kappa2-from-out_labels.json", "evaluation-cache-kappa2-from-oldlabels.json"} <= names


def test_more_ranks_than_the_cache_stores_are_refused(chain: Any, refused: Any) -> None:
    wanted = "stores 3 ranks per image; ask for 1 to 3 or rank again with k = 4"
    refused(chain, chain.words("run-stage2", "--name", "other", "--source.kappa", "4"), "kappa = 4", wanted)
    refused(chain, chain.words("run-stage2", "--name", "other", "--source.test_kappa", "4"), "kappa = 4", wanted)
    refused(chain, ["evaluate", "out", "--source.test_kappa", "4"], "kappa = 4", wanted)
    refused(chain, ["lookup", "out/labels", "v0", "--kappa", "4"], "kappa = 4", wanted)


def test_more_ranks_than_there_are_labels_are_refused(chain: Any, refused: Any) -> None:
    words = chain.words("run-stage2", "--name", "other", "--source.kappa", "5")
    refused(chain, words, "source.kappa = 5, but there are only 4 classes; lower it")


@pytest.mark.parametrize("kappa", ["0", "-3"])
def test_looking_up_no_rank_is_refused(chain: Any, refused: Any, kappa: str) -> None:
    refused(chain, ["lookup", "out/labels", "v0", f"--kappa={kappa}"], f"kappa = {kappa}", "ask for 1 to 3")


def test_an_unknown_image_id_is_refused_with_the_nearest_one(chain: Any, refused: Any) -> None:
    refused(chain, ["lookup", "out/labels", "v0", "v1.jpg", "--kappa", "2"], "'v1.jpg'", "the closest id is 'v1'")


@pytest.mark.parametrize("words", [["lookup", "out/labels", "v0"], ["cache", "info", "out/labels"],
                                   ["cache", "check", "out/labels"]])  # fmt: skip
def test_a_cache_that_is_not_there_is_refused(fresh: Any, refused: Any, words: list[str]) -> None:
    refused(fresh, words, "cache out/labels does not exist; make it with `kappaseg rank`")


def flip_bit(path: Path) -> None:
    """One bit in the middle of a file; its size stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("words", [["lookup", "out/labels", "v0", "--kappa", "2"], ["cache", "info", "out/labels"],
                                   ["evaluate", "out"]])  # fmt: skip
def test_one_flipped_bit_in_a_part_is_refused_by_all_who_read_it(chain: Any, refused: Any, words: list[str]) -> None:
    flip_bit(chain.out / "labels" / "train-00001.parquet")
    refused(chain, words, "part train-00001.parquet of cache", "is damaged", "delete that part and run `kappaseg rank`")


def test_one_flipped_bit_in_a_part_is_found_by_the_check(chain: Any, capsys: pytest.CaptureFixture[str]) -> None:
    flip_bit(chain.out / "labels" / "val-00000.parquet")
    before = chain.files()
    assert main(["cache", "check", "out/labels"]) == 2
    printed = capsys.readouterr()
    first, last = printed.out.splitlines()
    assert first.startswith("part val-00000.parquet of cache out/labels is damaged") and not printed.err
    assert last == "out/labels: 1 problem"
    assert chain.files() == before


def test_ranking_again_repairs_a_damaged_part(chain: Any) -> None:
    before = chain.files()
    flip_bit(chain.out / "labels" / "train-00001.parquet")
    assert main(chain.words("rank", "--folds", "2")) == 0
    assert main(["cache", "check", "out/labels"]) == 0
    changed = {name for name, value in chain.files().items() if before.get(name) != value}
    assert all(name.startswith("out/labels/index/") for name in changed)  # derived: its dates are those of the parts


def test_a_damaged_manifest_is_refused(chain: Any, refused: Any) -> None:
    manifest = chain.out / "labels" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("tree", "bush"))
    refused(chain, ["lookup", "out/labels", "v0"], "manifest.json is damaged", "delete it and run `kappaseg rank`")


# Weights and runs


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("other", "does not fit test_resnet.r160_in1k: it has no conv1.0.weight"),
        ("truncated", "cannot be read"),
        ("missing", "does not exist or is no file"),
    ],
)
@pytest.mark.parametrize("verb", TRAINING)
def test_backbone_weights_that_do_not_fit_are_refused(
    fresh: Any, refused: Any, verb: str, content: str, wanted: str
) -> None:
    file = fresh.home / "weights.safetensors"
    if content != "missing":
        save_file({"conv.weight": torch.zeros(8, 3, 3, 3)}, file)
    if content == "truncated":
        file.write_bytes(file.read_bytes()[:-40])
    network = ("--backbone.kind", "timm", "--backbone.name", "test_resnet.r160_in1k", "--backbone.weights", str(file))
    words = fresh.words(verb, *network, *(("--source.train", "complete") if verb == "run-stage2" else ()))
    refused(fresh, words, f"backbone.weights = {file}", wanted)


def test_weights_of_another_network_in_a_run_are_refused(chain: Any, refused: Any) -> None:
    (chain.out / "stage2-cache" / "weights.safetensors").write_bytes(
        (chain.out / "stage1" / "weights.safetensors").read_bytes()
    )
    refused(chain, ["evaluate", "out"], "weights.safetensors does not fit this network: ", "run the training again")


def test_weights_that_were_cut_off_are_refused(chain: Any, refused: Any) -> None:
    for run in ("stage1", "stage2-cache"):
        file = chain.out / run / "weights.safetensors"
        file.write_bytes(file.read_bytes()[:-9])
    wanted = "weights.safetensors is damaged", "run the training again"
    refused(chain, ["evaluate", "out"], *wanted)
    refused(chain, ["predict", "out/stage2-cache", str(chain.photo("v0"))], *wanted)
    refused(chain, chain.words("rank", "--cache", "new"), *wanted)


def test_a_damaged_saved_state_is_refused(chain: Any, refused: Any) -> None:
    run = chain.out / "stage1"
    (run / "summary.json").unlink()
    (run / "state.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    wanted = "state.safetensors is damaged", "start the run again"
    refused(chain, chain.words("run-stage1"), *wanted, begun=True, but="out/stage1/log.txt")


@pytest.mark.parametrize("content", ["", "model: [", "- a\n", "model: x\n"])
def test_a_damaged_run_record_is_refused(chain: Any, refused: Any, content: str) -> None:
    (chain.out / "stage2-cache" / "run.yaml").write_text(content)
    refused(chain, ["evaluate", "out/stage2-cache"], "run.yaml is damaged", "run the training again")


@pytest.mark.parametrize("verb", TRAINING)
def test_a_run_directory_of_another_configuration_is_refused(chain: Any, refused: Any, verb: str) -> None:
    words = chain.words(verb, "--backbone.level", "4")
    wanted = "holds a run of another configuration: backbone.level is 0 there, 4 here; choose another --out"
    refused(chain, words, wanted)


def test_a_run_directory_that_is_none_is_refused(fresh: Any, refused: Any) -> None:
    (fresh.out / "stage1").mkdir(parents=True)
    (fresh.out / "stage1" / "thesis.txt").write_text("the only copy")
    refused(fresh, fresh.words("run-stage1"), "holds files but no run.yaml", "choose another --out")


def test_ranking_without_a_classifier_is_refused(fresh: Any, refused: Any) -> None:
    refused(fresh, fresh.words("rank"), "stage1 is not a run directory", "give the folder that a training run wrote")


def test_ranking_with_a_segmentation_network_is_refused(chain: Any, refused: Any) -> None:
    refused(chain, chain.words("rank", "--classifier", "out/stage2-cache"), "holds no classifier", "run-stage1 wrote")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["evaluate"], "evaluate needs a run directory, an output folder, or --out"),
        (["evaluate", "--out=empty"], "empty holds no finished stage-two run; run kappaseg run-stage2"),
        (["evaluate", "stage2.yaml", "--out=empty"], "empty/stage2-cache is not a run directory"),
        (["evaluate", "out/stage1"], "holds no segmentation network; give a folder that run-stage2 wrote"),
        (["evaluate", "out", "--host.kind", "x"], "--host.kind is part of the trained network"),
        (["evaluate", "out", "--source.tset", "oracle"], "unknown setting source.tset; did you mean test?"),
        (["predict", "empty", "data/images/v0.jpg"], "empty is not a run directory"),
        (["predict", "out", "data/images/v0.jpg"], "out is not a run directory"),
        (["predict", "out/stage1", "data/images/v0.jpg"], "holds no segmentation network"),
    ],
)
def test_evaluating_or_predicting_without_a_run_is_refused(
    chain: Any, refused: Any, words: list[str], wanted: str
) -> None:
    refused(chain, words, wanted)


def test_evaluating_an_unfinished_run_is_refused(chain: Any, refused: Any) -> None:
    (chain.out / "stage2-cache" / "summary.json").unlink()
    refused(chain, ["evaluate", "out/stage2-cache"], "is not complete; start the same training command again")


# Images to predict


def test_a_file_that_is_no_image_is_refused(chain: Any, refused: Any) -> None:
    words = ["predict", "out/stage2-cache", "data/images/v0.jpg", "data/classes.txt"]
    refused(chain, words, "data/classes.txt is no picture of a known format")


def test_an_image_that_is_not_there_is_refused(chain: Any, refused: Any) -> None:
    refused(chain, ["predict", "out/stage2-cache", "v9.jpg"], "image v9.jpg cannot be read: no such file")


def test_a_truncated_image_is_not_predicted(chain: Any, refused: Any) -> None:
    truncated(chain)
    refused(chain, ["predict", "out/stage2-cache", "data/images/v0.jpg", "data/images/a2.jpg"], "a2.jpg is damaged: ")


def test_two_images_of_one_name_are_refused(chain: Any, refused: Any) -> None:
    words = ["predict", "out/stage2-cache", "data/images/v0.jpg", "data/masks/v0.png"]
    refused(chain, words, "two images are called v0", "rename one")


# Machine


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("verb", CHAIN)
def test_a_gpu_that_is_not_there_is_not_replaced_by_the_processor(fresh: Any, refused: Any, verb: str) -> None:
    setting = "--device" if verb == "rank" else "--loop.device"
    refused(fresh, fresh.words(verb, setting, "cuda"), "device = 'cuda', but torch finds no GPU here; use cpu or auto")


def test_a_device_of_no_kind_is_refused(fresh: Any, refused: Any) -> None:
    words = fresh.words("run-stage1", "--loop.device", "gpu")
    refused(fresh, words, "device = 'gpu', wanted auto, cpu, cuda or cuda:N")


@pytest.mark.parametrize("verb", TRAINING)
def test_half_precision_with_loss_scaling_needs_a_gpu(fresh: Any, refused: Any, verb: str) -> None:
    words = fresh.words(verb, "--loop.precision", "fp16", "--loop.device", "cpu")
    refused(fresh, words, "loop.precision = fp16 needs a GPU", "use bf16 or fp32")


# Disks


WRITERS = {
    "run-stage1": lambda chain: chain.words("run-stage1", "--out", "new"),
    "rank": lambda chain: chain.words("rank", "--cache", "new/labels"),
    "run-stage2": lambda chain: chain.words("run-stage2", "--out", "new", "--source.train", "complete"),
    "evaluate": lambda chain: ["evaluate", "out", "--inference.flip", "true"],
    "predict": lambda chain: ["predict", "out/stage2-cache", "data/images/v0.jpg", "--to", "new"],
    "data pack": lambda chain: ["data", "pack", "data", "new.h5"],
}


@pytest.mark.parametrize("verb", [v for v in WRITERS if v not in ("evaluate", "data pack")])
def test_a_file_where_the_output_folder_should_be_is_refused(chain: Any, refused: Any, verb: str) -> None:
    (chain.home / "new").write_text("a file")
    refused(chain, WRITERS[verb](chain), "cannot write", "new", "choose another", begun=verb == "predict")


def test_a_file_where_a_run_directory_should_be_is_refused(fresh: Any, refused: Any) -> None:
    fresh.out.mkdir()
    (fresh.out / "stage1").write_text("a file")
    refused(fresh, fresh.words("run-stage1"), "cannot write", "stage1", "choose another --out")


def test_a_file_where_the_feature_bank_should_be_is_refused(fresh: Any, refused: Any) -> None:
    fresh.out.mkdir()
    (fresh.out / "features").write_text("a file")
    words = fresh.words("run-stage1", "--backbone.frozen", "true", "--loop.cached_views", "1")
    refused(fresh, words, "cannot write", "features", "choose another --out", begun=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("verb", WRITERS)
def test_a_folder_that_may_not_be_written_is_refused(chain: Any, refused: Any, verb: str) -> None:
    folder = chain.out / "stage2-cache" if verb == "evaluate" else chain.home
    folder.chmod(0o500)
    try:
        refused(chain, WRITERS[verb](chain), "cannot write", "ermission denied", begun=True)
    finally:
        folder.chmod(0o700)


@pytest.mark.parametrize("verb", WRITERS)
def test_a_disk_that_is_full_when_files_are_flushed_is_refused(
    chain: Any, refused: Any, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    line = refused(chain, WRITERS[verb](chain), "cannot write", begun=True)
    assert "the disk is full" in line or "No space left on device" in line
    assert "free space" in line


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no way to reserve space here")
def test_a_disk_that_is_too_small_for_the_feature_bank_is_refused(
    fresh: Any, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arrays are memory-mapped: without their space reserved, a full disk would end the program by a signal."""

    def full(descriptor: int, start: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    words = fresh.words("run-stage1", "--backbone.frozen", "true", "--loop.cached_views", "1")
    refused(fresh, words, "cannot write", "features", "the disk is full; free space", begun=True)


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from pipelines.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "limit", "file"),
    [
        ("run-stage1", 300, "run.yaml"),
        ("run-stage1", 9000, "state.safetensors"),
        ("run-stage2", 9000, "state.safetensors"),
        ("rank", 2000, "train-00000.parquet"),
        ("data pack", 4000, "new.h5"),
    ],
)
def test_files_that_the_system_stops_from_growing_are_refused(chain: Any, verb: str, limit: int, file: str) -> None:
    """A real failed write in whichever library writes, without a disk to fill."""
    before = chain.files()
    words = [sys.executable, "-c", LIMITED, str(limit), *WRITERS[verb](chain)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=chain.home)
    line = done.stderr.splitlines()[-1]
    assert line.startswith("kappaseg: cannot write") and "ile too large" in line and file in line, done.stderr
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stdout) == (2, "")
    after = chain.files()
    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after if name.endswith((".safetensors", ".parquet", ".h5")) and name not in before]
    assert not [name for name in after if "tmp" in name]


# Interruption


@pytest.mark.parametrize(
    ("verb", "place", "goes_on"),
    [
        ("run-stage1", "kappaseg_core.loop.Trainer.train_step", True),
        ("run-stage2", "kappaseg_core.loop.Trainer.train_step", True),
        ("rank", "stage1_multilabel.rank.scores_of", True),
        ("evaluate", "stage2_segmentation.evaluate.segment_image", True),
        ("predict", "pipelines.predict.segment_image", False),
        ("data pack", "pipelines.data.pack", False),
    ],
)
def test_ctrl_c_ends_in_one_line_that_says_how_to_go_on(
    chain: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    place: str,
    goes_on: bool,
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, stopped)
    before = chain.files()
    assert main(WRITERS[verb](chain)) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "kappaseg: stopped" + ("; the same command goes on from the last saved step" if goes_on else "")
    after = chain.files()
    assert {name: after[name] for name in before} == before


def test_ctrl_c_while_a_service_loads_ends_in_one_line(
    chain: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.service.run.build_house", stopped)
    assert main(["serve", "--cache", str(chain.home / "out/labels"), "--port", "0"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "kappaseg: stopped"


# As a program


def program(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *words], capture_output=True, text=True, cwd=cwd, timeout=300
    )


def test_a_mistake_is_the_exit_status_of_the_program_and_nothing_on_its_output(chain: Any) -> None:
    done = program("rank", "rank.yaml", "--fold", "2", cwd=chain.home)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "kappaseg: rank.yaml: unknown setting fold; did you mean folds?\n"


@pytest.mark.slow
def test_a_mistake_found_late_is_the_exit_status_too(chain: Any) -> None:
    truncated(chain)
    done = program("predict", "out/stage2-cache", "data/images/a2.jpg", cwd=chain.home)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("kappaseg: data/images/a2.jpg is damaged: ")
