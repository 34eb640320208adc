"""Small ONNX graphs and artifacts for the tests of graphs and of the steps that make them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.backbones.network import DESCRIPTION, Network, Provenance
from toolchain.data.preprocess import Preprocess
from toolchain.record import Measurement, Record
from toolchain.runtime.session import Session
from toolchain.steps.export import export_preprocessing

LABELS = ("red", "green", "blue")
SQUARE = Preprocess(height=16, width=16)


def artifact(folder: Path, form: Form) -> Artifact:
    """A folder as the step before would hand it on."""
    record = Record(
        key="k", step="tune", version=3, settings={"epochs": 2}, parents={}, libraries={}, seconds=0.0
    )
    return Artifact(form, folder, record)


def model(
    nodes: Sequence[NodeProto], constants: Mapping[str, NDArray[Any]], *,
    shape: Sequence[int | str] = ("N", 3, 8, 8), classes: int | str = 3,
    ends: tuple[str, str] = ("input", "logits"), opset: int = 18,
) -> onnx.ModelProto:  # fmt: skip
    """A classifier from its nodes."""
    net = make_graph(
        nodes, "main", [make_tensor_value_info(ends[0], TensorProto.FLOAT, shape)],
        [make_tensor_value_info(ends[1], TensorProto.FLOAT, [shape[0], classes])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    return make_model(net, opset_imports=[make_opsetid("", opset)], ir_version=10)


def convolution(
    source: str, name: str, weight: NDArray[np.float32], constants: dict[str, Any], *, groups: int = 1,
    stride: int = 1, activation: str | None = "Relu",
) -> list[NodeProto]:  # fmt: skip
    """A padded convolution with bias and activation; its output is called `name`."""
    side = weight.shape[2] // 2
    constants[f"{name}.weight"] = weight
    constants[f"{name}.bias"] = np.linspace(-0.2, 0.3, len(weight), dtype=np.float32)
    before = f"{name}/linear" if activation else name
    nodes = [
        make_node(
            "Conv", [source, f"{name}.weight", f"{name}.bias"], [before], name=name, group=groups,
            kernel_shape=weight.shape[2:], pads=[side] * 4, strides=[stride] * 2,
        )
    ]  # fmt: skip
    if activation:
        nodes.append(make_node(activation, [before], [name], name=f"{name}/{activation}"))
    return nodes


def mobile(classes: int = 3, seed: int = 0, side: int = 8, narrow: int = 8) -> onnx.ModelProto:
    """A plain network in the manner of MobileNetV2: stem, depthwise, narrow, widen, pool, classify."""
    rng = np.random.default_rng(seed)
    constants: dict[str, Any] = {}

    def random(*shape: int) -> NDArray[np.float32]:
        return (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    nodes = [
        *convolution("input", "stem", random(16, 3, 3, 3), constants),
        *convolution("stem", "dw", random(16, 1, 3, 3), constants, groups=16),
        *convolution("dw", "narrow", random(narrow, 16, 1, 1), constants, activation=None),
        *convolution("narrow", "widen", random(32, narrow, 1, 1), constants),
        *convolution("widen", "dense", random(32, 32, 3, 3), constants),
        make_node("GlobalAveragePool", ["dense"], ["pooled"], name="pool"),
        make_node("Flatten", ["pooled"], ["flat"], name="flat", axis=1),
        make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["logits"], name="fc", transB=1),
    ]
    constants["fc.weight"], constants["fc.bias"] = 3 * random(classes, 32), np.zeros(classes, np.float32)
    return model(nodes, constants, shape=("N", 3, side, side), classes=classes)


def exported(folder: Path, plain: onnx.ModelProto, preprocess: Preprocess) -> Artifact:
    """What an export step would leave of a plain network."""
    folder.mkdir(parents=True, exist_ok=True)
    network = Network(
        architecture="by hand", labels=LABELS, preprocess=preprocess, provenance=Provenance(source="random")
    )
    about = graph.describe(LABELS, preprocess.model_dump(mode="json"), [{"step": "export"}], "MIT")
    graph.write_all(folder, export_preprocessing(preprocess), plain, about)
    (folder / DESCRIPTION).write_text(network.model_dump_json())
    return artifact(folder, Form.ONNX)


def run(source: onnx.ModelProto | Path, feed: NDArray[Any], *, optimize: bool = True) -> NDArray[Any]:
    """The first output for the one input."""
    session = Session(source if isinstance(source, Path) else source.SerializeToString(), optimize=optimize)
    return session.run({session.inputs[0].name: feed})[0]


def values(measurements: Sequence[Measurement]) -> dict[str, float]:
    """Measurements by name (the last of a name)."""
    return {m.name: m.value for m in measurements}


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def noise_ratio(reference: NDArray[Any], answers: NDArray[Any]) -> float:
    """Signal to quantization noise in dB."""
    error = np.mean((answers - reference) ** 2)
    return float(10 * np.log10(np.mean(reference**2) / max(error, 1e-20)))
