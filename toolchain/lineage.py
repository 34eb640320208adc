"""What a step on ONNX networks leaves: three files and a description, with one entry more in their lineage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from onnx import ModelProto

from toolchain import graph
from toolchain.backbones.network import DESCRIPTION, read
from toolchain.data.preprocess import Preprocess
from toolchain.step import Step


def hand_on(
    step: Step, source: Path, plain: ModelProto, out: Path,
    preprocess: tuple[Preprocess, ModelProto] | None = None,
) -> None:  # fmt: skip
    """Write `plain` into `out` with the preprocessing and description of `source`, from which `step` made it.

    step: resolved, so that the lineage tells the settings that were used. preprocess: other settings and their graph.
    """
    prepares = graph.read(source / graph.PREPROCESS)
    about = graph.metadata(prepares)
    entry = {"step": step.step, "version": step.version, "settings": step.model_dump(mode="json")}
    if preprocess is None:
        shutil.copyfile(source / DESCRIPTION, out / DESCRIPTION)
    else:
        settings, prepares = preprocess
        about["preprocessing"] = json.dumps(settings.model_dump(mode="json"), sort_keys=True)
        network = read(source).model_copy(update={"preprocess": settings})
        (out / DESCRIPTION).write_text(network.model_dump_json(indent=1), encoding="utf-8")
    graph.write_all(out, prepares, plain, graph.extended(about, entry))
