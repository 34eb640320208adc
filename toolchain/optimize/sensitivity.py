"""What the tuned network loses part by part, to pruning and to int8. It is told beside the search, and decides nothing."""

from __future__ import annotations

from pydantic import BaseModel

from toolchain import graph
from toolchain.artifact import Artifact
from toolchain.backbones.network import load
from toolchain.backbones.pruning import Pruning
from toolchain.calibration import float_layers, pictures, sensitivity
from toolchain.data.dataset import PictureSet
from toolchain.progress import Progress
from toolchain.record import Measurement
from toolchain.report.parts import PruningSensitivity, Sensitivity
from toolchain.report.pruning import pruning as of_pruning
from toolchain.report.sensitivity import sensitivity as of_int8
from toolchain.steps import prune

PICTURES = 64
_AT_ONCE = 32


class Sensitive(BaseModel):
    """The measurements, as the steps `prune` and `fall_back` make them; none where a network can't be made so."""

    pruning: tuple[Measurement, ...] = ()
    int8: tuple[Measurement, ...] = ()

    @property
    def pruned(self) -> PruningSensitivity | None:
        """For the report."""
        return of_pruning("fp32", self.pruning)

    @property
    def quantized(self) -> Sensitivity | None:
        """For the report."""
        return of_int8("int8", self.int8)


def probe(
    trunk: Artifact | None, fp32: Artifact, int8: Artifact | None, pruning: Pruning, train: PictureSet, progress: Progress
) -> Sensitive:  # fmt: skip
    """Measure both on training pictures. trunk: the network in torch; None, as for int8: not measured.

    Raises BackboneError as pruning does.
    """
    chosen = pictures.choose(train, PICTURES)
    found = Sensitive()
    if trunk is not None:  # with its own preprocessing: fp32's file may have folded a part of it
        model, network = load(trunk.folder)
        batches = prune.batches(train, chosen, network.preprocess, _AT_ONCE)
        found.pruning = tuple(prune.sensitivity(model, network, pruning, batches, progress))
    if int8 is not None:
        prepared = list(pictures.prepared(fp32.folder / graph.PREPROCESS, train, chosen))
        found.int8 = _to_int8(fp32, int8, prepared, progress)
    return found


def _to_int8(
    fp32: Artifact, int8: Artifact, prepared: list[sensitivity.Floats], progress: Progress
) -> tuple[Measurement, ...]:
    original, quantized = graph.read(fp32.folder / graph.PLAIN), graph.read(int8.folder / graph.PLAIN)
    parts = sensitivity.parts(float_layers.integer_layers(quantized), "block")
    with progress.task("sensitivity to int8", len(parts)) as task:
        found = sensitivity.measure(quantized, original, prepared, "block", task.advance)
    base = sensitivity.fidelity(
        sensitivity.answers(original, prepared), sensitivity.answers(quantized, prepared)
    )
    whole = Measurement(name="agreement", value=base.agreement, where={"layer": "", "layers_given_back": 0})
    gains = (
        Measurement(name="sensitivity", value=round(one.gain, 2), unit="dB", where={"layer": one.name})
        for one in found
    )
    return (whole, *gains)
