"""Intel Neural Compressor 2.6, the last of its releases with an ONNX side, as its documentation calls it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnxruntime
from common import INPUT, Task, main
from neural_compressor import PostTrainingQuantConfig, quantization
from neural_compressor.config import AccuracyCriterion, TuningCriterion


class Loader:
    """The calibration pictures as (input, label) pairs; there are no labels."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.batch_size = 1

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        return ((picture, 0) for picture in self.task.pictures())


def fit(task: Task, judge: Callable[[Any], float] | None = None, **settings: Any) -> None:
    """quantization.fit: one trial without a judge, accuracy-aware tuning with one."""
    found = quantization.fit(
        str(task.model), PostTrainingQuantConfig(**settings), calib_dataloader=Loader(task), eval_func=judge
    )
    if found is None:
        raise SystemExit("Error: the tuning found no model that meets its criterion")
    found.save(str(task.scratch / "out.onnx"))
    shutil.copyfile(task.scratch / "out.onnx", task.out)


def agreement(task: Task) -> Callable[[Any], float]:
    """How often a model answers the calibration pictures as the float model does: a judge without labels."""

    def answers(model: Any) -> Any:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        return np.array([session.run(None, {INPUT: picture})[0].argmax() for picture in task.pictures()])

    wanted = answers(str(task.model))
    return lambda model: float(np.mean(answers(model.SerializeToString()) == wanted))


def tuned(task: Task, **settings: Any) -> None:
    """Accuracy-aware tuning, at most 1 % lost; 20 trials or 20 minutes."""
    fit(
        task, agreement(task), calibration_sampling_size=[len(task.calibration)], **settings,
        accuracy_criterion=AccuracyCriterion(tolerable_loss=0.01),
        tuning_criterion=TuningCriterion(max_trials=20, timeout=1200),
    )  # fmt: skip


if __name__ == "__main__":
    main({
        "defaults": fit,
        "all-pictures": lambda task: fit(task, calibration_sampling_size=[len(task.calibration)]),
        "first-float": lambda task: fit(
            task, calibration_sampling_size=[len(task.calibration)],
            recipes={"first_conv_or_matmul_quantization": False},
        ),
        "tuned": tuned,
        "tuned-int8": lambda task: tuned(task, quant_level=1),  # from all in int8 towards float
    })  # fmt: skip
