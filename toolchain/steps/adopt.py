"""Adopt: somebody else's ONNX classifier becomes an artifact like an exported one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx
import onnxscript.optimizer
import onnxscript.rewriter
import torch
from onnx import ModelProto, TensorProto, ValueInfoProto
from onnx.helper import make_node
from pydantic import Field

from toolchain import graph, parity
from toolchain.artifact import Artifact, Form
from toolchain.backbones.network import DESCRIPTION, Network, Provenance
from toolchain.calibration.pictures import choose
from toolchain.data.dataset import Data, Picture
from toolchain.data.preprocess import Preprocess, Preprocessing
from toolchain.errors import ModelError, ParityError
from toolchain.record import Measurement
from toolchain.runtime import host
from toolchain.runtime.session import Session
from toolchain.step import Context, Step
from toolchain.steps.export import export_preprocessing

_SMALLEST = 1e-12  # a probability whose logarithm is still an ordinary number


class Adopt(Step):
    """Takes an ONNX file of one float32 input [N, 3, h, w] and one output [N, C], logits or probabilities.

    labels: of the outputs, in the file's order; None says that they are the data's, in the data's order.
    preprocess: how a picture becomes the file's input; its height and width must be those that the file takes.
    licence: of the file. parity_pictures, parity_tolerance: as for export, against the file as it was given.
    """

    step: Literal["adopt"] = "adopt"
    takes: ClassVar[Mapping[str, Form]] = {}
    gives: ClassVar[Form] = Form.ONNX
    uses: ClassVar[frozenset[str]] = frozenset({"val"})
    libraries: ClassVar[tuple[str, ...]] = (
        "torch", "onnx", "onnxscript",
        *(name for name in ("onnxruntime", "onnxruntime-gpu") if host.distribution_version(name)),
    )  # fmt: skip
    file: Path
    labels: tuple[str, ...] | None = None
    preprocess: Preprocess
    licence: str | None = None
    parity_pictures: Annotated[int, Field(ge=1)] = 64
    parity_tolerance: Annotated[float, Field(gt=0)] = 1e-3

    def roots(self) -> Mapping[str, Path]:
        """The ONNX file."""
        return {"file": self.file}

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Check the file, bring it into the toolchain's form, and compare the two on validation pictures.

        Raises ModelError, naming the file, when it is no such classifier; ParityError when the form changes
        its answers.
        """
        given = graph.read(self.file)
        try:
            graph.require_float(given)
            self._require_classifier(given)
        except ModelError as error:
            raise ModelError(f"{self.file}: {error}") from error
        original = self._original(given, context.data)
        order = self._order(original(context.data.val.picture(0))[1].shape[1], context.data.labels)
        adopted = _simplified(given)
        free = _free_batch(adopted, original(context.data.val.picture(0))[0])
        _reorder(adopted, order)
        preprocess = export_preprocessing(self.preprocess, graph.opset(adopted))
        if not free:
            context.progress.say(f"{self.file.name}: takes one picture at a time, its batch of 1 is built in")
            for value in (*preprocess.graph.input, *preprocess.graph.output):
                value.type.tensor_type.shape.dim[0].dim_value = 1
        graph.write_all(context.out, preprocess, adopted, self._about(context))
        network = Network(architecture=f"onnx:{self.file.stem}", labels=context.data.labels,
            preprocess=self.preprocess, provenance=self._provenance)
        (context.out / DESCRIPTION).write_text(network.model_dump_json(indent=1), encoding="utf-8")
        return self._compared()
