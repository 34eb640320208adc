"""How a network is trained, as a recipe says it: the fields of `tune` and of `recover`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from toolchain.data.augmentation import Augment
from toolchain.device import AmpName

Metric = Literal["top1", "balanced", "loss"]
Keep = Literal["best", "last"]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]


class EarlyStopping(BaseModel):
    """Stop when `metric` on val has not been better than its best for `patience` epochs."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    metric: Metric = "top1"
    patience: Count = 10


class Training(BaseModel):
    """Settings of the training loop.

    lr: the greatest learning rate; the classifier's is `head_lr_factor` times that. weight_decay: of weights,
    never of biases and norms; 0.05 with AdamW and 0.0001 with SGD when not given. momentum, nesterov: of SGD.
    schedule: "cosine" falls to 0; "one-cycle" rises from 1/25 during `warmup_epochs` (30 % of all when 0)
    and falls to 0 (Smith & Topin, arXiv:1708.07120); "plateau" is multiplied by `factor` after more than
    `patience` epochs without a better `select` metric on val. warmup_epochs: linear rise, may be a fraction.
    train: "full", "head" (linear probe: everything but the classifier frozen, batch norm as well), or the
    number of last blocks to train beside the classifier.
    norm_statistics: what batch norms that are trained normalise by: their "batch", or the mean and variance they came
    with, "kept"; for few pictures that differ from those of pretraining, or whose classes are far from balanced.
    The classifier's own norms always take the batch.
    accumulate: batches a step. clip: greatest norm of the gradient. amp: see `Device.amp_type`.
    balance: rare classes count more in the "loss", or come up more often ("sampler"): a class of n pictures is
    weighted by n ** -balance_power; or must be answered with a margin ("logits"), which still acts when the
    training pictures are known by heart (see losses.class_offsets). mixup, cutmix: alpha of the Beta distribution
    (arXiv:1710.09412, 1905.04899); with both, each batch takes one of them. ema: decay a step of averaged
    weights, which then are what is judged and kept. select: the val metric by which an epoch is kept (equal: the
    lower loss, then the earlier one). keep: "best" by that metric, or the "last" epoch, for a val so small that
    it tells epochs apart by luck.
    workers (threads that prepare batches) and checkpoint_seconds (between checkpoints inside an epoch) do not
    change the result, and are no part of its key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    epochs: Count = 20
    batch_size: Count = 32
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: NotNegative | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    head_lr_factor: Positive = 1.0
    schedule: Literal["cosine", "one-cycle", "plateau", "constant"] = "cosine"
    warmup_epochs: NotNegative = 0.0
    patience: Annotated[int, Field(ge=0)] = 5
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    train: Literal["full", "head"] | Count = "full"
    norm_statistics: Literal["batch", "kept"] = "batch"
    amp: AmpName = "auto"
    channels_last: bool = True
    accumulate: Count = 1
    clip: Positive | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    balance: Literal["none", "loss", "sampler", "logits"] = "none"
    balance_power: Share = 1.0
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    augment: Augment = Augment()
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    early_stopping: EarlyStopping | None = None
    select: Metric = "top1"
    keep: Keep = "best"
    workers: Annotated[int, Field(ge=0, le=256, exclude=True)] = 2
    checkpoint_seconds: Annotated[float, Field(ge=0, exclude=True)] = 60.0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs: {self.warmup_epochs:g} must be less than epochs ({self.epochs}), "
                "or the learning rate never comes down"
            )
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise ValueError("nesterov: needs optimizer 'sgd' with momentum")
        return self

    def idle(self) -> Iterator[str]:
        """A sentence for each setting that is not at its default and that another one switches off."""
        reads = {
            "momentum": (self.optimizer == "sgd", "optimizer 'sgd'"),
            "patience": (self.schedule == "plateau", "schedule 'plateau'"),
            "factor": (self.schedule == "plateau", "schedule 'plateau'"),
            "balance_power": (self.balance != "none", "a `balance`"),
        }
        for name, (read, needed) in reads.items():
            if not read and getattr(self, name) != type(self).model_fields[name].default:
                yield f"{name} does nothing without {needed}"

    @property
    def decay(self) -> float:
        """The weight decay in force."""
        if self.weight_decay is not None:
            return self.weight_decay
        return 0.05 if self.optimizer == "adamw" else 1e-4


class Distillation(BaseModel):
    """Learning from a teacher's answers (Hinton, Vinyals & Dean, arXiv:1503.02531).

    temperature: softens both sides' logits. alpha: the teacher's share of the loss, the labels have the rest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    temperature: Positive = 4.0
    alpha: Share = 0.7
