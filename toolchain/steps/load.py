"""Load: start from a checkpoint instead of training one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from toolchain.artifact import Artifact, Form
from toolchain.backbones import network as networks
from toolchain.backbones.pruning import cost
from toolchain.backbones.settings import Backbone
from toolchain.errors import BackboneError
from toolchain.record import Measurement
from toolchain.step import Context, Step


class Load(Step):
    """Takes a finished network: a folder that the toolchain saved (`network.json`, `weights.safetensors`), or a
    weights file of the architecture in `backbone`, whose classifier must give the data's labels in order."""

    step: Literal["load"] = "load"
    takes: ClassVar[Mapping[str, Form]] = {}
    gives: ClassVar[Form] = Form.TORCH
    uses: ClassVar[frozenset[str]] = frozenset({"train"})
    libraries: ClassVar[tuple[str, ...]] = ("timm",)
    file: Path
    backbone: Backbone | None = None

    def roots(self) -> Mapping[str, Path]:
        """The checkpoint; it replaces whatever weights the backbone names."""
        named = {"file": self.file}
        return named if self.backbone is None else {**named, "backbone.weights": self.file}

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Check that the checkpoint is for the data's labels and keep it in the toolchain's form."""
        labels = context.data.labels
        if self.file.is_dir():
            model, network = networks.load(self.file)
            if network.labels != labels:
                raise BackboneError(
                    f"{self.file}: made for the labels {_listed(network.labels)}, the data have {_listed(labels)}"
                )
        else:
            model, network = networks.build(self._backbone(), labels, seed=context.seed)
        networks.save(model, network, context.out)
        counted = cost(model, network)
        return (
            Measurement(name="macs", value=counted.macs, unit="MAC"),
            Measurement(name="parameters", value=counted.parameters),
        )

    def _backbone(self) -> Backbone:
        if not self.file.exists():
            raise BackboneError(
                f"{self.file}: no such checkpoint (a weights file, or a folder with network.json)"
            )
        if self.backbone is None or self.backbone.timm is None:
            raise BackboneError(
                f"{self.file}: a weights file does not say which network it is for: give 'backbone: {{timm: NAME}}'"
            )
        if self.backbone.out_indices is not None:
            raise BackboneError(
                f"{self.file}: a weights file holds no classifier for out_indices: take a folder that the toolchain saved"
            )
        return self.backbone.model_copy(update={"weights": self.file, "head": "keep"})


def _listed(labels: tuple[str, ...]) -> str:
    more = f", … ({len(labels)} in all)" if len(labels) > 4 else ""
    return f"({', '.join(labels[:4])}{more})"
