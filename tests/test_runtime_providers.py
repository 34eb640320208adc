"""Providers and the host: told as they are. Telemetry stays off. The runtime needs three libraries only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from runtime_helpers import fused_model

from toolchain.runtime import host, providers
from toolchain.runtime.errors import ProviderError

ROOT = Path(__file__).parents[1]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that finds toolchain in this working tree."""
    kept = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment = kept | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )


def test_the_cpu_is_usable_and_first() -> None:
    found = providers.usable()
    assert list(found) == ["cpu", "cuda"]
    assert found["cpu"] is None
    assert providers.resolve(["auto"])[0] == "cpu"
    assert providers.resolve(["cpu", "auto", "cpu"])[0] == "cpu"
    assert len(set(providers.resolve(["auto", "cpu"]))) == len(providers.resolve(["auto", "cpu"]))


def test_auto_takes_what_is_there_and_a_name_insists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "_why_not", lambda name: None if name == "cpu" else "there is no GPU")
    assert providers.resolve(["auto"]) == ("cpu",)
    with pytest.raises(ProviderError, match="'cuda' was asked for, but there is no GPU"):
        providers.resolve(["cpu", "cuda"])
    monkeypatch.setattr(providers, "_why_not", lambda name: None)
    assert providers.resolve(["auto"]) == ("cpu", "cuda")
    assert providers.resolve(["cuda", "auto"]) == ("cuda", "cpu")


@pytest.mark.parametrize("wanted", [[], ["gpu"], ["CPUExecutionProvider"]])
def test_unknown_names_list_the_known(wanted: list[str]) -> None:
    with pytest.raises(ProviderError, match=r"auto, cpu, cuda|known are cpu, cuda"):
        providers.resolve(wanted)


def test_a_build_without_cuda_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    providers._why_not.cache_clear()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]'" in str(providers.usable()["cuda"])
    providers._why_not.cache_clear()


def test_options_go_to_the_provider_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert providers.ort_options("cpu", {}) == [("CPUExecutionProvider", {})]
    monkeypatch.setattr(providers, "_load_cuda_libraries", lambda: None)
    assert providers.ort_options("cuda", {"device_id": "1"}) == [
        ("CUDAExecutionProvider", {"device_id": "1"})
    ]
    assert providers.short_name("CUDAExecutionProvider") == "cuda"
    assert providers.short_name("OtherExecutionProvider") == "OtherExecutionProvider"


def test_the_probe_is_the_model_that_it_says() -> None:
    model = onnx.load_from_string(providers._RELU)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Relu"]
    assert model.opset_import == [helper.make_opsetid("", 18)]
    session = onnxruntime.InferenceSession(providers._RELU, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": np.float32([-2])})[0], [0])


@pytest.mark.parametrize(
    ("machine", "features", "wanted"),
    [
        ("x86_64", {"avx2", "avx512f", "avx512_vnni"}, "x86-vnni"),
        ("x86_64", {"avx2", "avx_vnni"}, "x86-vnni"),
        ("AMD64", {"avx2", "avx512f", "avx512bw"}, "x86-avx2"),
        ("x86_64", {"avx"}, "x86-other"),
        ("aarch64", {"asimd", "asimddp"}, "arm64"),
        ("arm64", set(), "arm64"),
        ("riscv64", set(), "riscv64"),
    ],
)
def test_isa_families(machine: str, features: set[str], wanted: str) -> None:
    assert host.family(machine, features) == wanted


def test_host_facts_are_plain_values() -> None:
    facts = host.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["isa"] == host.isa()
    assert host.has_vnni() == (facts["isa"] == "x86-vnni")
    assert facts["cores"] == len(os.sched_getaffinity(0))
    assert len(facts["load"]) == 3
    assert facts["memory_bytes"] > 100_000_000
    assert facts["cpu"]
    assert {"numpy", "pillow"} <= set(facts["libraries"])
    assert host.distribution_version("no-such-distribution") is None


def test_arm_cpuinfo_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0b\n\nprocessor\t: 1\n"
    (tmp_path / "cpuinfo").write_text(text)
    (tmp_path / "model").write_bytes(b"Some Board Rev 1\0")
    monkeypatch.setattr(host, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(host, "_DEVICE_TREE", tmp_path / "model")
    host._cpuinfo.cache_clear()
    try:
        assert host._features() == {"fp", "asimd", "asimddp"}
        assert host._cpu_name() == "Some Board Rev 1"
    finally:
        host._cpuinfo.cache_clear()


# ---- in a fresh interpreter

MODULES = sorted(p.stem for p in (ROOT / "toolchain" / "runtime").glob("*.py") if p.stem != "__init__")


def test_importing_the_runtime_loads_nothing_else() -> None:
    loaded = python(
        "import importlib, sys\n"
        f"for name in {MODULES}: importlib.import_module('toolchain.runtime.' + name)\n"
        "print('\\n'.join(sys.modules))"
    ).stdout.split()
    assert "toolchain.runtime.__main__" in loaded
    outside = {n for n in loaded if n.startswith("toolchain.") and not n.startswith("toolchain.runtime")}
    assert outside == set()
    heavy = {
        "torch",
        "click",
        "pydantic",
        "pydantic_core",
        "onnx",
        "scipy",
        "timm",
        "rich",
        "yaml",
        "sklearn",
    }
    assert heavy & set(loaded) == set()


def test_telemetry_is_off_before_onnxruntime_is_loaded(tmp_path: Path) -> None:
    """The variable is set when onnxruntime's first line runs, and no file appears under the home folder."""
    model = tmp_path / "m.onnx"
    onnx.save(fused_model(), model)
    home = tmp_path / "home"
    home.mkdir()
    code = f"""
import os, sys
from pathlib import Path

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print("telemetry", os.environ.get("ORT_DISABLE_TELEMETRY"))

sys.meta_path.insert(0, Watch())
from toolchain.runtime.session import Session
import numpy as np
Session(Path({str(model)!r})).run({{"pictures": np.zeros((1, 2, 2, 3), np.uint8)}})
"""
    done = python(code, HOME=str(home), XDG_CACHE_HOME=str(home / "cache"))
    assert done.stdout.split() == ["telemetry", "1"]
    assert list(home.rglob("*")) == []


def test_who_wants_telemetry_keeps_it() -> None:
    code = "import os, toolchain.runtime; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert python(code, ORT_DISABLE_TELEMETRY="0").stdout.strip() == "0"


@pytest.mark.parametrize("number", ["x", "-1", "", "1.5", "\u00b2"])
def test_a_device_that_is_no_number(number: str) -> None:
    with pytest.raises(
        ProviderError, match=f"'cuda' has the option device_id={number}: give a device's number"
    ):
        providers.device("cuda", {"device_id": number})
    assert providers.device("cuda", {"device_id": "2"}) == ("cuda", 2)
    assert providers.device("cuda", {}) == ("cuda", 0)


def test_time_spent_waiting_for_a_core_is_told() -> None:
    before = host.waited()
    if before is None:
        pytest.skip("this kernel does not tell how long a thread waited for a core")
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:  # on the same core
            try:
                end = time.monotonic() + 1
                while time.monotonic() < end:
                    pass
            finally:
                other.kill()
    finally:
        os.sched_setaffinity(0, cores)
    after = host.waited()
    assert after is not None
    assert after - before > 0.2e9
