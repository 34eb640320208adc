"""Prune: remove the least important channels of a network. It then needs `recover` to win back accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from toolchain.artifact import Artifact, Form
from toolchain.backbones.network import Network, load, save
from toolchain.backbones.pruning import Cost, Gradients, Pruning, cost, prune
from toolchain.data.dataset import PictureSet
from toolchain.data.preprocess import Preprocessing
from toolchain.errors import BackboneError
from toolchain.record import Measurement
from toolchain.step import Context, Step


class Prune(Pruning, Step):
    """Structural pruning (see backbones/pruning.py for the settings it shares with the check before training).

    pictures, batch_size: how many training pictures importance "taylor" computes gradients on, and how many
    at a time.
    """

    step: Literal["prune"] = "prune"
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.TORCH}
    gives: ClassVar[Form] = Form.TORCH
    uses: ClassVar[frozenset[str]] = frozenset({"train", "seed", "device"})
    libraries: ClassVar[tuple[str, ...]] = ("torch", "timm", "torch-pruning")
    pictures: Annotated[int, Field(ge=1)] = 256
    batch_size: Annotated[int, Field(ge=1)] = 32

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Prune the network in inputs["model"]; returns its cost before and after, and what share is left."""
        model, network = load(inputs["model"].folder)
        before = cost(model, network)
        model.to(context.device.torch)
        with context.progress.task("prune", self.iterations) as task:
            pruned = prune(
                model, network, self,
                seed=context.seed, gradients=self._gradients(network, context), advance=task.advance,
            )  # fmt: skip
        save(model, pruned, context.out)
        return _measurements(before, cost(model, pruned))

    def _gradients(self, network: Network, context: Context) -> Gradients:
        """Gradients of the mean cross-entropy over some training pictures, batch statistics untouched."""
        train, device = context.data.train, context.device.torch
        if self.importance == "taylor" and not len(train):
            raise BackboneError("importance 'taylor' needs training pictures, and there are none")
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(context.seed))
        chosen = order[: self.pictures].tolist()
        preprocessing = Preprocessing(network.preprocess)

        def compute(model: nn.Module) -> None:
            for start in range(0, len(chosen), self.batch_size):
                batch = chosen[start : start + self.batch_size]
                pictures = _tensors(train, batch, preprocessing).to(device)
                labels = torch.from_numpy(train.labels[batch]).to(device)
                loss = F.cross_entropy(model(pictures), labels, reduction="sum") / len(chosen)
                loss.backward()  # type: ignore[no-untyped-call]

        return compute


def _tensors(pictures: PictureSet, indices: list[int], preprocessing: Preprocessing) -> Tensor:
    """Prepared pictures, [n, 3, h, w]."""
    ready = [preprocessing(torch.from_numpy(pictures.picture(i))[None]) for i in indices]
    return torch.cat(ready)


def _measurements(before: Cost, after: Cost) -> tuple[Measurement, ...]:
    found = [
        Measurement(name=name, value=value, unit=unit, where={"when": when})
        for when, counted in (("before", before), ("after", after))
        for name, value, unit in (
            ("macs", counted.macs, "MAC"), ("parameters", counted.parameters, "1"), ("channels", counted.channels, "1"),
        )
    ]  # fmt: skip
    return (
        *found,
        Measurement(name="macs_left", value=after.macs / before.macs),
        Measurement(name="parameters_left", value=after.parameters / before.parameters),
        Measurement(name="channels_removed", value=1 - after.channels / before.channels),
    )
