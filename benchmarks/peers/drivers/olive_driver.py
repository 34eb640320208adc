"""Olive's workflow with one quantization pass, as its documentation configures it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from common import INPUT, Task, main
from olive.data.registry import Registry
from olive.workflows import run


def workflow(task: Task, settings: dict[str, Any], before: dict[str, Any] | None = None) -> None:
    """Quantization of an ONNX model for the CPU; the calibration pictures are a registered data set."""

    @Registry.register_dataset("calibration_pictures")
    def pictures(**_: Any) -> list[tuple[dict[str, Any], int]]:
        return [({INPUT: picture[0]}, 0) for picture in task.pictures()]

    data = {
        "name": "calibration",
        "load_dataset_config": {"type": "calibration_pictures"},
        "dataloader_config": {"batch_size": 1},
    }
    static = settings["type"] != "OnnxDynamicQuantization"
    run({
        "input_model": {"type": "ONNXModel", "model_path": str(task.model)},
        "systems": {
            "here": {
                "type": "LocalSystem",
                "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
            }
        },
        "data_configs": [data],
        "passes": ({"preprocess": before} if before else {})
        | {"quantization": settings | ({"data_config": "calibration"} if static else {})},
        "host": "here",
        "target": "here",
        "cache_dir": str(task.scratch / "cache"),
        "output_dir": str(task.scratch / "out"),
    })  # fmt: skip
    keep(task)


def keep(task: Task) -> None:
    """Copy the only model of the output folder to where it was asked for."""
    (found,) = sorted(Path(task.scratch / "out").rglob("*.onnx"))
    shutil.copyfile(found, task.out)


U8S8 = {
    "type": "OnnxStaticQuantization", "precision": "int8", "activation_type": "uint8", "per_channel": True,
    "quant_preprocess": False,
}  # fmt: skip
# A pass of its own, because the one inside of the quantization pass cannot leave symbolic shape inference out.
BEFORE = {"type": "OnnxQuantizationPreprocess", "skip_symbolic_shape": True}

if __name__ == "__main__":
    main({
        "static": lambda task: workflow(task, {"type": "OnnxStaticQuantization"}),
        "static-u8s8": lambda task: workflow(task, U8S8, BEFORE),
        # In QDQ format, the pass loses the option.
        "static-reduced": lambda task: workflow(task, U8S8 | {"quant_format": "QOperator", "reduce_range": True}, BEFORE),
        "static-u8s8-operators": lambda task: workflow(task, U8S8 | {"quant_format": "QOperator"}, BEFORE),
        "dynamic": lambda task: workflow(task, {"type": "OnnxDynamicQuantization"}),
    })  # fmt: skip
