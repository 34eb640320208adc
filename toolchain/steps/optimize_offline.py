"""Optimize offline: ONNX Runtime's own optimizations, done once here instead of at every start of a device."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.calibration.layouts import straighten
from toolchain.calibration.price import latency_ratio
from toolchain.errors import RecipeError
from toolchain.lineage import hand_on
from toolchain.record import Measurement
from toolchain.runtime import host
from toolchain.runtime.session import OPTIMIZED_FOR, Session, optimized_for
from toolchain.runtime.timing import interleave
from toolchain.step import Context, Step

_FILES = {"plain": graph.PLAIN, "fused": graph.FUSED}


class OptimizeOffline(Step):
    """The graph as ONNX Runtime rewrites it for the CPU when it loads it: fused, in integer operators, laid out in blocks.

    A session of it is there sooner, above all in int8, and answers the same to the bit. Where floats in blocks become
    integers, moves that ONNX Runtime makes for nothing go (calibration/layouts.py). The file is bound to one version of
    onnxruntime and one kind of processor; on others Session refuses it. Nothing can be built on it, so it stands last;
    `preprocess.onnx` stays as it is.
    target: those that the file is for, as the manifest's `optimized_for` words it ("onnxruntime 1.31.1 on x86-avx512f");
    "auto" is this machine. Only for it can the file be made; a recipe that names it fails on another.
    Measures `load`, milliseconds until a session is ready, of the file before and after (medians, plain and fused);
    `moves`, how many went from the plain network; and `price`, how many times the latency of the file before.
    """

    step: Literal["optimize_offline"] = "optimize_offline"
    version: ClassVar[int] = 2
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.ONNX}
    gives: ClassVar[Form] = Form.ONNX
    ends: ClassVar[bool] = True
    libraries: ClassVar[tuple[str, ...]] = ("onnx", *host.onnxruntimes())
    target: str = "auto"

    def resolved(self) -> Self:
        """With this machine for "auto"."""
        return self.model_copy(update={"target": optimized_for()}) if self.target == "auto" else self

    def check(self) -> None:
        """Raise RecipeError for another machine's target, before anything is trained for it."""
        super().check()
        if self.resolved().target != (here := optimized_for()):
            raise RecipeError(
                f"optimize_offline.target: {self.target!r} cannot be made here, for this is {here!r}; run it "
                "on such a machine"
            )

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Optimize inputs["model"]'s plain and fused network. Raises RecipeError for another machine's target."""
        self.check()
        source, step = inputs["model"].folder, self.resolved()
        before = graph.read(source / graph.PLAIN)
        hand_on(step, source, before, context.out)
        moves = {}
        for name in _FILES.values():
            about = graph.metadata(graph.read(context.out / name))
            model = optimized(source / name)
            moves[name] = straighten(model, host.layout(), _noise(model))
            graph.write(model, context.out / name, {**about, OPTIMIZED_FOR: step.target})
        after = graph.read(context.out / graph.PLAIN)
        price = latency_ratio(before, after, _noise(before)[graph.INPUT])
        return (
            *_loads(source, context.out),
            Measurement(name="moves", value=moves[graph.PLAIN]), Measurement(name="price", value=round(price, 3)),
            *graph.sizes(context.out),
        )  # fmt: skip


class _Writing(Session):
    """A session that writes the graph it runs to a file."""

    def __init__(self, model: Path, file: Path) -> None:
        self._file = file
        super().__init__(model)

    def _adjust(self, settings: Any) -> None:
        settings.optimized_model_filepath = str(self._file)


def optimized(model: Path) -> ModelProto:
    """The graph of a file as ONNX Runtime runs it on this CPU. Raises ModelError as Session does."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "optimized.onnx")
        _Writing(model, file)
        return graph.read(file)


def _noise(model: ModelProto) -> dict[str, NDArray[Any]]:
    """Any input: a picture of noise, of 64 x 64 pixels where the size is free."""
    given = model.graph.input[0]
    shape = [dim.dim_value or 64 for dim in given.type.tensor_type.shape.dim]
    noise = np.random.default_rng(0).normal(size=(1, *shape[1:]))
    pixels = given.type.tensor_type.elem_type == TensorProto.UINT8
    return {
        given.name: (noise * 30 + 128).clip(0, 255).astype(np.uint8) if pixels else noise.astype(np.float32)
    }


def _loads(before: Path, after: Path) -> tuple[Measurement, ...]:
    """How long a session takes to be ready, by turns."""
    sides = {
        (state, kind): partial(Session, folder / name)
        for state, folder in (("before", before), ("after", after))
        for kind, name in _FILES.items()
    }
    times = interleave({" ".join(key): side for key, side in sides.items()}, blocks=5, calls=3, drop=1)
    return tuple(
        Measurement(
            name="load", value=float(np.median(times[" ".join(key)])) / 1e6, unit="ms",
            where={"state": key[0], "file": key[1]},
        )
        for key in sides
    )  # fmt: skip
