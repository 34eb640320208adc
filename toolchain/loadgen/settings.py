"""What LoadGen is asked for, and its own settings for it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from toolchain.errors import ToolchainError

Scenario = Literal["single-stream", "multi-stream", "server", "offline"]
Mode = Literal["performance", "accuracy"]
_NAMES = {
    "single-stream": "SingleStream",
    "multi-stream": "MultiStream",
    "server": "Server",
    "offline": "Offline",
}
# The benchmark of MLPerf's whose sizes, percentiles and seeds hold: image classification.
_BENCHMARK = "resnet50"
_MLPERF_CONF_ONLY = 0
# Queries of a shortened run: the fewest that LoadGen's early stopping can judge at p90 and at p99.
_FEWEST = {"single-stream": 64, "multi-stream": 662, "server": 459, "offline": 1}
_SLACK = 1.3  # Offline pre-generates its one query; too few samples end before the least duration

# LoadGen keeps every sample of a test: 60 million of a model of 10 us ended with the process being killed.
MOST_SAMPLES = 10_000_000


@dataclass(frozen=True)
class Load:
    """One LoadGen test. mlperf: MLPerf's sizes (10 minutes and more), else `seconds` at least.

    target_qps, target_latency_ms: of the server scenario; None takes half of what a probe says the model can do,
    and ten times its latency (with mlperf: MLPerf's 15 ms).
    """

    scenario: Scenario
    mode: Mode = "performance"
    mlperf: bool = False
    seconds: float = 10.0
    target_qps: float | None = None
    target_latency_ms: float | None = None

    @property
    def size(self) -> Literal["mlperf", "shortened"]:
        """How the record and the screen label it."""
        return "mlperf" if self.mlperf else "shortened"


def library() -> Any:
    """The module of mlcommons-loadgen. Raises ToolchainError with the command that installs it."""
    try:
        return import_module("mlperf_loadgen")
    except ImportError as e:
        raise ToolchainError(
            "LoadGen is not installed: pip install 'mlcommons-loadgen>=6.0.17,<7' (the extra 'loadgen')"
        ) from e


def own_settings(load: Load, probe_ns: float, batch: int) -> Any:
    """LoadGen's TestSettings, from MLPerf's own configuration inside the library.

    probe_ns: the time of a call of `batch` samples as a short probe saw it.
    """
    loadgen = library()
    name = _NAMES[load.scenario]
    settings = loadgen.TestSettings()
    if settings.FromConfig("", _BENCHMARK, name, _MLPERF_CONF_ONLY):
        raise ToolchainError(
            "this mlcommons-loadgen carries no MLPerf configuration; install mlcommons-loadgen 6"
        )
    settings.scenario = getattr(loadgen.TestScenario, name)
    modes = {"performance": "PerformanceOnly", "accuracy": "AccuracyOnly"}
    settings.mode = getattr(loadgen.TestMode, modes[load.mode])
    per_second = batch * 1e9 / probe_ns
    settings.single_stream_expected_latency_ns = int(probe_ns)
    settings.multi_stream_expected_latency_ns = int(
        probe_ns * settings.multi_stream_samples_per_query / batch
    )
    settings.offline_expected_qps = _SLACK * per_second
    settings.server_target_qps = load.target_qps or per_second / 2
    if load.target_latency_ms is not None:
        settings.server_target_latency_ns = int(1e6 * load.target_latency_ms)
    if not load.mlperf:
        settings.min_duration_ms = int(1000 * load.seconds)
        settings.min_query_count = _FEWEST[load.scenario]
        if load.target_latency_ms is None:
            settings.server_target_latency_ns = int(10 * probe_ns)
    if load.mode == "performance":
        # A stream's query is of one picture (or eight), however many a call could take.
        _refuse_floods(load, settings, 1e9 / probe_ns if load.scenario == "single-stream" else per_second)
    return settings


def _refuse_floods(load: Load, settings: Any, per_second: float) -> None:
    """Raise ToolchainError where the least duration would be more samples than LoadGen can keep."""
    rates = {"server": settings.server_target_qps, "offline": settings.offline_expected_qps}
    rate, seconds = rates.get(load.scenario, per_second), settings.min_duration_ms / 1000
    samples = rate * seconds
    if samples > MOST_SAMPLES:
        raise ToolchainError(
            f"at {rate:,.0f} pictures a second, {seconds:.0f} s would be "
            f"{samples / 1e6:.1f} million, each of which LoadGen keeps in memory (at most {MOST_SAMPLES // 10**6} million "
            f"here): {'leave --mlperf out' if load.mlperf else 'fewer --seconds'}"
            + (" or a lower --target-qps" if load.scenario == "server" else "")
        )
