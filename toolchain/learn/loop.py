"""The one training loop.

Everything that happens in a step is decided by the seed, the step's number and the weights, so that a run that
was killed inside an epoch ends, on the same host, in the very weights of an undisturbed one. That holds on the CPU; on
a GPU some gradients (of pooling, of fused attention) are added up in no fixed order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from toolchain.backbones.network import Network
from toolchain.data.augment import Augmenter
from toolchain.data.loader import Batch, Batches, EvalBatches, Loading, weights_by_class
from toolchain.device import memory_ran_out
from toolchain.errors import HostError, ToolchainError, TrainingError
from toolchain.learn import curves
from toolchain.learn.checkpoint import Checkpoint, identity
from toolchain.learn.curves import Curves, EpochRow
from toolchain.learn.evaluate import Scores, evaluate
from toolchain.learn.heap import kept_heap
from toolchain.learn.losses import class_offsets, class_weights, cross_entropy, distilled
from toolchain.learn.mixing import mix
from toolchain.learn.optimizer import Scope, set_rate
from toolchain.learn.schedule import factor
from toolchain.learn.settings import Distillation, Training
from toolchain.learn.state import State
from toolchain.progress import Task
from toolchain.step import Context

# Pictures that a teacher answers at a time: of 32 each takes 1.5 times as long (MobileNetV2, 128 and 160 pixels).
_CACHED = 8
_NEWS_SECONDS = 0.25  # between looks at the losses: each waits for the device


def fit(
    model: nn.Module,
    network: Network,
    training: Training,
    context: Context,
    *,
    teacher: nn.Module | None = None,
    distill: Distillation | None = None,
) -> tuple[nn.Module, list[EpochRow]]:
    """Train `model` in place on context.data; returns it with the best epoch's weights, and a row an epoch.

    The result is in eval mode on the CPU. With `teacher`, which answers the same augmented batches in eval
    mode, `distill` says how much its answers count. Goes on from the checkpoint in context.scratch if there
    is one of this training. Writes `curves.json` and TensorBoard events into context.out.
    Raises TrainingError when the loss is not finite or settings, data and network do not fit together,
    PictureError for a picture that cannot be decoded, HostError when a checkpoint cannot be written.
    """
    _check(network, context)
    distill = (distill or Distillation()) if teacher is not None else None
    facts = {
        "training": training.model_dump(mode="json"),
        "network": network.model_dump(mode="json"),
        "distillation": distill and distill.model_dump(include=set(Distillation.model_fields)),
        "data": [context.data.train.fingerprint, context.data.val.fingerprint],
        "seed": context.seed,
        "device": context.device.fingerprint,
    }
    begun = identity(facts, [model] if teacher is None else [model, teacher])
    checkpoint = Checkpoint(context.scratch / "checkpoint", begun)
    with _repeatable(), _told(training, context), kept_heap():
        return _Run(model, network, training, context, _Teaching(teacher, distill)).go(checkpoint)


@contextmanager
def _repeatable() -> Iterator[None]:
    """Repeatable convolutions; and whoever draws from torch's generator afterwards must not notice us."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.backends.cudnn.deterministic = before


@contextmanager
def _told(training: Training, context: Context) -> Iterator[None]:
    """Say what helps when there is no memory left, or a batch norm sees one picture; torch has no types of its own."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            f"a batch norm cannot learn from a batch of one picture: with {len(context.data.train)} pictures take a "
            f"batch_size of 3 or more ({training.batch_size} now), or norm_statistics: kept"
        ) from error
    except (MemoryError, RuntimeError, ToolchainError) as error:
        if not memory_ran_out(error):
            raise
        raise HostError(
            f"no memory left on '{context.device.name}': take a smaller batch_size than {training.batch_size} "
            "(accumulate makes up for it) or smaller pictures"
        ) from error


@dataclass(frozen=True)
class _Teaching:
    """A teacher and how much it counts, or neither."""

    teacher: nn.Module | None
    distillation: Distillation | None


class _Run:
    """One training. `pending` are losses and hits that the device may not have finished yet."""

    def __init__(
        self, model: nn.Module, network: Network, training: Training, context: Context, teaching: _Teaching
    ) -> None:
        self.training, self.context, self.teaching = training, context, teaching
        device = context.device
        self.device = device.torch
        self.classes = len(network.labels)
        self.layout = torch.channels_last if training.channels_last else torch.contiguous_format
        self.kind = device.amp_type(training.amp)
        model.to(self.device, memory_format=self.layout)  # type: ignore[call-overload]
        if teaching.teacher is not None:
            teaching.teacher.to(self.device, memory_format=self.layout).eval()  # type: ignore[call-overload]
        self.scope = Scope(model, training.train, statistics_kept=training.norm_statistics == "kept")
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.state = State.start(model, training, device)
        self.batches = self._batches(network)
        self.weights, self.offsets = self._balance()
        self.val = EvalBatches(context.data.val, network.preprocess, training.batch_size, training.workers)
        self.steps = -(-len(self.batches) // training.accumulate)
        self.pending: list[tuple[Tensor, Tensor, int]] = []

    def _batches(self, network: Network) -> Batches:
        """The training batches."""
        training, train = self.training, self.context.data.train
        augmenter = Augmenter(training.augment, network.preprocess, self.device)
        loading = Loading(batch_size=training.batch_size, seed=self.context.seed, workers=training.workers)
        drawn = (
            weights_by_class(train.labels, training.balance_power) if training.balance == "sampler" else None
        )
        return Batches(train, augmenter, loading, drawn)

    def _balance(self) -> tuple[Tensor | None, Tensor | float]:
        """The classes' weights [C] in the loss, and what it adds to their logits [C]."""
        labels, power = torch.from_numpy(self.context.data.train.labels), self.training.balance_power
        match self.training.balance:
            case "loss":
                return class_weights(labels, self.classes, power).to(self.device), 0.0
            case "logits":
                return None, class_offsets(labels, self.classes, power).to(self.device)
            case _:
                return None, 0.0

    def go(self, checkpoint: Checkpoint) -> tuple[nn.Module, list[EpochRow]]:
        """Train to the end."""
        state, context = self.state, self.context
        saved = checkpoint.load(self.device, context.progress)
        if saved is not None:
            state.restore(saved)
            at = state.position
            context.progress.say(f"training goes on from epoch {at.epoch + 1}, batch {at.batch + 1}")
        name = "fine-tune" if self.teaching.teacher is None else "recover"
        total = self.training.epochs * len(self.batches)
        with (
            self.batches,
            Curves(context.out, state.rows) as drawn,
            context.progress.task(name, total) as task,
        ):
            task.advance(state.position.epoch * len(self.batches) + state.position.batch)
            while not self._finished():
                self._train_epoch(task, checkpoint)
                row = self._judge()
                state.finish_epoch(row, self.training)
                checkpoint.save(state.dump())
                drawn.add(row)
        return self._best()

    def _finished(self) -> bool:
        stopping = self.training.early_stopping
        if stopping and curves.idle(self.state.rows, stopping.metric) >= stopping.patience:
            return True
        return self.state.position.epoch >= self.training.epochs

    def _train_epoch(self, task: Task, checkpoint: Checkpoint) -> None:
        """Train what is left of the epoch; saves now and then, always between optimizer steps."""
        state, at, tally = self.state, self.state.position, self.state.tally
        self.scope.train()
        source = self.batches.epoch(at.epoch, at.batch)
        clock, told, saved = time.perf_counter(), time.perf_counter(), time.perf_counter()
        while at.batch < len(self.batches):
            group = min(self.training.accumulate, len(self.batches) - at.batch)
            self._step(source, group)
            at.batch, at.step = at.batch + group, at.step + 1
            now = time.perf_counter()
            tally.seconds, clock = tally.seconds + now - clock, now
            due = now - saved >= self.training.checkpoint_seconds
            if due or now - told >= _NEWS_SECONDS or at.batch == len(self.batches):
                self._tell(task)
                told = time.perf_counter()
                if due:
                    checkpoint.save(state.dump())
                    saved = time.perf_counter()
        tally.seconds += time.perf_counter() - clock

    def _step(self, source: Iterator[Batch], group: int) -> None:
        """One optimizer step over `group` batches."""
        state, training = self.state, self.training
        generator = np.random.default_rng([self.context.seed, state.position.step])
        torch.manual_seed(int(generator.integers(1 << 63)))
        share = factor(training, state.position.step, self.steps) * state.plateau.scale
        set_rate(state.optimizer, training.lr * share)
        for number in range(group):
            loss = self._loss(self._next(source), generator)
            if number == 0:  # not earlier: freed at the heap's end, their pages would be given back
                state.optimizer.zero_grad(set_to_none=True)
            state.scaler.scale(loss / group).backward()  # type: ignore[no-untyped-call]
        if training.clip is not None:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(self.trained, training.clip)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.average is not None:
            state.average.update()

    def _next(self, source: Iterator[Batch]) -> Batch:
        started = time.perf_counter()
        pictures, labels = next(source)
        self.state.tally.waited += time.perf_counter() - started
        return pictures.contiguous(memory_format=self.layout), labels

    def _loss(self, batch: Batch, generator: np.random.Generator) -> Tensor:
        """The loss of a batch, a scalar; it is noted together with the hits."""
        pictures, targets = mix(*batch, self.classes, self.training, generator)
        teacher, distillation = self.teaching.teacher, self.teaching.distillation
        with torch.autocast(self.device.type, self.kind, enabled=self.kind is not None):
            logits = self.state.model(pictures).float()
            loss = cross_entropy(logits + self.offsets, targets, self.weights, self.training.label_smoothing)
            if teacher is not None and distillation is not None:
                loss = distilled(loss, logits, self._taught(teacher, pictures), distillation)
        wanted = targets if targets.ndim == 1 else targets.argmax(dim=1)
        self.pending.append((loss.detach(), (logits.argmax(dim=1) == wanted).sum(), len(logits)))
        return loss

    @torch.no_grad()
    def _taught(self, teacher: nn.Module, pictures: Tensor) -> Tensor:
        """The teacher's logits [N, C]; on a CPU by few pictures at a time, whose tensors stay in its caches."""
        count = _CACHED if self.device.type == "cpu" else len(pictures)
        return torch.cat([teacher(part).float() for part in torch.split(pictures, count)])

    def _tell(self, task: Task) -> None:
        """Read the pending losses, refuse any that is not finite, and show how far we are."""
        at, tally = self.state.position, self.state.tally
        losses = torch.stack([loss for loss, _, _ in self.pending]).tolist()
        hits = torch.stack([hit for _, hit, _ in self.pending]).tolist()
        for index, (loss, hit, (_, _, count)) in enumerate(zip(losses, hits, self.pending, strict=True)):
            if not math.isfinite(loss):
                batch = at.batch - len(losses) + index + 1
                raise TrainingError(
                    f"the loss became {loss} in epoch {at.epoch + 1}, batch {batch} of {len(self.batches)}: take a "
                    f"lower lr than {self.training.lr:g}, a longer warmup_epochs, or clip: 1.0"
                )
            tally.loss += loss * count
            tally.hits += hit
            tally.pictures += count
        rows = self.state.rows
        shown = {"val_top1": rows[-1].val_top1} if rows else {}
        epoch = f"{at.epoch + 1}/{self.training.epochs}"
        task.advance(len(losses), epoch=epoch, loss=tally.loss / tally.pictures, **shown)
        self.pending.clear()

    def _judge(self) -> EpochRow:
        """Score the epoch on val."""
        state, started = self.state, time.perf_counter()
        scores = evaluate(state.judged, self.val, self.device)
        if not math.isfinite(scores.loss):
            raise TrainingError(
                f"the loss on val became {scores.loss} after epoch {state.position.epoch + 1}: take a lower lr "
                f"than {self.training.lr:g}, a longer warmup_epochs, or clip: 1.0"
            )
        return self._row(scores, time.perf_counter() - started)

    def _row(self, scores: Scores, seconds: float) -> EpochRow:
        state, tally = self.state, self.state.tally
        share = factor(self.training, state.position.step - 1, self.steps) * state.plateau.scale
        return EpochRow(
            epoch=state.position.epoch + 1,
            train_loss=tally.loss / tally.pictures,
            train_top1=tally.hits / tally.pictures,
            val_loss=scores.loss,
            val_top1=scores.top1,
            val_balanced=scores.balanced,
            lr=self.training.lr * share,
            seconds=tally.seconds + seconds,
            train_seconds=tally.seconds,
            data_seconds=tally.waited,
            pictures_per_second=tally.pictures / tally.seconds,
        )

    def _best(self) -> tuple[nn.Module, list[EpochRow]]:
        """The network as it is kept, and the curves, written."""
        state = self.state
        chosen = curves.kept(state.rows, self.training.select, self.training.keep)
        rows = [row.model_copy(update={"kept": row is chosen}) for row in state.rows]
        curves.write(rows, self.context.out)
        state.model.load_state_dict(state.kept)
        return state.model.cpu().eval().requires_grad_(True), rows


def _check(network: Network, context: Context) -> None:
    """What cannot be trained is told before the first step."""
    data = context.data
    if network.labels != data.labels:
        raise TrainingError(
            f"the network answers {len(network.labels)} labels ({', '.join(network.labels[:3])}, …), the data have "
            f"{len(data.labels)} ({', '.join(data.labels[:3])}, …): they must be the same, in the same order"
        )
    if not len(data.val):
        raise TrainingError(
            "there are no val pictures, and val decides which epoch is kept: give data.split.val"
        )
