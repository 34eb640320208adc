"""Benching a model: what is timed, what stands on the record, and what is refused. No test looks at a speed."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bench_helpers import elementwise, fused, identity, plain, quick, saved
from PIL import Image
from runtime_helpers import make_bundle

from toolchain.runtime import bench as benching
from toolchain.runtime import bench_arguments, bench_asked, fresh, host, providers, timing, trace
from toolchain.runtime.bench import bench
from toolchain.runtime.bench_record import canonical, keep, parse, read
from toolchain.runtime.errors import (
    HostError,
    ModelError,
    PictureError,
    ProviderError,
    RecordError,
    ToolchainError,
    VerificationError,
)
from toolchain.runtime.fresh import Setup
from toolchain.runtime.percentiles import percentile
from toolchain.runtime.session import NO_CPU, Session
from toolchain.runtime.warm_up import Steadiness, is_steady, warm_up

ROOT = Path(__file__).parents[1]
NO_GPU = providers.usable()["cuda"] is not None


def test_every_condition_is_a_case_with_all_its_samples(tmp_path: Path) -> None:
    record = bench(plain(tmp_path), quick(threads=(1, 2), batches=(1, 3), spinning=True))
    seen = [(c.condition.threads, c.condition.batch, c.condition.input.shape) for c in record.cases]
    assert seen == [(t, b, (b, 3, 4, 4)) for t in (1, 2) for b in (1, 3)]
    for case in record.cases:
        assert case.blocks.shape == (3, 8)
        assert case.blocks.min() > 0
        assert case.condition.spinning
        assert case.copies is None
        assert case.placement == {"cpu": sum(row.nodes for row in case.operators)}
        assert sum(row.share for row in case.operators) == pytest.approx(1, abs=0.01)
        seconds = case.blocks.sum() / 1e9
        assert case.throughput_per_s == pytest.approx(case.condition.batch * 24 / seconds, rel=1e-3)
    assert record.host["cores"] >= 1


@pytest.mark.parametrize(("share", "told"), [(0.01, 0), (0.3, 1), (None, 0)])
def test_a_contended_core_is_told(
    share: float | None, told: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "CONTENDED", 0.05)
    monkeypatch.setattr(host.Contention, "share", property(lambda _: share, lambda *_: None))
    notes = [note for note in bench(plain(tmp_path), quick()).notes if "had the core" in note]
    assert len(notes) == told
    assert all(note.startswith("cpu, 1 thread, batch 1: others had the core for 30 %") for note in notes)


def test_more_threads_than_cores_wait_for_each_other_and_for_no_one_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "CONTENDED", 0.05)
    monkeypatch.setattr(host.Contention, "share", property(lambda _: 0.5, lambda *_: None))
    monkeypatch.setattr(host, "cores", lambda: 1)
    notes = bench(plain(tmp_path), quick(threads=(1, 2))).notes
    assert [note[:14] for note in notes if "had the core" in note] == ["cpu, 1 thread,"]


def test_waiting_for_a_core_is_a_share_of_the_time() -> None:
    if host.waited() is None:
        pytest.skip("this kernel does not tell how long a thread waited for a core")
    with host.Contention() as contention:
        sum(range(1000))
    assert contention.share is not None
    assert 0 <= contention.share <= 1


def test_percentiles_only_where_the_samples_suffice(tmp_path: Path) -> None:
    few, many = (
        bench(saved(identity(), tmp_path / "i.onnx"), quick(sampling={"blocks": b, "calls": 10})).cases[0]
        for b in (1, 100)
    )
    assert set(few.percentiles.values()) == {None}
    found = {name for name, value in many.percentiles.items() if value is not None}
    assert found == {"p50", "p90", "p99"}
    assert many.percentiles["p99"].ns == percentile(many.blocks, 0.99)


def test_blocks_go_on_until_the_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(benching, "monotonic", lambda: next(clock))
    record = bench(saved(identity(), tmp_path / "i.onnx"), quick(sampling={"seconds": 5.0, "blocks": 1}))
    assert record.cases[0].blocks.shape == (5, 8)


# ---- what goes in


def test_a_plain_float_input_is_noise_of_its_shape(tmp_path: Path) -> None:
    case = bench(plain(tmp_path), quick()).cases[0]
    assert (case.condition.file, case.condition.input.kind) == ("foreign", "float32")
    assert case.condition.input.source == "noise"


def test_a_fused_input_needs_its_sizes_or_pictures(tmp_path: Path) -> None:
    model = fused(tmp_path)
    with pytest.raises(ModelError, match=r"input 'pictures' uint8 \[N, H, W, 3\] .*--shape H=… --shape W=…"):
        bench(model, quick())
    case = bench(model, quick(shapes={"H": 6, "W": 9}, batches=(2,))).cases[0]
    assert (case.condition.file, case.condition.input.shape) == ("fused", (2, 6, 9, 3))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index, size in enumerate([(4, 4), (20, 10), (90, 90)]):
        Image.new("RGB", size, (9, index, 30)).save(pictures / f"{index}.png")
    case = bench(model, quick(pictures=pictures, batches=(2,))).cases[0]
    assert case.condition.input.shape == (2, 10, 20, 3), "the picture of median size"
    assert case.condition.input.source == "pictures"
    case = bench(model, quick(pictures=pictures, shapes={"H": 5, "pictures.2": 7})).cases[0]
    assert case.condition.input.shape == (1, 5, 7, 3)
    case = bench(plain(tmp_path), quick(pictures=pictures)).cases[0]
    assert case.condition.input == type(case.condition.input)("float32", (1, 3, 4, 4), "pictures")


def test_files_that_are_all_called_model_have_their_folders_names(tmp_path: Path) -> None:
    """A history drew two networks as one."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        saved(identity(), tmp_path / name / "model.onnx")
        found = bench_asked.find(tmp_path / name / "model.onnx", "fused")
        assert (found.model.name, found.model.path) == (f"{name}/model", "model.onnx")


def test_the_batch_is_no_shape(tmp_path: Path) -> None:
    """Eight pictures were fed, and the record said one."""
    for name in ("N", "pictures.0"):
        with pytest.raises(
            ModelError, match=r"is the batch, which --batch sets; leave --shape (N|pictures\.0) out"
        ):
            bench(fused(tmp_path), quick(shapes={name: 8, "H": 4, "W": 4}))


def test_dimensions_that_do_not_fit_are_told(tmp_path: Path) -> None:
    model = plain(tmp_path)
    with pytest.raises(ModelError, match=r"has no open dimension H; it leaves none open but the batch"):
        bench(model, quick(shapes={"H": 3}))
    unnamed = saved(elementwise("Relu", [1, 3, None, 8]), tmp_path / "unnamed.onnx")
    with pytest.raises(ModelError, match=r"float32 \[1, 3, \?, 8\] leaves sizes open; give --shape x\.2=…"):
        bench(unnamed, quick())
    with pytest.raises(ModelError, match=r"takes batches of 1 only; give --batch 1"):
        bench(unnamed, quick(shapes={"x.2": 8}, batches=(4,)))
    with pytest.raises(ModelError, match=r"has no open dimension Q; its open dimensions are x\.2"):
        bench(unnamed, quick(shapes={"Q": 8}))
    assert bench(unnamed, quick(shapes={"x.2": 8})).cases[0].condition.input.shape == (1, 3, 8, 8)


def test_pictures_that_fit_no_input(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(PictureError, match="no pictures in it"):
        bench(plain(tmp_path), quick(pictures=tmp_path / "none"))
    Image.new("RGB", (4, 4)).save(tmp_path / "none" / "a.png")
    with pytest.raises(PictureError, match=r"pictures do not fit its input 'x' float32 \[1\]"):
        bench(saved(identity(), tmp_path / "i.onnx"), quick(pictures=tmp_path / "none"))


def test_a_bundle_is_timed_with_its_golden_pictures(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    record = bench(bundle, quick())
    assert (record.model.name, record.model.form, record.model.path) == (
        "colours/fp32",
        "bundle",
        "model.onnx",
    )
    condition = record.cases[0].condition
    assert (condition.file, condition.input.source, condition.input.shape) == (
        "fused",
        "pictures",
        (1, 9, 3, 3),
    )
    assert bench(bundle, quick(file="plain")).cases[0].condition.input.kind == "float32"
    (bundle / "model.onnx").write_bytes((bundle / "model.plain.onnx").read_bytes())
    with pytest.raises(VerificationError, match="its content differs"):
        bench(bundle, quick())


# ---- fresh processes


def test_fresh_processes_tell_start_and_memory(tmp_path: Path) -> None:
    model = plain(tmp_path)
    starts = fresh.measure(model, Setup(), {"input": np.ones((1, 3, 4, 4), np.float32)}, 2)
    cold, memory = starts.cold, starts.memory
    assert len(cold.session) == len(cold.first_answer) == len(cold.call) == len(cold.relative) == 2
    assert min(cold.relative) > 0
    assert all(0 < share <= 1 for share in cold.share)
    two = fresh.measure(model, Setup(threads=2), {"input": np.ones((1, 3, 4, 4), np.float32)}, 1).cold
    assert (len(two.call), two.relative, two.share) == (1, (), ()), "of several threads its time says nothing"
    assert all(0 < s < f for s, f in zip(cold.session, cold.first_answer, strict=True))
    assert all(0 < c < s for c, s in zip(cold.call, cold.session, strict=True))
    assert 1e6 < memory.steady_bytes <= memory.peak_bytes
    assert starts.failure is None
    bad = fresh.measure(model, Setup(), {"input": np.ones(9, np.float32)}, 1)
    assert (bad.cold, bad.memory) == (None, None)
    assert isinstance(bad.failure, HostError)
    assert re.search(r"could not answer \(.*cannot run on input float32 \(9,\)", str(bad.failure))


def test_a_kernel_that_tells_no_memory_costs_only_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = {
        "session_ns": 1,
        "first_answer_ns": 2,
        "call_ns": 3,
        "relative": 0.5,
        "peak_bytes": 0,
        "steady_bytes": 0,
    }
    monkeypatch.setattr(fresh, "_one", lambda *_: one)
    starts = fresh.measure(plain(tmp_path), Setup(), {"input": np.ones((1, 3, 4, 4), np.float32)}, 2)
    assert (starts.cold.first_answer, starts.cold.call, starts.memory) == ((2, 2), (3, 3), None)


def test_memory_is_not_that_of_the_process_that_starts(tmp_path: Path) -> None:
    """getrusage's maximum survives fork and exec; the figure must not grow with the parent."""
    model, feed = plain(tmp_path), {"input": np.ones((1, 3, 4, 4), np.float32)}
    ballast = np.ones(500_000_000, np.uint8)
    memory = fresh.measure(model, Setup(), feed, 1).memory
    assert memory.peak_bytes < ballast.nbytes


# ---- IO binding


@pytest.mark.parametrize("copies", [True, False])
def test_a_binding_answers_as_a_run_does(tmp_path: Path, copies: bool) -> None:
    session = Session(plain(tmp_path))
    feed = {"input": np.random.default_rng(1).normal(size=(2, 3, 4, 4)).astype(np.float32)}
    binding = session.bind(feed, copies=copies)
    binding.call()
    np.testing.assert_array_equal(binding.outputs()[0], session.run(feed)[0])
    with pytest.raises(ModelError, match="cannot run on what was bound"):
        session.bind({"input": np.zeros((1, 1), np.float32)}, copies=copies)


def test_with_copies_a_call_sees_what_the_feed_holds_now(tmp_path: Path) -> None:
    session = Session(saved(identity(), tmp_path / "i.onnx"))
    feed = {"x": np.zeros(1, np.float32)}
    copying, resident = session.bind(feed, copies=True), session.bind(feed, copies=False)
    feed["x"][0] = 7
    copying.call()
    resident.call()
    assert copying.outputs()[0] == 7
    assert resident.outputs()[0] == 0


def test_a_provider_with_its_own_memory_is_timed_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "has_own_memory", lambda name: True)
    included, excluded = bench(plain(tmp_path), quick()).cases
    assert (included.copies, excluded.copies) == ("included", "excluded")
    assert included.condition == excluded.condition


def test_a_node_that_works_on_data_elsewhere_is_an_error_unless_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = tuple(trace.TracedNode(f"add {index}", "Add", "cuda", 9.0, 4096) for index in range(7))
    monkeypatch.setattr(trace, "trace", lambda *_, **__: trace.Trace(nodes, (99,)))
    with pytest.raises(
        ProviderError, match=r"add 0 \(Add\) on cuda, .*add 4 \(Add\) on cuda and 2 more although 'cpu'"
    ):
        bench(plain(tmp_path), quick())
    (case,) = bench(plain(tmp_path), quick(options={"": {NO_CPU: "0"}})).cases
    assert len(case.elsewhere) == 7


@pytest.mark.gpu
def test_cuda_is_timed_with_copies_and_without(tmp_path: Path) -> None:
    record = bench(plain(tmp_path), quick(providers=("cuda",), options={"cuda": {"device_id": "0"}}))
    assert [case.copies for case in record.cases] == ["included", "excluded"]
    assert all("cuda" in case.placement for case in record.cases)


# ---- warm-up


def test_steady_is_when_the_last_windows_agree() -> None:
    until = Steadiness(tolerance=0.03, windows=4)
    assert not is_steady([10.0, 10.0, 10.0], until)
    assert not is_steady([20.0, 10.0, 10.0, 10.0], until)
    assert is_steady([20.0, 10.0, 10.1, 10.2, 10.3], until)
    assert not is_steady([10.0, 10.1, 10.2, 10.4], until)


def test_a_warm_up_outlasts_a_slow_start_and_ends_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from toolchain.runtime import warm_up as module

    def fake(times: list[int]):
        state = {"at": 0, "now": 0}

        def time_calls(side: timing.Side, calls: int) -> list[int]:
            took = [times[min(state["at"] + i, len(times) - 1)] for i in range(calls)]
            state["at"] += calls
            state["now"] += sum(took)
            return took

        monkeypatch.setattr(module, "time_calls", time_calls)
        monkeypatch.setattr(module, "perf_counter_ns", lambda: state["now"])

    until = Steadiness(window_seconds=0.05, seconds=10.0)
    ms = 1_000_000
    fake([50 * ms] * 7 + [10 * ms])
    warm = warm_up(lambda: None, until)
    assert warm.steady
    assert warm.calls > 7 + 3 * 3
    fake([ms * (10 + index) for index in range(10_000)])
    warm = warm_up(lambda: None, until)
    assert not warm.steady
    assert 10 <= warm.seconds < 20
    fake([900 * ms] + [ms] * 1000)
    warm = warm_up(lambda: None, until)
    assert (warm.calls, warm.steady) == (2 + 4 * 50, True), "the cold first call does not size the windows"
    fake([ms // 100] * 50_000)
    assert warm_up(lambda: None, until).calls == 2 + 4 * 5000, "50 ms of quick calls, too"
    fake([ms // 1000] * 50_000)
    assert warm_up(lambda: None, until).calls == 2 + 4 * 10_000, "at most 10,000 calls a window"


def test_blocks_are_timed_while_more_is_wanted() -> None:
    calls = []
    blocks = timing.repeat(lambda: calls.append(1), 4, lambda done: done < 3)
    assert [len(block) for block in blocks] == [4, 4, 4]
    assert len(calls) == 12
    with pytest.raises(ValueError):
        timing.repeat(lambda: None, 0, lambda done: False)


# ---- the record and the words


def test_a_record_survives_its_json_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    record = bench(plain(tmp_path), quick(sampling={"cold_starts": 1}))
    raw = json.loads(json.dumps(record.as_json()))
    assert parse(raw, "r") == record
    path = keep(record.as_json(), tmp_path / "history")
    assert path == keep(raw, tmp_path / "history"), "equal records are one file"
    assert read(path) == record
    assert path.read_bytes() == canonical(raw)
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no scratch file stays"
    for change, sentence in (
        (lambda r: r.update(kind="other"), "not a bench record"),
        (lambda r: r.update(schema=9), "schema 9; this toolchain reads 1"),
        (lambda r: r.pop("model"), "model is missing"),
        (
            lambda r: r["cases"][0]["condition"].update(threads="1"),
            r"cases\.0\.condition\.threads must be a whole",
        ),
        (lambda r: r["cases"][0]["samples_ns"].append([1]), "must be blocks of one length"),
        (lambda r: r["cases"][0].update(copies="some"), "must be one of included, excluded"),
        (lambda r: r["cases"][0]["placement"].update(cpu=True), "placement.cpu must be a whole number"),
        (lambda r: r["model"].update(bytes=0), r"model\.bytes must be above 0"),
        (lambda r: r["cases"][0]["samples_ns"][1].__setitem__(2, 0), r"samples_ns\.1\.2 must be above 0"),
        (lambda r: r["cases"][0]["samples_ns"][1].__setitem__(2, 2**63), r"samples_ns\.1\.2 must be finite"),
        (lambda r: r["cases"][0].update(throughput_per_s=math.inf), "throughput_per_s must be finite"),
        (lambda r: r["cases"][0].update(throughput_per_s=10**400), "throughput_per_s must be finite"),
        (lambda r: r["cases"][0]["percentiles"].update(p50={"ns": math.nan}), r"p50\.ns must be finite"),
        (lambda r: r["cases"][0]["percentiles"].update(p50={"ns": 0}), r"p50\.ns must be above 0"),
        (
            lambda r: r["cases"][0]["percentiles"].update(p50={"ns": 9, "ci95": [-1, 9]}),
            r"ci95\.0 must not be negative",
        ),
        (lambda r: r["cases"][0]["memory"].update(peak_bytes=0), r"memory\.peak_bytes must be above 0"),
        (
            lambda r: r["cases"][0]["cold_start_ns"].update(call=[5] * 7),
            r"cases\.0\.cold_start_ns\.call must have \d values, as session has, or none",
        ),
        (
            lambda r: r["cases"][0]["cold_start_ns"].update(relative=[1.0, 2.0, 3.0]),
            r"cases\.0\.cold_start_ns\.relative must have \d values, as session has, or none",
        ),
        (
            lambda r: r["cases"][0]["cold_start_ns"].update(session=[]),
            r"session must have at least one value",
        ),
        (
            lambda r: r["cases"][0]["cold_start_ns"].update(first_answer=[]),
            r"first_answer must have 1 values, as session has",
        ),
        (lambda r: r["cases"][0]["warm_up"].update(calls=-1), r"warm_up\.calls must not be negative"),
        (
            lambda r: r["host"].update(memory_bytes="16 GiB"),
            r"r\.json: host\.memory_bytes must be a whole number",
        ),
        (lambda r: r["host"].update(features=5), r"r\.json: host\.features must be a list"),
        (lambda r: r["host"].update(gpus="one"), r"r\.json: host\.gpus must be a list"),
    ):
        damaged = json.loads(json.dumps(raw))
        change(damaged)
        with pytest.raises(RecordError, match=sentence):
            parse(damaged, "r.json")
    path.write_text(json.dumps(raw | {"host": {"load": math.nan}}))
    with pytest.raises(RecordError, match="not JSON, or cut short"):
        read(path)
    path.write_text("{")
    with pytest.raises(RecordError, match="not JSON, or cut short"):
        read(path)


def test_words_say_what_was_asked() -> None:
    asked = quick(
        providers=("cpu", "cuda"), options={"cuda": {"device_id": "1"}, "": {"session.x.y": "1"}}, threads=(1, 4),
        batches=(1, 8), spinning=True, shapes={"H": 480, "x.2": 9}, file="plain", allow_fallback=True,
        sampling={"seconds": 2.5, "traced": 10, "warm_up": Steadiness(seconds=3.0)},
    )  # fmt: skip
    parser = bench_arguments.argparse.ArgumentParser()
    bench_arguments.add_to(parser)
    assert bench_arguments.asked(parser.parse_args(bench_arguments.words(asked))) == asked


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--option", "device_id=0"],
            "--option device_id=0: give cpu.NAME=VALUE, cuda.NAME=VALUE or session",
        ),
        (["--option", "npu.x=1"], "--option npu.x=1: give"),
        (["--shape", "H"], "--shape H: give NAME=SIZE"),
        (["--shape", "H=-3"], "--shape H=-3: give NAME=SIZE"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--threads", "-1"], "--threads must be at least 1"),
        (["--blocks", "0"], "--blocks must be at least 1"),
        (["--calls", "0"], "--calls must be at least 1"),
        (["--cold-starts", "-1"], "--cold-starts must be at least 0"),
    ],
)
def test_words_that_make_no_sense(words: list[str], sentence: str) -> None:
    parser = bench_arguments.argparse.ArgumentParser()
    bench_arguments.add_to(parser)
    with pytest.raises(ToolchainError) as caught:
        bench_arguments.asked(parser.parse_args(words))
    assert sentence in str(caught.value)


def test_the_runtime_alone_prints_the_record(tmp_path: Path) -> None:
    model = plain(tmp_path)
    short = ["--blocks", "2", "--calls", "3", "--cold-starts", "1", "--warm-up-seconds", "0"]
    command = [sys.executable, "-m", "toolchain.runtime", "bench", str(model), *short]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    record = parse(json.loads(done.stdout), "stdout")
    assert record.cases[0].blocks.shape == (2, 3)
    assert record.cases[0].memory is not None
    done = subprocess.run(
        [*command, "--batch", "0"], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: --batch must be at least 1, not 0\n"
