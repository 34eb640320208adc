"""What a step on ONNX networks leaves: three files and a description, with one entry more in their lineage."""

from __future__ import annotations

import shutil
from pathlib import Path

from onnx import ModelProto

from toolchain import graph
from toolchain.backbones.network import DESCRIPTION
from toolchain.step import Step


def hand_on(step: Step, source: Path, plain: ModelProto, out: Path) -> None:
    """Write `plain` into `out` with the preprocessing and description of `source`, from which `step` made it.

    step: resolved, so that the lineage tells the settings that were used.
    """
    preprocess = graph.read(source / graph.PREPROCESS)
    entry = {"step": step.step, "version": step.version, "settings": step.model_dump(mode="json")}
    graph.write_all(out, preprocess, plain, graph.extended(graph.metadata(preprocess), entry))
    shutil.copyfile(source / DESCRIPTION, out / DESCRIPTION)
