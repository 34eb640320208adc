"""Prune: remove the least important channels of a network. It then needs `recover` to win back accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from toolchain.artifact import Artifact, Form
from toolchain.backbones.network import Network, load, save
from toolchain.backbones.pruning import Cost, Gradients, Pruning, cost, prune, readers
from toolchain.backbones.sensitivity import SHARES, alone
from toolchain.calibration.pictures import choose
from toolchain.calibration.sensitivity import fidelity
from toolchain.data.dataset import PictureSet
from toolchain.data.preprocess import Preprocess, Preprocessing
from toolchain.errors import BackboneError
from toolchain.progress import Progress
from toolchain.record import Measurement
from toolchain.step import Context, Step


class Prune(Pruning, Step):
    """Structural pruning (see backbones/pruning.py for the settings it shares with the check before training).

    norm_statistics: the mean and variance of batch norms, "kept" as they were before, or "measured" anew on the
    pruned network, for a recovery that is to keep them (see learn/settings.py, norm_statistics).
    pictures, batch_size: how many training pictures importance "taylor" computes gradients on and statistics are
    measured on, and how many at a time.
    probe: on so many training pictures every part is pruned alone before, by shares of its channels, and the report shows
    what the answers lose: `sqnr_pruned` (dB of the logits' signal over noise) and `agreement_pruned`. 0: not measured.
    """

    step: Literal["prune"] = "prune"
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.TORCH}
    gives: ClassVar[Form] = Form.TORCH
    uses: ClassVar[frozenset[str]] = frozenset({"train", "seed", "device"})
    libraries: ClassVar[tuple[str, ...]] = ("torch", "timm", "torch-pruning")
    later: ClassVar[frozenset[str]] = Pruning.later | {"probe"}
    norm_statistics: Literal["kept", "measured"] = "kept"
    pictures: Annotated[int, Field(ge=1)] = 256
    batch_size: Annotated[int, Field(ge=1)] = 32
    probe: Annotated[int, Field(ge=0)] = 0

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Prune the network in inputs["model"]; returns its cost before and after, and what share is left."""
        model, network = load(inputs["model"].folder)
        before = cost(model, network)
        model.to(context.device.torch)
        measured = self._sensitivity(model, network, context) if self.probe else []
        with context.progress.task("prune", self.iterations) as task:
            pruned = prune(
                model, network, self,
                seed=context.seed, gradients=self._gradients(network, context), advance=task.advance,
            )  # fmt: skip
        if self.norm_statistics == "measured":
            measure_statistics(model, list(self._batches(network, context)))
        save(model, pruned, context.out)
        return (*_measurements(before, cost(model, pruned)), *measured)

    def _sensitivity(self, model: nn.Module, network: Network, context: Context) -> list[Measurement]:
        """See `sensitivity`, on `probe` training pictures. Raises BackboneError without any."""
        train = context.data.train
        chosen = choose(train, self.probe)
        if not chosen:
            raise BackboneError(
                "prune.probe: sensitivity is measured on training pictures, and there are none"
            )
        device = context.device.torch
        given = [batch.to(device) for batch in batches(train, chosen, network.preprocess, self.batch_size)]
        return list(sensitivity(model, network, self, given, context.progress))

    def _gradients(self, network: Network, context: Context) -> Gradients:
        """Gradients of the mean cross-entropy over some training pictures, batch statistics untouched."""
        if self.importance == "taylor" and not len(context.data.train):
            raise BackboneError("importance 'taylor' needs training pictures, and there are none")

        def compute(model: nn.Module) -> None:
            count = len(self._chosen(context))
            for pictures, labels in self._batches(network, context):
                loss = F.cross_entropy(model(pictures), labels, reduction="sum") / count
                loss.backward()  # type: ignore[no-untyped-call]

        return compute

    def _chosen(self, context: Context) -> list[int]:
        """The training pictures that are looked at, in a random order."""
        order = torch.randperm(len(context.data.train), generator=torch.Generator().manual_seed(context.seed))
        return order[: self.pictures].tolist()

    def _batches(self, network: Network, context: Context) -> Iterator[tuple[Tensor, Tensor]]:
        """Prepared pictures [n, 3, h, w] and their labels [n], on the device."""
        train, device, chosen = context.data.train, context.device.torch, self._chosen(context)
        labels, done = torch.from_numpy(train.labels[chosen]).to(device), 0
        for pictures in batches(train, chosen, network.preprocess, self.batch_size):
            yield pictures.to(device), labels[done : done + len(pictures)]
            done += len(pictures)


def sensitivity(
    model: nn.Module, network: Network, pruning: Pruning, given: Iterable[Tensor], progress: Progress
) -> Iterator[Measurement]:
    """What the logits lose when each part alone gives up SHARES of its channels, against the whole network's.

    given: batches of prepared pictures [n, 3, h, w], on the model's device.
    importance "taylor" needs gradients: magnitudes order the channels here. Raises BackboneError as pruning does.
    """
    if pruning.importance == "taylor":
        pruning = pruning.model_copy(update={"importance": "l2"})
    found = readers(model, network, pruning)
    with progress.task("sensitivity to pruning", len(found) * len(SHARES)) as task:
        answers = alone(model, found, list(given))
        whole = next(answers).logits
        for one in answers:
            lost = fidelity(whole, one.logits)
            where: dict[str, str | int | float] = {"layer": one.part, "share": one.share}
            yield Measurement(name="sqnr_pruned", value=round(lost.sqnr, 2), unit="dB", where=where)
            yield Measurement(name="agreement_pruned", value=lost.agreement, where=where)
            task.advance()


@torch.no_grad()
def measure_statistics(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Replace the running mean and variance of every batch norm by those over `batches`, in place.

    Pruning takes channels away from what a batch norm sees, so that its old statistics are wrong: L. Li et al.,
    EagleEye (arXiv:2007.02491), call it adaptive batch normalization. The model is in eval mode afterwards.
    A last batch of one picture is left out. Raises BackboneError without pictures.
    """
    norms = [m for m in model.eval().modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    batches = [batch for batch in batches if len(batch[1]) > 1]  # one picture on a 1x1 map has no variance
    if not batches:
        raise BackboneError("norm_statistics 'measured' needs at least two training pictures a batch")
    device = batches[0][0].device
    model.to(device)
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    for pictures, _ in batches:
        model(pictures)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    model.eval().cpu()


def batches(
    pictures: PictureSet, indices: Sequence[int], preprocess: Preprocess, size: int
) -> Iterator[Tensor]:
    """These pictures as the network takes them, [n, 3, h, w], at most `size` at a time."""
    preprocessing = Preprocessing(preprocess)
    for start in range(0, len(indices), size):
        chosen = indices[start : start + size]
        yield torch.cat([preprocessing(torch.from_numpy(pictures.picture(i))[None]) for i in chosen])


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
