"""Integers for weights, chosen so that a layer's output moves least rather than each weight.

M. Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020 (arXiv 2004.10568): each weight
goes to one of its two neighbours so that E[(e x)^2] is least, e being the rounding error of a row. The paper relaxes
that and descends by gradients; here the quadratic problem itself is descended, one flip of a row at a time, on the
inputs' second moments, so that nothing is trained and no learning rate chosen. What moves the mean is left out of it:
the bias takes that back (weights.correct_biases).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from onnx.helper import make_empty_tensor_value_info

from toolchain.calibration.weights import GREATEST, Bits, Floats, Layer, saturating
from toolchain.calibration.windows import windows
from toolchain.graph import INPUT, attribute
from toolchain.runtime.session import Session

Doubles = NDArray[np.float64]
_POSITIONS = 64  # of each picture
_LONGEST = 2400  # weights a row, whose covariance takes 46 MB
_RIDGE = 1e-3  # of the mean power: weights whose inputs say the same, or nothing, are still rounded nearby


def covariances(
    model: ModelProto,
    found: Sequence[Layer],
    inputs: Iterable[Floats],
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Doubles]:
    """Covariance of what each row of a layer's weight is multiplied by, [groups, K, K] by the weight's name.

    Convolutions that pad by name (auto_pad) and rows longer than _LONGEST are left out. Of each picture the same
    _POSITIONS places are taken.
    """
    usable = [
        layer for layer in found
        if attribute(layer.node, "auto_pad", b"NOTSET") == b"NOTSET" and layer.rows[0].size <= _LONGEST
    ]  # fmt: skip
    shown = ModelProto()
    shown.CopyFrom(model)
    present = {value.name for value in (*model.graph.output, *model.graph.input)}
    wanted = dict.fromkeys(layer.node.input[0] for layer in usable)
    shown.graph.output.extend(make_empty_tensor_value_info(name) for name in wanted if name not in present)
    session, random = Session(shown.SerializeToString()), np.random.default_rng(0)
    names = [value.name for value in session.outputs]
    seconds: dict[str, Doubles] = {}
    means: dict[str, Doubles] = {}
    count = 0
    for picture in inputs:
        given = dict(zip(names, session.run({INPUT: picture}), strict=True)) | {INPUT: picture}
        for layer in usable:
            rows = windows(layer, given[layer.node.input[0]], random, _POSITIONS)
            seconds[layer.weight] = (
                seconds.get(layer.weight, np.zeros(()))
                + np.matmul(rows.transpose(0, 2, 1), rows).astype(np.float64) / rows.shape[1]
            )
            means[layer.weight] = means.get(layer.weight, np.zeros(())) + rows.mean(axis=1, dtype=np.float64)
        count += 1
        advance()
    return {
        name: second / count - means[name][:, :, None] * means[name][:, None, :] / count**2
        for name, second in seconds.items()
    }


def choose(
    found: Iterable[Layer],
    steps: Mapping[str, Floats],
    covariances: Mapping[str, Doubles],
    bits: Bits,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Floats]:
    """Integers by weight, shaped as its layer's rows; rows that could saturate with them keep the nearest ones.

    bits: those that `steps` were made for. Layers without a covariance are left out; `advance` is called after the others.
    """
    chosen: dict[str, Floats] = {}
    for layer in found:
        if layer.weight not in covariances:
            continue
        step = steps[layer.weight]
        greatest = GREATEST[8 if layer.depthwise else bits]
        chosen[layer.weight] = adaptive(layer, step, covariances[layer.weight], greatest)
        if bits == "pairwise" and not layer.depthwise:
            wrong = saturating(chosen[layer.weight])
            nearest = np.rint(layer.rows / step.reshape(-1, *[1] * (layer.rows.ndim - 1)))
            chosen[layer.weight][wrong] = nearest[wrong]
        advance()
    return chosen


def adaptive(layer: Layer, steps: Floats, covariance: Doubles, greatest: int) -> Floats:
    """Integers of the layer's rows, shaped as these, of size `greatest` at most. steps: [M] or [1]."""
    rows = layer.rows.reshape(len(layer.rows), -1).astype(np.float64)
    width = np.broadcast_to(steps.astype(np.float64).reshape(-1, 1), (len(rows), 1))
    found = np.empty_like(rows)
    each = len(rows) // len(covariance)
    for group, matrix in enumerate(covariance):
        part = slice(group * each, (group + 1) * each)
        found[part] = _descend(rows[part] / width[part], _stiff(matrix), greatest)
    return np.asarray(found.reshape(layer.rows.shape), np.float32)


def _descend(exact: Doubles, matrix: Doubles, greatest: int) -> Doubles:
    """Integers next to `exact` [M, K] with a small error^T matrix error for each row, from the nearest ones on."""
    low = np.floor(exact)
    chosen = np.rint(exact).clip(-greatest, greatest)
    slope = (chosen - exact) @ matrix
    diagonal, all_rows = matrix.diagonal(), np.arange(len(exact))
    for _ in range(2 * exact.shape[1]):
        other = np.where(chosen > low, low, low + 1)
        move = np.where(np.abs(other) <= greatest, other - chosen, 0.0)
        gain = move * (2 * slope + move * diagonal)
        best = gain.argmin(axis=1)
        better = all_rows[gain[all_rows, best] < -1e-12]
        if not len(better):
            break
        columns = best[better]
        moved = move[better, columns]
        chosen[better, columns] += moved
        slope[better] += moved[:, None] * matrix[columns]
    return np.asarray(chosen)


def _stiff(matrix: Doubles) -> Doubles:
    return np.asarray(matrix + np.eye(len(matrix)) * max(_RIDGE * float(matrix.diagonal().mean()), 1e-12))


def onto_grid(found: Mapping[str, Floats], layer: Layer, steps: Floats) -> Floats:
    """The layer's weight, in the file's own shape, at exactly the integers found for it."""
    shape = (-1, *[1] * (layer.rows.ndim - 1))
    value = found[layer.weight] * steps.reshape(shape)
    return value if layer.axis == 0 else np.ascontiguousarray(value.T)
