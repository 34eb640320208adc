"""`toolchain compare` from end to end, and its fault table: one clear sentence, the right exit code, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_helpers import mobile
from runtime_helpers import fused_model, make_bundle
from test_compare_forms import record
from tiny import Answer, command

from toolchain.compare import comparison
from toolchain.compare.workers import WorkerProcess
from toolchain.runtime import providers, whole

QUICK = ("--max-seconds", "0.1")  # one turn: nothing is decided by it
LOOSE = ("--set", "latency=null", "--set", "cold_start=null", "--set", "memory=null")


def saved(path: Path, model: onnx.ModelProto | None = None) -> Path:
    onnx.save(model or mobile(), path)
    return path


def ends(answer: Answer, code: int, sentence: str) -> None:
    """The exit code, and one sentence on standard error without a traceback."""
    assert answer.code == code, answer
    told = [line for line in answer.err.splitlines() if line.startswith(("Error", "Usage"))]
    assert any(sentence in line for line in answer.err.splitlines()), answer.err
    assert len(told) == 1
    assert "Traceback" not in answer.err


def test_a_comparison_writes_every_form_and_a_record(tmp_path: Path) -> None:
    base, candidate = saved(tmp_path / "a.onnx"), saved(tmp_path / "b.onnx", mobile(seed=1))
    files = {name: tmp_path / "out" / f"c.{name}" for name in ("json", "junit", "markdown")}
    asked = [word for name, path in files.items() for word in (f"--{name}", path)]
    answer = command("compare", base, candidate, *QUICK, *LOOSE, *asked, "--record", tmp_path / "history")
    assert answer.code == 0, answer
    assert "b against a: pass" in answer.out
    assert "fitted into the time" not in answer.out
    raw = json.loads(files["json"].read_text())
    assert raw["verdict"] == "pass"
    assert raw["turns"][0]["base"]["samples_ns"][0][0] > 0
    assert raw["candidate"]["path"] == "b.onnx"
    assert str(tmp_path) not in files["json"].read_text()
    assert files["markdown"].read_text().startswith("### ✓ b against a: pass")
    (kept,) = (tmp_path / "history").iterdir()
    assert json.loads(kept.read_text()) == raw


def test_too_few_turns_are_inconclusive_and_say_so(tmp_path: Path) -> None:
    answer = command("compare", saved(tmp_path / "a.onnx"), saved(tmp_path / "b.onnx"), *QUICK)
    assert answer.code == 4
    assert "inconclusive in latency" in answer.out
    assert "only 1 turn fitted into the time; 10 are needed" in answer.out


def test_models_of_different_input_sizes_are_timed_and_their_outputs_not_compared(tmp_path: Path) -> None:
    base, candidate = saved(tmp_path / "a.onnx"), saved(tmp_path / "b.onnx", mobile(side=16))
    answer = command("compare", base, candidate, *QUICK, *LOOSE, "--set", "difference=0")
    assert answer.code == 4, answer
    assert "inconclusive in largest difference" in answer.out
    assert "the inputs differ in shape or type" in answer.out
    assert command("compare", base, candidate, *QUICK, *LOOSE).code == 0


def test_a_bound_that_was_set_is_never_left_unjudged_in_silence(tmp_path: Path) -> None:
    base = saved(tmp_path / "a.onnx")
    for bound in ("agreement=100", "calibration=0", "class_accuracy=0", "accuracy=1"):
        ends(
            command("compare", base, base, *QUICK, *LOOSE, "--set", bound), 2,
            "cannot be judged without answers; give --pictures (two models) or --answers",
        )  # fmt: skip
    (tmp_path / "a.csv").write_text("label,base,candidate\n" + "cat,cat,cat\ndog,dog,dog\n" * 300)
    asked = ("--answers", tmp_path / "a.csv", "--set", "agreement=90")
    answer = command("compare", base, base, *QUICK, *LOOSE, *asked)
    assert answer.code == 0, answer
    answer = command("compare", base, base, *QUICK, *LOOSE, *asked, "--set", "calibration=0")
    assert answer.code == 4
    assert "inconclusive in calibration error" in answer.out
    assert "classes without probabilities" in answer.out


def test_a_candidate_of_other_classes_is_a_regression(tmp_path: Path) -> None:
    base, candidate = saved(tmp_path / "a.onnx"), saved(tmp_path / "b.onnx", mobile(classes=4))
    answer = command("compare", base, candidate, *QUICK, *LOOSE)
    assert answer.code == 3
    assert "REGRESSION in same shape" in answer.out


def test_a_larger_file_is_a_regression_by_its_bound(tmp_path: Path) -> None:
    large = mobile()
    onnx.helper.set_model_props(large, {"padding": "x" * 100_000})
    base, candidate = saved(tmp_path / "a.onnx"), saved(tmp_path / "b.onnx", large)
    (tmp_path / "gates.yaml").write_text("latency: null\ncold_start: null\nmemory: null\nsize: 1\n")
    answer = command("compare", base, candidate, *QUICK, "--gates", tmp_path / "gates.yaml")
    assert answer.code == 3
    assert "REGRESSION in size" in answer.out


def test_accuracy_comes_from_pictures_or_from_saved_answers(tmp_path: Path) -> None:
    from test_compare_accuracy import paired, pictures

    bundle = make_bundle(tmp_path / "bundle")
    folder = pictures(tmp_path / "tiles")
    answer = command("compare", bundle, bundle, *QUICK, *LOOSE, "--set", "accuracy=50", "--pictures", folder)
    assert answer.code == 0, answer
    assert "accuracy            100.00 %  100.00 %" in answer.out
    given = paired(2000, 200, 0)
    np.savez(tmp_path / "answers.npz", base=given.base, candidate=given.candidate, labels=given.labels)
    answer = command("compare", bundle, bundle, *QUICK, *LOOSE, "--answers", tmp_path / "answers.npz")
    assert answer.code == 3
    assert "REGRESSION in accuracy" in answer.out


def test_saved_records_are_compared(tmp_path: Path) -> None:
    for name, scale in (("a", 1.0), ("b", 1.2)):
        (tmp_path / f"{name}.json").write_text(json.dumps(record(scale).as_json()))
    answer = command("compare", tmp_path / "a.json", tmp_path / "b.json")
    assert answer.code == 3
    assert "REGRESSION in latency, memory" in answer.out
    assert "in units of a reference that took turns" in answer.out
    assert "were not interleaved" in answer.out


def test_a_model_without_any_output_values_is_compared(tmp_path: Path) -> None:
    answer = command(
        "compare", saved(tmp_path / "a.onnx", nothing()), tmp_path / "a.onnx", *QUICK, *LOOSE, "--set", "difference=0"
    )  # fmt: skip
    assert answer.code == 0, answer


def nothing() -> onnx.ModelProto:
    """Answers [1, 0]."""
    given, found = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, width])
        for name, width in (("x", 3), ("y", 0))
    )
    ends = [
        onnx.numpy_helper.from_array(np.array([n], np.int64), k)
        for n, k in ((0, "from"), (0, "to"), (1, "axis"))
    ]
    slice_ = onnx.helper.make_node("Slice", ["x", "from", "to", "axis"], ["y"])
    graph = onnx.helper.make_graph([slice_], "g", [given], [found], ends)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)


def test_a_form_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, kept = saved(tmp_path / "a.onnx"), tmp_path / "c.json"
    kept.write_text("the last one")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        answer = command("compare", base, base, *QUICK, *LOOSE, "--json", kept)
    ends(answer, 1, "c.json: cannot be written (No space left on device)")
    assert kept.read_text() == "the last one"
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx", "c.json"}
    link = tmp_path / "link"
    link.symlink_to(kept)
    assert command("compare", base, base, *QUICK, *LOOSE, "--json", link).code == 0
    assert link.is_symlink()
    assert json.loads(kept.read_text())["kind"] == "compare"


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (("model", "bytes"), 0), (("host", "memory_bytes"), "16 GiB"), (("host", "features"), 5),
        (("cases", 0, "memory", "peak_bytes"), 0), (("cases", 0, "cold_start_ns", "first_answer"), []),
        (("cases", 0, "cold_start_ns", "first_answer", 2), 0), (("cases", 0, "samples_ns", 3, 1), 0),
        (("cases", 0, "percentiles", "p50", "ns"), 0.0),
    ],
)  # fmt: skip
def test_a_record_with_figures_that_are_none_is_told_with_its_field(
    tmp_path: Path, at: tuple[str | int, ...], value: object
) -> None:
    raw = json.loads(json.dumps(record().as_json()))
    held = raw
    for name in at[:-1]:
        held = held[name]
    held[at[-1]] = value
    (tmp_path / "a.json").write_text(json.dumps(raw))
    (tmp_path / "b.json").write_text(json.dumps(record().as_json()))
    words = [str(name) for name in at if isinstance(name, str)]
    for pair in (("a.json", "b.json"), ("b.json", "a.json")):
        answer = command("compare", *(tmp_path / name for name in pair))
        ends(answer, 2, "a.json")
        assert words[-1] in answer.err


# Faults: what is wrong, the exit code, the sentence.


def missing(folder: Path) -> list[object]:
    return [saved(folder / "a.onnx"), folder / "b.onnx"]


def no_model(folder: Path) -> list[object]:
    (folder / "b.onnx").write_bytes(b"not a model")
    return [saved(folder / "a.onnx"), folder / "b.onnx"]


def no_bundle(folder: Path) -> list[object]:
    (folder / "b").mkdir()
    return [saved(folder / "a.onnx"), folder / "b"]


def open_sizes(folder: Path) -> list[object]:
    return [saved(folder / "a.onnx", fused_model()), saved(folder / "b.onnx", fused_model())]


def other_input(folder: Path) -> list[object]:
    return [saved(folder / "a.onnx"), saved(folder / "b.onnx", fused_model()), "--shape", "H=480"]


def one_record(folder: Path) -> list[object]:
    (folder / "b.json").write_text(json.dumps(record().as_json()))
    return [saved(folder / "a.onnx"), folder / "b.json"]


def broken_record(folder: Path) -> list[object]:
    (folder / "a.json").write_text(json.dumps(record().as_json())[:-40])
    (folder / "b.json").write_text(json.dumps(record().as_json()))
    return [folder / "a.json", folder / "b.json"]


def other_machine(folder: Path) -> list[object]:
    (folder / "a.json").write_text(json.dumps(record().as_json()))
    (folder / "b.json").write_text(json.dumps(record(cpu="B").as_json()))
    return [folder / "a.json", folder / "b.json"]


def wrong_gates(folder: Path) -> list[object]:
    (folder / "gates.yaml").write_text("latenzy: 5")
    return [saved(folder / "a.onnx"), saved(folder / "b.onnx"), "--gates", folder / "gates.yaml"]


def base_not_finite(folder: Path) -> list[object]:
    return [saved(folder / "a.onnx", infinite()), saved(folder / "b.onnx")]


def no_provider(folder: Path) -> list[object]:
    return [saved(folder / "a.onnx"), saved(folder / "b.onnx"), "--provider", "cuda"]


def infinite() -> onnx.ModelProto:
    model = mobile()
    for weight in model.graph.initializer:
        if weight.name == "fc.bias":
            weight.CopyFrom(onnx.numpy_helper.from_array(np.full(3, np.nan, np.float32), weight.name))
    return model


@pytest.mark.parametrize(
    ("fault", "code", "sentence"),
    [
        (missing, 2, "b.onnx: no such file"),
        (no_model, 2, "b.onnx: not an ONNX file"),
        (no_bundle, 2, "not a bundle, it has no manifest.json"),
        (open_sizes, 2, "leaves sizes open; give --shape H=… --shape W=…"),
        (other_input, 2, "has no open dimension H"),
        (one_record, 2, "one side is a record and the other a model"),
        (broken_record, 2, "a.json: not JSON, or cut short"),
        (other_machine, 2, "different machines"),
        (wrong_gates, 2, "latenzy: unknown setting (did you mean 'latency'?)"),
        (base_not_finite, 2, "a.onnx: answers NaN or infinity; a base must answer"),
    ],
)
def test_a_fault_is_told_in_one_sentence(
    tmp_path: Path, fault: Callable[[Path], list[object]], code: int, sentence: str
) -> None:
    given = fault(tmp_path)
    records = all(str(one).endswith(".json") for one in given)
    ends(command("compare", *given, *(() if records else QUICK)), code, sentence)


@pytest.mark.skipif(providers.usable()["cuda"] is None, reason="this machine has a GPU")
def test_a_provider_that_is_missing_is_told(tmp_path: Path) -> None:
    ends(command("compare", *no_provider(tmp_path), *QUICK), 2, "provider 'cuda' was asked for, but")


def test_a_candidate_that_answers_nan_is_a_regression_and_still_timed(tmp_path: Path) -> None:
    base, candidate = saved(tmp_path / "a.onnx"), saved(tmp_path / "b.onnx", infinite())
    answer = command(
        "compare", base, candidate, *QUICK, *LOOSE, "--set", "difference=0.1", "--json", tmp_path / "c.json"
    )
    assert answer.code == 3
    assert "REGRESSION in finite answers, largest difference" in answer.out
    assert json.loads((tmp_path / "c.json").read_text())["turns"]


def test_a_model_replaced_meanwhile_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, candidate = saved(tmp_path / "a.onnx"), saved(tmp_path / "b.onnx")
    finish = WorkerProcess.finish

    def replacing(self: WorkerProcess) -> None:
        finish(self)
        saved(candidate, mobile(seed=9))

    monkeypatch.setattr(WorkerProcess, "finish", replacing)
    answer = command("compare", base, candidate, "--max-seconds", 60, "--json", tmp_path / "c.json")
    ends(answer, 2, "b.onnx: was replaced, cut short or deleted while it was being compared")
    assert len(json.loads((tmp_path / "c.json").read_text())["turns"]) == 1


@pytest.mark.parametrize("way", ["another input", "cut short", "deleted"])
def test_a_model_that_can_no_longer_be_asked_is_said_to_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The worker's own sentence (sizes that do not fit, a file that is none) came instead."""
    base, candidate = saved(tmp_path / "a.onnx"), saved(tmp_path / "b.onnx")
    finish = WorkerProcess.finish

    def breaking(self: WorkerProcess) -> None:
        finish(self)
        if way == "another input":
            saved(candidate, mobile(side=16))
        elif way == "cut short":
            candidate.write_bytes(b"8")
        else:
            candidate.unlink(missing_ok=True)

    monkeypatch.setattr(WorkerProcess, "finish", breaking)
    answer = command("compare", base, candidate, "--max-seconds", 60, "--json", tmp_path / "c.json")
    ends(answer, 2, "b.onnx: was replaced, cut short or deleted while it was being compared")
    assert len(json.loads((tmp_path / "c.json").read_text())["turns"]) == 1


def test_a_killed_worker_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, candidate = saved(tmp_path / "a.onnx"), saved(tmp_path / "b.onnx")
    asked, ask = [], WorkerProcess.ask

    def killing(self: WorkerProcess, question: Mapping[str, object]) -> Mapping[str, object]:
        asked.append(question)
        if len(asked) == 44:  # 42 a turn of 20 pairs: the second turn
            os.kill(self._process.pid, signal.SIGKILL)
        return ask(self, question)

    monkeypatch.setattr(WorkerProcess, "ask", killing)
    answer = command(
        "compare",
        base,
        candidate,
        "--max-seconds",
        60,
        "--json",
        tmp_path / "c.json",
        "--record",
        tmp_path / "h",
    )
    ends(answer, 1, "was ended by SIGKILL: was it killed, or had the machine no memory left?")
    raw = json.loads((tmp_path / "c.json").read_text())
    assert len(raw["turns"]) == 1
    assert "SIGKILL" in raw["failure"]
    assert len(list((tmp_path / "h").iterdir())) == 1


@pytest.mark.parametrize("loss", [0, 1])
def test_a_form_that_cannot_be_written_is_told_after_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: int
) -> None:
    """And takes no red away: what was found for certain counts more than a file."""
    base, candidate = saved(tmp_path / "a.onnx"), saved(tmp_path / "b.onnx", mobile(classes=3 + loss))
    real = whole.write_out

    def write_out(path: Path, content: bytes) -> None:
        if path.name == "c.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    monkeypatch.setattr(whole, "write_out", write_out)
    answer = command(
        "compare", base, candidate, *QUICK, *LOOSE, "--json", tmp_path / "c.json",
        "--markdown", tmp_path / "c.md", "--record", tmp_path / "records",
    )  # fmt: skip
    ends(answer, 3 if loss else 1, "c.json: cannot be written (")
    assert f"b against a: {'REGRESSION' if loss else 'pass'}" in answer.out
    assert (tmp_path / "c.md").exists()
    assert len(list((tmp_path / "records").iterdir())) == 1


@pytest.mark.parametrize("option", ["--json", "--junit", "--markdown", "--record"])
def test_what_cannot_be_written_is_told_before_anything_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    (tmp_path / "file").write_text("")
    base = saved(tmp_path / "a.onnx")
    monkeypatch.delattr(comparison.live, "run")
    answer = command("compare", base, base, *QUICK, option, tmp_path / "file" / "c")
    ends(answer, 1, f"{tmp_path / 'file' / 'c'}: cannot be written (Not a directory); mend that")


def test_a_file_against_itself_is_called_so(tmp_path: Path) -> None:
    base = saved(tmp_path / "a.onnx")
    assert "a against itself: pass" in command("compare", base, base, *QUICK, *LOOSE).out


def test_a_session_entry_that_is_not_known_is_told(tmp_path: Path) -> None:
    base = saved(tmp_path / "a.onnx")
    told = command("compare", base, base, *QUICK, *LOOSE, "--option", "session.foo=1").out
    assert "seems to know no option session.foo" in told


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_what_may_not_be_read_or_written_is_told(tmp_path: Path) -> None:
    base, hidden = saved(tmp_path / "a.onnx"), saved(tmp_path / "b.onnx")
    hidden.chmod(0)
    answer = command("compare", base, hidden, *QUICK)
    assert answer.code == 2
    assert "b.onnx' is not readable" in answer.err
    (tmp_path / "records").mkdir(mode=0o500)
    ends(
        command("compare", base, base, *QUICK, *LOOSE, "--record", tmp_path / "records"),
        1,
        "records: cannot be written (Permission denied)",
    )


def test_a_record_folder_that_is_a_file_is_told_before_anything_is_timed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = command("compare", tmp_path / "a.onnx", tmp_path / "b.onnx", "--record", tmp_path / "file")
    assert answer.code == 2
    assert "is a file" in answer.err


@pytest.mark.parametrize("name", ["compare", "bench"])
def test_a_file_of_a_bundle_is_not_asked_for_beside_single_files(name: str, tmp_path: Path) -> None:
    """`--file plain` was ignored there."""
    model = saved(tmp_path / "a.onnx")
    answer = command(name, *([model] * (2 if name == "compare" else 1)), "--file", "plain")
    assert answer.code == 2
    assert "--file chooses a file of a bundle" in answer.err


@pytest.mark.parametrize(
    "option",
    [("--threads", "1"), ("--pictures", "."), ("--max-seconds", "9"), ("--seed", "0"), ("--shape", "N=2")],
)
def test_two_records_leave_nothing_to_time_or_ask(tmp_path: Path, option: tuple[str, str]) -> None:
    """These options were ignored there; with --pictures a green came without a look at accuracy."""
    (tmp_path / "a.json").write_text(json.dumps(record(1.0).as_json()))
    answer = command("compare", tmp_path / "a.json", tmp_path / "a.json", *option)
    assert answer.code == 2
    assert f"{option[0]} says how models are timed or asked" in answer.err
    plain = command("compare", tmp_path / "a.json", tmp_path / "a.json")
    assert "accuracy was not compared: give --answers" in plain.out


def test_an_input_may_be_called_as_numpy_calls_its_own(tmp_path: Path) -> None:
    model = mobile()
    for node in model.graph.node:
        node.input[:] = ["file" if name == model.graph.input[0].name else name for name in node.input]
    model.graph.input[0].name = "file"
    path = saved(tmp_path / "a.onnx", model)
    assert command("compare", path, path, *QUICK, *LOOSE).code == 0
