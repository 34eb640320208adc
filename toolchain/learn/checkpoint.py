"""Checkpoints of training: there whole or not at all, and believed only when they are of this very training.

The file is a magic line, the sha256 of the rest, and what `torch.save` wrote, read with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from toolchain.errors import HostError
from toolchain.progress import Progress
from toolchain.record import JSON

_MAGIC = b"toolchain training checkpoint 1\n"
_DIGEST = hashlib.sha256().digest_size


class Checkpoint:
    """One file that holds the newest state. `identity` says what is trained, on what, and how."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self._identity = identity

    def save(self, state: Mapping[str, JSON]) -> None:
        """Replace the file by `state` (tensors, numbers, strings, lists, dicts), on the disk before it counts.

        Raises HostError, naming the file, when the disk refuses.
        """
        buffer = io.BytesIO()
        torch.save({"identity": self._identity, **state}, buffer)
        content = buffer.getbuffer()
        part = self.path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                file.write(_MAGIC + hashlib.sha256(content).digest())
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.path)
            _sync(self.path.parent)
        except OSError as error:
            part.unlink(missing_ok=True)
            reason = os.strerror(error.errno or 0)
            raise HostError(f"{self.path}: the checkpoint cannot be written: {reason}") from error

    def load(self, device: torch.device, progress: Progress) -> dict[str, JSON] | None:
        """The state saved last, or None; says so when there is a file that cannot be used."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        start = len(_MAGIC) + _DIGEST
        body = content[start:]
        if content[: len(_MAGIC)] != _MAGIC or content[len(_MAGIC) : start] != hashlib.sha256(body).digest():
            progress.say(f"{self.path}: the checkpoint is damaged; training starts from the beginning")
            return None
        try:
            state = torch.load(io.BytesIO(body), map_location=device, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError):
            state = None
        if not isinstance(state, dict) or state.get("identity") != self._identity:
            progress.say(
                f"{self.path}: the checkpoint is of another training; this one starts from the beginning"
            )
            return None
        return state


def identity(facts: Mapping[str, JSON], models: Iterable[nn.Module]) -> str:
    """sha256 of plain facts, torch's version and the weights that training starts from."""
    digest = hashlib.sha256(json.dumps({**facts, "torch": torch.__version__}, sort_keys=True).encode())
    for model in models:
        for name, tensor in model.state_dict().items():
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
