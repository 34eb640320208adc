"""The chosen file, made into a folder that a device can verify: model, manifest, golden answers, papers.

Layout (docs/bundle.md): `model.onnx` (fused), `model.plain.onnx`, `manifest.json`, `measured.json`,
`golden.npz`, `MODEL_CARD.md`, `NOTICE`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from toolchain import graph
from toolchain.artifact import Artifact
from toolchain.backbones.network import Network
from toolchain.data.dataset import Picture, PictureSet
from toolchain.record import JSON
from toolchain.runtime import host
from toolchain.runtime import manifest as names
from toolchain.runtime.session import Session, optimized_for
from toolchain.runtime.whole import write_whole
from toolchain.store import host_faults, sync_and_hash

GOLDEN_PICTURES = 16
_GOLDEN_BYTES = 256 << 20  # of them, decoded: a quarter of what a verifier unpacks

# Largest difference of probabilities that is still the same answer, by ISA family. Rounding alone for
# float and 7-bit weights; 8-bit u8s8 saturates on x86 without VNNI, so its answers are not promised
# between x86 families. Families other than the one it was made on are bounds, not measurements.
_SAME, _ROUNDING, _SATURATING = 1e-3, 2e-2, 0.25
_FAMILIES = ("x86-vnni", "x86-avx2", "arm64")
_INTEGERS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger",
     "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
)  # fmt: skip


@dataclass(frozen=True)
class Papers:
    """What goes into a bundle beside the model.

    preprocessing and lineage are plain values; temperature and thresholds were fitted on val;
    measured is the content of `measured.json`; card that of `MODEL_CARD.md`. quantized, saturating: see `rounding`.
    bound: ONNX Runtime optimized the model ahead, for this kind of machine (steps/optimize_offline.py).
    """

    name: str
    variant: str
    network: Network
    temperature: float
    thresholds: Mapping[str, float]
    lineage: Mapping[str, JSON]
    measured: Mapping[str, JSON]
    card: str
    saturating: bool
    quantized: bool
    bound: bool = False


def write(folder: Path, artifact: Artifact, val: PictureSet, papers: Papers) -> str:
    """Write the bundle of `artifact` to `folder`, whole or not at all, and return its identity.

    Golden pictures are the first of val, spread over the classes; their answers come from the file itself
    on the CPU with one thread. An older bundle in the folder is replaced, and what a killed run left beside it
    is taken away: hold `store.alone` on the folder above.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with host_faults(folder):
        for rest in folder.parent.glob(f".{folder.name}.*"):
            shutil.rmtree(rest)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for name in (names.MODEL, names.PLAIN_MODEL):
                shutil.copyfile(artifact.folder / name, work / name)
            _golden(work, val)
            (work / names.MEASURED).write_text(_pretty(papers.measured))
            (work / names.CARD).write_text(papers.card)
            (work / names.NOTICE).write_text(_notice(papers.network))
            manifest = _manifest(work, papers)
            write_whole(work / names.MANIFEST, _pretty(manifest).encode())
            work.chmod(0o755)
            _replace(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return str(manifest["identity"])


def remove(folder: Path) -> None:
    """Take away an older bundle, so that it is not taken for the result of a run in which nothing passed."""
    with host_faults(folder):
        (folder / names.MANIFEST).unlink(missing_ok=True)
        if folder.exists():
            shutil.rmtree(folder)


def _golden(work: Path, val: PictureSet) -> None:
    """`golden.npz`: pictures as decoded, as many as a device can be asked to hold, and the file's raw probabilities."""
    pictures: list[Picture] = []
    for index in golden_indices(val.labels.tolist()):
        picture = val.picture(index)
        if pictures and sum(p.nbytes for p in (*pictures, picture)) > _GOLDEN_BYTES:
            break
        pictures.append(picture)
    session = Session(work / names.MODEL, provider="cpu", threads=1)
    answers = [session.run({"pictures": np.ascontiguousarray(p[None])})[0][0] for p in pictures]
    arrays: dict[str, Any] = {f"picture_{i}": picture for i, picture in enumerate(pictures)}
    np.savez_compressed(
        work / names.GOLDEN, count=np.int64(len(pictures)), probabilities=np.stack(answers), **arrays
    )


def golden_indices(labels: Sequence[int]) -> list[int]:
    """Up to GOLDEN_PICTURES indices, classes taken by turns, in order of appearance."""
    queues = [[i for i, label in enumerate(labels) if label == k] for k in sorted(set(labels))]
    turns = max(map(len, queues), default=0)
    mixed = [queue[turn] for turn in range(turns) for queue in queues if turn < len(queue)]
    return sorted(mixed[:GOLDEN_PICTURES])


def _manifest(work: Path, papers: Papers) -> dict[str, JSON]:
    network = papers.network
    prepared = network.preprocess
    classes = len(network.labels)
    files = {p.name: sync_and_hash(p) for p in sorted(work.iterdir())}
    manifest: dict[str, JSON] = {
        "schema_version": names.SCHEMA_VERSION,
        "name": papers.name,
        "variant": papers.variant,
        "task": names.TASK,
        "labels": list(network.labels),
        "input": {"name": "pictures", "dtype": "uint8", "layout": "NHWC", "shape": ["N", "H", "W", 3], "color": "RGB"},
        "plain_input": {
            "name": "input", "dtype": "float32", "shape": ["N", 3, prepared.height, prepared.width]
        },
        "output": {"name": "probabilities", "dtype": "float32", "shape": ["N", classes]},
        "preprocessing": prepared.model_dump(mode="json"),
        "temperature": papers.temperature,
        "thresholds": dict(papers.thresholds),
        "minimum_onnxruntime": names.MINIMUM_ONNXRUNTIME,
        **({"optimized_for": optimized_for()} if papers.bound else {}),
        "lineage": dict(papers.lineage),
        "licences": [{
            "what": f"pretrained weights of {network.architecture} ({network.provenance.source})",
            "licence": network.provenance.licence or "not stated",
            "source": network.provenance.weights or "none",
        }],
        "golden": {"file": names.GOLDEN, "made_on": host.isa(), "provider": "cpu"},
        "tolerances": tolerances(
            host.isa(), quantized=papers.quantized, saturating=papers.saturating, bound=papers.bound
        ),
        "files": files,
    }  # fmt: skip
    manifest["identity"] = names.identity(manifest, files)
    return manifest


def tolerances(made_on: str, *, quantized: bool, saturating: bool, bound: bool = False) -> dict[str, float]:
    """The largest difference of probabilities allowed on each ISA family, for an answer made on one.

    bound: only on families of the same processors, x86 or Arm.
    """
    elsewhere = _SATURATING if saturating else _ROUNDING if quantized else _SAME
    found = {family: _SAME if family == made_on else elsewhere for family in {*_FAMILIES, made_on}}
    kind = made_on.partition("-")[0]
    return {name: most for name, most in found.items() if not bound or name.partition("-")[0] == kind}


def rounding(model: ModelProto) -> tuple[bool, bool]:
    """Whether a file computes in integers, and whether these may saturate on x86 without VNNI.

    The operators tell the first, the lineage in the file's metadata the second, whichever step put the integers in
    (quantize, fall_back, qat); integers that no entry tells of may saturate.
    """
    kinds = {node.op_type for node in model.graph.node}
    if not kinds & _INTEGERS:
        return "MatMulNBits" in kinds, False
    lineage = json.loads(graph.metadata(model).get("lineage", "[]"))
    given = [entry.get("settings", {}) for entry in lineage]
    told = [inner for one in given if "weight_bits" in (inner := one.get("quantize", one))]
    return True, not told or any(
        one["weight_bits"] == 8 or (one["activation"], one["weight"]) == ("s8", "s8") for one in told
    )


def _notice(network: Network) -> str:
    origin = network.provenance
    lines = [
        f"This model was made with toolchain (Apache-2.0) from the architecture {network.architecture} "
        "(timm, Apache-2.0).",
        f"Pretrained weights: {origin.source}"
        + (f", {origin.weights}, sha256 {origin.sha256}" if origin.weights else ""),
        f"Their licence: {origin.licence or 'not stated by the one who gave them; find out before you ship'}",
        "It runs on ONNX Runtime (MIT).",
    ]
    return "\n".join(lines) + "\n"


def _replace(work: Path, folder: Path) -> None:
    """Put the finished folder in place of an older one."""
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        folder.rename(old / "bundle")
        work.rename(folder)
        shutil.rmtree(old)
    else:
        work.rename(folder)


def _pretty(value: Mapping[str, JSON]) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
