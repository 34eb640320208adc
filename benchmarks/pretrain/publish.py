"""Make the package's weights of a finished pretraining run: fp16 safetensors without the head, and their card.

    python -m benchmarks.pretrain.publish nano --run build/pretrain/nano
    python -m benchmarks.pretrain.publish nano --transfer benchmarks/results/transfer.json

The second command only puts the measured transfer into the card: of digits, what the run's report shows, and all rows.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.pretrain.formulas import Sizes
from benchmarks.pretrain.train import SIZES, Plan
from toolchain.backbones import bundled
from toolchain.backbones.files import digest_file
from toolchain.data import digits
from toolchain.errors import BackboneError

LARGEST = {"nano": 3_500_000, "small": 12_000_000}  # bytes
HOW = (
    "Formula-driven supervised pretraining (Kataoka et al., 2101.08515, 2206.09132) on pictures made by "
    "formulas while training: textures, and outlines, radial contours, fractals and pen strokes drawn on them; "
    "no photograph and no data set was used. benchmarks/pretrain/train.py makes the run again from its seed."
)


def half(path: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of a checkpoint without the head, floats in fp16."""
    state = torch.load(path, map_location="cpu", weights_only=True)["average"]
    kept = {name: value for name, value in state.items() if not name.startswith("fc.")}
    halved = {name: value.half() if value.is_floating_point() else value for name, value in kept.items()}
    if not all(value.isfinite().all() for value in halved.values()):
        raise BackboneError(f"{path}: weights that do not fit into fp16")
    return {name: value.contiguous() for name, value in halved.items()}


def publish(run: Path, name: str, as_is: bool = False) -> Path:
    """Write `NAME.safetensors` and `NAME.json` of a finished run, or, `as_is`, of what its last checkpoint reached;
    returns the weights' path."""
    last = torch.load(run / "last.pt", map_location="cpu", weights_only=True)
    plan = Plan(**last["plan"])
    if last["step"] != plan.steps and not as_is:
        raise SystemExit(f"{run}: stopped at step {last['step']} of {plan.steps}, train on first")
    target = bundled.weights_file(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(half(run / "last.pt"), target)
    target.chmod(0o644)  # safetensors makes it readable for its owner only
    if target.stat().st_size > LARGEST[name]:
        raise SystemExit(f"{target}: {target.stat().st_size} bytes are more than the allowed {LARGEST[name]}")
    facts = card(plan, last, target)
    _write(target.with_suffix(".json"), facts)
    return target


def card(plan: Plan, last: dict[str, Any], weights: Path) -> dict[str, Any]:
    """What `toolchain.backbones.bundled.Card` reads, and what a person wants to know besides."""
    return {
        "architecture": plan.architecture,
        "kwargs": {"channels": list(plan.channels)},
        "size": 32,
        "interpolation": "bilinear",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "licence": "Apache-2.0",
        "sha256": digest_file(weights),
        "how": HOW,
        "pretraining": {
            "seed": plan.seed,
            "pictures": last["step"] * plan.batch,
            "planned": plan.steps * plan.batch,
            "sides": dict(zip(map(str, SIZES), plan.shares, strict=True)),
            "classes": last["sizes"],
            "questions": list(Sizes(**last["sizes"]).questions),
            "grown_from": plan.grown_from,
            "optimizer": f"AdamW {plan.lr:g}, weight decay {plan.weight_decay:g}, batch {plan.batch}",
            "wall_seconds": round(last["seconds"]),
            "generating_share": round(last["generating"] / last["seconds"], 3),
            "device": last["device"],
            "amp": plan.amp,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def add_transfer(name: str, record: Path) -> None:
    """Put the rows of `name` and of its random twin in a record of benchmarks.transfer.table into the card."""
    path = bundled.weights_file(name).with_suffix(".json")
    facts, measured = json.loads(path.read_text()), json.loads(record.read_text())
    if measured["weights_sha256"].get(name) != facts["sha256"]:
        raise SystemExit(f"{record} was measured with other weights than {path.stem}'s")
    rows = [row for row in measured["rows"] if row["start"] in (name, f"{name}-random")]
    facts["transfer"] = _digits(name, rows, measured["protocol"])
    facts["transfer_table"] = rows
    _write(path, facts)


def _digits(name: str, rows: list[dict[str, Any]], protocol: dict[str, Any]) -> dict[str, Any] | None:
    """What a run's report shows: digits fine-tuned from `name` and from random weights, where both were measured."""
    told = {name: name, f"{name}-random": "random"}
    shown = [
        {"per_class": row["per_class"], "start": told[row["start"]], "lr": row["rate"]}
        | {"mean": row["mean"], "sd": row["sd"], "top1": row["draws"]}
        for row in rows
        if row["task"] == "digits" and row["way"] == "tune" and row["per_class"] != "all"
    ]
    both = [row for row in shown if sum(row["per_class"] == other["per_class"] for other in shown) == 2]
    for row in both:
        row["per_class"] = int(row["per_class"])
    facts = {"task": protocol["tasks"]["digits"] + ", full fine-tuning", "n_test": digits.TEST}
    facts |= {part: protocol[part] for part in ("optimizer", "chosen", "unit")}
    return {"protocol": facts, "rows": both} if both else None


def _write(path: Path, facts: dict[str, Any]) -> None:
    path.write_text(json.dumps(facts, indent=1) + "\n")


def main() -> None:
    """Publish a run, or a transfer table, or both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=LARGEST)
    parser.add_argument("--run", type=Path, help="folder of a finished run of train.py")
    parser.add_argument("--as-is", action="store_true", help="publish an unfinished run")
    parser.add_argument("--transfer", type=Path, help="record of benchmarks/transfer/table.py")
    arguments = parser.parse_args()
    if arguments.run:
        print(publish(arguments.run, arguments.name, arguments.as_is))
    if arguments.transfer:
        add_transfer(arguments.name, arguments.transfer)


if __name__ == "__main__":
    main()
