"""ONNX graphs of classifiers: read with suspicion, put in one canonical form, joined, written as the same bytes.

An ONNX artifact holds three files (see artifact.py): `preprocess.onnx` (pictures -> input), `model.plain.onnx`
(input -> logits) and `model.onnx`, which is both and a softmax (pictures -> probabilities).
"""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper
from onnx.helper import make_node, make_tensor_value_info

from toolchain.errors import ModelError
from toolchain.record import JSON, Measurement
from toolchain.runtime import external
from toolchain.runtime.session import OPTIMIZED_FOR

PREPROCESS, PLAIN, FUSED = "preprocess.onnx", "model.plain.onnx", "model.onnx"
PICTURES, INPUT, LOGITS, PROBABILITIES = "pictures", "input", "logits", "probabilities"
OPSET = 18  # the first in which Resize has antialias
_SCOPES = "pkg.torch.onnx.name_scopes"
_BLOCKED = "com.microsoft.nchwc"  # the domain of operators on tensors in blocks of channels
_SPATIAL = frozenset({2, 3})
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LayerNormalization")
_ROLES = {(kind, place): role for kind in _WEIGHTED for place, role in ((1, "weight"), (2, "bias"))}


def read(path: Path) -> ModelProto:
    """Read an ONNX file with its weights in memory and its local functions inlined.

    Raises ModelError when it is missing, damaged, invalid, or keeps weights outside its own folder.
    """
    external.check(path)
    try:
        model = onnx.load(path)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        onnx.checker.check_model(model)
    except (OSError, DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{path}: not a usable ONNX file ({_first_line(error)})") from error
    return model


def write(model: ModelProto, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the model in canonical form: the same graph and metadata are the same bytes everywhere.

    Raises ModelError when the model is not valid or does not fit into one file (2 GB).
    """
    strip(model)
    model.producer_name, model.producer_version = "toolchain", ""
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    try:
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString(deterministic=True))
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(f"{path.name}: cannot be written ({_first_line(error)})") from error


def metadata(model: ModelProto) -> dict[str, str]:
    """The model's own metadata properties."""
    return {entry.key: entry.value for entry in model.metadata_props}


def describe(
    labels: Sequence[str], preprocessing: Mapping[str, JSON], lineage: Sequence[JSON], licence: str | None
) -> dict[str, str]:
    """What travels as metadata properties, the first three as JSON: labels, preprocessing, lineage, licence."""
    about = {"labels": list(labels), "preprocessing": dict(preprocessing), "lineage": list(lineage)}
    found = {name: json.dumps(value, ensure_ascii=False, sort_keys=True) for name, value in about.items()}
    return {**found, "task": "image-classification", "licence": licence or "unknown"}


def extended(about: Mapping[str, str], entry: Mapping[str, JSON]) -> dict[str, str]:
    """The metadata with one more entry at the end of the lineage."""
    lineage = [*json.loads(about.get("lineage", "[]")), dict(entry)]
    return {**about, "lineage": json.dumps(lineage, ensure_ascii=False, sort_keys=True)}


def strip(model: ModelProto) -> None:
    """Remove what tells of the building machine or changes from build to build, in place.

    Doc strings, stack traces, inferred shapes (their symbols carry counters) and unused weights go; weights are
    sorted by name.
    """
    model.doc_string = model.domain = ""
    model.model_version = 0
    del model.metadata_props[:]
    opsets = sorted({entry.domain: entry.version for entry in model.opset_import}.items())
    used = {node.domain for graph in _graphs(model.graph) for node in graph.node} | {""}
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(*entry) for entry in opsets if entry[0] in used)
    for graph in _graphs(model.graph):
        graph.doc_string = ""
        del graph.metadata_props[:], graph.value_info[:]
        for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
            part.doc_string = ""
            del part.metadata_props[:]
    model.graph.name = "network"
    _sort_weights(model.graph)


def opset(model: ModelProto) -> int:
    """The version of the standard operators."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def require_opset(model: ModelProto, wanted: int) -> None:
    """Raise ModelError when the model is not of the opset asked for: exporters change it silently."""
    if opset(model) != wanted:
        raise ModelError(
            f"opset {wanted} was asked for, but the exporter wrote {opset(model)}: ask for that one"
        )


def require_portable(model: ModelProto) -> None:
    """Raise ModelError when ONNX Runtime has laid the model out for one kind of processor."""
    if any(node.domain == _BLOCKED for node in model.graph.node) or OPTIMIZED_FOR in metadata(model):
        raise ModelError(
            "ONNX Runtime has optimized it ahead for one kind of processor: take the file that it was made from"
        )


def require_float(model: ModelProto) -> None:
    """Raise ModelError when the model is in integers or 16-bit floats already, or laid out for one processor."""
    require_portable(model)
    reduced = {
        "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv",
        "QLinearMatMul",
    }  # fmt: skip
    found = reduced.intersection(node.op_type for node in model.graph.node)
    if found or any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer):
        raise ModelError("the network is quantized or in float16 already: start from its float32 file")


def weights(model: ModelProto) -> dict[str, NDArray[Any]]:
    """The constant tensors by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """An attribute's value."""
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def drop_unread(model: ModelProto) -> None:
    """Remove constant tensors that nothing reads, in place."""
    read = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in read]:
        model.graph.initializer.remove(tensor)


def consumers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """The nodes that read each tensor."""
    found: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def nested(model: ModelProto) -> bool:
    """Whether a node has graphs inside (If, Loop, Scan), which read tensors that `consumers` does not see."""
    return len(list(_graphs(model.graph))) > 1


def products_of_activations(model: ModelProto) -> list[str]:
    """Names of the matrix products that have no constant operand (attention)."""
    constant = {tensor.name for tensor in model.graph.initializer}
    products = (node for node in model.graph.node if node.op_type == "MatMul")
    return [node.name for node in products if not constant.intersection(node.input)]


def float_logits(model: ModelProto) -> None:
    """Remove the rounding of the logits to 8 bits, in place: it makes ties among classes and saves nothing."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    last = makers[LOGITS]
    rounding = makers.get(last.input[0])
    if last.op_type != "DequantizeLinear" or rounding is None or rounding.op_type != "QuantizeLinear":
        return
    exact = rounding.input[0]
    for node in graph.node:
        node.input[:] = [LOGITS if name == exact else name for name in node.input]
        node.output[:] = [LOGITS if name == exact else name for name in node.output]
    _replace(graph, [node for node in graph.node if node not in (last, rounding)])


def pool(model: ModelProto) -> None:
    """Turn means over height and width into GlobalAveragePool, in place.

    It is the same mean, but runs on blocked layouts and in int8, which ReduceMean does not.
    """
    known, graph = weights(model), model.graph
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*graph.value_info, *graph.input)}
    changed: list[NodeProto] = []
    for node in graph.node:
        rank = ranks.get(node.input[0]) if node.input else None
        if node.op_type == "ReduceMean" and rank == 4 and _axes(node, known) == _SPATIAL:
            changed += _average(node)
        else:
            changed.append(node)
    _replace(graph, changed)


def name_after_modules(model: ModelProto) -> None:
    """Give nodes and tensors the names of torch's modules (`blocks.1.0.conv_dw`, `bn1.act/Clip`), in place.

    The exporter's own names are counters. Graphs with subgraphs keep their names.
    """
    graph = model.graph
    if any(
        attr.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
        for n in graph.node
        for attr in n.attribute
    ):
        return
    constant = {tensor.name for tensor in graph.initializer}
    renamed = {v.name: v.name for v in (*graph.input, *graph.output)}
    taken: Counter[str] = Counter()
    for node in graph.node:
        base = _module(node, constant)
        taken[base] += 1
        node.name = base if taken[base] == 1 else f"{base}_{taken[base]}"
        for position, name in enumerate(node.input):
            if name in constant:
                role = _ROLES.get((node.op_type, position), str(position))
                renamed.setdefault(name, f"{node.name}.{role}")
        for position, name in enumerate(node.output):
            renamed.setdefault(name, f"{node.name}:{position}")
    rename(graph, renamed)


def rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Give tensors new names, in place; a tensor that has a new name already gets out of the way."""
    taken = {new: f"{new}_inner" for old, new in names.items() if new != old and new not in names}
    renamed = {**taken, **names}
    for inner in _graphs(graph):
        for node in inner.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]
        for part in (*inner.initializer, *inner.value_info, *inner.input, *inner.output):
            part.name = renamed.get(part.name, part.name)


def fuse(preprocess: ModelProto, plain: ModelProto) -> ModelProto:
    """Join the preprocessing, the plain network and a softmax: pictures -> probabilities.

    Raises ModelError when the two cannot be joined (other opset, no float input).
    """
    first = onnx.compose.add_prefix(preprocess, "preprocess/", rename_inputs=False)
    second = ModelProto()
    second.CopyFrom(plain)
    first.ir_version = second.ir_version = max(first.ir_version, second.ir_version)
    del first.metadata_props[:], second.metadata_props[:]
    try:
        fused = onnx.compose.merge_models(first, second, io_map=[(first.graph.output[0].name, INPUT)])
    except (ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"the preprocessing cannot be joined to the network ({_first_line(error)})"
        ) from error
    fused.graph.node.append(make_node("Softmax", [LOGITS], [PROBABILITIES], name="softmax", axis=-1))
    classes = plain.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    del fused.graph.output[:]
    fused.graph.output.append(make_tensor_value_info(PROBABILITIES, onnx.TensorProto.FLOAT, ["N", classes]))
    return fused


def write_all(folder: Path, preprocess: ModelProto, plain: ModelProto, about: Mapping[str, str]) -> None:
    """Write an artifact's three files, each with the metadata `about`."""
    fused = fuse(preprocess, plain)
    for name, model in ((PREPROCESS, preprocess), (PLAIN, plain), (FUSED, fused)):
        write(model, folder / name, about)


def sizes(folder: Path) -> tuple[Measurement, ...]:
    """The bytes of an artifact's plain and fused file."""
    files = (("plain", PLAIN), ("fused", FUSED))
    return tuple(
        Measurement(name="bytes", value=(folder / name).stat().st_size, unit="B", where={"file": kind})
        for kind, name in files
    )


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and every graph inside its nodes."""
    yield graph
    for node in graph.node:
        for attr in node.attribute:
            for inner in (*((attr.g,) if attr.HasField("g") else ()), *attr.graphs):
                yield from _graphs(inner)


def _sort_weights(graph: GraphProto) -> None:
    used = {name for inner in _graphs(graph) for node in inner.node for name in node.input}
    used |= {value.name for value in graph.output}
    kept = sorted((t for t in graph.initializer if t.name in used), key=lambda tensor: tensor.name)
    # Copies, because clearing the field frees the tensors it held.
    copies = []
    for tensor in kept:
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        copies.append(copy)
    del graph.initializer[:]
    graph.initializer.extend(copies)


def _replace(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    copies = []
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del graph.node[:]
    graph.node.extend(copies)


def _axes(node: NodeProto, known: Mapping[str, NDArray[Any]]) -> frozenset[int]:
    """The axes that a reduction of a rank 4 tensor runs over; empty when they are not constant."""
    listed = (
        known[node.input[1]]
        if len(node.input) > 1 and node.input[1] in known
        else attribute(node, "axes", [])
    )
    return frozenset(int(axis) % 4 for axis in np.asarray(listed).reshape(-1))


def _average(mean: NodeProto) -> list[NodeProto]:
    pooled = make_node("GlobalAveragePool", [mean.input[0]], list(mean.output), name=mean.name)
    pooled.metadata_props.extend(mean.metadata_props)
    if attribute(mean, "keepdims", 1):
        return [pooled]
    pooled.output[0] = f"{mean.output[0]}_kept"
    flat = make_node("Flatten", [pooled.output[0]], list(mean.output), name=f"{mean.name}_flat", axis=1)
    flat.metadata_props.extend(mean.metadata_props)
    return [pooled, flat]


def _module(node: NodeProto, constant: set[str]) -> str:
    """`conv_stem` for the node that has `conv_stem.weight`, else the module path and the operator."""
    if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        # A folded batch norm leaves its own module path on the convolution.
        for name in node.input:
            if name in constant and name.endswith(".weight"):
                return str(name).removesuffix(".weight")
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    path = ast.literal_eval(scopes)
    module = str(path[-2]) if len(path) > 1 else ""
    return f"{module}/{node.op_type}" if module and not module.startswith("_") else node.op_type


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
