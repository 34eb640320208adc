"""Calibrate a random ResNet-50 at 224 pixels on many pictures; prints the peak resident memory in KB.

python tests/quantize_memory.py minmax|percentile|entropy PICTURES FOLDER
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

from toolchain.artifact import Artifact, Form
from toolchain.backbones.network import build, save
from toolchain.backbones.settings import Backbone, PreprocessOverrides
from toolchain.data.dataset import Data, PictureSet, Sample
from toolchain.device import Device
from toolchain.progress import Silent
from toolchain.record import Record
from toolchain.step import Context
from toolchain.steps.export import Export
from toolchain.steps.quantize import Quantize


def lent(out: Path, pictures: int) -> Context:
    """Random pictures, made when they are asked for."""
    samples = tuple(Sample(str(i), 0, "") for i in range(pictures))

    def decode(name: str) -> np.ndarray:
        return np.random.default_rng(int(name)).integers(0, 256, (256, 256, 3)).astype(np.uint8)

    everything = PictureSet(samples, decode)
    out.mkdir()
    data = Data("noise", ("a", "b"), everything, everything.subset(range(2)), everything.subset(()))
    return Context(out, out, data, Device("cpu", "cpu", 1), 0, Silent())


def main() -> None:
    """Export in one process, calibrate in another, so that only the latter is measured."""
    method, pictures, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    record = Record(key="k", step="s", version=1, settings={}, parents={}, libraries={}, seconds=0)
    if len(sys.argv) == 4:
        save(
            *build(
                Backbone(timm="resnet50", weights="random", preprocess=PreprocessOverrides(size=224)),
                ("a", "b"),
            ),
            folder / "t",
        )
        Export().run({"model": Artifact(Form.TORCH, folder / "t", record)}, lent(folder / "fp32", pictures))
        subprocess.run([sys.executable, *sys.argv, "measure"], check=True)
        return
    step = Quantize(calibration=method, pictures=pictures).resolved()  # type: ignore[arg-type]
    step.run({"model": Artifact(Form.ONNX, folder / "fp32", record)}, lent(folder / method, pictures))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    main()
