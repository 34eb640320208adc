"""Recover: train a pruned network on, with the unpruned one as its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from toolchain.artifact import Artifact, Form
from toolchain.backbones.network import load, save
from toolchain.errors import TrainingError
from toolchain.learn.loop import fit
from toolchain.learn.settings import Distillation, Training
from toolchain.record import Measurement
from toolchain.step import Context, Step
from toolchain.steps.tune import measurements


class Recover(Distillation, Training, Step):
    """Training's and distillation's settings (see learn/settings.py). teacher: the artifact to learn from."""

    step: Literal["recover"] = "recover"
    version: ClassVar[int] = 3
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.TORCH, "teacher": Form.TORCH}
    gives: ClassVar[Form] = Form.TORCH
    uses: ClassVar[frozenset[str]] = frozenset({"train", "val", "device", "seed"})
    libraries: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "timm", "numpy", "pillow")
    teacher: str

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Train inputs["model"], and keep the best epoch's network; returns what it reached on val.

        The teacher is shown the learner's pictures, at its own size (see rescale.py).
        Raises TrainingError when the two networks have not the same labels and, but for the size, preprocessing.
        """
        model, network = load(inputs["model"].folder)
        teacher, taught = load(inputs["teacher"].folder)
        sized = {"height": network.preprocess.height, "width": network.preprocess.width}
        own_size = (taught.preprocess.height, taught.preprocess.width)
        taught = taught.model_copy(update={"preprocess": taught.preprocess.model_copy(update=sized)})
        for name in ("labels", "preprocess"):
            if getattr(network, name) != getattr(taught, name):
                raise TrainingError(
                    f"recover: the teacher '{self.teacher}' has other {name} than the network that is to learn from it"
                )
        if own_size != tuple(sized.values()):
            teacher = _Resized(teacher, own_size)
        model, rows = fit(model, network, self, context, teacher=teacher, distill=self)
        save(model, network, context.out)
        return measurements(rows)


class _Resized(nn.Module):
    """A network that is shown pictures [N, 3, h, w] at its own size: it knows little of what it learnt at others."""

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, pictures: Tensor) -> Tensor:
        """The network's logits [N, C]."""
        logits: Tensor = self.network(
            F.interpolate(pictures, self.size, mode="bicubic", antialias=True, align_corners=False)
        )
        return logits
