"""What the transfer table starts from: each bundled backbone, the same network at random, and the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from benchmarks.pretrain.train import RECIPES
from benchmarks.transfer.tasks import folder
from toolchain.backbones import bundled, files
from toolchain.backbones.files import digest_file
from toolchain.record import JSON

State = Mapping[str, Tensor]
REFERENCE = "imagenet"


@dataclass(frozen=True)
class Start:
    """A timm architecture and the file of its weights; without a file they are random."""

    name: str
    architecture: str
    options: Mapping[str, JSON] = field(default_factory=dict)
    file: Path | None = None

    @property
    def sha256(self) -> str | None:
        """The content hash of the weights file."""
        return digest_file(self.file) if self.file else None

    def model(self, classes: int, seed: int) -> nn.Module:
        """The network with a fresh classifier drawn from `seed`; the rest from the file, or random as well.

        Raises SystemExit when the file does not fit.
        """
        torch.manual_seed(seed)
        model: nn.Module = timm.create_model(self.architecture, num_classes=classes, **self.options)
        if self.file is not None:
            head = str(model.default_cfg["classifier"]) + "."
            state = {k: v for k, v in weights(self.file).items() if not k.startswith(head)}
            told = model.load_state_dict(state, strict=False)
            if told.unexpected_keys or any(not name.startswith(head) for name in told.missing_keys):
                raise SystemExit(f"{self.file} does not fit {self.architecture}: {told}")
        return model.to(memory_format=torch.channels_last)


def start(name: str, file: Path | None = None) -> Start:
    """A start by name: `nano`, `nano-random`, `small`, `small-random` or `imagenet` (MobileNetV2, as it is).

    file: other weights for a bundled network than the package's (a .safetensors or a checkpoint of train.py).
    """
    if name == REFERENCE:
        weights = folder("weights") / "mobilenetv2_100_imagenet.pth"
        return Start(name, "mobilenetv2_100", {"pad_type": "same"}, weights)
    network, _, random = name.partition("-")
    plan = RECIPES[network].plan
    options: Mapping[str, JSON] = {"channels": list(plan.channels)}
    return Start(name, plan.architecture, options, None if random else file or bundled.weights_file(network))


def names() -> list[str]:
    """All starts: each backbone that is in the package, the random twin of each that could be, the reference."""
    found = []
    for name in reversed(RECIPES):
        found += [name] if bundled.weights_file(name).is_file() else []
        found.append(f"{name}-random")
    return [*found, REFERENCE]


def weights(path: Path) -> State:
    """The tensors of a .safetensors file, of a plain .pth or of a checkpoint of the pretraining (its average)."""
    if path.suffix == ".safetensors":
        return files.read(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    average: State = state.get("average", state)
    return average
