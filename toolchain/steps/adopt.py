"""Adopt: somebody else's ONNX classifier becomes an artifact like an exported one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx
import onnx.utils
import onnxscript.optimizer
import onnxscript.rewriter
import torch
from onnx import ModelProto, TensorProto, ValueInfoProto, numpy_helper
from onnx.helper import make_node
from pydantic import Field

from toolchain import graph, parity
from toolchain.artifact import Artifact, Form
from toolchain.backbones.network import DESCRIPTION, Network, Provenance
from toolchain.calibration.pictures import choose
from toolchain.data.dataset import Data, Picture
from toolchain.data.preprocess import Preprocess, Preprocessing
from toolchain.errors import DataError, ModelError
from toolchain.record import Measurement
from toolchain.runtime import host
from toolchain.runtime.session import Session
from toolchain.step import Context, Step
from toolchain.steps.export import export_preprocessing

_SMALLEST = 1e-12  # a probability whose logarithm is still an ordinary number
_SAMPLE = 4


class Adopt(Step):
    """Takes an ONNX file of one float32 input [N, 3, h, w] and one output [N, C], logits or probabilities.

    output: the name of the one to keep, of a file with several (heads that only training needs); what only the others
    need goes. None: it has one.
    labels: of the outputs, in the file's order; None says that they are the data's, in the data's order.
    preprocess: how a picture becomes the file's input; its height and width must be those that the file takes.
    fold: batch norms, padding and constants go into weights; False leaves them, for `simplify` (see export).
    licence: of the file. parity_pictures, parity_tolerance: as for export, against the file as it was given, a softmax
    at its end undone.
    """

    step: Literal["adopt"] = "adopt"
    version: ClassVar[int] = 2
    takes: ClassVar[Mapping[str, Form]] = {}
    gives: ClassVar[Form] = Form.ONNX
    uses: ClassVar[frozenset[str]] = frozenset({"val"})
    libraries: ClassVar[tuple[str, ...]] = (
        "torch", "onnx", "onnxscript",
        *host.onnxruntimes(),
    )  # fmt: skip
    file: Path
    output: str | None = None
    labels: tuple[str, ...] | None = None
    preprocess: Preprocess
    fold: bool = True
    licence: str | None = None
    parity_pictures: Annotated[int, Field(ge=1)] = 64
    parity_tolerance: Annotated[float, Field(gt=0)] = 1e-3

    def roots(self) -> Mapping[str, Path]:
        """The ONNX file."""
        return {"file": self.file}

    def check(self) -> None:
        """Raise ModelError when the file is no classifier that could be adopted."""
        super().check()
        self._read()

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Check the file, bring it into the toolchain's form, and compare the two on validation pictures.

        Raises ModelError, naming the file, when it is no such classifier; DataError without validation
        pictures; ParityError when the form changes its answers.
        """
        val = context.data.val
        sample = [self._prepared(val.picture(index)) for index in choose(val, _SAMPLE)]
        if not sample:
            raise DataError("an adopted file is tried on validation pictures, and there are none")
        given = self._read()
        try:
            _end_in_logits(given, sample)
            order = self._order(_answers(given, sample).shape[1], context.data)
            adopted = _brought(given, self.fold)
        except ModelError as error:
            raise ModelError(f"{self.file}: {error}") from error
        if order is not None:
            _reorder(adopted, order)
        free = _free_batch(adopted, sample)
        self._write(adopted, context, free)
        return (
            Measurement(name="dynamic_batch", value=free),
            *self._gone(given, adopted),
            *graph.sizes(context.out),
            *self._compare(given, order, context),
        )

    def _gone(self, given: ModelProto, adopted: ModelProto) -> tuple[Measurement, ...]:
        """How many nodes went with the outputs that were left out, and into weights."""
        counts = (
            {"outputs": len(graph.read(self.file).graph.node) - len(given.graph.node)} if self.output else {}
        )
        if self.fold:
            counts["folded"] = len(given.graph.node) - len(adopted.graph.node)
        return tuple(
            Measurement(name="nodes", value=count, where={"gone": why}) for why, count in counts.items()
        )

    def _read(self) -> ModelProto:
        given = graph.read(self.file)
        # Files of before IR 4 list weights as inputs too, which onnxruntime and onnxscript then take for no constants.
        constant = {tensor.name for tensor in given.graph.initializer}
        for value in [value for value in given.graph.input if value.name in constant]:
            given.graph.input.remove(value)
        try:
            if self.output is not None:
                given = _only(given, self.output)
            graph.require_float(given)
            _require_classifier(given, self.preprocess)
        except ModelError as error:
            raise ModelError(f"{self.file}: {error}") from error
        return given

    def _order(self, classes: int, data: Data) -> list[int] | None:
        """Which output each of the data's labels is; None when the orders are the same."""
        labels = self.labels or data.labels
        if len(labels) != classes:
            raise ModelError(
                f"it has {classes} outputs, but there are {len(labels)} labels: they must be the same"
            )
        if sorted(labels) != sorted(data.labels):
            unknown = sorted(set(labels).symmetric_difference(data.labels))
            raise ModelError(f"its labels and the data's differ in {', '.join(map(repr, unknown[:5]))}")
        return None if labels == data.labels else [labels.index(label) for label in data.labels]

    def _write(self, adopted: ModelProto, context: Context, free: bool) -> None:
        preprocess = export_preprocessing(self.preprocess, graph.opset(adopted))
        if not free:
            context.progress.say(
                f"{self.file.name}: a batch of one is built in, it takes one picture at a time"
            )
            for value in (*preprocess.graph.input, *preprocess.graph.output):
                value.type.tensor_type.shape.dim[0].dim_value = 1
        digest = hashlib.sha256(self.file.read_bytes()).hexdigest()
        provenance = Provenance(source="file", weights=self.file.name, sha256=digest, licence=self.licence)
        network = Network(
            architecture=f"onnx:{self.file.stem}", labels=context.data.labels,
            preprocess=self.preprocess, provenance=provenance,
        )  # fmt: skip
        lineage = [{"step": self.step, "version": self.version, "file": provenance.model_dump(mode="json")}]
        about = graph.describe(network.labels, self.preprocess.model_dump(mode="json"), lineage, self.licence)
        graph.write_all(context.out, preprocess, adopted, about)
        (context.out / DESCRIPTION).write_text(network.model_dump_json(indent=1), encoding="utf-8")

    def _compare(
        self, given: ModelProto, order: list[int] | None, context: Context
    ) -> tuple[Measurement, ...]:
        session = Session(given.SerializeToString())
        source = session.inputs[0].name

        def reference(picture: Picture) -> tuple[parity.Floats, parity.Floats]:
            prepared = self._prepared(picture)
            logits = session.run({source: prepared})[0]
            return prepared, logits if order is None else logits[:, order]

        return parity.check(
            context.out, reference, context.data.val, self.parity_pictures, self.parity_tolerance
        )

    def _prepared(self, picture: Picture) -> parity.Floats:
        with torch.inference_mode():
            pictures = torch.from_numpy(np.ascontiguousarray(picture))[None]
            return np.asarray(Preprocessing(self.preprocess).eval()(pictures).numpy())


def _only(model: ModelProto, output: str) -> ModelProto:
    """The part of a model that one output needs. Raises ModelError when there is no such output, naming those there are."""
    names = [value.name for value in model.graph.output]
    if output not in names:
        raise ModelError(f"it has no output {output!r}, but {', '.join(map(repr, names))}")
    constant = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in constant]
    try:
        part = onnx.utils.Extractor(model).extract_model(inputs, [output])
    except ValueError as error:
        raise ModelError(f"output {output!r} cannot be taken out of it ({error})") from error
    read = {name for node in part.graph.node for name in node.input}
    for value in [value for value in part.graph.input if value.name not in read]:
        part.graph.input.remove(value)
    return part


def _require_classifier(model: ModelProto, preprocess: Preprocess) -> None:
    """Raise ModelError unless there is one float32 input [N, 3, h, w] of the right size and one output [N, C]."""
    constant = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constant]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        counts = f"{len(inputs)} inputs and {len(model.graph.output)} outputs"
        names = ", ".join(repr(value.name) for value in model.graph.output)
        hint = f": name the one to keep, output: one of {names}" if len(model.graph.output) > 1 else ""
        raise ModelError(f"it has {counts}, and a picture classifier has one of each{hint}")
    shape = _shape(inputs[0])
    if inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT or len(shape) != 4:
        raise ModelError(f"its input {inputs[0].name!r} is {_described(inputs[0])}, not float32 [N, 3, h, w]")
    if shape[1] != 3:
        raise ModelError(f"its input is {_described(inputs[0])}: export it for RGB as [N, 3, h, w]")
    if shape[0] not in (0, 1):
        raise ModelError(f"a batch of {shape[0]} is built in: export it with a free batch, or a batch of 1")
    for side, has, wanted in (("height", shape[2], preprocess.height), ("width", shape[3], preprocess.width)):
        if has not in (0, wanted):
            raise ModelError(
                f"its input's {side} is {has}, but preprocess.{side} is {wanted}: they must be equal"
            )
    if model.graph.output[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise ModelError(f"its output is {_described(model.graph.output[0])}, not float32 [N, classes]")


def _end_in_logits(model: ModelProto, sample: Sequence[parity.Floats]) -> None:
    """Rename the ends to `input` and `logits`, and undo a softmax at the end, seen or found out, in place."""
    net = model.graph
    constant = {tensor.name for tensor in net.initializer}
    source = next(value.name for value in net.input if value.name not in constant)
    graph.rename(net, {source: graph.INPUT, net.output[0].name: graph.LOGITS})
    _name_nodes(model)
    answers = _answers(model, sample)
    last = next(node for node in net.node if graph.LOGITS in node.output)
    if last.op_type == "Softmax" and graph.attribute(last, "axis", -1) in (-1, 1):
        before = last.input[0]
        net.node.remove(last)
        graph.rename(net, {before: graph.LOGITS})
        net.output[0].name = graph.LOGITS
    elif (answers >= 0).all() and np.allclose(answers.sum(axis=1), 1, atol=1e-4):
        # Whatever made probabilities of them: the softmax of their logarithms gives them back.
        graph.rename(net, {graph.LOGITS: "probabilities_given"})
        floor = numpy_helper.from_array(np.array(_SMALLEST, np.float32), "smallest_probability")
        net.initializer.append(floor)
        net.node.append(
            make_node("Max", ["probabilities_given", floor.name], ["probabilities_clipped"], name="clip")
        )
        net.node.append(make_node("Log", ["probabilities_clipped"], [graph.LOGITS], name="logarithm"))
        net.output[0].name = graph.LOGITS
    del net.value_info[:]


def _answers(model: ModelProto, sample: Sequence[parity.Floats]) -> parity.Floats:
    """The output for each prepared picture, [n, C]. Raises ModelError when it is of another shape."""
    session = Session(model.SerializeToString())
    answers = [session.run({graph.INPUT: picture})[0] for picture in sample]
    if answers[0].ndim != 2 or answers[0].shape[0] != 1:
        raise ModelError(f"its output for one picture is {list(answers[0].shape)}, not [1, classes]")
    return np.concatenate(answers)


def _brought(given: ModelProto, fold: bool) -> ModelProto:
    """A copy in our opset or above, with constants and batch norms folded ready for the quantizer."""
    model = ModelProto()
    model.CopyFrom(given)
    if graph.opset(model) < graph.OPSET:
        try:
            model = onnx.version_converter.convert_version(model, graph.OPSET)
        except (RuntimeError, onnx.version_converter.ConvertError) as error:
            reason = (str(error).strip().splitlines() or ["unknown"])[0]
            raise ModelError(
                f"opset {graph.opset(model)} cannot be converted to {graph.OPSET} ({reason}): export it anew"
            ) from error
    if fold:
        model = onnxscript.optimizer.optimize(model)
        model = onnxscript.rewriter.rewrite(model)
    model = onnx.shape_inference.infer_shapes(model)
    graph.pool(model)
    _name_nodes(model)
    _own_biases(model)
    return model


def _own_biases(model: ModelProto) -> None:
    """Give each convolution and Gemm a bias of its own, in place: equal ones are often merged, and steps that change one
    layer would then change others, or leave both alone."""
    known = {tensor.name: tensor for tensor in model.graph.initializer if len(tensor.dims) == 1}
    taken: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3 or node.input[2] not in known:
            continue
        name = node.input[2]
        if name in taken:
            own = TensorProto()
            own.CopyFrom(known[name])
            own.name = node.input[2] = f"{node.name}.own.{name}"
            model.graph.initializer.append(own)
        taken.add(name)


def _free_batch(model: ModelProto, sample: Sequence[parity.Floats]) -> bool:
    """Make the batch free, in place, where every picture then answers as alone, else 1; returns whether it is free."""
    freed = ModelProto()
    freed.CopyFrom(model)
    del freed.graph.value_info[:]
    shapes = {node.input[1] for node in freed.graph.node if node.op_type == "Reshape"}
    for tensor in freed.graph.initializer:
        if tensor.name in shapes and len(value := numpy_helper.to_array(tensor)) > 1 and value[0] == 1:
            # 0 takes the size from the tensor that is reshaped.
            tensor.CopyFrom(numpy_helper.from_array(np.array([0, *value[1:]]), tensor.name))
    for end in (*freed.graph.input, *freed.graph.output):
        end.type.tensor_type.shape.dim[0].dim_param = "N"
    try:
        session = Session(freed.SerializeToString())
        alone = np.concatenate([session.run({graph.INPUT: one})[0] for one in sample])
        free = all(_as_alone(session, sample, alone, size) for size in parity.BATCHES)
    except ModelError:
        free = False
    if free:
        model.CopyFrom(freed)
    else:
        for end in (*model.graph.input, *model.graph.output):
            end.type.tensor_type.shape.dim[0].dim_value = 1
    return free


def _as_alone(session: Session, sample: Sequence[parity.Floats], alone: parity.Floats, size: int) -> bool:
    """Whether different pictures in one batch get the answers that they get alone."""
    order = [index % len(sample) for index in range(size)]
    together = session.run({graph.INPUT: np.concatenate([sample[index] for index in order])})[0]
    return together.shape == (size, alone.shape[1]) and np.allclose(together, alone[order], atol=1e-3)


def _reorder(model: ModelProto, order: Sequence[int]) -> None:
    """Put the outputs into the data's order, in place."""
    graph.rename(model.graph, {graph.LOGITS: "logits_given"})
    model.graph.initializer.append(numpy_helper.from_array(np.array(order, np.int64), "label_order"))
    model.graph.node.append(
        make_node("Gather", ["logits_given", "label_order"], [graph.LOGITS], name="label_order", axis=1)
    )
    model.graph.output[0].name = graph.LOGITS


def _name_nodes(model: ModelProto) -> None:
    """Give every node a name of its own; the quantizer speaks of nodes by name."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
        taken.add(node.name)


def _shape(value: ValueInfoProto) -> list[int]:
    """Sizes, 0 where free."""
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _described(value: ValueInfoProto) -> str:
    name = TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    return f"{name} [{', '.join(str(size or '?') for size in _shape(value))}]"
