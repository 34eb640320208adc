"""The one seam between the pipeline and the work: a Step takes artifacts and makes one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict

from toolchain.artifact import Artifact, Form
from toolchain.data.dataset import Data
from toolchain.device import Device
from toolchain.errors import RecipeError
from toolchain.progress import Progress
from toolchain.record import Measurement


@dataclass(frozen=True)
class Context:
    """What the pipeline lends to a step while it runs.

    out: an empty folder; what lies in it when `run` returns becomes the artifact.
    scratch: a folder of this step's key that survives a kill (checkpoints); deleted after success.
    """

    out: Path
    scratch: Path
    data: Data
    device: Device
    seed: int
    progress: Progress


class Step(BaseModel, ABC):
    """A frozen model that IS its own settings; a subclass adds fields and `step: Literal["name"]`.

    takes: inputs by role ("model" is the artifact before it in the chain; other roles are named in
    the step's settings by a field of that role's name, e.g. `teacher: tuned`).
    uses: which parts of the context change the result and so belong in the key,
    of "train", "val", "device", "seed".
    libraries: the distributions whose versions belong in the key.
    version: bumped when the same settings mean another result.
    ends: nothing can be built on what it gives, a file for the CPU.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str
    takes: ClassVar[Mapping[str, Form]]
    gives: ClassVar[Form]
    version: ClassVar[int] = 1
    ends: ClassVar[bool] = False
    uses: ClassVar[frozenset[str]] = frozenset()
    libraries: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Read the inputs' folders, write `context.out`, return what was noticed."""

    def roots(self) -> Mapping[str, Path]:
        """Files the settings name, by setting; their content (not their path) goes into the key."""
        return {}

    def check(self) -> None:
        """Raise ToolchainError when a file that the settings name cannot be used; asked before any training."""
        for setting, path in self.roots().items():
            if not path.exists():
                raise RecipeError(f"{self.step}.{setting}: {path}: no such file or folder")

    def resolved(self) -> Self:
        """These settings with every "auto" that depends on this host replaced by a fixed value.

        The pipeline keys and runs the resolved step, so that hosts which would choose differently don't
        share a key.
        """
        return self
