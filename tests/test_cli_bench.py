"""`toolchain bench`: what it prints and keeps, and every fault as one sentence with its exit code."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from bench_helpers import elementwise, fused, identity, not_a_number, plain, saved, second_timing_raises
from PIL import Image
from runtime_helpers import LABELS, make_bundle
from tiny import command

from benchmarks.bench.planted import gated, network, quantized
from toolchain.loadgen import settings as loadgen_settings
from toolchain.runtime import bench as benching
from toolchain.runtime import bench_asked, fresh, providers, whole
from toolchain.runtime.bench_record import parse, read
from toolchain.stats import percentile_interval

SHORT = ("--blocks", 25, "--calls", 4, "--cold-starts", 0)
NO_GPU = providers.usable()["cuda"] is not None


def test_a_table_a_record_and_a_history(tmp_path: Path) -> None:
    record, history = tmp_path / "new" / "record.json", tmp_path / "history"
    answer = command("bench", plain(tmp_path), *SHORT, "--batch", 1, "--batch", 2, "--cold-starts", 1,
                     "--json", record, "--records", history)  # fmt: skip
    assert (answer.code, answer.err.splitlines()[0]) == (0, "  1 of 2: cpu, 1 thread, batch 1")
    assert "float32 2x3x4x4 noise" in answer.out
    assert "p99.9 would need 1,000, 10,000" in answer.out
    assert "fresh process: first answer after" in answer.out
    assert "nodes on cpu; time: " in answer.out
    kept = read(record)
    (path,) = history.glob("*.json")
    assert read(path) == kept
    p50 = kept.cases[0].percentiles["p50"]
    interval = percentile_interval(kept.cases[0].blocks, 0.5)
    assert p50 is not None
    assert interval is not None
    assert p50.ci95 == interval.ci95
    assert kept.cases[0].percentiles["p99"] is None


def test_several_models_and_a_bundle(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    answer = command("bench", bundle, plain(tmp_path), *SHORT, "--records", tmp_path / "history")
    assert answer.code == 0
    assert "colours/fp32: model.onnx" in answer.out
    assert "uint8 1x9x3x3 pictures" in answer.out
    assert len(list((tmp_path / "history").iterdir())) == 2


def test_explain_names_the_culprit(tmp_path: Path) -> None:
    answer = command(
        "bench", quantized(network(tmp_path / "net.onnx", gated("Sigmoid"))), *SHORT, "--explain"
    )
    assert answer.code == 0
    assert "SiLU fell apart" in answer.out
    assert "-> there is no int8 SiLU in one kernel" in answer.out


def test_loadgen_from_the_command_line(tmp_path: Path) -> None:
    answer = command("bench", plain(tmp_path), "--loadgen", "single-stream", "--seconds", 0.2, "--logs", tmp_path / "l",
                     "--json", tmp_path / "r.json")  # fmt: skip
    assert answer.code == 0, answer.out + answer.err
    assert "VALID: 90.0th percentile latency" in answer.out
    (logs,) = (tmp_path / "l").iterdir()
    assert json.loads((logs / "record.json").read_text()) == json.loads((tmp_path / "r.json").read_text())
    bound = command("bench", plain(tmp_path), "--loadgen", "server", "--seconds", 0.2, "--logs", tmp_path / "l",
                    "--target-latency-ms", 0.000001)  # fmt: skip
    assert bound.code == 3
    assert "INVALID (not satisfied: Performance constraints" in bound.out
    assert re.search(r"asked [\d.e+]+ queries a second, p99 to be within ", bound.out)
    assert "LoadGen's advice: Reduce target QPS" in bound.out
    assert "(--target-qps; or allow more with --target-latency-ms)" in bound.out


@pytest.mark.parametrize("scenario", [(), ("--loadgen", "single-stream", "--seconds", 0.2)])
def test_a_record_is_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: tuple[object, ...]
) -> None:
    record = tmp_path / "r.json"
    record.write_text("an older record")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    logs = ("--logs", tmp_path / "l") if scenario else SHORT
    answer = command("bench", plain(tmp_path), *scenario, *logs, "--json", record)
    assert answer.code == 1
    assert answer.err.splitlines()[-1].startswith(f"Error: {tmp_path}")
    assert "No space left on device" in answer.err
    assert record.read_text() == "an older record"
    kept = {path.name for path in tmp_path.rglob("*") if path.is_file()} - {"r.json", "plain.onnx"}
    assert all(name.startswith("mlperf_log") for name in kept), kept


@dataclass(frozen=True)
class Fault:
    """One kind of fault: the exit code, what the one sentence says, the arguments; `kept`: a record is written."""

    name: str
    code: int
    says: str
    arguments: Callable[[Path, pytest.MonkeyPatch], list[object]]
    kept: bool = False


def replaced(folder: Path, patch: pytest.MonkeyPatch) -> list[object]:
    model = plain(folder)
    real = benching.trace.trace

    patch.setattr(benching.trace, "trace", lambda *a, **k: (real(*a, **k), saved(identity(), model))[0])
    return [model]


def killed(folder: Path, patch: pytest.MonkeyPatch) -> list[object]:
    patch.setattr(
        fresh.subprocess, "run", lambda c, **_: subprocess.CompletedProcess(c, -signal.SIGKILL, "", "")
    )
    return [plain(folder), "--cold-starts", 2]


def full(folder: Path, patch: pytest.MonkeyPatch) -> list[object]:
    def refused(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    patch.setattr(benching.trace.TracedSession, "trace", refused)
    return [plain(folder)]


def unreadable(folder: Path, patch: pytest.MonkeyPatch) -> list[object]:
    def refused(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    patch.setattr(bench_asked, "sha256_of", refused)
    return [plain(folder)]


def no_loadgen(folder: Path, patch: pytest.MonkeyPatch) -> list[object]:
    def missing(name: str) -> object:
        raise ImportError(name)

    patch.setattr(loadgen_settings, "import_module", missing)
    return [plain(folder), "--loadgen", "offline"]


def with_pictures(folder: Path) -> Path:
    (folder / "pictures").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "pictures" / "a.png")
    return folder / "pictures"


def two_classes(folder: Path) -> Path:
    for name in LABELS[:2]:
        (folder / "two" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / "two" / name / "a.png")
    return folder / "two"


def cut_short(folder: Path) -> Path:
    path = plain(folder)
    path.write_bytes(path.read_bytes()[:100])
    return path


def text_input(folder: Path) -> Path:
    return saved(elementwise("Identity", [1], onnx.TensorProto.STRING), folder / "t.onnx")


# fmt: off
FAULTS = [
    Fault("model replaced mid-run", 2, r"plain\.onnx: was replaced, cut short or deleted while it was timed",
          replaced),
    Fault("killed fresh process", 1, r"cold start and memory are not measured: .*SIGKILL", killed, kept=True),
    Fault("a disk that is full for the trace", 1, "placement is not measured: .*No space", full, kept=True),
    Fault("no permission to read", 2, r"plain\.onnx: cannot be read \(Permission denied\)", unreadable),
    Fault("no permission to write the record", 1, r"/sys/.*record\.json: cannot be written \((Oper|Perm|Read)",
          lambda f, p: [plain(f), "--json", "/sys/bench/record.json"]),
    Fault("no permission to write the history", 1, r"/sys/bench: cannot be written \((Operation not|Permission|Read-only)",
          lambda f, p: [plain(f), "--records", "/sys/bench"]),
    Fault("NaN outputs", 2, r"output 0 has values that are not finite .*mend the model",
          lambda f, p: [saved(not_a_number(), f / "nan.onnx")]),
    Fault("dynamic shapes without values", 2, r"leaves sizes open; give --shape H=… --shape W=…", lambda f, p: [fused(f)]),
    Fault("a shape that is no number", 2, r"--shape H=big: give NAME=SIZE",
          lambda f, p: [fused(f), "--shape", "H=big"]),
    Fault("a shape of no dimension", 2, r"has no open dimension Q; its open dimensions are",
          lambda f, p: [fused(f), "--shape", "Q=3"]),
    Fault("a batch that the model does not take", 2, r"takes batches of 1 only; give --batch 1",
          lambda f, p: [saved(identity(), f / "i.onnx"), "--batch", 3]),
    Fault("a type that cannot be made up", 2, r"input 'x' is .*string.*, which cannot be made up",
          lambda f, p: [text_input(f)]),
    Fault("pictures that fit no input", 2, r"pictures do not fit its input",
          lambda f, p: [saved(identity(), f / "i.onnx"), "--pictures", with_pictures(f)]),
    Fault("no pictures", 2, r"no such file or folder", lambda f, p: [plain(f), "--pictures", f / "none"]),
    Fault("no model", 2, r"absent\.onnx: no such file", lambda f, p: [f / "absent.onnx"]),
    Fault("no bundle", 2, r"not a bundle", lambda f, p: [f]),
    Fault("a model cut short", 2, r"plain\.onnx: not an ONNX file, or cut short", lambda f, p: [cut_short(f)]),
    Fault("an option without a provider", 2, r"--option device_id=0: give cpu\.NAME=VALUE",
          lambda f, p: [plain(f), "--option", "device_id=0"]),
    Fault("an option that the CPU has not", 2, r"provider 'cpu' has no options, but x was given",
          lambda f, p: [plain(f), "--option", "cpu.x=0"]),
    Fault("an option of a provider that nothing runs on", 2, r"--option cuda\.device_id=0: nothing runs on cuda",
          lambda f, p: [plain(f), "--option", "cuda.device_id=0"]),
    Fault("LoadGen's accuracy of noise", 2, r"--loadgen-mode accuracy needs --pictures",
          lambda f, p: [plain(f), "--loadgen", "offline", "--loadgen-mode", "accuracy"]),
    Fault("LoadGen's accuracy of pictures without classes", 2, r"pictures: pictures lie in no folder of a class",
          lambda f, p: [plain(f), "--loadgen", "offline", "--loadgen-mode", "accuracy", "--pictures", with_pictures(f)]),
    Fault("LoadGen's classes of the second model", 2, r"2 folders do not match the model's 3 classes",
          lambda f, p: [make_bundle(f / "b"), plain(f), "--loadgen", "offline", "--loadgen-mode", "accuracy", "--pictures",
                        two_classes(f)]),
    Fault("LoadGen missing", 2, r"LoadGen is not installed: pip install", no_loadgen),
    Fault("--json for two", 2, r"--json takes the record of one model", lambda f, p: [plain(f), plain(f), "--json", "x"]),
    Fault("--explain elsewhere", 2, r"--explain works on this machine",
          lambda f, p: [plain(f), "--explain", "--on", "ssh://x"]),
    Fault("--mlperf alone", 2, r"--mlperf belongs to --loadgen; give that as well", lambda f, p: [plain(f), "--mlperf"]),
    Fault("--explain under LoadGen", 2, r"--explain is for .*leave --loadgen out",
          lambda f, p: [plain(f), "--explain", "--loadgen", "offline"]),
    *(Fault(f"{words[0]} without --on", 2, rf"{words[0]} belongs to --on",
            lambda f, p, words=words: [plain(f), *words])
      for words in (("--keep",), ("--identity", "k"), ("--python", "python3"))),
    *(Fault(f"{words[0]} without --loadgen", 2, rf"{words[0]} belongs to --loadgen",
            lambda f, p, words=words: [plain(f), *words])
      for words in (("--target-qps", 9), ("--target-latency-ms", 9), ("--logs", "l"), ("--mlperf",),
                    ("--loadgen-mode", "performance"))),
    *(Fault(f"{words[0]} without a server", 2, rf"{words[0]} belongs to --loadgen server",
            lambda f, p, words=words: [plain(f), "--loadgen", "offline", *words])
      for words in (("--target-qps", 9), ("--target-latency-ms", 9))),
    Fault("blocks under LoadGen", 2, r"--blocks is for .*leave --loadgen out",
          lambda f, p: [plain(f), "--loadgen", "offline", "--blocks", 3]),
    Fault("--blocks and --seconds", 2, r"--blocks is what --seconds takes the place of",
          lambda f, p: [plain(f), "--blocks", 3, "--seconds", 3]),
    Fault("--mlperf and --seconds", 2, r"--seconds cannot shorten .*leave --mlperf out",
          lambda f, p: [plain(f), "--loadgen", "offline", "--mlperf", "--seconds", 3]),
    Fault("a folder for --json", 2, r"Invalid value for '--json': File '.*' is a directory",
          lambda f, p: [plain(f), "--json", f]),
    Fault("an address that is none", 2, r"give ssh://user@host", lambda f, p: [plain(f), "--on", "device"]),
    *([Fault("provider missing", 2, r"provider 'cuda' was asked for, but ",
             lambda f, p: [plain(f), "--provider", "cuda"])] if NO_GPU else []),
]
# fmt: on


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_one_sentence_with_its_exit_code(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = fault.arguments(tmp_path, monkeypatch)
    history = tmp_path / "history"
    keep = [] if {"--json", "--records"} & set(map(str, given)) else ["--records", history]
    short = () if {"--loadgen", "--blocks"} & set(map(str, given)) else SHORT
    answer = command("bench", *short, *given, *keep)
    assert answer.code == fault.code, answer.err
    errors = [line for line in answer.err.splitlines() if "Error: " in line]
    assert "Traceback" not in answer.err
    if fault.kept:
        assert not errors
        (path,) = history.iterdir()
        record = parse(json.loads(path.read_text()), "kept")
        assert record.cases[0].blocks.shape == (25, 4)
        assert re.search(fault.says, record.notes[0])
        assert f"note: {record.notes[0]}" in answer.out
    else:
        assert len(errors) == 1
        assert re.search(fault.says, errors[0]), errors[0]
        assert not list(history.glob("*")) if history.exists() else True


@pytest.mark.skipif(not NO_GPU, reason="this machine has a usable GPU")
def test_a_fallback_that_is_allowed_is_told(tmp_path: Path) -> None:
    answer = command("bench", plain(tmp_path), *SHORT, "--provider", "cuda", "--allow-fallback")
    assert answer.code == 0
    assert "note: provider 'cuda' was asked for; 'cpu' was timed, because" in answer.out


@pytest.mark.gpu
def test_two_providers_in_one_call(tmp_path: Path) -> None:
    answer = command("bench", plain(tmp_path), *SHORT, "--provider", "cpu", "--provider", "cuda",
                     "--option", "cuda.device_id=0", "--json", tmp_path / "r.json")  # fmt: skip
    assert answer.code == 0
    ways = [(c.condition.provider, c.copies) for c in read(tmp_path / "r.json").cases]
    assert ways == [("cpu", None), ("cuda", "included"), ("cuda", "excluded")]
    assert np.all([c.blocks.min() > 0 for c in read(tmp_path / "r.json").cases])


def test_a_record_goes_into_a_pipe_and_takes_no_devices_place(tmp_path: Path) -> None:
    model, pipe, target = plain(tmp_path), tmp_path / "pipe", tmp_path / "target.json"
    os.mkfifo(pipe)
    link = tmp_path / "link.json"
    link.symlink_to(target)
    short = ("--calls", 3, "--blocks", 2, "--cold-starts", 0)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True)
    assert command("bench", model, *short, "--json", pipe).code == 0
    assert json.loads(reader.communicate(timeout=60)[0])["kind"] == "bench"
    assert pipe.is_fifo()
    assert command("bench", model, *short, "--json", link).code == 0
    assert link.is_symlink()
    assert json.loads(target.read_text())["kind"] == "bench"


def test_ctrl_c_keeps_what_was_timed_and_times_no_other_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = second_timing_raises(monkeypatch, KeyboardInterrupt())
    models = (plain(tmp_path), saved(identity(), tmp_path / "i.onnx"))
    told = command("bench", *models, *SHORT, "--threads", 1, "--threads", 2, "--records", tmp_path / "kept")
    assert told.code == 130
    assert "2 threads, batch 1 is not measured: stopped by hand" in told.out
    (path,) = (tmp_path / "kept").iterdir()
    assert [case.condition.threads for case in read(path).cases] == [1]
    assert len(calls) == 2


def test_one_place_that_fails_costs_not_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(whole, "write_out", full)
    short = ("--calls", 3, "--blocks", 2, "--cold-starts", 0)
    told = command(
        "bench", plain(tmp_path), *short, "--json", tmp_path / "a.json", "--records", tmp_path / "kept"
    )
    assert told.code == 1
    assert len(list((tmp_path / "kept").glob("*.json"))) == 1
