"""Every kind of bad input through the command line: one clear sentence, the right exit code, nothing half done."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from bad_files import (
    Bench,
    classifier,
    disk_full,
    edit_manifest,
    flip_a_byte,
    hollow_picture,
    memory_full,
    no_adapter,
)
from onnx import version_converter
from tiny import Answer, TinyRun, command, tiny_pictures, tiny_recipe

from toolchain.learn import loop
from toolchain.learn.checkpoint import Checkpoint
from toolchain.store import Store, hash_path

LEVIT = {"timm": "levit_128s", "kwargs": {"depth": [1, 1, 1]}, "weights": "random"}
PRUNED = {
    "fp32": {"from": "tuned", "steps": ["export"]},
    "p": {"from": "tuned", "steps": ["prune", "export"]},
}


@dataclass(frozen=True)
class Kind:
    """One kind of bad input: exit code, what the sentence says, and how the command's arguments are made.

    finished: the steps that went well before it, and may be in the store. real: as a process of its own.
    """

    name: str
    code: int
    says: str
    arguments: Callable[[Bench], list[object]]
    finished: tuple[str, ...] = ()
    real: bool = False


CHECKED = ("inspect",)  # the pictures were looked at before
# fmt: off
KINDS = [
    # the recipe
    Kind("typo in a recipe", 2, r"recipe\.yaml: tune\.epoch: unknown setting \(did you mean 'epochs'\?\)",
         lambda b: b.run(tune={"epoch": 1}), real=True),
    Kind("typo in a backbone is told once", 2, r"recipe\.yaml: backbone\.tim: unknown setting .*did you mean 'timm'",
         lambda b: b.run(backbone={"timm": "resnet10t", "tim": "x"})),
    Kind("broken YAML", 2, r"recipe\.yaml line 2: not readable as YAML",
         lambda b: b.written("name: tiny\ndata: {folder: [}\n")),
    Kind("template marks left in a recipe", 2, r"recipe\.yaml line 1: .*name must be plain text",
         lambda b: b.written("data: {{folder}: x}\n")),
    Kind("setting given twice", 2, r"recipe\.yaml line 2: .*'name' is given twice",
         lambda b: b.written("name: a\nname: b\n")),
    Kind("anchor within itself", 2, r"an anchor \(&name\) of the recipe is used within itself",
         lambda b: b.written("name: &a [*a]\n")),
    Kind("recipe that is no text", 2, r"recipe\.yaml: not readable as YAML, it is no UTF-8 text",
         lambda b: b.written(b"\xff\xfe\x00name")),
    Kind("recipe without a backbone", 2, r"recipe\.yaml: backbone: missing", lambda b: b.run(backbone=None)),
    Kind("recipe without variants", 2, r"recipe\.yaml: variants\.fp32: missing", lambda b: b.run(variants={})),
    Kind("unset environment variable", 2, r"data\.folder: the environment variable NOPE_7 is not set; export NOPE_7",
         lambda b: b.run(data={"folder": "${NOPE_7}"})),
    Kind("every timed call dropped", 2, r"measure: drop 20 of 10 calls a block leaves none",
         lambda b: b.run(measure={"providers": ["cpu"], "calls": 10, "drop": 20})),
    Kind("gate above 100 percent", 2, r"gates\.min_recall\.red: input should be less than or equal to 100, not 200",
         lambda b: b.run(gates={"min_recall": {"red": 200}})),
    Kind("gate for an unknown class", 2, r"gates\.min_recall: there is no class rde; known: blue, green, red",
         lambda b: b.run(gates={"min_recall": {"rde": 50}}), CHECKED),
    # the command
    Kind("missing recipe", 2, r"quikstart: no such recipe file.*did you mean 'quickstart'",
         lambda b: ["run", "quikstart"]),
    Kind("malformed --set", 2, r"--set tune\.epochs: write it as path=value",
         lambda b: b.run("--set", "tune.epochs")),
    Kind("--set to broken YAML", 2, r"--set tune\.epochs=\[1 line 1: not readable as YAML",
         lambda b: b.run("--set", "tune.epochs=[1")),
    Kind("--set beyond a list", 2, r"--set variants\.fp32\.steps\[4\]\.export: the list has 1 items",
         lambda b: b.run("--set", "variants.fp32.steps[4].export=1")),
    Kind("unknown --until", 2, r"--until tund: there is no such artifact \(did you mean 'tuned'\?\)",
         lambda b: b.run("--until", "tund"), CHECKED),
    Kind("init without pictures", 2, r"letters: no pictures in class folders",
         lambda b: ["init", b.file("letters/a/1.txt", "a letter").parent.parent]),
    Kind("report of a folder that is no run", 2, r"no report\.json here; give the folder of a finished run",
         lambda b: ["report", b.folder]),
    Kind("damaged report", 2, r"report\.json: not a report of this version",
         lambda b: ["report", b.file("report.json", '{"run": {').parent]),
    Kind("keeping an unknown run", 2, r"old-store: there is no run named quick; known: tiny",
         lambda b: ["store", "--store", b.old_store(), "clean", "--keep", "quick"]),
    Kind("damaged list of runs", 2, r"tiny\.json: damaged; delete it, and start that run again",
         lambda b: ["store", "--store", b.file("s/runs/tiny.json", "{").parent.parent]),
    # pictures
    Kind("missing data folder", 2, r"nowhere: no such folder; data\.folder holds",
         lambda b: b.run(pictures=b.folder / "nowhere")),
    Kind("truncated JPEG in train", 2, r"train/red/00\.jpg: damaged or cut short.*set data\.unreadable: drop",
         lambda b: b.run(pictures=b.cut_short("train/red/00.jpg", "jpg")), CHECKED),
    Kind("text file named .jpg", 2, r"train/red/zz\.jpg: not a picture of a known format.*Mend or remove",
         lambda b: b.run(pictures=b.pictures_with("train/red/zz.jpg", "a letter")), CHECKED),
    Kind("decompression bomb", 2, r"val/red/zz\.png: more pixels than are allowed; make it smaller",
         lambda b: b.run(pictures=b.pictures_with("val/red/zz.png", hollow_picture(60_000, 60_000))), CHECKED),
    Kind("one class", 2, r"pictures: all 24 pictures are of one class, 'red'; two are needed",
         lambda b: b.run(pictures=b.pictures(labels=("red",)))),
    Kind("class that only test has", 2, r"pictures: test has pictures of 'rust', but train has none to learn from",
         lambda b: b.run(pictures=b.pictures_with("test/rust/1.png", "x"))),
    Kind("empty class folder in train", 2, r"pictures: val has pictures of 'red', but train has none to learn from",
         lambda b: b.run(pictures=b.pictures_without("train/red/*"))),
    Kind("val without pictures", 2, r"pictures/val: no pictures in class folders; add some, or remove the folder",
         lambda b: b.run(pictures=b.pictures_without("val/*/*"))),
    Kind("val without readable pictures", 2, r"pictures: mend or add pictures: val has no readable picture",
         lambda b: b.run(pictures=b.cut_short("val/*/*"), data={"folder": "pictures", "unreadable": "drop"}), CHECKED),
    Kind("CSV without labels", 2, r"list\.csv: has no column 'label' \(it has path, kind\); rename one, or name it",
         lambda b: b.run(data={"csv": str(b.file("list.csv", "path,kind\na.png,red\n"))})),
    Kind("CSV with a missing file", 2, r"list\.csv, line 2: there is no file .*a\.png",
         lambda b: b.run(data={"csv": str(b.file("list.csv", "path,label\na.png,red\n"))})),
    # devices
    Kind("device cuda without a GPU", 2, r"device 'cuda' was asked for, .*no usable GPU: .*take --device cpu",
         lambda b: b.without_gpu(b.run("--device", "cuda"))),
    Kind("provider cuda without a GPU", 2, r"provider 'cuda' was asked for, but .*no GPU",
         lambda b: b.without_gpu(b.run(measure={"providers": ["cuda"]}))),
    # networks and weights
    Kind("unknown timm model", 2, r"recipe\.yaml: backbone\.timm: timm has no model 'resnet10u' .*'resnet10t'",
         lambda b: b.run(backbone={"timm": "resnet10u"})),
    Kind("unknown bundled backbone", 2, r"backbone\.bundled: no bundled backbone 'nanno'; known: nano, small",
         lambda b: b.run(backbone={"bundled": "nanno"})),
    Kind("architecture that cannot be pruned", 2, r"'levit_128s' cannot be pruned .*take out the prune step",
         lambda b: b.run(backbone=LEVIT, variants=PRUNED), CHECKED),
    Kind("missing weights", 2, r"tune\.backbone\.weights: .*none\.safetensors: no such file",
         lambda b: b.weights(b.folder / "none.safetensors"), CHECKED),
    Kind("garbage as weights", 2, r"w\.safetensors: not a readable safetensors file",
         lambda b: b.weights(b.file("w.safetensors", "garbage")), CHECKED),
    Kind("pickle bomb as weights", 2, r"bomb\.pth: refused, because it is damaged or carries more than tensors",
         lambda b: b.weights(b.bomb()), CHECKED),
    Kind("weights of another architecture", 2, r"weights\.safetensors: does not fit timm's mobilenetv3_small_050",
         lambda b: b.weights(b.tuned() / "weights.safetensors", "mobilenetv3_small_050"), CHECKED),
    Kind("hub without network", 2, r"'resnet10t' could not be downloaded .*give weights: FILE or weights: random",
         lambda b: b.without_network(b.run(backbone={"timm": "resnet10t"})), CHECKED),
    Kind("missing checkpoint", 2, r"load\.file: .*nowhere: no such file or folder",
         lambda b: b.run(tune=None, backbone=None, tuned={"file": "nowhere"}), CHECKED),
    Kind("checkpoint of other labels", 2, r"made for the labels \(blue, green, red\), the data have \(blue, cyan, red\)",
         lambda b: b.run(pictures=b.pictures(labels=("blue", "cyan", "red")), tune=None, backbone=None,
                         tuned={"file": str(b.tuned())}), CHECKED),
    Kind("learning rate far too high", 2, r"the loss (on val )?became (nan|inf).*take a lower lr than 1e\+09",
         lambda b: b.run(tune={"epochs": 4, "batch_size": 8, "lr": 1e9, "optimizer": "sgd"}), CHECKED),
    # foreign ONNX files
    Kind("foreign garbage", 2, r"foreign\.onnx: not an ONNX file",
         lambda b: b.adopt(np.random.default_rng(0).bytes(1000)), CHECKED),
    Kind("foreign file that is no classifier", 2, r"foreign\.onnx: it has 2 inputs and 1 outputs, and a picture",
         lambda b: b.adopt(classifier(3, inputs=2)), CHECKED),
    Kind("foreign file with other classes", 2, r"foreign\.onnx: it has 5 outputs, but there are 3 labels",
         lambda b: b.adopt(classifier(5)), CHECKED),
    Kind("foreign file with weights outside", 2, r"foreign\.onnx: keeps weights outside its folder .*refused",
         lambda b: b.adopt(classifier(3, external="../secret")), CHECKED),
    Kind("foreign file too old to convert", 2, r"foreign\.onnx: opset 12 cannot be converted to 18 .*export it anew",
         lambda b: b.patched(b.adopt(classifier(3, opset=12)), version_converter, "convert_version", no_adapter), CHECKED),
    # bundles
    Kind("bundle with a flipped byte", 3, r"not the bundle that was measured: model\.onnx: its content differs",
         lambda b: ["verify", b.bundle(flip_a_byte)], real=True),
    Kind("bundle with an edited manifest", 3, r"manifest\.json: its identity is not that of its fields and files",
         lambda b: ["verify", b.bundle(edit_manifest)]),
    Kind("bundle with a file added", 3, r"extra\.bin: not listed in manifest\.json",
         lambda b: ["verify", b.bundle(lambda f: (f / "extra.bin").touch())]),
    Kind("bundle with a file missing", 3, r"golden\.npz: is missing",
         lambda b: ["verify", b.bundle(lambda f: (f / "golden.npz").unlink())]),
    Kind("manifest that is no JSON", 2, r"manifest\.json: not JSON",
         lambda b: ["verify", b.bundle(lambda f: (f / "manifest.json").write_text("{"))]),
    Kind("missing bundle", 2, r"nowhere: no such folder", lambda b: ["verify", b.folder / "nowhere"]),
    Kind("predicting with a tampered bundle", 3, r"model\.onnx: its content differs from its sha256",
         lambda b: ["predict", b.bundle(flip_a_byte), b.done.pictures / "test"]),
    Kind("predicting what is no picture", 2, r"letter\.jpg: not a picture of a known format",
         lambda b: ["predict", b.done.bundle, b.file("letter.jpg", "a letter")], real=True),
    Kind("predicting an empty folder", 2, r"no pictures in .*letters",
         lambda b: ["predict", b.done.bundle, b.file("letters/a.txt", "a letter").parent]),
    # the machine; /sys refuses root as well
    Kind("store without permission", 1, r"/sys/toolchain: (Operation not|Permission|Read-only).*; mend that",
         lambda b: ["run", *b.run()[1:4], "--store", "/sys/toolchain"]),
    Kind("store below a file", 1, r"file/store: Not a directory; mend that and start again",
         lambda b: [*b.run()[:4], "--store", b.file("file", "") / "store"]),
    Kind("answers without permission", 1, r"/sys/answers\.csv: cannot be written",
         lambda b: ["predict", b.done.bundle, b.done.pictures / "test", "--csv", "/sys/answers.csv"]),
    Kind("disk full at the first step", 1, r"No space left on device; mend that and start again",
         lambda b: b.patched(b.run(), os, "fsync", disk_full)),
    Kind("disk full while training", 1, r"store: No space left on device; mend that and start again",
         lambda b: b.patched(b.run(), Checkpoint, "save", disk_full), CHECKED),
    Kind("memory full while training", 1, r"no memory left on 'cpu': take a smaller batch_size than 8",
         lambda b: b.patched(b.run(), loop, "cross_entropy", memory_full), CHECKED),
]
# fmt: on


@pytest.fixture
def bench(tmp_path: Path, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> Bench:
    folder = tmp_path / "bench"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return Bench(folder, tiny_run, monkeypatch)


def process(arguments: list[object]) -> Answer:
    """The command line as a process of its own."""
    program = [sys.executable, "-c", "from toolchain.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.replace(" ", "-"))
def test_bad_input_is_one_clear_sentence(kind: Kind, bench: Bench) -> None:
    arguments = kind.arguments(bench)
    answer = process(arguments) if kind.real else command(*arguments)
    bench.patch.undo()
    assert answer.code == kind.code, answer
    assert "Traceback" not in answer.err + answer.out
    *before, last = answer.err.strip().splitlines()
    assert last.startswith("Error: "), answer.err
    assert re.search(kind.says, last), answer.err
    assert not [line for line in before if "Error" in line], "one sentence, not several"
    assert not (kind.real and before), "libraries say something besides"
    assert not [path for path in bench.forbidden if path.exists()]
    assert not (bench.out / "bundle").exists()
    assert not (bench.out / "report.json").exists()
    assert set(whole_results(bench.store)) <= set(kind.finished)


def whole_results(root: Path) -> list[str]:
    """The steps a store believes to be finished; each must be whole, and nothing else may lie there."""
    entries = Store(root).entries()
    for entry in entries:
        assert entry.record.files == {name: hash_path(entry.folder / name) for name in entry.record.files}
    assert len(entries) == len(list((root / "objects").glob("*")))
    assert not list((root / "work").glob("*"))
    return [entry.record.step for entry in entries]


def test_no_kind_is_there_twice() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) >= 24


def test_an_empty_class_folder_is_told(bench: Bench) -> None:
    bench.pictures_with("train/empty/notes.txt", "none yet")
    answer = command("check", tiny_recipe(bench.folder, bench.folder / "pictures"))
    assert answer.code == 0
    assert "note: class folder train/empty is empty: it holds no pictures" in answer.out


def test_a_reader_that_goes_away_is_no_error(bench: Bench) -> None:
    """`toolchain report RUN | head -1`"""
    program = [
        sys.executable,
        "-c",
        "from toolchain.cli import main; main()",
        "verify",
        str(bench.done.bundle),
    ]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(program, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_disk_that_fills_up_while_the_result_is_written(bench: Bench) -> None:
    """Everything is measured; then the disk is full at the first write, the fourth, … until all of them pass."""
    arguments = ["run", bench.done.recipe, "--out", bench.out, "--store", bench.old_store()]
    for write in count(1, 3):
        shutil.rmtree(bench.out, ignore_errors=True)
        answer = command_with_room_for(write, arguments, bench)
        if answer.code == 0:
            break
        assert (answer.code, answer.out) == (1, ""), answer
        assert (
            answer.err.strip().splitlines()[-1].endswith("No space left on device; mend that and start again")
        )
        assert not list(bench.out.glob(".*")), "something half-written lies about"
        assert not (bench.out / "bundle").exists() or command("verify", bench.out / "bundle").code == 0
    assert write > 12
    assert command("verify", bench.out / "bundle").code == 0


def command_with_room_for(writes: int, arguments: list[object], bench: Bench) -> Answer:
    """Run a command on a disk that has room for so many files less one."""
    number, real = iter(range(1, 1000)), os.fsync
    with bench.patch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: disk_full() if next(number) >= writes else real(handle))
        return command(*arguments)


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
        whole_results(disk / "store")
        mount("-o", "remount,size=50m", disk)
        assert command(*arguments).code == 0
        assert command("verify", tmp_path / "out" / "bundle").code == 0
    finally:
        subprocess.run(["umount", disk], check=True)


def mount(*arguments: object) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
