"""What is compared: a model's file, its content and its input, the same from the first turn to the last."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from toolchain.errors import ModelError
from toolchain.runtime import bench_asked, worker
from toolchain.runtime.bench_input import Prepared, Wish, prepare
from toolchain.runtime.fresh import Setup
from toolchain.runtime.session import Session

FileKind = Literal["fused", "plain"]


@dataclass(frozen=True)
class Side:
    """One side. path: as asked for; found: the file, its hashes, a bundle's own pictures; state: what the file
    system says of it; prepared: the input that it is timed with."""

    path: Path
    found: bench_asked.Found
    state: tuple[int, ...]
    prepared: Prepared

    @property
    def file(self) -> Path:
        """The ONNX file."""
        return self.found.path

    @property
    def bundle(self) -> Path | None:
        """The bundle's folder, when it is one."""
        return self.path if self.path.is_dir() else None

    def require_unchanged(self, now: tuple[int, ...] | None = None) -> None:
        """Raise ModelError when the file is not what it was: by `now`, a `worker.state`, or else by its content."""
        if now != self.state and not self.found.is_unchanged():
            raise ModelError(
                f"{self.file}: was replaced, cut short or deleted while it was being compared; start the comparison again"
            )


def find(
    base: Path, candidate: Path, kind: FileKind, setup: Setup, wish: Wish
) -> tuple[tuple[Side, Session], tuple[Side, Session]]:
    """Both sides and a session of each. A path is an ONNX file, or a bundle of which `kind` names the file.

    wish: batch, sizes of open dimensions, pictures; without pictures, both get the golden ones of a bundle
    among them, else the same noise. Raises ModelError, BundleError, VerificationError and ProviderError.
    """
    found = [bench_asked.find(path, kind) for path in (base, candidate)]
    pictures = wish.pictures or found[0].pictures or found[1].pictures
    given = replace(wish, pictures=pictures)
    first, second = (
        _side(path, one, setup, given) for path, one in zip((base, candidate), found, strict=True)
    )
    return first, second


def _side(path: Path, found: bench_asked.Found, setup: Setup, wish: Wish) -> tuple[Side, Session]:
    at_first = tuple(worker.state(found.path))
    session = setup.session(found.path)
    prepared = prepare(session.inputs, session.metadata, wish, session.label)
    return Side(path, found, at_first, prepared), session
