"""ResNet-50 and MobileNetV2 on the CUDA provider, fp32, fp16 and int8: how fast, where nodes ran, what share of the card.

    python -m benchmarks.cuda.run [--batches 1 8 64] [--networks resnet50 mobilenetv2_100]

Networks of timm at 224 pixels with random weights (times do not depend on them), exported, halved and quantized by our
steps, and timed by `runtime.bench` with copies to and from the card and without. `agrees` is the largest difference of the
answers to those of fp32 on the CPU provider, over the spread of the latter: what is fast must also be right. The card's
ceilings are measured by torch in the same process: products of two 8192 x 8192 matrices in fp16 and in TF32 (what ONNX
Runtime's CUDA provider takes for fp32), and a copy of 4 GB. `share` is 2 MACs a picture over the time without copies, over
the ceiling of the precision that computes (int8 files compute in TF32: the provider has no int8 convolution).
int8 files are refused on CUDA at first (int32 DequantizeLinear of the biases is not there), then timed with a fallback.
Writes benchmarks/results/cuda.json after every file. Exit 1 when a node of fp32 or fp16 ran elsewhere or the answers differ.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.one_step import run_step
from toolchain import graph
from toolchain.backbones import counts
from toolchain.backbones.network import build, save
from toolchain.backbones.settings import Backbone, PreprocessOverrides
from toolchain.data.dataset import Data
from toolchain.data.settings import DataSettings
from toolchain.data.sources import load
from toolchain.device import Device, select
from toolchain.runtime import host, providers
from toolchain.runtime.bench import Asked, Sampling, bench
from toolchain.runtime.bench_record import BenchRecord, Case
from toolchain.runtime.errors import ProviderError
from toolchain.runtime.session import NO_CPU, Session
from toolchain.step import Step
from toolchain.steps.export import Export
from toolchain.steps.half import Half
from toolchain.steps.quantize import Quantize

RESULT = Path(__file__).resolve().parents[1] / "results" / "cuda.json"
NETWORKS = ("resnet50", "mobilenetv2_100")
PRECISIONS: dict[str, Step] = {"fp16": Half(pictures=8), "int8": Quantize(pictures=8, float_stem=False)}
CLASSES = 1000
SIDE = 224
AGREES = {"fp32": 0.02, "fp16": 0.1, "int8": 1.0}  # random weights spread little, so rounding shows
_SIZE = 8192  # a side of the matrices whose product is timed
_THREADS = 4  # for export and calibration


def ceilings(device: Device) -> dict[str, float]:
    """What the card reaches: TFLOP/s of a large product in fp16 and in TF32, and TB/s of a copy (read and written)."""
    torch.backends.cuda.matmul.allow_tf32 = True
    found = {}
    for name, kind in (("fp16", torch.float16), ("tf32", torch.float32)):
        a, b = (torch.randn(_SIZE, _SIZE, device=device.torch, dtype=kind) for _ in range(2))
        found[name] = 2 * _SIZE**3 / _seconds(lambda a=a, b=b: a @ b, device) / 1e12  # type: ignore[misc]
    source = torch.randn(1 << 30, device=device.torch)
    target = torch.empty_like(source)
    found["copy_tb_s"] = 2 * source.nbytes / _seconds(lambda: target.copy_(source), device) / 1e12
    return found


def _seconds(work: Callable[[], object], device: Device, rounds: int = 10) -> float:
    """The median time of `work` on the device."""
    taken = []
    for _ in range(rounds + 3):
        device.synchronize()
        start = time.perf_counter()
        work()
        device.synchronize()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[3:]))


def made(name: str, work: Path) -> tuple[dict[str, Path], int]:
    """{precision: plain file} of a network, and its multiply-accumulates a picture."""
    data = pictures()
    backbone = Backbone(
        timm=name, weights="random", preprocess=PreprocessOverrides(size=SIDE, crop_pct=0.875)
    )
    model, network = build(backbone, data.labels)
    folder = work / name
    (folder / "torch").mkdir(parents=True)
    save(model, network, folder / "torch")
    files = {"fp32": run_step(Export(), folder / "torch", folder / "fp32", data, _THREADS)}
    files |= {
        precision: run_step(step, folder / "fp32", folder / precision, data, _THREADS)
        for precision, step in PRECISIONS.items()
    }
    return files, counts.macs(model, network.preprocess)


def timed(file: Path, wish: Asked) -> tuple[BenchRecord, dict[str, str]]:
    """The bench's record; where nodes cannot run on the provider, which is an error, again with them on the CPU, told so.

    Gives also the options that this took.
    """
    try:
        return bench(file, wish), {}
    except ProviderError as e:
        found = bench(file, replace(wish, allow_fallback=True))
        return replace(found, notes=(f"refused at first: {e}", *found.notes)), {NO_CPU: "0"}


def agreement(file: Path, reference: Path, provider: str, options: Mapping[str, str]) -> float:
    """The largest difference of the answers to those of `reference` on the CPU, over the latter's spread."""
    pictures = np.random.default_rng(0).normal(size=(4, 3, SIDE, SIDE)).astype(np.float32)
    (wanted,) = Session(reference).run({graph.INPUT: pictures})
    (given,) = Session(file, provider=provider, options=options).run({graph.INPUT: pictures})
    return float(np.abs(given - wanted).max() / wanted.std())


def row(name: str, precision: str, cases: list[Case], macs: int, ceiling: dict[str, float]) -> dict[str, Any]:
    """A line of the table: one file at one batch, with copies and without."""
    p50 = {case.copies: _p50(case) for case in cases}
    inside = cases[-1]
    batch = inside.condition.batch
    rate = 2 * macs * batch / (p50.get("excluded", p50.get(None, 0.0)) * 1e-3) / 1e12
    return {
        "network": name,
        "precision": precision,
        "batch": batch,
        "p50, ms, with copies": p50.get("included", p50.get(None)),
        "p50, ms, without": p50.get("excluded"),
        "pictures/s": round(batch / p50.get("included", p50.get(None, 0.0)) * 1e3),
        "TFLOP/s": round(rate, 2),
        "share of the card": round(rate / ceiling["fp16" if precision == "fp16" else "tf32"], 4) if ceiling else None,
        "placement": ", ".join(f"{count} on {where}" for where, count in inside.placement.items()),
        "copies between": inside.copies_between,
        "elsewhere": len(inside.elsewhere),
    }  # fmt: skip


def _p50(case: Case) -> float:
    found = case.percentiles["p50"]
    if found is None:
        raise SystemExit("too few calls for a median")
    return round(found.ns / 1e6, 4)


def pictures() -> Data:
    """Digits, to calibrate and to check the export on; the classes are ImageNet's in number."""
    digits = load(DataSettings(source="digits"), Path())
    train, val = digits.train.subset(range(32)), digits.val.subset(range(8))
    return Data("digits", tuple(f"class {i}" for i in range(CLASSES)), train, val, digits.test)


def main() -> int:
    """Make, time, check, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--provider", choices=providers.NAMES, default="cuda")
    parser.add_argument("--result", type=Path, default=RESULT)
    asked = parser.parse_args()
    providers.require(asked.provider)
    ceiling = ceilings(select("cuda")) if asked.provider == "cuda" else {}
    record = begun(
        asked.provider, ceiling, [f"{n} {p}" for n in asked.networks for p in ("fp32", *PRECISIONS)]
    )
    sampling = Sampling(asked.blocks, asked.calls, cold_starts=0, traced=3)
    wish = Asked(providers=(asked.provider,), batches=tuple(asked.batches), sampling=sampling)
    with tempfile.TemporaryDirectory() as work:
        with ProcessPoolExecutor(len(asked.networks), multiprocessing.get_context("spawn")) as pool:
            networks = list(pool.map(partial(made, work=Path(work)), asked.networks))
        for name, (files, macs) in zip(asked.networks, networks, strict=True):
            for precision, file in files.items():
                found, options = timed(file, wish)
                agrees = agreement(file, files["fp32"], asked.provider, options)
                record["notes"] += found.notes
                record["missing"].remove(f"{name} {precision}")
                for batch in asked.batches:
                    cases = [case for case in found.cases if case.condition.batch == batch]
                    line = {**row(name, precision, cases, macs, ceiling), "agrees": round(agrees, 4)}
                    record["rows"].append(line)
                    print(line, flush=True)
                asked.result.write_text(json.dumps(record, indent=1) + "\n")
    record["passed"] = right(record["rows"])
    asked.result.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if record["passed"] else 1


def begun(provider: str, ceiling: Mapping[str, float], missing: list[str]) -> dict[str, Any]:
    """The record before the first row. It is written after every file, so that what a short loan cuts off costs no more."""
    reached = ", ".join(f"{name} {value:.3g}" for name, value in ceiling.items())
    return {
        "what": f"ResNet-50 and MobileNetV2 at {SIDE} pixels on the {provider} provider",
        "rows": [],
        "missing": missing,
        "passed": False,
        "notes": [],
        "ceilings": ceiling,
        "gpus": list(providers.gpus()),
        "torch": torch.__version__,
        "host": host.facts(),
        "note": f"{', '.join(providers.gpus())}; its ceilings, measured: {reached}",
    }


def right(rows: list[dict[str, Any]]) -> bool:
    """Whether all answers agree, and only int8 files have nodes elsewhere."""
    agree = all(line["agrees"] <= AGREES[line["precision"]] for line in rows)
    return agree and not any(line["elsewhere"] for line in rows if line["precision"] != "int8")


if __name__ == "__main__":
    sys.exit(main())
