"""Making probabilities mean what they say, fitted on val: one temperature, and a threshold a class.

Temperature scaling: Guo et al., On Calibration of Modern Neural Networks, ICML 2017. A file gives
probabilities, not logits; p ** (1 / t), normalised, is softmax(logits / t).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import minimize_scalar

from toolchain.measure.metrics import Bin, calibration_error, nll, reliability
from toolchain.stats import Floats, Ints, hits

TARGET = 0.99
NEVER = 1.0
_TINY = float(np.finfo(np.float32).tiny)
_COLDEST, _HOTTEST = 0.05, 20.0


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Threshold(_Model):
    """From which probability on an answer of one class is called certain, and what val says of that.

    n: val pictures answered so; accepted: those at or above the threshold; precision: share of right
    ones among them, null when none is accepted.
    """

    value: float
    n: int
    accepted: int
    precision: float | None


class Calibration(_Model):
    """Calibration error (ECE) and negative log-likelihood of one split before and after the temperature."""

    temperature: float
    split: str
    n: int
    ece_before: float
    ece_after: float
    nll_before: float
    nll_after: float
    before: tuple[Bin, ...] = Field(description="reliability diagram of the raw answers")
    after: tuple[Bin, ...] = Field(description="the same at the fitted temperature")


def heat(probabilities: Floats, temperature: float) -> NDArray[np.float32]:
    """Probabilities [n, C] at a temperature: above 1 less sure, below 1 surer; the order stays."""
    logs = np.log(np.maximum(probabilities.astype(np.float64), _TINY)) / temperature
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    heated: NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return heated


def fit_temperature(probabilities: Floats, labels: Ints) -> float:
    """The temperature of the least negative log-likelihood on these pictures, between 0.05 and 20.

    Where every answer is right, the likelihood grows without end as the temperature falls; pictures
    without a mistake say nothing against the probabilities as they are, so it is never below 1 then.
    """
    coldest = 1.0 if hits(probabilities, labels).all() else _COLDEST
    logs = np.log(np.maximum(probabilities.astype(np.float64), _TINY))
    given = logs[np.arange(len(labels)), labels]

    def loss(log_temperature: float) -> float:
        scaled = logs / np.exp(log_temperature)
        top = scaled.max(axis=1)
        total = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
        return float((total - given / np.exp(log_temperature)).mean())

    ends = (float(np.log(coldest)), float(np.log(_HOTTEST)))
    found = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-4})
    best = min((found.x, 0.0), key=loss)  # no change, when it is as good
    return float(np.exp(best))


def calibration(probabilities: Floats, labels: Ints, temperature: float, split: str) -> Calibration:
    """What a temperature does to one split: probabilities [n, C] as the file gives them, labels [n]."""
    heated = heat(probabilities, temperature)
    return Calibration(
        temperature=temperature,
        split=split,
        n=len(labels),
        ece_before=calibration_error(probabilities, labels),
        ece_after=calibration_error(heated, labels),
        nll_before=nll(probabilities, labels),
        nll_after=nll(heated, labels),
        before=reliability(probabilities, labels),
        after=reliability(heated, labels),
    )


def fit_thresholds(
    probabilities: Floats, labels: Ints, names: Sequence[str], target: float = TARGET
) -> dict[str, Threshold]:
    """For each class the smallest probability from which on its answers on val are right `target` of the time.

    probabilities [n, C] at the fitted temperature; labels [n]. The threshold lies midway between the least
    sure answer that is accepted and the surest that is not, so that rounding on another device changes
    nothing; it is 0 when all are accepted. A class that val never answers, or whose surest answers are
    wrong, has earned no trust: its threshold is 1 (NEVER), and its answers are not called certain.
    """
    answer, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1).astype(np.float64)
    right = hits(probabilities, labels)
    return {
        name: _threshold(confidence[answer == k], right[answer == k], target) for k, name in enumerate(names)
    }


def _threshold(confidence: NDArray[np.float64], right: NDArray[np.bool_], target: float) -> Threshold:
    """The threshold of one class from its answers: their probabilities [m] and whether they are right [m]."""
    order = np.argsort(-confidence, kind="stable")
    sure, held = confidence[order], right[order]
    precision = np.cumsum(held) / np.arange(1, len(held) + 1)
    ends = (
        np.append(sure[1:] < sure[:-1], True) if len(sure) else np.zeros(0, dtype=bool)
    )  # equals go together
    kept = np.flatnonzero(ends & (precision >= target))
    if not len(kept):
        return Threshold(value=NEVER, n=len(sure), accepted=0, precision=None)
    last = int(kept[-1])
    value = 0.0 if last == len(sure) - 1 else float(sure[last] + sure[last + 1]) / 2
    return Threshold(value=value, n=len(sure), accepted=last + 1, precision=float(precision[last]))
