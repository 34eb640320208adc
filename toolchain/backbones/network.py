"""A network with everything that must travel with it, kept as `network.json` and `weights.safetensors`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from timm.data.config import resolve_data_config
from torch import nn

from toolchain.backbones import activations as replacements
from toolchain.backbones import bundled, files, hub
from toolchain.backbones import plan as plans
from toolchain.backbones.architecture import create, fixed_size, published, seeded
from toolchain.backbones.levels import MultiLevel
from toolchain.backbones.plan import ChannelPlan
from toolchain.backbones.settings import Backbone, PreprocessOverrides
from toolchain.data.preprocess import Preprocess
from toolchain.errors import BackboneError
from toolchain.record import JSON

DESCRIPTION, WEIGHTS = "network.json", "weights.safetensors"
Source = Literal["timm-hub", "file", "bundled", "random"]


class Provenance(BaseModel):
    """Where the first weights came from. `weights` is a file's name or a hub address; `sha256` that of the
    file (of the tensors, for the hub); `notes` say what was changed on the way in."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: Source
    weights: str | None = None
    sha256: str | None = None
    licence: str | None = None
    notes: tuple[str, ...] = ()


class Network(BaseModel):
    """A timm architecture with its kwargs and the levels that its classifier reads (None: its end), activations that
    were replaced by module name, labels (one output each), preprocessing, the channel plan of a pruned network and
    the provenance of its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    architecture: str
    kwargs: Mapping[str, JSON] = {}
    out_indices: tuple[int, ...] | None = None
    activations: Mapping[str, replacements.Activation] = {}
    labels: tuple[str, ...]
    preprocess: Preprocess
    plan: ChannelPlan | None = None
    provenance: Provenance

    def unpruned(self) -> nn.Module:
        """The architecture at full size with its replaced activations, with random weights, in eval mode."""
        model = self.leveled(create(self.architecture, self.kwargs, len(self.labels)))
        replacements.apply(model, self.activations)
        return model

    def leveled(self, model: nn.Module, seed: int = 0) -> nn.Module:
        """The timm model, or, with `out_indices`, what reads its levels (a new head, drawn from `seed`); in eval mode."""
        if self.out_indices is None:
            return model
        with seeded(seed):
            rate = float(self.kwargs.get("drop_rate", 0.0))
            return MultiLevel(model, self.out_indices, len(self.labels), rate).eval()

    def skeleton(self) -> nn.Module:
        """The architecture at this network's sizes, without its weights, in eval mode."""
        model = self.unpruned()
        if self.plan is not None:
            plans.apply(model, self.plan)
        return model


def build(
    backbone: Backbone, labels: Sequence[str], base: Path = Path(), *, seed: int = 0
) -> tuple[nn.Module, Network]:
    """Make the network to start from: pretrained weights, classifier for `labels`, in eval mode.

    base: the folder that a relative weights path starts from. seed: of everything that starts random.
    Raises BackboneError when weights cannot be had or do not fit.
    """
    network = describe(backbone, labels)
    if backbone.weights == "random":
        with seeded(seed):
            model = create(network.architecture, network.kwargs, len(labels), seed)
        return network.leveled(model, seed), network
    if network.provenance.source == "timm-hub":
        with seeded(seed):
            model = hub.fetch(network.architecture, network.kwargs, len(labels), backbone.head)
        known: dict[str, JSON] = {"sha256": hub.digest(model)}
    else:
        path = base / backbone.roots()["weights"]
        model = create(network.architecture, network.kwargs, len(labels), seed)
        notes = files.fit(model, files.read(path), backbone.head, path.name)
        known = {"sha256": files.digest_file(path), "notes": notes}
        if backbone.bundled and known["sha256"] != bundled.card(backbone.bundled).sha256:
            raise BackboneError(f"bundled backbone '{backbone.bundled}': its weights are damaged, reinstall")
    provenance = network.provenance.model_copy(update=known)
    return network.leveled(model, seed), network.model_copy(update={"provenance": provenance})


def describe(backbone: Backbone, labels: Sequence[str]) -> Network:
    """The network that `build` would make, without touching weights."""
    options: dict[str, JSON] = {}
    if backbone.bundled:
        card = bundled.card(backbone.bundled)
        architecture, options = card.architecture, dict(card.options)
        config = {**card.model_dump(), "input_size": (3, card.size, card.size)}
        provenance = Provenance(source="bundled", weights=f"bundled/{backbone.bundled}", licence=card.licence)
    else:
        architecture = str(backbone.timm)
        config = resolve_data_config(pretrained_cfg=published(architecture).to_dict())  # type: ignore[no-untyped-call]
        provenance = _timm_provenance(backbone, architecture)
    preprocess = _preprocess(config, backbone.preprocess)
    options |= backbone.kwargs
    if fixed_size(architecture):
        options["img_size"] = [preprocess.height, preprocess.width]
    options |= {name: rate for name in ("drop_rate", "drop_path_rate") if (rate := getattr(backbone, name))}
    if backbone.weights == "random":
        provenance = Provenance(source="random")
    return Network(
        architecture=architecture, kwargs=options, out_indices=backbone.out_indices, labels=tuple(labels),
        preprocess=preprocess, provenance=provenance,
    )  # fmt: skip


def save(model: nn.Module, network: Network, folder: Path) -> None:
    """Write `network.json` and `weights.safetensors` (float32, the same bytes for the same weights)."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {}
    for name, tensor in model.state_dict().items():
        kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
        # A copy each, because safetensors refuses two names for one memory.
        state[name] = tensor.detach().to("cpu", kind, copy=True).contiguous()
    save_file(state, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(network.model_dump_json(indent=1), encoding="utf-8")


def read(folder: Path) -> Network:
    """Read `network.json`. Raises BackboneError when there is none or it is damaged."""
    path = folder / DESCRIPTION
    try:
        return Network.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise BackboneError(f"{folder}: no {DESCRIPTION} in it, so it is no saved network") from None
    except ValidationError as error:
        item = error.errors()[0]
        where = ".".join(map(str, item["loc"])) or "its text"
        raise BackboneError(f"{path}: damaged at {where}: {item['msg']}") from None


def load(folder: Path) -> tuple[nn.Module, Network]:
    """Read what `save` wrote: the same outputs bit for bit on one host, without network access or pickle.

    The model is in eval mode on the CPU. Raises BackboneError, naming the file, when something does not fit.
    """
    network = read(folder)
    try:
        model = network.skeleton()
    except BackboneError as error:
        raise BackboneError(f"{folder / DESCRIPTION}: {error}") from error
    files.load_exactly(model, folder / WEIGHTS)
    return model, network


def _timm_provenance(backbone: Backbone, architecture: str) -> Provenance:
    if isinstance(backbone.weights, Path):
        return Provenance(source="file", weights=backbone.weights.name)
    return Provenance(source="timm-hub", weights=hub.address(architecture), licence=hub.licence(architecture))


def _preprocess(config: Mapping[str, JSON], overrides: PreprocessOverrides) -> Preprocess:
    """The pretrained configuration (timm's names) with the recipe's changes."""
    height, width = overrides.height_width or tuple(config["input_size"])[1:]
    names = ("interpolation", "crop_pct", "crop_mode", "mean", "std")
    chosen = {name: config[name] for name in names}
    chosen |= {name: value for name in names if (value := getattr(overrides, name)) is not None}
    return Preprocess(height=height, width=width, **chosen)
