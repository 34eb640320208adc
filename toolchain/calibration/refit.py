"""The last layer fitted anew, so that an int8 network's logits come closest to those it had in float.

What the layers before it lose (clipped and rounded features) is partly the same on every picture; a linear layer that
stays in float can take that back by ridge regression (A. Hoerl and R. Kennard, Ridge Regression, Technometrics 12,
1970) of the logits' error on its own inputs. No label is looked at. As the bias correction of M. Nagel et al. (ICCV
2019, arXiv 1906.04721, section 4.2), which is the constant part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto
from onnx.helper import make_empty_tensor_value_info

from toolchain.calibration.chains import put
from toolchain.calibration.weights import Floats
from toolchain.errors import ModelError
from toolchain.graph import INPUT, LOGITS, attribute, weights
from toolchain.runtime.session import Session

_SHRINK = 3.0  # of each input's variance: of 0.01 to 10 on 895 pictures the middle of what helped on others
_MIRRORS = ((), (-1,), (-2,), (-2, -1))


def refit(
    model: ModelProto, reference: ModelProto, inputs: Iterable[Floats], advance: Callable[[], None] = lambda: None
) -> None:  # fmt: skip
    """Change the last layer of `model` in place towards the logits of `reference`, its own float network.

    inputs: float32 [1, 3, h, w] each; their mirror images are taken with them.
    Raises ModelError when the logits do not come from a Gemm with float weights and a bias.
    """
    last = _last(model)
    shown = ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.append(make_empty_tensor_value_info(last.input[0]))
    given, wanted = Session(shown.SerializeToString()), Session(reference.SerializeToString())
    features, errors = [], []
    for picture in inputs:
        for axes in _MIRRORS:
            seen = {INPUT: np.ascontiguousarray(np.flip(picture, axes))}
            logits, feature = given.run(seen)[:2]
            features.append(feature[0])
            errors.append(wanted.run(seen)[0][0] - logits[0])
        advance()
    slope, constant = ridge(np.array(features, np.float64), np.array(errors, np.float64))
    known = weights(model)
    weight, bias = (known[name] for name in last.input[1:3])
    turned = slope.T if attribute(last, "transB", 0) else slope
    put(model, {
        last.input[1]: (weight + turned).astype(np.float32),
        last.input[2]: (bias + constant).astype(np.float32),
    })  # fmt: skip


def ridge(
    features: NDArray[np.float64], errors: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Slope [F, C] and constant [C] of errors [n, C] over features [n, F], each slope shrunk by its feature's power."""
    mean, level = features.mean(axis=0), errors.mean(axis=0)
    centred = features - mean
    power = centred.T @ centred
    # Features that never move get a slope of nothing.
    least = 1e-9 * np.trace(power) / len(power) + np.finfo(np.float64).tiny
    shrunk = power + np.diag(_SHRINK * power.diagonal() + least)
    slope = np.linalg.solve(shrunk, centred.T @ (errors - level))
    return slope, level - mean @ slope


def _last(model: ModelProto) -> NodeProto:
    """The node that makes the logits. Raises ModelError when it is none that can be fitted."""
    known = weights(model)
    node: NodeProto
    for node in model.graph.node:
        if LOGITS not in node.output:
            continue
        plain = attribute(node, "alpha", 1.0) == 1.0 == attribute(node, "beta", 1.0)
        floats = len(node.input) == 3 and all(
            name in known and known[name].dtype == np.float32 for name in node.input[1:]
        )
        if node.op_type == "Gemm" and plain and floats and not attribute(node, "transA", 0):
            return node
    raise ModelError(
        "refit_head: the logits do not come from a linear layer in float; leave it out of the integers with `exclude`"
    )
