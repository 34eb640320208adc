"""Pretrain a bundled backbone on pictures made by formulas (2101.08515, 2206.09132): no picture file is read.

    python -m benchmarks.pretrain.train small --out build/pretrain/small --device cuda
    nice -n 19 python -m benchmarks.pretrain.train small --out build/pretrain/small-cpu --batch 64 --ahead 4 --lr 1e-3 \
        --ema 0.998 --amp bf16 --pictures 400000

The first makes the package's weights again, in minutes on a data centre's GPU; the second is for a CPU.
Seeded; killed at any moment, the same command goes on from its last checkpoint. Pictures of a step depend on
(seed, step) alone, so a resumed run sees what an undisturbed one would have seen. `publish.py` makes the
package's weights of it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.pretrain.formulas import NONE, Batch, Formulas, Sizes
from benchmarks.pretrain.grow import widen
from toolchain.backbones import bundled, files
from toolchain.device import AmpName, Device, select

SIZES = (32, 48, 64)
FIRST_MARK = 20_000  # weights are kept at this many pictures, twice as many, four times as many, ...


@dataclass(frozen=True)
class Plan:
    """How a backbone is pretrained. `pictures` are seen once each; `shares` of them have the side SIZES[i].

    The learning rate rises for `warmup` steps, stays, and falls linearly over the last `cooldown` of all
    steps. So a run may be lengthened or shortened until its fall begins, and be as if planned so. `grown_from`
    is the narrower bundled backbone whose weights it starts from; None starts at random. `ahead` steps are rendered
    at once: of pictures in hundreds each costs less (on a CPU 0.45 ms in 256, 0.8 ms in 64). `contrast`, above 0,
    takes two views of each scene and adds that much of SimCLR's loss on them (2002.05709); `pictures` then counts scenes.
    """

    architecture: str = "resnet10t"
    channels: tuple[int, ...] = (32, 64, 128, 256)
    pictures: int = 320_000
    batch: int = 64
    shares: tuple[float, ...] = (0.70, 0.25, 0.05)
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 100
    cooldown: float = 0.4
    ema: float = 0.995
    smoothing: float = 0.05
    seed: int = 0
    amp: AmpName = "auto"
    grown_from: str | None = None
    ahead: int = 1
    contrast: float = 0.0

    @property
    def views(self) -> int:
        """Pictures of a scene."""
        return 2 if self.contrast else 1

    @property
    def steps(self) -> int:
        """How many batches there are."""
        return self.pictures // self.batch

    @property
    def fall(self) -> int:
        """The step at which the learning rate begins to fall."""
        return int(self.steps * (1 - self.cooldown))

    def side(self, step: int) -> int:
        """The side in pixels of the pictures of a step, or of those rendered with it."""
        step -= step % self.ahead
        return random.Random(self.seed * 1_000_003 + step).choices(SIZES, self.shares)[0]

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        up = (step + 1) / max(1, self.warmup)
        down = (self.steps - step) / max(1.0, self.cooldown * self.steps)
        return self.lr * min(1.0, up, down)


@dataclass(frozen=True)
class Recipe:
    """What makes one bundled backbone: the plan and the classes of pictures."""

    plan: Plan
    sizes: Sizes

    def with_more_classes(self, times: int) -> Recipe:
        """The same with `times` as many classes of each family."""
        counts = {name: count * times for name, count in asdict(self.sizes).items() if name != "scene"}
        return replace(self, sizes=replace(self.sizes, **counts))


SCENES = Sizes(
    waves=200, spectra=200, cells=120, octaves=160, leaves=120, programs=240,
    outlines=200, contours=100, fractals=60, strokes=160, scene=True,
)  # fmt: skip
_GPU = Plan(batch=1024, ahead=16, lr=3e-3, ema=0.9995)
NANO = Recipe(replace(_GPU, pictures=4_700_160), SCENES)
SMALL = Recipe(
    replace(_GPU, pictures=4_886_528, channels=(48, 128, 256, 512), shares=(0.6, 0.3, 0.1), warmup=200),
    SCENES,
)
RECIPES = {"nano": NANO, "small": SMALL}
ASKED = ("texture", "figure", "fill")


def network(plan: Plan, sizes: Sizes) -> nn.Module:
    """The backbone with one linear head for all questions: which texture, which figure, which fill."""
    torch.manual_seed(plan.seed)
    classes = sum(sizes.questions)
    model: nn.Module = timm.create_model(plan.architecture, channels=plan.channels, num_classes=classes)
    if plan.grown_from:
        widen(model, files.read(bundled.weights_file(plan.grown_from)), plan.seed)
    return model.to(memory_format=torch.channels_last)


class Run:
    """A pretraining run in a folder: `last.pt` to go on from, `log.jsonl`, and weights at parts of the way."""

    def __init__(self, plan: Plan, out: Path, device: Device, sizes: Sizes) -> None:
        self.plan, self.out, self.device, self.sizes = plan, out, device, sizes
        self.formulas = Formulas(sizes, plan.seed, device.torch)
        self.model = network(plan, sizes).to(device.torch)
        self.projector = projector(int(self.model.num_features)).to(device.torch)  # type: ignore[arg-type]
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        learning = nn.ModuleList([self.model, self.projector] if plan.contrast else [self.model])
        self.optimizer = torch.optim.AdamW(_groups(learning, plan.weight_decay), lr=plan.lr, fused=True)
        self._rendered: tuple[int, Batch] | None = None
        self.step = 0
        self.seconds = 0.0
        self.generating = 0.0
        out.mkdir(parents=True, exist_ok=True)
        self._resume()

    def train(
        self, save_every: float = 60.0, stop_after: int | None = None, seconds: float = float("inf")
    ) -> None:
        """Train until the plan is done, or for `stop_after` steps or `seconds`; save every `save_every` seconds."""
        marks = {(FIRST_MARK << i) // self.plan.batch for i in range(12)} | {self.plan.steps}
        last = self.plan.steps if stop_after is None else min(self.plan.steps, self.step + stop_after)
        saved = begun = time.monotonic()
        before = self.seconds
        window: list[Tensor] = []
        self.model.train()
        while self.step < last:
            window.append(self._one())
            self.seconds = before + time.monotonic() - begun
            if self.step % 50 == 0 or self.step == last:
                self._log(window)
                window.clear()
            if self.step in marks:
                self._write_average(f"seen-{self.step * self.plan.batch:08d}.pt")
            over = time.monotonic() - begun > seconds
            if time.monotonic() - saved > save_every or self.step == last or over:
                self._save()
                saved = time.monotonic()
            if over:
                return

    def _one(self) -> Tensor:
        """One step; gives the loss and each question's accuracy on its batch, on the device."""
        batch = self._batch()
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(self.step)
        pictures = batch.pictures.contiguous(memory_format=torch.channels_last)
        kind = self.device.amp_type(self.plan.amp)
        with torch.autocast(self.device.kind, dtype=kind, enabled=kind is not None):
            seen = self.model.forward_head(self.model.forward_features(pictures), pre_logits=True)  # type: ignore[operator]
            logits = self.model.get_classifier()(seen)  # type: ignore[operator]
            projected = self.projector(seen) if self.plan.contrast else None
        loss, shares = score(logits.float(), batch, self.sizes.questions, self.plan.smoothing)
        if projected is not None:
            loss = loss + self.plan.contrast * contrast(projected.float())
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.step += 1
        self._update_average()
        return torch.cat([loss.detach()[None], shares])

    def _batch(self) -> Batch:
        """The step's pictures; renders those of the next `ahead` steps where that is due, and takes the time of it."""
        plan = self.plan
        number, part = divmod(self.step, plan.ahead)
        if self._rendered is None or self._rendered[0] != number:
            self._rendered = None
            self.device.synchronize()
            started = time.monotonic()
            scenes = plan.batch * plan.ahead
            self._rendered = number, self.formulas.batch(number, scenes, plan.side(self.step), plan.views)
            self.device.synchronize()
            self.generating += time.monotonic() - started
        return self._rendered[1].part(part * plan.batch, (part + 1) * plan.batch)

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.plan.ema, (1 + self.step) / (10 + self.step))
        state = self.model.state_dict()
        floats = [name for name, value in state.items() if value.is_floating_point()]
        averages, values = [self.average[name] for name in floats], [state[name] for name in floats]
        torch._foreach_lerp_(averages, values, 1 - decay)
        for name in state.keys() - set(floats):
            self.average[name].copy_(state[name])

    def _log(self, window: list[Tensor]) -> None:
        loss, *shares = torch.stack(window).nanmean(0).tolist()
        row = {
            "step": self.step,
            "pictures": self.step * self.plan.batch,
            "loss": round(loss, 4),
            **{f"{asked}_top1": round(share, 4) for asked, share in zip(ASKED, shares, strict=False)},
            "lr": self.plan.rate(self.step),
            "seconds": round(self.seconds, 1),
            "generating": round(self.generating, 1),
        }
        with (self.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    def _write_average(self, name: str) -> None:
        _write(
            self.out / name,
            {"step": self.step, "pictures": self.step * self.plan.batch, "average": self.average},
        )

    def _save(self) -> None:
        state = {
            "plan": asdict(self.plan),
            "sizes": asdict(self.sizes),
            "step": self.step,
            "seconds": self.seconds,
            "generating": self.generating,
            "device": self.device.fingerprint,
            "model": self.model.state_dict(),
            "projector": self.projector.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        _write(self.out / "last.pt", state)

    def _resume(self) -> None:
        path = self.out / "last.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device.torch, weights_only=True)
        if not self._continues(state):
            raise SystemExit(f"{path} is of another plan: take another --out, or remove it")
        self.model.load_state_dict(state["model"])
        self.projector.load_state_dict(state["projector"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]
        self.step, self.seconds, self.generating = state["step"], state["seconds"], state["generating"]

    def _continues(self, state: Mapping[str, Any]) -> bool:
        """Whether the saved run is a beginning of this plan; its number of pictures may be another."""
        earlier = Plan(**state["plan"])
        if (
            Sizes(**state["sizes"]) != self.sizes
            or replace(earlier, pictures=self.plan.pictures) != self.plan
        ):
            return False
        return earlier == self.plan or state["step"] <= min(earlier.fall, self.plan.fall)


def score(
    logits: Tensor, batch: Batch, questions: tuple[int, ...], smoothing: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of all questions over logits [n, sum(questions)], and the top-1 of each, [len(questions)].

    Pictures without the thing asked for (label NONE) are left out of that question. Views of a scene share its labels.
    """
    loss = logits.new_zeros(())
    shares = []
    answers = [
        part.repeat(batch.views) for part in (batch.texture, batch.figure, batch.fill)[: len(questions)]
    ]
    for part, labels in zip(logits.split(questions, 1), answers, strict=True):
        loss = loss + F.cross_entropy(part, labels, ignore_index=NONE, label_smoothing=smoothing)
        asked = labels != NONE
        shares.append((part.argmax(1) == labels)[asked].float().mean())
    return loss, torch.stack(shares)


def projector(features: int) -> nn.Module:
    """What the contrast is taken behind, features -> 128; it is thrown away with the head."""
    return nn.Sequential(
        nn.Linear(features, features, bias=False),
        nn.BatchNorm1d(features),
        nn.ReLU(),
        nn.Linear(features, 128),
    )


def contrast(projected: Tensor, temperature: float = 0.2) -> Tensor:
    """SimCLR's loss of two views of n scenes, [2n, d]: each picture is to find the other of its scene among all."""
    count = len(projected)
    unit = F.normalize(projected, dim=1)
    alike = (unit @ unit.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(alike, (torch.arange(count, device=unit.device) + count // 2) % count)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels, none for biases and normalisation."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def _write(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def main() -> None:
    """Train a backbone, or go on training it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=RECIPES, help="the backbone to train")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and the log")
    parser.add_argument("--pictures", type=int, help="how many to see (default: as the backbone's plan says)")
    parser.add_argument("--batch", type=int, help="pictures a step")
    parser.add_argument("--lr", type=float, help="the highest learning rate")
    parser.add_argument(
        "--grown-from", choices=bundled.names(), help="begin as this narrower backbone (1511.05641)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--amp", choices=("auto", "off", "bf16"), default="auto",
        help="auto: bf16 where a GPU has it; on a CPU with AVX-512 BF16, bf16 is 1.6 times faster",
    )  # fmt: skip
    parser.add_argument("--ahead", type=int, help="steps rendered at once")
    parser.add_argument("--contrast", type=float, help="weight of SimCLR's loss on two views of a scene [0]")
    parser.add_argument("--ema", type=float, help="decay of the averaged weights, a step")
    parser.add_argument("--classes", type=int, default=1, help="times as many classes of each family [1]")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop after these; the same command goes on"
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    device = select(arguments.device, arguments.threads)
    recipe = RECIPES[arguments.name].with_more_classes(arguments.classes)
    given = {
        name: getattr(arguments, name)
        for name in ("pictures", "batch", "lr", "grown_from", "seed", "amp", "ahead", "contrast", "ema")
    }
    plan = replace(recipe.plan, **{name: value for name, value in given.items() if value is not None})
    Run(plan, arguments.out, device, recipe.sizes).train(seconds=arguments.seconds)


if __name__ == "__main__":
    main()
