"""The bare script to beat: MobileNetV2 at 224, AdamW, 20 epochs, nothing else. One fold a call, resumable by fold.

python -m benchmarks.magnetic_tile.bare        # all folds that are not done yet (hours on a small CPU)
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

from benchmarks.magnetic_tile.folds import FOLDS, folder, folds, tiles

OUT = Path(__file__).resolve().parents[1] / "results" / "magnetic_tile"
EPOCHS, BATCH, SIZE, LR = 20, 32, 224, 1e-3


def main() -> None:
    """Train on four fifths, answer the fifth; keep the answers as JSON."""
    found = tiles()
    pictures = torch.stack([prepared(path) for path in found.paths])
    labels = torch.from_numpy(found.labels)
    OUT.mkdir(parents=True, exist_ok=True)
    for fold, (train, held) in enumerate(folds(found)):
        target = OUT / f"bare_fold{fold}.json"
        if not target.exists():
            started = time.time()
            model = fit(pictures, labels, torch.from_numpy(train), len(found.classes), fold)
            answers = answer(model, pictures[torch.from_numpy(held)])
            row = {"held": held.tolist(), "probabilities": np.round(answers, 5).tolist(),
                   "seconds": round(time.time() - started), "threads": torch.get_num_threads()}  # fmt: skip
            target.write_text(json.dumps(row))
            print(
                f"fold {fold + 1} of {FOLDS}: {(answers.argmax(1) == found.labels[held]).mean():.3f} top-1",
                flush=True,
            )


def prepared(path: Path) -> torch.Tensor:
    """A picture as the backbone wants it: RGB, 224x224, mean = std = 0.5."""
    picture = Image.open(path).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return (torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255 - 0.5) / 0.5


def fit(x: torch.Tensor, y: torch.Tensor, train: torch.Tensor, classes: int, seed: int) -> torch.nn.Module:
    """Plain fine-tuning of the whole network."""
    torch.manual_seed(seed)
    model = timm.create_model("mobilenetv2_100", pad_type="same")
    model.load_state_dict(
        torch.load(folder() / "weights" / "mobilenetv2_100_imagenet.pth", weights_only=True)
    )
    model.reset_classifier(classes)
    model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    for epoch in range(EPOCHS):
        order = train[torch.randperm(len(train))]
        for batch in order.split(BATCH):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(
                model(x[batch].contiguous(memory_format=torch.channels_last)), y[batch]
            )
            loss.backward()
            optimizer.step()
        print(f"  epoch {epoch + 1} of {EPOCHS}: last loss {loss.item():.3f}", file=sys.stderr, flush=True)
    return model


@torch.no_grad()
def answer(model: torch.nn.Module, x: torch.Tensor) -> np.ndarray:
    """Probabilities [n, C]."""
    model.eval()
    return torch.cat([model(part).softmax(1) for part in x.split(BATCH)]).numpy()


if __name__ == "__main__":
    main()
