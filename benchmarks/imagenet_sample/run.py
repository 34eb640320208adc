"""MobileNetV2 exported and quantized without training, against optimum's avx512_vnni static per-channel file.

    python benchmarks/imagenet_sample/run.py [--blocks 30] [--data DIR]

256 pictures (seeded) calibrate every int8 file, the other 744 score it. All files are plain networks made from
one export; they are timed in one process, interleaved, and once more alternating, on one thread. Beside our
default stand its ablations (scored only). Writes benchmarks/results/imagenet_sample.ISA.json: int8 figures hold for
one ISA only. Pass: our default loses at most 1 point of top-1 against fp32 (bad
end of the paired interval at most 3), and is not slower than 0.97 of optimum's file; exit 1 otherwise.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationMethod
from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer
from optimum.onnxruntime.configuration import CalibrationConfig
from transformers import PretrainedConfig

from toolchain import graph, stats
from toolchain.artifact import Artifact, Form
from toolchain.backbones import network as networks
from toolchain.backbones.settings import Backbone, PreprocessOverrides
from toolchain.calibration.pictures import prepared
from toolchain.data.dataset import Data, PictureSet, Sample
from toolchain.device import select
from toolchain.progress import Silent
from toolchain.record import Record
from toolchain.runtime import host
from toolchain.runtime.pictures import decode
from toolchain.runtime.session import Session
from toolchain.runtime.timing import alternate, interleave
from toolchain.step import Context, Step
from toolchain.steps.export import Export
from toolchain.steps.quantize import Quantize

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / f"imagenet_sample.{host.isa()}.json"
CALIBRATION = 256
DEFAULT = "int8"
RIVAL = "optimum avx512_vnni static per channel"
ABLATIONS = {
    "8 bits, as with VNNI": Quantize(weight_bits=8),
    "pairwise, as without VNNI": Quantize(weight_bits="pairwise"),
    "7 bits": Quantize(weight_bits=7),
    "no float stem": Quantize(float_stem=False),
    "no bias correction": Quantize(correct_bias=False),
    "percentile calibration": Quantize(calibration="percentile"),
    "entropy calibration": Quantize(calibration="entropy"),
    "per tensor": Quantize(per_channel=False),
}
Logits = NDArray[np.float32]


def pictures(folder: Path) -> Data:
    """The sample, split with a seed: 256 pictures to calibrate (and check parity) on, 744 to score."""
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    samples = []
    for row in rows:
        digest = hashlib.sha256((folder / "images" / row["file"]).read_bytes()).hexdigest()
        samples.append(Sample(row["file"], int(row["class_index"]), digest))
    everything = PictureSet(tuple(samples), lambda name: decode(folder / "images" / name))
    order = np.random.default_rng(0).permutation(len(samples))
    calibration = everything.subset(sorted(order[:CALIBRATION].tolist()))
    held_back = everything.subset(sorted(order[CALIBRATION:].tolist()))
    labels = tuple(
        f"{row['wnid']} {row['short_name']}" for row in sorted(rows, key=lambda r: int(r["class_index"]))
    )
    return Data("imagenet-sample", labels, train=calibration, val=calibration, test=held_back)


def make(step: Step, source: Path, out: Path, data: Data, teacher: Path | None = None) -> Path:
    """Run one step outside of a pipeline; teacher: the folder that a step with one learns from."""
    out.mkdir()
    record = Record(key="", step="", version=1, settings={}, parents={}, libraries={}, seconds=0)
    form = step.takes["model"]
    context = Context(out, out, data, select("cpu", 1), 0, Silent())
    folders = {"model": source} | ({"teacher": teacher} if teacher and "teacher" in step.takes else {})
    step.run({name: Artifact(form, folder, record) for name, folder in folders.items()}, context)
    return out


def exported(data: Data, shared: Path, work: Path) -> Path:
    """The fp32 artifact: timm's mobilenetv2_100 with TensorFlow's padding and the weights of the shared data."""
    backbone = Backbone(
        timm="mobilenetv2_100", weights=shared / "weights" / "mobilenetv2_100_imagenet.pth", head="keep",
        kwargs={"pad_type": "same"},
        preprocess=PreprocessOverrides(size=224, crop_pct=0.875, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    )  # fmt: skip
    networks.save(*networks.build(backbone, data.labels), work / Form.TORCH)
    return make(Export(), work / Form.TORCH, work / "fp32", data)


class Feed:
    """The calibration pictures as optimum's `fit` wants a data set: dicts of one picture each."""

    def __init__(self, inputs: list[Logits]) -> None:
        self.inputs = inputs

    def __iter__(self) -> Iterator[dict[str, Logits]]:
        return ({graph.INPUT: one[0]} for one in self.inputs)


def rival(plain: Path, inputs: list[Logits], out: Path) -> Path:
    """optimum's own way: its preset, MinMax ranges of the same pictures, the same float file."""
    config = AutoQuantizationConfig.avx512_vnni(is_static=True, per_channel=True)
    calibration = CalibrationConfig("imagenet-sample", "", "", len(inputs), method=CalibrationMethod.MinMax)
    out.mkdir()
    # Under another name, because optimum takes what follows the first dot for the suffix.
    before = Path(shutil.copyfile(plain, out / "float.onnx"))
    quantizer = ORTQuantizer(before, config=PretrainedConfig())
    ranges = quantizer.fit(
        Feed(inputs), calibration, onnx_augmented_model_name=str(out / "augmented.onnx"),
        operators_to_quantize=config.operators_to_quantize,
    )  # fmt: skip
    quantizer.quantize(config, out, calibration_tensors_range=ranges)
    return out / "float_quantized.onnx"


def score(file: Path, inputs: list[Logits]) -> Logits:
    """Logits [n, C], one picture at a time."""
    session = Session(file)
    return np.concatenate([session.run({graph.INPUT: one})[0] for one in inputs])


def accuracy(reference: Logits, answers: Logits, labels: NDArray[np.int64]) -> dict[str, Any]:
    """Top-1, what it loses against the reference (paired) and how often the two agree, in percent."""
    lost = stats.accuracy_difference(reference, answers, labels)
    agreed = stats.agreement(reference, answers)
    return {
        "top1": round(100 * stats.top1(answers, labels), 2),
        "points_lost": round(lost.value, 2), "points_lost_ci95": [round(end, 2) for end in lost.ci95],
        "agreement": round(100 * agreed.value, 2), "agreement_ci95": [round(100 * end, 2) for end in agreed.ci95],
    }  # fmt: skip


def speed(files: Mapping[str, Path], one: Logits, blocks: int) -> dict[str, Any]:
    """Medians in ms and ratios of fp32 and of the rival over each file, interleaved and alternating."""
    sides = {name: partial(Session(file).run, {graph.INPUT: one}) for name, file in files.items()}
    load = os.getloadavg()
    times = interleave(sides, blocks=blocks)
    mixed = {name: samples[:, None] for name, samples in alternate(sides, calls=10 * blocks).items()}
    found: dict[str, Any] = {"load_before": load, "load_after": os.getloadavg(), "blocks": blocks}
    for name in files:
        row: dict[str, Any] = {}
        for protocol, samples in (("interleaved", times), ("alternating", mixed)):
            row[protocol] = {"p50_ms": round(float(np.median(samples[name])) / 1e6, 3)}
            for base in ("fp32", RIVAL):
                ratio = stats.ratio_of_medians(samples[base], samples[name])
                row[protocol][f"speed_over_{base.split()[0]}"] = round(ratio.value, 3)
                row[protocol][f"speed_over_{base.split()[0]}_ci95"] = [round(end, 3) for end in ratio.ci95]
        found[name] = row
    return found


def main() -> int:
    """Make, time and score the files; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = Path(os.environ.get("TOOLCHAIN_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=shared, help="folder with imagenet_sample and weights")
    parser.add_argument("--blocks", type=int, default=30)
    asked = parser.parse_args()
    data = pictures(asked.data / "imagenet_sample")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        fp32 = exported(data, asked.data, work)
        plain = fp32 / graph.PLAIN
        calibration = list(prepared(fp32 / graph.PREPROCESS, data.train, list(range(len(data.train)))))
        held_back = list(prepared(fp32 / graph.PREPROCESS, data.test, list(range(len(data.test)))))
        default = Quantize().resolved()
        files = {
            "fp32": plain,
            RIVAL: rival(plain, calibration, work / "rival"),
            DEFAULT: make(default, fp32, work / "int8", data) / graph.PLAIN,
        }
        timing = speed(files, held_back[0], asked.blocks)
        for index, (name, step) in enumerate(ABLATIONS.items()):
            files[name] = make(step.resolved(), fp32, work / f"ablation{index}", data) / graph.PLAIN
        reference = score(plain, held_back)
        scores = {
            name: accuracy(reference, score(file, held_back), data.test.labels)
            for name, file in files.items()
        }
        sizes = {name: file.stat().st_size for name, file in files.items()}
    ours, ratio = scores[DEFAULT], timing[DEFAULT]["interleaved"]["speed_over_optimum"]
    passed = ours["points_lost"] <= 1 and ours["points_lost_ci95"][1] <= 3 and ratio >= 0.97
    record = {
        "what": "MobileNetV2, exported and quantized without training: 744 held-back pictures of imagenet_sample",
        "host": host.facts(), "threads": 1, "batch": 1, "pictures": {"calibration": CALIBRATION, "scored": len(held_back)},
        "settings": default.model_dump(mode="json"), "libraries": versions(),
        "accuracy": scores, "bytes": sizes, "speed": timing, "passed": passed,
        "not_measured": [isa for isa in ("x86-vnni", "x86-avx2", "arm64") if isa != host.isa()],
    }  # fmt: skip
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({"accuracy": scores, "speed": timing, "passed": passed}, indent=1))
    return 0 if passed else 1


def versions() -> dict[str, str]:
    """The installed libraries that made the files."""
    names = (
        "torch",
        "timm",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "onnxruntime-gpu",
        "optimum",
        "optimum-onnx",
    )
    return {name: found for name in names if (found := host.distribution_version(name))}


if __name__ == "__main__":
    sys.exit(main())
