"""The latency table of a search's network: made through the pipeline, measured once a host kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from toolchain.artifact import Artifact
from toolchain.backbones.network import load as load_network
from toolchain.backbones.pruning import Part, parts
from toolchain.choose import BASE
from toolchain.graph import PREPROCESS
from toolchain.measure import latency
from toolchain.measure.layers import LayerTable, time_layers
from toolchain.optimize.design import Scheme
from toolchain.optimize.trials import Trials
from toolchain.optimize.widths import Costs
from toolchain.pipeline import runtime_libraries
from toolchain.recipe import TRUNK, Variant
from toolchain.runtime.session import Session
from toolchain.store import Job

_WIDTHS = (0.25, 0.5, 0.75)
_TABLE = "layers.json"


class _Kept(BaseModel):
    """What the store keeps of a latency table."""

    table: LayerTable
    parts: tuple[Part, ...]


def seconds(trials: Trials, scheme: Scheme) -> float:
    """What the latency table is predicted to take now."""
    variants = {BASE: trials.template.fp32, **_chains(trials, scheme)}
    trials.pipeline.recipe = trials.recipe.model_copy(update={"variants": variants})
    missing = trials.pipeline.missing(trials.data)
    return sum(trials.durations.node(node, 1.0) for node in missing) + trials.durations.of("layers")


def measure(trials: Trials, scheme: Scheme) -> Costs:
    """The latency table of the network's layers, quantized so, and the importance of its channels; measured once.

    Raises what pruning refuses (trials.UNMADE).
    """
    chains = _chains(trials, scheme)
    variants = {BASE: trials.template.fp32, **chains}
    trials.pipeline.recipe = trials.recipe.model_copy(update={"variants": variants})
    made = trials.pipeline.build(trials.data)
    for name, artifact in made.items():
        if name != TRUNK or not trials.backbone:
            trials.durations.learn(artifact.record)
    files = [made[name] for name in chains]
    settings = trials.template.prune.model_dump(mode="json")
    parents = {name: made[name].key for name in chains}
    job = Job("layers", 2, settings, parents, trials.where, (*runtime_libraries(), "torch-pruning"))
    entry = trials.pipeline.measured(job, lambda out: _time(trials, made[trials.trunk], files, out))
    trials.durations.learn(entry.record)
    kept = _Kept.model_validate_json((entry.folder / _TABLE).read_bytes())
    return Costs(kept.parts, kept.table, trials.template.prune.round_to)


def _chains(trials: Trials, scheme: Scheme) -> dict[str, Variant]:
    """The network at the widths of the latency table, from the whole one on."""
    designs = {f"w{round(100 * r)}": replace(trials.whole, ratio=r, scheme=scheme) for r in (0.0, *_WIDTHS)}
    chains = {name: trials.template.variant(design, trials.widths) for name, design in designs.items()}
    return chains | ({"w0": trials.template.fp32} if scheme == BASE and not trials.backbone else {})


def _time(trials: Trials, trunk: Artifact, files: Sequence[Artifact], out: Path) -> None:
    picture = np.ascontiguousarray(latency.typical(trials.data.val)[None])
    prepared = Session(files[0].folder / PREPROCESS).run({"pictures": picture})[0]
    models = [file.folder / latency.FILES["plain"] for file in files]
    table = time_layers(models, prepared, trials.asked.provider, trials.asked.threads)
    pruning = trials.template.prune
    if pruning.importance == "taylor":  # its gradients need pictures; magnitudes order the work as well
        pruning = pruning.model_copy(update={"importance": "l2"})
    found = parts(*load_network(trunk.folder), pruning)
    (out / _TABLE).write_text(_Kept(table=table, parts=tuple(found)).model_dump_json())
