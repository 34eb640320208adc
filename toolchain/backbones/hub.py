"""Weights that timm publishes, downloaded (and kept) by huggingface_hub."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]
from huggingface_hub.utils import logging as hub_logging
from timm.models import PretrainedCfg
from torch import nn

from toolchain.backbones.architecture import construct, create, head_names, published, refusal
from toolchain.backbones.settings import Head
from toolchain.errors import BackboneError
from toolchain.record import JSON


def fetch(architecture: str, kwargs: Mapping[str, JSON], classes: int, head: Head) -> nn.Module:
    """Build a timm model with its published weights; with head "new" its classifier has random weights.

    Raises BackboneError when there are no such weights, no network, or (head "keep") not `classes` outputs.
    """
    config = published(architecture)
    if not config.has_weights:
        raise BackboneError(
            f"timm publishes no weights for '{architecture}': give weights: FILE or weights: random"
        )
    outputs = int(config.num_classes)
    if head == "keep" and outputs != classes:
        raise BackboneError(
            f"head: keep: '{architecture}' has {outputs} outputs, the data have {classes} labels: take head: new"
        )
    create(architecture, kwargs, classes)  # tells wrong options before anything is downloaded
    try:
        reach(config)
        with _quiet():
            model = construct(architecture, kwargs, classes, pretrained=True)
    except OSError as error:
        raise BackboneError(
            f"the weights of '{architecture}' could not be downloaded ({type(error).__name__}); "
            "no network: give weights: FILE or weights: random"
        ) from error
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise BackboneError(refusal(architecture, kwargs, error)) from error
    if head == "new" and outputs == classes:
        model.reset_classifier(classes)  # type: ignore[operator]
    return model.eval()


def reach(config: PretrainedCfg) -> None:
    """Ask the hub once whether it is there, unless the weights are in its cache: its own retries take a minute.

    Raises OSError (which requests' exceptions are) when it is not.
    """
    files = ("model.safetensors", "pytorch_model.bin")
    if config.hf_hub_id and not any(
        isinstance(try_to_load_from_cache(config.hf_hub_id, f), str) for f in files
    ):
        get_session().head(constants.ENDPOINT, timeout=10)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep huggingface_hub from logging what becomes our error."""
    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)


def address(architecture: str) -> str:
    """Where the weights come from."""
    config = published(architecture)
    return f"hf-hub:{config.hf_hub_id}" if config.hf_hub_id else str(config.url)


def licence(architecture: str) -> str | None:
    """The licence that timm's configuration states for the weights."""
    stated = published(architecture).license
    return str(stated) if stated else None


def digest(model: nn.Module) -> str:
    """sha256 (hex) over names and values of a model's tensors; its classifier, which is the data's own, left out."""
    found, heads = hashlib.sha256(), tuple(f"{name}." for name in head_names(model))
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(heads):
            continue
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
