"""onnxruntime's own quantization with the first layers left in float: what its parameter nodes_to_exclude is for."""

from __future__ import annotations

import onnx
from common import Reader, Task, main
from onnxruntime.quantization import QuantType, quantize_static
from onnxruntime_driver import preprocessed


def static_u8s8(task: Task, convolutions: int, *, reduced: bool = False) -> None:
    """u8s8 per channel, without the first convolutions of the graph and what follows each directly."""
    before = preprocessed(task)
    nodes = onnx.load(str(before)).graph.node
    first = [node for node in nodes if node.op_type == "Conv"][:convolutions]
    outputs = {output for node in first for output in node.output}
    activations = [node for node in nodes if node.op_type in ("Clip", "Relu") and node.input[0] in outputs]
    quantize_static(
        before, task.out, Reader(task), activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        per_channel=True, reduce_range=reduced, nodes_to_exclude=[node.name for node in (*first, *activations)],
    )  # fmt: skip


if __name__ == "__main__":
    main({
        "first-float": lambda task: static_u8s8(task, 1),
        "first-two-float": lambda task: static_u8s8(task, 2),
        "first-float-reduced": lambda task: static_u8s8(task, 1, reduced=True),
        "first-two-float-reduced": lambda task: static_u8s8(task, 2, reduced=True),
    })  # fmt: skip
