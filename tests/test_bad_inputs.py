"""Every kind of bad input through the command line: one clear sentence, the right exit code, nothing half done.

The table is the functions marked with @kind: each prepares something bad and gives the command's arguments.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import requests
import torch
from bad_files import Bomb, classifier, hollow_picture, tampered
from PIL import Image
from tiny import Answer, TinyRun, command, tiny_pictures, tiny_recipe

from toolchain.backbones import hub
from toolchain.learn.checkpoint import Checkpoint
from toolchain.runtime import providers
from toolchain.store import Store, hash_path

PREPROCESS = {
    "height": 32, "width": 32, "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center",
    "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
}  # fmt: skip


@dataclass
class Bench:
    """A folder to spoil things in, a finished run to copy from, and what must not exist afterwards."""

    folder: Path
    done: TinyRun
    patch: pytest.MonkeyPatch
    forbidden: list[Path] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def pictures(self, **options: Any) -> Path:
        return tiny_pictures(self.folder / "pictures", **options)

    def recipe(self, pictures: Path | None = None, **changes: Any) -> Path:
        return tiny_recipe(self.folder, pictures or self.pictures(), **changes)

    def run(self, *more: object, pictures: Path | None = None, **changes: Any) -> list[object]:
        """The arguments of `run` for a recipe with these changes."""
        recipe = self.recipe(pictures, **changes)
        return ["run", recipe, "--out", self.out, "--store", self.store, *more]

    def adopt(self, model: bytes | onnx.ModelProto) -> list[object]:
        """The arguments of `run` for a foreign ONNX file."""
        content = model if isinstance(model, bytes) else model.SerializeToString()
        (self.folder / "foreign.onnx").write_bytes(content)
        step = {"file": str(self.folder / "foreign.onnx"), "preprocess": PREPROCESS}
        return self.run(backbone=None, tune=None, variants={"fp32": {"adopt": step}})

    def weights(self, file: Path, **backbone: Any) -> list[object]:
        """The arguments of `run` for a backbone with weights from a file."""
        return self.run(backbone={"timm": "resnet10t", "weights": str(file), **backbone})

    def bundle(self) -> Path:
        """A copy of the finished run's bundle."""
        return Path(shutil.copytree(self.done.bundle, self.folder / "bundle"))

    def tuned(self) -> Path:
        """The network that the finished run trained, as the store keeps it."""
        return next(e.folder for e in Store(self.done.store).entries() if e.record.step == "tune")


@dataclass(frozen=True)
class Kind:
    """One kind of bad input. `finished`: the steps that may be in the store afterwards; `real`: as a process."""

    prepare: Callable[[Bench], list[object]]
    code: int
    says: str
    finished: frozenset[str]
    real: bool

    @property
    def name(self) -> str:
        return self.prepare.__name__


KINDS: list[Kind] = []


def kind(
    code: int, says: str, finished: tuple[str, ...] = (), real: bool = False
) -> Callable[[Callable[[Bench], list[object]]], None]:
    def add(prepare: Callable[[Bench], list[object]]) -> None:
        KINDS.append(Kind(prepare, code, says, frozenset(finished), real))

    return add


# ---- the recipe and the command


@kind(2, r"recipe\.yaml: tune\.epoch: unknown setting \(did you mean 'epochs'\?\)", real=True)
def typo_in_a_recipe(bench: Bench) -> list[object]:
    return bench.run(tune={"epoch": 1})


@kind(2, r"recipe\.yaml line 2: ")
def broken_yaml(bench: Bench) -> list[object]:
    arguments = bench.run()
    Path(str(arguments[1])).write_text("name: tiny\ndata: {folder: [}\n")
    return arguments


@kind(2, r"recipe\.yaml: .*not readable as YAML")
def recipe_that_is_no_text(bench: Bench) -> list[object]:
    arguments = bench.run()
    Path(str(arguments[1])).write_bytes(b"\xff\xfe\x00name")
    return arguments


@kind(2, r"quikstart: no such recipe file.*did you mean 'quickstart'")
def missing_recipe(bench: Bench) -> list[object]:
    return ["run", "quikstart"]


@kind(2, r"--set tune\.epochs: write it as path=value")
def malformed_set(bench: Bench) -> list[object]:
    return bench.run("--set", "tune.epochs")


@kind(2, r"--set tune\.epochs=\[1: .*YAML")
def set_to_broken_yaml(bench: Bench) -> list[object]:
    return bench.run("--set", "tune.epochs=[1")


@kind(2, r"--set variants\.fp32\.steps\[4\]\.export: the list has 1 items")
def set_beyond_a_list(bench: Bench) -> list[object]:
    return bench.run("--set", "variants.fp32.steps[4].export=1")


@kind(2, r"--until tund: there is no such artifact \(did you mean 'tuned'\?\)")
def unknown_until(bench: Bench) -> list[object]:
    return bench.run("--until", "tund")


@kind(2, r"gates\.min_recall: there is no class rde; known: blue, green, red", ("inspect",))
def gate_for_an_unknown_class(bench: Bench) -> list[object]:
    return bench.run(gates={"min_recall": {"rde": 50}})


@kind(2, r"variants\.fp32: missing")
def no_variants(bench: Bench) -> list[object]:
    return bench.run(variants={})


@kind(2, r"measure.*drop.*calls")
def every_call_dropped(bench: Bench) -> list[object]:
    return bench.run(measure={"providers": ["cpu"], "calls": 10, "drop": 20})


# ---- pictures


@kind(2, r"nowhere: no such folder; data\.folder holds")
def missing_data_folder(bench: Bench) -> list[object]:
    return bench.run(pictures=bench.folder / "nowhere")


@kind(
    2,
    r"1 pictures cannot be read: train/red/00\.jpg: damaged or cut short.*data\.unreadable: drop",
    ("inspect",),
)
def truncated_jpeg_in_train(bench: Bench) -> list[object]:
    pictures = bench.pictures(suffix="jpg")
    path = pictures / "train" / "red" / "00.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    return bench.run(pictures=pictures)


@kind(2, r"1 pictures cannot be read: train/red/zz\.jpg: not a picture of a known format", ("inspect",))
def text_file_named_jpg(bench: Bench) -> list[object]:
    pictures = bench.pictures()
    (pictures / "train" / "red" / "zz.jpg").write_text("a letter")
    return bench.run(pictures=pictures)


@kind(2, r"1 pictures cannot be read: val/red/zz\.png: .*60000 x 60000 pixels are more than", ("inspect",))
def decompression_bomb(bench: Bench) -> list[object]:
    pictures = bench.pictures()
    (pictures / "val" / "red" / "zz.png").write_bytes(hollow_picture(60_000, 60_000))
    return bench.run(pictures=pictures)


@kind(2, r"pictures: all 24 pictures are of one class, 'red'; two are needed")
def one_class(bench: Bench) -> list[object]:
    return bench.run(pictures=bench.pictures(labels=("red",)))


@kind(2, r"pictures: test has pictures of 'yellow', but train has none to learn from")
def class_that_only_test_has(bench: Bench) -> list[object]:
    pictures = bench.pictures()
    shutil.copytree(pictures / "test" / "red", pictures / "test" / "yellow")
    return bench.run(pictures=pictures)


@kind(2, r"pictures: .*'red', but train has none to learn from")
def empty_class_folder(bench: Bench) -> list[object]:
    pictures = bench.pictures()
    for path in (pictures / "train" / "red").iterdir():
        path.unlink()
    return bench.run(pictures=pictures)


@kind(2, r"pictures/val: .*no pictures.*add some, or remove the folder")
def val_without_pictures(bench: Bench) -> list[object]:
    pictures = bench.pictures()
    for path in (pictures / "val").rglob("*.png"):
        path.unlink()
    return bench.run(pictures=pictures)


@kind(2, r"val has no readable picture", ("inspect",))
def val_without_readable_pictures(bench: Bench) -> list[object]:
    pictures = bench.pictures(counts={"train": 12, "val": 1, "test": 6})
    for path in (pictures / "val").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    return bench.run(pictures=pictures, data={"folder": str(pictures), "unreadable": "drop"})


@kind(
    2, r"list\.csv: has no column 'label' \(it has path, kind\); rename one, or name it under data\.columns"
)
def csv_without_labels(bench: Bench) -> list[object]:
    (bench.folder / "list.csv").write_text("path,kind\na.png,red\n")
    return bench.run(data={"csv": "list.csv"})


@kind(2, r"list\.csv, line 3: there is no file .*b\.png")
def csv_with_a_missing_file(bench: Bench) -> list[object]:
    Image.new("RGB", (8, 8)).save(bench.folder / "a.png")
    (bench.folder / "list.csv").write_text("path,label\na.png,red\nb.png,blue\n")
    return bench.run(data={"csv": "list.csv"})


# ---- devices


@kind(
    2,
    r"device 'cuda' was asked for, but torch finds no usable GPU: run 'toolchain doctor', or take --device cpu",
)
def device_cuda_without_a_gpu(bench: Bench) -> list[object]:
    bench.patch.setattr(torch.cuda, "is_available", lambda: False)  # noqa: TID251
    return bench.run("--device", "cuda")


@kind(2, r"provider 'cuda' was asked for, but .*no GPU")
def provider_cuda_without_a_gpu(bench: Bench) -> list[object]:
    bench.patch.setattr(providers, "_driver", lambda: ((), "the driver shows this process no GPU"))
    bench.patch.setattr(providers, "_why_not", providers._why_not.__wrapped__)
    return bench.run(measure={"providers": ["cuda"]})


# ---- networks and weights


@kind(2, r"timm has no model 'resnet10u' \(did you mean 'resnet10t'\?\)")
def unknown_timm_model(bench: Bench) -> list[object]:
    return bench.run(backbone={"timm": "resnet10u"})


@kind(2, r"backbone\.bundled: no bundled backbone 'nanno'; known: nano")
def unknown_bundled_backbone(bench: Bench) -> list[object]:
    return bench.run(backbone={"bundled": "nanno"})


@kind(2, r"levit_128s' cannot be pruned .*take out the prune step")
def architecture_that_cannot_be_pruned(bench: Bench) -> list[object]:
    levit = {"timm": "levit_128s", "kwargs": {"depth": [1, 1, 1]}, "weights": "random"}
    steps = [{"prune": {}}, "export"]
    return bench.run(backbone=levit, variants={"fp32": {"from": "tuned", "steps": ["export"]},
                                               "pruned": {"from": "tuned", "steps": steps}})  # fmt: skip


@kind(2, r"none\.safetensors: no such weights file")
def missing_weights(bench: Bench) -> list[object]:
    return bench.weights(bench.folder / "none.safetensors")


@kind(2, r"bomb\.pth: refused, because it is damaged or carries more than tensors", ("inspect",))
def pickle_bomb_as_weights(bench: Bench) -> list[object]:
    bench.forbidden.append(bench.folder / "exploded")
    torch.save({"fc.weight": Bomb(bench.forbidden[0])}, bench.folder / "bomb.pth")
    return bench.weights(bench.folder / "bomb.pth")


@kind(2, r"weights\.safetensors: does not fit timm's mobilenetv3_small_050: it lacks", ("inspect",))
def weights_of_another_architecture(bench: Bench) -> list[object]:
    return bench.weights(bench.tuned() / "weights.safetensors", timm="mobilenetv3_small_050")


@kind(2, r"tuned\.file|checkpoint.*no such", ("inspect",))
def missing_checkpoint(bench: Bench) -> list[object]:
    return bench.run(tune=None, backbone=None, tuned={"file": "nowhere"})


@kind(2, r"made for the labels \(blue, green, red\), the data have \(blue, green, rust\)", ("inspect",))
def labels_in_another_order(bench: Bench) -> list[object]:
    pictures = bench.pictures(labels=("blue", "green", "rust"))
    return bench.run(pictures=pictures, tune=None, backbone=None, tuned={"file": str(bench.tuned())})


@kind(
    2, r"weights of 'resnet10t' could not be downloaded .*give weights: FILE or weights: random", ("inspect",)
)
def hub_without_network(bench: Bench) -> list[object]:
    def fail(*_: object, **__: object) -> None:
        raise requests.ConnectionError("no route to host")

    bench.patch.setattr(hub, "try_to_load_from_cache", lambda *_: None)
    bench.patch.setattr(requests.Session, "request", fail)
    return bench.run(backbone={"timm": "resnet10t"})


@kind(2, r"the loss (on val )?became (nan|inf).*take a lower lr than 1e\+09", ("inspect",))
def learning_rate_far_too_high(bench: Bench) -> list[object]:
    return bench.run(tune={"epochs": 4, "batch_size": 8, "lr": 1e9, "optimizer": "sgd"})


# ---- foreign ONNX files


@kind(2, r"foreign\.onnx: not an ONNX file")
def foreign_garbage(bench: Bench) -> list[object]:
    return bench.adopt(np.random.default_rng(0).bytes(1000))


@kind(2, r"foreign\.onnx: it has 2 inputs and 1 outputs, and a picture classifier has one of each")
def foreign_file_that_is_no_classifier(bench: Bench) -> list[object]:
    return bench.adopt(classifier(3, inputs=2))


@kind(2, r"foreign\.onnx: it has 5 outputs, but there are 3 labels", ("inspect",))
def foreign_file_with_other_classes(bench: Bench) -> list[object]:
    return bench.adopt(classifier(5))


@kind(2, r"foreign\.onnx: keeps weights outside its folder \('\.\./secret'\); refused")
def foreign_file_with_weights_outside(bench: Bench) -> list[object]:
    (bench.folder.parent / "secret").write_bytes(bytes(4 * 3 * 3))
    return bench.adopt(classifier(3, external="../secret"))


# ---- bundles and runs


@kind(3, r"not the bundle that was measured: model\.onnx: its content differs from its sha256", real=True)
def bundle_with_a_flipped_byte(bench: Bench) -> list[object]:
    return ["verify", tampered(bench.bundle(), "flip")]


@kind(3, r"manifest\.json: its identity is not that of its fields and files")
def bundle_with_an_edited_manifest(bench: Bench) -> list[object]:
    return ["verify", tampered(bench.bundle(), "edit")]


@kind(3, r"extra\.bin: not listed in manifest\.json")
def bundle_with_a_file_added(bench: Bench) -> list[object]:
    return ["verify", tampered(bench.bundle(), "add")]


@kind(3, r"model\.onnx: its content differs from its sha256")
def predicting_with_a_tampered_bundle(bench: Bench) -> list[object]:
    return ["predict", tampered(bench.bundle(), "flip"), bench.pictures() / "test"]


@kind(2, r"nowhere: no such folder")
def missing_bundle(bench: Bench) -> list[object]:
    return ["verify", bench.folder / "nowhere"]


@kind(2, r"letter\.jpg: not a picture of a known format", real=True)
def predicting_what_is_no_picture(bench: Bench) -> list[object]:
    (bench.folder / "letter.jpg").write_text("a letter")
    return ["predict", bench.done.bundle, bench.folder / "letter.jpg"]


@kind(2, r"no report\.json here; give the folder of a finished run")
def run_folder_without_a_report(bench: Bench) -> list[object]:
    return ["report", bench.folder]


@kind(2, r"report\.json: not a report of this version")
def damaged_report(bench: Bench) -> list[object]:
    (bench.folder / "report.json").write_text('{"run": {')
    return ["report", bench.folder]


@kind(2, r"there is no run named quick; known: tiny")
def keeping_an_unknown_run(bench: Bench) -> list[object]:
    store = shutil.copytree(bench.done.store, bench.folder / "copy")
    return ["store", "--store", store, "clean", "--keep", "quick"]


# ---- the machine


@kind(1, r"/sys/toolchain: (Operation not permitted|Permission denied|Read-only file system); mend that")
def store_without_permission(bench: Bench) -> list[object]:
    return ["run", bench.recipe(), "--out", bench.out, "--store", "/sys/toolchain"]  # refuses root as well


@kind(1, r"file/store: Not a directory")
def store_below_a_file(bench: Bench) -> list[object]:
    (bench.folder / "file").touch()
    return ["run", bench.recipe(), "--out", bench.out, "--store", bench.folder / "file" / "store"]


@kind(1, r"No space left on device; mend that and start again")
def disk_full_at_the_first_step(bench: Bench) -> list[object]:
    bench.patch.setattr(os, "fsync", full)
    return bench.run()


@kind(1, r"No space left on device; mend that and start again", ("inspect",))
def disk_full_while_training(bench: Bench) -> list[object]:
    bench.patch.setattr(Checkpoint, "save", full)
    return bench.run()


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def bench(tmp_path: Path, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    folder = tmp_path / "bench"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield Bench(folder, tiny_run, monkeypatch)
    monkeypatch.undo()


@pytest.mark.parametrize("bad", KINDS, ids=lambda bad: bad.name)
def test_bad_input_is_one_clear_sentence(bad: Kind, bench: Bench) -> None:
    arguments = bad.prepare(bench)
    answer = process(arguments) if bad.real else command(*arguments)
    bench.patch.undo()
    assert answer.code == bad.code, answer
    assert "Traceback" not in answer.err + answer.out
    *before, last = answer.err.strip().splitlines()
    assert last.startswith("Error: "), answer.err
    assert re.search(bad.says, last), answer.err
    assert not [line for line in before if line.startswith("Error")], "one sentence, not several"
    assert not [path for path in bench.forbidden if path.exists()]
    believed_nothing(bench, bad.finished)


def process(arguments: list[object]) -> Answer:
    program = [sys.executable, "-c", "from toolchain.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)


def believed_nothing(bench: Bench, finished: frozenset[str]) -> None:
    """No bundle, no report, and in the store only whole results of the steps that went well."""
    assert not (bench.out / "bundle").exists()
    assert not (bench.out / "report.json").exists()
    whole = Store(bench.store).entries()
    assert {entry.record.step for entry in whole} <= finished
    for entry in whole:
        assert entry.record.files == {name: hash_path(entry.folder / name) for name in entry.record.files}
    assert len(whole) == len(list((bench.store / "objects").glob("*")))
    assert not list((bench.store / "work").glob("*"))


def test_the_table_is_long_enough() -> None:
    assert len({bad.name for bad in KINDS}) == len(KINDS) >= 24


@pytest.mark.parametrize("write", [1, 2, 4, 8, 12, 16])
def test_a_disk_that_fills_up_while_the_bundle_is_written(bench: Bench, write: int) -> None:
    """Everything is measured, then the disk is full at some write: no half bundle; then again, and it ends well."""
    store = shutil.copytree(bench.done.store, bench.store)
    arguments = ["run", bench.done.recipe, "--out", bench.out, "--store", store]
    calls, real = iter(range(1, 1000)), os.fsync
    bench.patch.setattr(os, "fsync", lambda handle: full() if next(calls) >= write else real(handle))
    answer = command(*arguments)
    bench.patch.undo()
    assert (answer.code, answer.out) == (1, ""), answer
    assert answer.err.strip().splitlines()[-1].endswith("No space left on device; mend that and start again")
    assert not list(bench.out.glob(".*")), "something half-written lies about"
    if (bench.out / "bundle").exists():
        assert command("verify", bench.out / "bundle").code == 0
    assert command(*arguments).code == 0
    assert command("verify", bench.out / "bundle").code == 0
    assert json.loads((bench.out / "report.json").read_text())["chosen"] == "fp32"


@pytest.mark.root
def test_a_really_full_disk(tmp_path: Path) -> None:
    """The store on a file system of 300 kB: the run stops with one sentence, and goes on once there is room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    recipe = tiny_recipe(tmp_path, tiny_pictures(tmp_path / "pictures"))
    arguments = ["run", recipe, "--out", tmp_path / "out", "--store", disk / "store"]
    mount("-t", "tmpfs", "-o", "size=300k", "tmpfs", disk)
    try:
        answer = command(*arguments)
        assert answer.code == 1, answer
        assert re.search(r"No space left on device|the disk is full", answer.err.strip().splitlines()[-1])
        assert "Traceback" not in answer.err
        assert not (tmp_path / "out" / "bundle").exists()
        for entry in Store(disk / "store").entries():
            assert entry.record.files == {n: hash_path(entry.folder / n) for n in entry.record.files}
        mount("-o", "remount,size=50m", disk)
        assert command(*arguments).code == 0
        assert command("verify", tmp_path / "out" / "bundle").code == 0
    finally:
        subprocess.run(["umount", disk], check=True)


def mount(*arguments: object) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
