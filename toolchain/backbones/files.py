"""Weights from a file: .safetensors, or a torch checkpoint read without ever running what it may carry."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from toolchain.backbones.architecture import first_line, head_names, is_below
from toolchain.backbones.settings import Head
from toolchain.errors import BackboneError

State = dict[str, Tensor]

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_PREFIXES = ("_orig_mod.", "module.", "model.", "backbone.")
_COUNTER = "num_batches_tracked"


def read(path: Path) -> State:
    """The tensors of a weights file by name, on the CPU.

    Takes a bare state dict or one wrapped as "state_dict", "model" or their "_ema" versions, and drops the
    prefixes that DataParallel, torch.compile and Lightning put before every name. Pickled objects are
    never made (torch.load with weights_only): BackboneError, as for a file that is missing or damaged.
    """
    if not path.is_file():
        raise BackboneError(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        return _without_prefixes(_safetensors(path))
    if path.suffix not in TORCH_SUFFIXES:
        known = ", ".join((".safetensors", *TORCH_SUFFIXES))
        raise BackboneError(f"{path}: weights come as {known}, not '{path.suffix}'")
    return _without_prefixes(_unwrapped(_unpickled(path), path))


def digest_file(path: Path) -> str:
    """sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fit(model: nn.Module, state: Mapping[str, Tensor], head: Head, source: str) -> tuple[str, ...]:
    """Load a file's tensors into a model made for the data's labels; returns notes on what was left out.

    With head "new" the file's classifier is dropped and the model keeps its fresh one; with "keep" it must
    have the model's number of outputs. Layouts of other projects are translated as timm does.
    Raises BackboneError naming some tensors when file and model do not match.
    """
    heads = head_names(model)
    wanted = model.state_dict()
    found = _dropped_head(state, heads) if head == "new" else dict(state)
    if head == "new":
        wanted = _dropped_head(wanted, heads)
    if _mismatch(wanted, found):
        found = _translated(model, found, source)
        found = _dropped_head(found, heads) if head == "new" else found
    problem = _mismatch(wanted, found)
    if problem:
        raise BackboneError(
            f"{source}: does not fit {_called(model)}: {problem}{_head_hint(model, found, head)}"
        )
    model.load_state_dict(found, strict=False)
    dropped = [state[name].shape[0] for name in state if name.endswith(".weight") and is_below(name, heads)]
    if head == "new" and dropped:
        new = len(next(t for name, t in model.state_dict().items() if is_below(name, heads)))
        return (f"the file's classifier ({dropped[0]} outputs) was replaced by a new one for {new} labels",)
    return ()


def load_exactly(model: nn.Module, path: Path) -> None:
    """Load a safetensors file that has every tensor of the model and no other; BackboneError when not."""
    if not path.is_file():
        raise BackboneError(f"{path}: no such weights file")
    state = _safetensors(path)
    problem = _mismatch(model.state_dict(), state)
    if problem:
        raise BackboneError(f"{path}: does not fit the network described beside it: {problem}")
    model.load_state_dict(state)


def _safetensors(path: Path) -> State:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise BackboneError(f"{path}: not a readable safetensors file: {first_line(error)}") from error


def _unpickled(path: Path) -> Any:
    try:
        # timm's training checkpoints carry their command line as a Namespace, which can only hold values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BackboneError(
            f"{path}: refused, because it is damaged or carries more than tensors (a pickled object may run "
            "code when it is opened); save its state_dict(), best as .safetensors"
        ) from error
    except (EOFError, KeyError, OSError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise BackboneError(f"{path}: not a readable torch checkpoint: {first_line(error)}") from error


def _unwrapped(checkpoint: Any, path: Path) -> State:
    if isinstance(checkpoint, Mapping):
        for name in _WRAPPERS:
            if isinstance(checkpoint.get(name), Mapping):
                checkpoint = checkpoint[name]
                break
    if not isinstance(checkpoint, Mapping):
        raise BackboneError(f"{path}: holds a {type(checkpoint).__name__}, not a state dict of named tensors")
    odd = [
        f"'{name}' ({type(value).__name__})"
        for name, value in checkpoint.items()
        if not isinstance(value, Tensor)
    ]
    if odd or not checkpoint:
        listed = f"besides tensors it holds {', '.join(odd[:3])}" if odd else "it is empty"
        raise BackboneError(f"{path}: not a state dict of named tensors: {listed}")
    return {str(name): value for name, value in checkpoint.items()}


def _without_prefixes(state: State) -> State:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _dropped_head(state: Mapping[str, Tensor], heads: tuple[str, ...]) -> State:
    return {name: value for name, value in state.items() if not is_below(name, heads)}


def _mismatch(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What keeps `found` from being loaded as `wanted`, or nothing."""
    missing = [name for name in wanted if name not in found and not name.endswith(_COUNTER)]
    extra = [name for name in found if name not in wanted]
    shapes = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    told = (("it lacks", missing), ("it has the unknown", extra), ("other shapes:", shapes))
    return "; ".join(f"{what} {_some(names)}" for what, names in told if names)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more


def _translated(model: nn.Module, state: State, source: str) -> State:
    """Pass the tensors through timm's converter of checkpoints for this architecture, where there is one."""
    module = sys.modules[type(model).__module__]
    convert: Callable[[State, nn.Module], State] | None = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return dict(convert(dict(state), model))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise BackboneError(
            f"{source}: does not fit {_called(model)}: {_mismatch(model.state_dict(), state)}"
        ) from error


def _called(model: nn.Module) -> str:
    return f"timm's {getattr(model, 'pretrained_cfg', {}).get('architecture') or type(model).__name__}"


def _head_hint(model: nn.Module, found: Mapping[str, Tensor], head: Head) -> str:
    for name in head_names(model):
        weight, own = found.get(f"{name}.weight"), model.get_submodule(name).weight
        if head == "keep" and weight is not None and isinstance(own, Tensor) and len(weight) != len(own):
            return f" (its classifier has {len(weight)} outputs, the data have {len(own)} labels: take head: new)"
    return ""
