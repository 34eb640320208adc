"""The parts of a report that are not about one file: the run, its data, its training, its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from toolchain.report.text import Text

# What may stand in a data: address. Anything else could leave the attribute it is written into.
Base64 = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+={0,2}$", max_length=200_000)]


class Model(BaseModel):
    """A frozen part of the report: no unknown fields, no NaN (null says that there is no figure)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True, serialize_by_alias=True
    )


class Weights(Model):
    """Where training started. source "random" means: no pretrained weights."""

    architecture: Text
    source: Literal["timm-hub", "file", "bundled", "random", "onnx"]
    weights: Text | None = None
    sha256: str | None = None
    licence: Text | None = None


class RunInfo(Model):
    """What was run. started: ISO 8601; seconds: wall time of this start; recipe: its YAML, resolved."""

    name: Text
    description: Text = ""
    started: str
    seconds: float
    toolchain: str
    seed: int
    device: Text
    threads: int | None = None
    baseline: Text = "fp32"
    metric: Literal["top1", "balanced"] = "top1"
    weights: Weights | None = None
    recipe: Text = ""


class BundleInfo(Model):
    """The folder that ships. identity: hash of model, golden answers and meaning of the manifest."""

    path: Text
    identity: str
    bytes: int | None = None
    temperature: float | None = None


class Check(Model):
    """One check of the data before training. items: the files or classes it is about, some of them."""

    name: Text
    level: Literal["ok", "warning", "problem"]
    summary: Text
    items: tuple[Text, ...] = ()


class DataSection(Model):
    """The pictures of the run. counts: by split and class; groups: by split, null without groups."""

    name: Text
    labels: tuple[Text, ...]
    counts: Mapping[str, Mapping[Text, int]]
    groups: Mapping[str, int] | None = None
    checks: tuple[Check, ...] = ()
    facts: Mapping[str, Text] = Field(default={}, description="sizes, colour modes and the like, in words")


class Curve(Model):
    """One training. series: one figure an epoch by name; names with "loss" are in nats, "lr" is the
    learning rate, all others are fractions of 1. kept: the epoch whose weights went on."""

    artifact: Text
    epochs: tuple[int, ...]
    series: Mapping[str, tuple[float | None, ...]]
    kept: int | None = None
    seconds: float | None = None


class SensitivePart(Model):
    """A part of an int8 network. gain: dB of the logits' signal over noise with it alone in float; agreement:
    with fp32, a fraction of val, once it was given back; price: by how many times that made the file slower."""

    name: Text
    gain: float
    agreement: float | None = None
    price: float | None = None


class Sensitivity(Model):
    """What int8 costs, part by part, the worst first. agreement: of int8 before anything was given back."""

    variant: Text
    agreement: float
    parts: tuple[SensitivePart, ...]


class PrunedPart(Model):
    """A part that gave up channels alone: by their share, dB of the logits' signal over noise against the whole network,
    and the fraction of equal top-1."""

    name: Text
    shares: tuple[float, ...]
    sqnr: tuple[float, ...]
    agreement: tuple[float, ...]


class PruningSensitivity(Model):
    """What the answers lose when each part alone is pruned, the worst first. artifact: of the pruning that measured it."""

    artifact: Text
    parts: tuple[PrunedPart, ...]


class Picture(Model):
    """A wrong answer with its picture. png: a thumbnail, base64."""

    name: Text
    label: Text
    predicted: Text
    probability: float
    split: str = "test"
    png: Base64 | None = None


class Spread(Model):
    """Accuracies (fractions) of several seeds, and their mean."""

    mean: float
    seeds: tuple[float, ...]


class TransferRow(Model):
    """What so many training pictures a class reach from pretrained and from random weights."""

    per_class: int
    pretrained: Spread
    random: Spread


class Transfer(Model):
    """What pretraining brings, measured, whether it flatters or not."""

    task: Text
    weights: Text
    n: int = Field(description="pictures scored")
    rows: tuple[TransferRow, ...]
    note: Text = ""


class Parity(Model):
    """Two ways of asking for the same answers. max_difference: of probabilities; agreement: of top-1."""

    max_difference: float
    n: int
    bound: float | None = None
    agreement: float | None = None


class NotMeasured(Model):
    """What is missing from this report, and why."""

    what: Text
    why: Text


class StepTime(Model):
    """One step of the run; reused: its result lay in the store already, from an earlier start."""

    artifact: Text
    step: str
    seconds: float
    reused: bool = False
    key: str = ""
