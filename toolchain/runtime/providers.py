"""ONNX Runtime's execution providers: which are really usable here, and how each is asked for.

The one file that names them, and with toolchain/device.py the only place where CPU and GPU differ.
Everywhere else they are called "cpu" and "cuda". Adding one: a line in `_ORT_NAMES` and one in `_REASONS`.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

# `toolchain.runtime` has switched telemetry off by the time this file is read.
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

from toolchain.runtime.errors import ProviderError

_ORT_NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
NAMES = tuple(_ORT_NAMES)
# y = Relu(x), float32 [1], opset 18: the smallest model that shows whether a provider is really taken.
_RELU = (
    b'\x08\x08:3\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x12"
)
# What onnxruntime raises; its own exceptions have no base of their own.
ORT_ERRORS = (
    ValueError, RuntimeError, TypeError, state.Fail, state.InvalidArgument, state.InvalidGraph,
    state.InvalidProtobuf, state.NoModel, state.NoSuchFile, state.NotImplemented, state.RuntimeException,
    state.EPFail, state.EngineError,
)  # fmt: skip
_INSTALL_CUDA = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
_LOG_FATAL, _LOG_WARNING = 4, 2
_ERROR_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


def usable() -> dict[str, str | None]:
    """Every provider's name, with None when it can be used here, else one sentence that says why not.

    Names that onnxruntime lists are not enough: the GPU build lists CUDA on machines without a GPU. So the
    driver is asked, and a model of one node is loaded. Found out once a process.
    """
    return {name: _why_not(name) for name in NAMES}


def resolve(wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the providers to use for `wanted`, where "auto" stands for all that are usable, without doubles.

    Raises ProviderError for an unknown name, for one that is asked for by name and not usable, and for none.
    """
    if not wanted:
        raise ProviderError(f"no provider was asked for: name one of auto, {', '.join(NAMES)}")
    found: dict[str, None] = {}
    for name in wanted:
        if name == "auto":
            found.update(dict.fromkeys(n for n, reason in usable().items() if reason is None))
        else:
            found[require(name)] = None
    return tuple(found)


def require(name: str) -> str:
    """Return `name` when that provider can be used here; ProviderError saying why not otherwise."""
    if name not in NAMES:
        raise ProviderError(f"unknown provider {name!r}: known are {', '.join(NAMES)}")
    if reason := _why_not(name):
        raise ProviderError(f"provider {name!r} was asked for, but {reason}")
    return name


def ort_options(name: str, options: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """The `providers` argument of onnxruntime's InferenceSession for one provider and its options.

    The CPU is not listed behind CUDA: ONNX Runtime adds it by itself, for shape arithmetic.
    Raises ProviderError for options to "cpu", which would be ignored silently.
    """
    if name == "cpu" and options:
        raise ProviderError(f"provider 'cpu' has no options, but {', '.join(sorted(options))} was given")
    if name == "cuda":
        _load_cuda_libraries()
    return [(_ORT_NAMES[name], dict(options))]


def unknown_entries(names: Iterable[str]) -> list[str]:
    """The session entries among `names` ("session.…", "optimization.…") that onnxruntime seems not to know.

    It takes any, and ignores what it does not know. Each one that it knows is a text in its library, which is searched.
    """
    entries = [name for name in names if name.startswith(("session.", "optimization."))]
    if not entries or state.__file__ is None:
        return []
    library = Path(state.__file__).read_bytes()
    return [name for name in entries if name.encode() + b"\0" not in library]


def device(name: str, options: Mapping[str, str]) -> tuple[str, int]:
    """Where a provider's tensors lie, as IO binding names it: its memory and the device's number.

    Raises ProviderError for a device_id that is no number.
    """
    number = options.get("device_id", "0")
    if not (number.isascii() and number.isdigit()):
        raise ProviderError(
            f"provider {name!r} has the option device_id={number}: give a device's number, 0 or more"
        )
    return name, int(number)


def has_own_memory(name: str) -> bool:
    """Whether a provider's tensors lie in a memory of their own, so that inputs and outputs are copied."""
    return name != "cpu"


def short_name(ort_name: str) -> str:
    """Our name for an ONNX Runtime provider's; its own name when it is none of ours."""
    return next((name for name, theirs in _ORT_NAMES.items() if theirs == ort_name), ort_name)


def gpus() -> tuple[str, ...]:
    """The names of the GPUs that the NVIDIA driver shows to this process."""
    return _driver()[0]


@lru_cache(maxsize=len(_ORT_NAMES))
def _why_not(name: str) -> str | None:
    if _ORT_NAMES[name] not in onnxruntime.get_available_providers():
        return f"this onnxruntime is built without it: pip uninstall onnxruntime, then {_INSTALL_CUDA}"
    return _REASONS[name]()


def _why_not_cuda() -> str | None:
    names, reason = _driver()
    if not names:
        return reason
    _load_cuda_libraries()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_FATAL
    onnxruntime.set_default_logger_severity(_LOG_FATAL)
    try:
        session = onnxruntime.InferenceSession(
            _RELU, options, providers=[_ORT_NAMES["cuda"]], enable_fallback=0
        )
    except ORT_ERRORS as e:
        return f"onnxruntime cannot start it on {names[0]} ({' '.join(str(e).split())})"
    finally:
        onnxruntime.set_default_logger_severity(_LOG_WARNING)
    if session.get_providers()[0] != _ORT_NAMES["cuda"]:
        return f"its CUDA or cuDNN libraries cannot be loaded: {_INSTALL_CUDA}"
    return None


_REASONS: dict[str, Callable[[], str | None]] = {"cpu": lambda: None, "cuda": _why_not_cuda}


@lru_cache(maxsize=1)
def _load_cuda_libraries() -> None:
    """Load the pip-installed CUDA libraries; what is missing is printed by onnxruntime, and told by us instead."""
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()


@lru_cache(maxsize=1)
def _driver() -> tuple[tuple[str, ...], str | None]:
    """The GPUs' names, and why there are none. CUDA driver API: cuInit, cuDeviceGetCount, cuDeviceGetName."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return (), "this machine has no NVIDIA driver (libcuda.so.1 cannot be loaded)"
    error = driver.cuInit(0)
    if error == _ERROR_NO_DEVICE:
        return (), "the NVIDIA driver shows this process no GPU"
    if error:
        return (), f"the NVIDIA driver does not start (cuInit gives {error})"
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    names = []
    for index in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetName(name, len(name), device)
        names.append(name.value.decode(errors="replace"))
    return tuple(names), None if names else "the NVIDIA driver shows this process no GPU"
