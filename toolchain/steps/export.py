"""Export: a trained network as ONNX files, held against the network on real pictures."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from onnx import ModelProto
from pydantic import Field
from torch import Tensor, nn
from torch.export import Dim

from toolchain import graph, parity
from toolchain.artifact import Artifact, Form
from toolchain.backbones.architecture import deployable
from toolchain.backbones.counts import macs, parameters
from toolchain.backbones.network import DESCRIPTION, Network, load
from toolchain.calibration.pictures import choose
from toolchain.data.dataset import Picture
from toolchain.data.preprocess import Preprocess, Preprocessing
from toolchain.errors import ModelError
from toolchain.record import JSON, Measurement
from toolchain.runtime import host
from toolchain.step import Context, Step


class Export(Step):
    """torch.onnx (dynamo): the plain network, its preprocessing, and both with a softmax in one graph.

    Branches of training are folded first (see backbones/architecture.py, deployable).

    opset: of the standard operators; 18 is the first that can resize as the preprocessing does.
    fold: batch norms, padding and constants go into weights. False leaves the network as torch traced it, for
    `simplify`, which tells what that brings; every other step wants it folded.
    parity_pictures, parity_tolerance: how many validation pictures the files must answer as the network
    does, and how closely (see toolchain/parity.py).
    """

    step: Literal["export"] = "export"
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.TORCH}
    gives: ClassVar[Form] = Form.ONNX
    version: ClassVar[int] = 2
    uses: ClassVar[frozenset[str]] = frozenset({"val"})
    libraries: ClassVar[tuple[str, ...]] = (
        "torch", "timm", "onnx", "onnxscript",
        *host.onnxruntimes(),
    )  # fmt: skip
    opset: Annotated[int, Field(ge=graph.OPSET)] = graph.OPSET
    fold: bool = True
    parity_pictures: Annotated[int, Field(ge=1)] = 64
    parity_tolerance: Annotated[float, Field(gt=0)] = 1e-3

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Export inputs["model"].

        Raises ModelError when torch cannot export the network, ParityError when a file answers differently.
        """
        source = inputs["model"]
        model, network = load(source.folder)
        with context.progress.task("export", 3) as task:
            shipped = deployable(model)
            plain = export_network(shipped, network, self.opset, fold=self.fold)
            task.advance()
            preprocess = export_preprocessing(network.preprocess, self.opset)
            task.advance()
            graph.write_all(context.out, preprocess, plain, self._about(network, source))
            shutil.copyfile(source.folder / DESCRIPTION, context.out / DESCRIPTION)
            found = self._check(model, network, context)
            task.advance()
        return (
            Measurement(name="macs", value=macs(shipped, network.preprocess), unit="MAC"),
            Measurement(name="parameters", value=parameters(shipped)),
            *graph.sizes(context.out),
            *found,
        )

    def _about(self, network: Network, source: Artifact) -> dict[str, str]:
        record = source.record
        lineage: list[JSON] = [
            {
                "weights": network.provenance.model_dump(mode="json"),
                "architecture": network.architecture,
                **({"activations": dict(network.activations)} if network.activations else {}),
            },
            {"step": record.step, "version": record.version, "settings": dict(record.settings)},
            {"step": self.step, "version": self.version, "settings": self.model_dump(mode="json")},
        ]
        preprocessing = network.preprocess.model_dump(mode="json")
        return graph.describe(network.labels, preprocessing, lineage, network.provenance.licence)

    def _check(self, model: nn.Module, network: Network, context: Context) -> tuple[Measurement, ...]:
        preprocessing, val = Preprocessing(network.preprocess).eval(), context.data.val

        @torch.inference_mode()
        def reference(picture: Picture) -> tuple[parity.Floats, parity.Floats]:
            prepared = preprocessing(torch.from_numpy(np.ascontiguousarray(picture))[None])
            return prepared.numpy(), model(prepared).numpy()

        found = parity.check(context.out, reference, val, self.parity_pictures, self.parity_tolerance)
        few = [reference(val.picture(index))[0] for index in choose(val, max(parity.BATCHES))]
        parity.check_batches(context.out / graph.PLAIN, few, self.parity_tolerance)
        return found


def export_network(
    model: nn.Module, network: Network, opset: int = graph.OPSET, *, fold: bool = True
) -> ModelProto:
    """The plain network: `input` float32 [N, 3, h, w] -> `logits` [N, C]; fold: batch norms and padding into weights."""
    size = network.preprocess
    # Two pictures, because torch.export takes a batch of one for a constant.
    example = torch.zeros(2, 3, size.height, size.width)
    exported = _export(model.eval(), example, {0: Dim("N", min=1)}, (graph.INPUT, graph.LOGITS), opset, fold)
    graph.pool(exported)
    graph.name_after_modules(exported)
    return exported


def export_preprocessing(preprocess: Preprocess, opset: int = graph.OPSET) -> ModelProto:
    """The preprocessing: `pictures` uint8 [N, H, W, 3] of any size -> `input` float32 [N, 3, h, w]."""
    exported = ModelProto()
    exported.ParseFromString(_exported_preprocessing(preprocess, opset))
    return exported


@lru_cache(maxsize=16)
def _exported_preprocessing(preprocess: Preprocess, opset: int) -> bytes:
    """The serialized preprocessing; kept, because a run exports several networks with the same one."""
    # Sides that differ from each other and from any power of two, so that nothing is taken for a constant.
    example = torch.zeros(2, 45, 50, 3, dtype=torch.uint8)
    free = {0: Dim("N", min=1), 1: Dim("H", min=1), 2: Dim("W", min=1)}
    exported = _export(Preprocessing(preprocess).eval(), example, free, (graph.PICTURES, graph.INPUT), opset)
    graph.name_after_modules(exported)
    return bytes(exported.SerializeToString())


def _export(
    module: nn.Module, example: Tensor, free: Mapping[int, Dim], names: tuple[str, str], opset: int,
    fold: bool = True,
) -> ModelProto:  # fmt: skip
    """torch.onnx.export with its opset asserted. Raises ModelError with the exporter's reason."""
    try:
        with warnings.catch_warnings(action="ignore"):
            program = torch.onnx.export(
                module, (example,), dynamo=True, dynamic_shapes=(dict(free),), input_names=[names[0]],
                output_names=[names[1]], opset_version=opset, optimize=fold, verbose=False,
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ModelError(f"torch cannot export this network to ONNX: {reason}") from error
    if program is None:
        raise ModelError("torch exported no ONNX program for this network")
    exported = program.model_proto
    graph.require_opset(exported, opset)
    return exported
