"""Trains one network undisturbed and one that is killed with SIGKILL again and again; prints what happened as JSON.

    python tests/learn_killed.py FOLDER KILLS SEED

A process of its own, so that its children are forked before torch has started any thread.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from learn_helpers import context, data, tiny

from toolchain.backbones.network import save
from toolchain.data.augmentation import Augment
from toolchain.learn.loop import fit
from toolchain.learn.settings import Training

# Everything that has state or draws random numbers at once.
TRAINING = Training(
    epochs=4,
    batch_size=4,
    lr=3e-3,
    warmup_epochs=0.5,
    accumulate=2,
    clip=1.0,
    label_smoothing=0.1,
    balance="sampler",
    mixup=0.3,
    cutmix=0.5,
    augment=Augment(rotate=10, flip_horizontal=True, noise=0.05),
    ema=0.9,
    workers=1,
    checkpoint_seconds=0,
)


def train(folder: Path) -> None:
    """What a child does, as often as it must."""
    model, network = tiny(drop_rate=0.2, drop_path_rate=0.1)
    lent = context(folder, data((14, 20, 13)))
    model, _ = fit(model, network, TRAINING, lent)
    with (folder / "said.txt").open("a") as file:
        file.writelines(f"{line}\n" for line in lent.progress.said)
    save(model, network, folder / "network")


def child(folder: Path) -> int:
    """Fork; the child trains and ends."""
    folder.mkdir(exist_ok=True)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            train(folder)
            status = 0
        finally:
            os._exit(status)
    return pid


def main() -> None:
    torch.set_num_threads(1)
    root, kills, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    started = time.monotonic()
    _, status = os.waitpid(child(root / "calm"), 0)
    seconds = time.monotonic() - started
    assert status == 0, "the undisturbed training failed"
    killed = 0
    for _ in range(kills):
        pid = child(root / "killed")
        time.sleep(chance.uniform(0.1, 0.5) * seconds)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed += os.WIFSIGNALED(status)
    _, status = os.waitpid(child(root / "killed"), 0)
    print(json.dumps({"killed": killed, "status": status}))


if __name__ == "__main__":
    main()
