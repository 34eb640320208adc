"""A bundle as it lies on the device: load it, verify it, ask it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from toolchain.runtime import external, manifest, sealed, verification
from toolchain.runtime.errors import BundleError, PictureError, VerificationError
from toolchain.runtime.manifest import Manifest, identity
from toolchain.runtime.session import Session, require_machine
from toolchain.runtime.verification import Verification

__all__ = ["Bundle", "Manifest", "Prediction", "Verification", "identity", "temper"]

MOST_PIXELS = 100_000_000  # of a padded picture, as pictures.decode allows of one


@dataclass(frozen=True)
class Prediction:
    """An answer: the most probable label, its tempered probability, all of them, and whether to rely on it.

    certain: the probability reaches the label's threshold, which was fitted on the validation pictures.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    certain: bool


@dataclass(frozen=True)
class Bundle:
    """A folder with a model, its manifest and its golden answers; see docs/bundle.md."""

    folder: Path
    manifest: Manifest

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """Read a bundle's manifest; models are loaded on first use.

        Raises BundleError for a folder that is no bundle, an unknown schema version, a malformed manifest
        (file names that leave the folder included), or one that needs a newer onnxruntime.
        """
        declared = manifest.read(folder)
        installed, needed = onnxruntime.__version__, declared.minimum_onnxruntime
        if manifest.numbers_of(installed) < manifest.numbers_of(needed):
            raise BundleError(f"{folder}: needs onnxruntime {needed} or newer, but {installed} is installed")
        return cls(folder, declared)

    def verify(self, isa: str | None = None) -> Verification:
        """Recompute every hash and the identity, then the golden answers on the CPU with one thread.

        isa: the family whose tolerance holds, where the machine cannot say (emulation); by default its own.
        Raises VerificationError naming each file and each golden picture that differs.
        """
        return self.prove(isa)[0]

    def prove(self, isa: str | None = None, at_once: int = 1) -> tuple[Verification, Session]:
        """As `verify`, with the session that answered; at_once: calls beside each other."""
        verification.check_files(self.folder, self.manifest)
        golden = verification.read_golden(self.folder / self.manifest.golden)
        session = self.session()
        return verification.check_golden(golden, session, self.manifest, isa, at_once), session

    def session(self, provider: str = "cpu", threads: int = 1) -> Session:
        """Load the fused model (uint8 pictures in, probabilities out) after checking its hash.

        Raises VerificationError when the file was changed, BundleError when it does not take what the
        manifest says, ProviderError and ModelError as Session does.
        """
        path = self.folder / manifest.MODEL
        require_machine(self.manifest.optimized_for, str(path))
        session = Session(self._checked(path), provider=provider, threads=threads)
        found = [(t.name, t.dtype, len(t.shape)) for t in (*session.inputs, *session.outputs)]
        said = [(p.name, p.dtype, len(p.shape)) for p in (self.manifest.input, self.manifest.output)]
        if found != said:
            raise BundleError(f"{path}: takes and gives {found}, but {manifest.MANIFEST} says {said}")
        return session

    def _checked(self, path: Path) -> Path | bytes:
        """The model's file once its hash and those of its weights were checked, or what is inside a sealed one."""
        if path.is_file() and sealed.starts_sealed(path):
            content = sealed.read(path)
            if hashlib.sha256(content).hexdigest() != self.manifest.files[path.name]:
                raise VerificationError(f"{path}: its content differs from its sha256")
            return content
        for name in (path.name, *sorted(set(external.locations(path)))):
            verification.check_file(self.folder, name, self.manifest)
        return path

    def predict(
        self, pictures: Sequence[NDArray[np.uint8]], session: Session | None = None
    ) -> list[Prediction]:
        """Answer for pictures, uint8 [H, W, 3] RGB each of any size, one by one.

        Uses `session`, or one of its own on the CPU with one thread. Raises PictureError for an array of
        another type or shape, and as `session` does.
        """
        asked = session or self._session
        rows = []
        for index, picture in enumerate(pictures):
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
                raise PictureError(
                    f"picture {index} is {picture.dtype} {list(picture.shape)}, not uint8 [H, W, 3]"
                )
            self.require_shape(*picture.shape[:2])
            rows.append(asked.run({self.manifest.input.name: np.ascontiguousarray(picture[None])})[0][0])
        return [self._prediction(row) for row in rows]

    def require_shape(self, height: int, width: int, most: int = MOST_PIXELS) -> None:
        """Raise PictureError for sides so unlike that padding them to the input's aspect makes more than `most` pixels."""
        given = self.manifest.preprocessing
        high, wide = given.get("height"), given.get("width")
        if given.get("crop_mode") != "border" or not (
            isinstance(high, int) and isinstance(wide, int) and high > 0 < wide
        ):
            return
        over_h, over_w = -(-width * high // wide), -(-height * wide // high)
        padded = max(height, over_h) * max(width, over_w)
        if padded > most:
            raise PictureError(
                f"{width} x {height} pixels, padded to the model's aspect, are {padded}, more than the {most} allowed"
            )

    @cached_property
    def _session(self) -> Session:
        return self.session()

    def _prediction(self, row: NDArray[np.float32]) -> Prediction:
        labels = self.manifest.labels
        if row.shape != (len(labels),):
            raise BundleError(f"{self.folder}: answers {row.shape} for {len(labels)} labels")
        tempered = temper(row, self.manifest.temperature)
        best = int(tempered.argmax())
        probability = float(tempered[best])
        threshold = self.manifest.thresholds[labels[best]]
        certain = (
            threshold < 1.0 and probability >= threshold
        )  # 1.0: no answer of this class is, see bundle.md
        named = {label: float(value) for label, value in zip(labels, tempered, strict=True)}
        return Prediction(labels[best], probability, named, certain)


def temper(probabilities: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """p^(1/temperature), made to add to 1 along the last axis again; [..., C] -> [..., C].

    The same as dividing the logits by the temperature: Guo et al., On Calibration of Modern Neural Networks.
    """
    with np.errstate(divide="ignore"):
        logs = np.log(probabilities.astype(np.float64)) / temperature
    powers = np.exp(logs - logs.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
