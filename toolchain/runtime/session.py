"""One ONNX model on one provider, with what was asked for checked against what is used."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from toolchain.runtime import external, host, providers
from toolchain.runtime.binding import Binding
from toolchain.runtime.errors import ModelError, ProviderError, ToolchainError

# Shape arithmetic, which ONNX Runtime keeps on the CPU on purpose: its values are needed there.
SHAPE_OPERATORS = frozenset({
    "Shape", "Size", "Gather", "Slice", "Concat", "Squeeze", "Unsqueeze", "Reshape", "Cast", "Identity",
    "Constant", "ConstantOfShape", "Range", "Expand", "Where", "Equal", "Greater", "Less", "And", "Or",
    "Not", "Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Neg", "Abs", "Floor", "Ceil", "Round",
    "ReduceProd", "ReduceMin", "ReduceMax", "Split",
})  # fmt: skip
NO_CPU = "session.disable_cpu_ep_fallback"
# Pictures above it, in bytes, give their memory back after the call: some 30 bytes a pixel, which onnxruntime would
# keep for good. Below it, taking the memory anew each time would cost more than it is worth.
LARGE_PICTURES = 24_000_000
# In a model's metadata: what `optimized_for` said where ONNX Runtime optimized its graph ahead.
OPTIMIZED_FOR = "optimized_for"
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_LOG_ERRORS = 3
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Tensor:
    """An input or output: numpy's name of its type, and its shape (a name or None where it varies)."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


class Session:
    """A loaded ONNX model that answers on `provider` ("cpu" or "cuda"), or is an error.

    threads: ONNX Runtime's intra-op threads. spinning: whether they spin while idle (faster on a quiet
    machine, far slower on a busy one). optimize: all graph optimizations, or none.
    options: keys with a dot are session configuration entries ("session.intra_op.…"), others are the
    provider's own ("device_id"). On "cuda", nodes other than shape arithmetic that ONNX Runtime would put
    on the CPU are refused; `session.disable_cpu_ep_fallback` "1" refuses shape arithmetic too, "0" nothing.

    Raises ProviderError when the provider cannot be, or is not, used as asked; ModelError for a file that is
    missing, no ONNX, keeps weights where `external.check` refuses them, or was optimized ahead for other machines.
    Not safe to fork.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        provider: str = "cpu",
        threads: int = 1,
        spinning: bool = False,
        options: Mapping[str, str] = _NONE,
        optimize: bool = True,
    ) -> None:
        if threads < 1:
            raise ToolchainError(f"threads must be at least 1, not {threads}")
        self.label = str(model) if isinstance(model, Path) else "model"
        self.threads = threads
        self.provider = providers.require(provider)
        external.check(model)
        own = {key: value for key, value in options.items() if "." not in key}
        entries = {key: value for key, value in options.items() if "." in key}
        settings = _settings(threads, spinning, optimize, entries)
        self._adjust(settings)
        chosen = providers.ort_options(self.provider, own)
        self._device = providers.device(self.provider, own)
        source = model if isinstance(model, bytes) else str(model)
        try:
            self._session = onnxruntime.InferenceSession(
                source, settings, providers=chosen, enable_fallback=0, read_config_from_model=0
            )
        except providers.ORT_ERRORS as e:
            raise self._refusal(e) from e
        require_machine(self.metadata.get(OPTIMIZED_FOR), self.label)
        self._require_provider(strict=entries.get(NO_CPU) != "0")

    @cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs, in order."""
        return tuple(_tensor(node) for node in self._session.get_inputs())

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        """The outputs, in the order in which `run` returns them."""
        return tuple(_tensor(node) for node in self._session.get_outputs())

    @cached_property
    def metadata(self) -> dict[str, str]:
        """The model's own metadata properties."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    @cached_property
    def operators(self) -> dict[str, dict[str, int]]:
        """{provider: {operator: nodes}}: where ONNX Runtime put the nodes of the main graph.

        Counted when nodes are assigned, after basic optimization and before operators are fused.
        """
        assigned = self._session.get_provider_graph_assignment_info()
        pairs = Counter(
            (providers.short_name(part.ep_name), node.op_type)
            for part in assigned
            for node in part.get_nodes()
        )
        found: dict[str, dict[str, int]] = {}
        for (name, operator), count in sorted(pairs.items()):
            found.setdefault(name, {})[operator] = count
        return found

    @property
    def placement(self) -> dict[str, int]:
        """{provider: number of nodes}, as `operators` counts them."""
        return {name: sum(counts.values()) for name, counts in self.operators.items()}

    def run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Return all outputs for `feed` ({input name: array}).

        Raises ModelError when names, types or shapes do not fit, or the model fails.
        """
        try:
            outputs: list[NDArray[Any]] = self._session.run(None, dict(feed), _options(feed))
        except providers.ORT_ERRORS as e:
            given = ", ".join(f"{k} {np.asarray(v).dtype} {np.shape(v)}" for k, v in feed.items())
            raise ModelError(f"{self.label}: cannot run on {given or 'no input'} ({_reason(e)})") from e
        return outputs

    def bind(self, feed: Mapping[str, NDArray[Any]], *, copies: bool) -> Binding:
        """Lay `feed` onto the provider's device; each call of the binding copies in and out, or not (`copies`).

        Raises ModelError when names, types or shapes do not fit, or the model fails; its first call is made here.
        """
        try:
            binding = Binding(self._session, feed, self._device, copies=copies)
            binding.call()
        except providers.ORT_ERRORS as e:
            raise ModelError(f"{self.label}: cannot run on what was bound ({_reason(e)})") from e
        return binding

    def _adjust(self, settings: Any) -> None:
        """Where a kind of session adds to onnxruntime's SessionOptions before the model is loaded."""

    def _require_provider(self, *, strict: bool) -> None:
        """ONNX Runtime falls back to the CPU with a log line only; here it is an error."""
        used = providers.short_name(self._session.get_providers()[0])
        if used != self.provider:
            raise ProviderError(
                f"{self.label}: provider {self.provider!r} was asked for, but onnxruntime used {used!r}"
            )
        if self.provider != "cpu" and strict and (heavy := misplaced(self.operators.get("cpu", {}))):
            raise ProviderError(
                f"{self.label}: {', '.join(heavy)} would run on the CPU although {self.provider!r} was asked "
                f"for; the option {NO_CPU}=0 allows it"
            )

    def _refusal(self, error: Exception) -> ToolchainError:
        if "fallback to CPU EP has been explicitly disabled" in str(error):
            return ProviderError(
                f"{self.label}: not every node can run on {self.provider!r} ({_reason(error)})"
            )
        return ModelError(f"{self.label}: onnxruntime cannot load it ({_reason(error)})")


def optimized_for() -> str:
    """The machines for which a graph that ONNX Runtime has optimized here is right: its version, and their layout."""
    return f"onnxruntime {onnxruntime.__version__} on {host.layout()}"


def require_machine(meant: str | None, label: str) -> None:
    """Raise ModelError where a graph was laid out for other machines than this: it may answer wrongly without a word."""
    if meant is not None and meant != (here := optimized_for()):
        raise ModelError(
            f"{label}: was optimized ahead for {meant}, and this is {here}: make it on such a machine, or without the step "
            "'optimize_offline'"
        )


def misplaced(on_cpu: Iterable[str]) -> list[str]:
    """The operators, of those that run on the CPU beside a GPU, which are more than shape arithmetic."""
    return sorted(set(on_cpu) - SHAPE_OPERATORS)


def _settings(threads: int, spinning: bool, optimize: bool, entries: Mapping[str, str]) -> Any:
    """onnxruntime's SessionOptions. The ONNX format is fixed, so that what was checked is what is parsed."""
    levels = onnxruntime.GraphOptimizationLevel
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = _LOG_ERRORS
    settings.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    ours = {
        "session.intra_op.allow_spinning": "1" if spinning else "0",
        "session.record_ep_graph_assignment_info": "1",
        **entries,
        "session.load_model_format": "ONNX",
    }
    for key, value in ours.items():
        settings.add_session_config_entry(key, value)
    return settings


def _options(feed: Mapping[str, NDArray[Any]]) -> Any:
    """onnxruntime's RunOptions for a call, or None: see LARGE_PICTURES."""
    if not any(np.size(v) > LARGE_PICTURES and np.asarray(v).dtype == np.uint8 for v in feed.values()):
        return None
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _tensor(node: Any) -> Tensor:
    """onnxruntime's NodeArg in numpy's terms: "tensor(float)" is float32."""
    inner = str(node.type).removeprefix("tensor(").removesuffix(")")
    names = {"float": "float32", "double": "float64"}
    return Tensor(node.name, names.get(inner, inner), tuple(node.shape))


def _reason(error: BaseException) -> str:
    """onnxruntime's message without its own prefix, on one line."""
    return " ".join(_PREFIX.sub("", str(error)).split())
