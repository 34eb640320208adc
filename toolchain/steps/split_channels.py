"""Split channels whose rounding the logits hear into several, so that int8 has them finer. The function stays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from onnx import ModelProto
from pydantic import Field

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.calibration import costs, pictures, ranges, selection, splitting
from toolchain.calibration.chains import Chain
from toolchain.calibration.price import latency_ratio
from toolchain.calibration.weights import Floats
from toolchain.errors import DataError, ModelError
from toolchain.lineage import hand_on
from toolchain.record import Measurement
from toolchain.runtime import host
from toolchain.step import Context, Step


class SplitChannels(Step):
    """Copies of the channels that are worst rounded, before `quantize` (calibration/splitting.py).

    An activation has one step for all its channels, and one of them may carry most of the rounding noise: behind a first
    convolution the one that holds the brightness. Which it is, the float network says: each channel is rounded alone, and
    the logits' noise is measured, without labels. Copies go where they take most of it away.
    layers: patterns of the names of convolutions whose channels a pointwise one reads, behind depthwise ones or none. Where
    that one stays in float, nothing is gained.
    channels: how many each gets more; kernels like them in fours. pictures: of train.
    Measures `copies` of each channel that has some, `noise`, the share of the layer's that should be left, `price`, how many
    times the latency of the file before, in float; and the new `macs` and `parameters`.
    """

    step: Literal["split_channels"] = "split_channels"
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.ONNX}
    gives: ClassVar[Form] = Form.ONNX
    uses: ClassVar[frozenset[str]] = frozenset({"train"})
    libraries: ClassVar[tuple[str, ...]] = (
        "onnx", "numpy", *host.onnxruntimes(),
    )  # fmt: skip
    layers: Annotated[tuple[str, ...], Field(min_length=1)]
    channels: Annotated[int, Field(ge=4, multiple_of=4)] = 4
    pictures: Annotated[int, Field(ge=2)] = 64

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Split channels of inputs["model"]'s plain network.

        Raises DataError without training pictures, ModelError for a network that is quantized, for a pattern without a
        match, or where a named convolution's channels cannot be split.
        """
        source = inputs["model"].folder
        original = graph.read(source / graph.PLAIN)
        graph.require_float(original)
        model = ModelProto()
        model.CopyFrom(original)
        seen = pictures.some(source / graph.PREPROCESS, context.data.train, self.pictures)
        if not seen:
            raise DataError("split_channels rounds channels on training pictures, and there are none")
        found = ranges.observe(model, lambda: iter(seen), "minmax").ranges
        measured: list[Measurement] = []
        for name in selection.matching(model, self.layers, "layers"):
            chain = _chain(model, name)
            low, high = found[chain.hidden]
            measured += self._split(model, chain, (max(high, 0.0) - min(low, 0.0)) / 255, seen, context)
        price = round(latency_ratio(original, model, seen[0]), 3)
        hand_on(self, source, model, context.out)
        return (
            *measured,
            Measurement(name="price", value=price),
            *costs.measured(model),
            *graph.sizes(context.out),
        )

    def _split(
        self, model: ModelProto, chain: Chain, step: float, seen: list[Floats], context: Context
    ) -> Iterator[Measurement]:
        """Split the chain's channels in place. step: of the hidden tensor's integers."""
        name = chain.writer.node.name
        with context.progress.task(f"split {name}", chain.channels + 1) as task:
            noise = splitting.heard(model, chain, step, seen, task.advance)
        counts = splitting.copies(noise, self.channels)
        splitting.split(model, chain, counts, step)
        for channel in np.flatnonzero(counts > 1):
            where: dict[str, str | int | float] = {"layer": name, "channel": int(channel)}
            yield Measurement(name="copies", value=int(counts[channel]), where=where)
        left = float((noise / counts**2).sum() / max(noise.sum(), np.finfo(float).tiny))
        yield Measurement(name="noise", value=round(left, 4), where={"layer": name})


def _chain(model: ModelProto, name: str) -> Chain:
    """The chain that a convolution writes. Raises ModelError where its channels cannot be split."""
    for chain in splitting.splittable(model):
        if chain.writer.node.name == name:
            return chain
    raise ModelError(
        f"split_channels: the channels of {name!r} are not read by one pointwise convolution alone, behind ReLUs, Clips and"
        " depthwise convolutions: name another layer"
    )
