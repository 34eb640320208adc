"""Making timm networks without weights, and asking them what they are made of."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import timm
import torch
from timm.models import PretrainedCfg, group_modules
from timm.utils.model import reparameterize_model
from torch import nn

from toolchain.backbones.levels import MultiLevel
from toolchain.errors import BackboneError
from toolchain.record import JSON


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw torch's CPU random numbers from `seed` inside, and go on as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def create(architecture: str, kwargs: Mapping[str, JSON], classes: int, seed: int = 0) -> nn.Module:
    """Build a timm model with random weights and a classifier of `classes` outputs, in eval mode.

    Raises BackboneError when timm has no such model or the model does not take these kwargs.
    """
    try:
        with seeded(seed):
            model = construct(architecture, kwargs, classes, pretrained=False)
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise BackboneError(refusal(architecture, kwargs, error)) from error
    return model.eval()


def construct(architecture: str, kwargs: Mapping[str, JSON], classes: int, pretrained: bool) -> nn.Module:
    """Call timm's constructor; lists in kwargs, which is what YAML and JSON have, are given as tuples."""
    options = {name: _tuples(value) for name, value in kwargs.items()}
    model: nn.Module = timm.create_model(architecture, pretrained=pretrained, num_classes=classes, **options)
    return model


def refusal(architecture: str, kwargs: Mapping[str, JSON], error: Exception) -> str:
    """The sentence for a model that timm refuses to make."""
    given = ", ".join(f"{name}={value}" for name, value in kwargs.items()) or "no options"
    return f"timm cannot make '{architecture}' with {given}: {first_line(error)}"


def first_line(error: Exception) -> str:
    """An error's first line, short enough for a sentence."""
    text = str(error).strip().partition("\n")[0][:200]
    return text or type(error).__name__


def fixed_size(architecture: str) -> bool:
    """Whether the model is built for one input size (ViT, Swin) and must be told another one."""
    return bool(published(architecture).fixed_input_size)


def published(architecture: str) -> PretrainedCfg:
    """What timm states about a model's weights and the pictures they expect."""
    found = timm.get_pretrained_cfg(architecture)
    if found is None:
        raise BackboneError(f"timm says nothing about the weights and pictures of '{architecture}'")
    return found


def classifiers(model: nn.Module) -> tuple[nn.Module, ...]:
    """The layers that give one output a label (two in distilled DeiT)."""
    found = model.get_classifier()  # type: ignore[operator]
    layers = found if isinstance(found, tuple | list) else (found,)
    return tuple(layer for layer in layers if isinstance(layer, nn.Module) and list(layer.parameters()))


def head(model: nn.Module) -> tuple[nn.Module, ...]:
    """The classifier layers and what stands before them for them alone: what is trained where only the head is."""
    return ((model.norm,) if isinstance(model, MultiLevel) else ()) + classifiers(model)


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Module names of the classifier layers, e.g. ("head.fc",)."""
    layers = classifiers(model)
    return tuple(name for name, module in model.named_modules() if any(module is layer for layer in layers))


def blocks(model: nn.Module) -> list[tuple[nn.Module, ...]]:
    """The network cut into blocks from stem to neck, as timm's group matcher sees it, without the classifier.

    To train the last N blocks, freeze every parameter, then free those of `blocks(model)[-N:]` and of the
    classifier. Parameters of no module of their own (ViT's position embedding) stay frozen then.
    """
    if isinstance(model, MultiLevel):
        return blocks(model.body)
    heads = head_names(model)
    found = []
    for names in group_modules(model, model.group_matcher(coarse=False)).values():  # type: ignore[operator]
        body = [name for name in names if not is_below(name, heads)]
        if body:
            found.append(tuple(model.get_submodule(name) for name in body))
    return found


def is_below(name: str, owners: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of `owners` or lies in one."""
    return any(name == owner or name.startswith(f"{owner}.") for owner in owners)


def deployable(model: nn.Module) -> nn.Module:
    """A copy for export, in eval mode: training branches folded into single convolutions (RepVGG,
    https://arxiv.org/abs/2101.03697, MobileOne, RepViT), attention in plain matrix products, and a norm before
    the classifier put into it."""
    copied: nn.Module = reparameterize_model(copy.deepcopy(model).eval())
    fuse_attention(copied, False)
    if isinstance(copied, MultiLevel):
        copied.fold()
    return copied


def fuse_attention(model: nn.Module, wanted: bool) -> list[nn.Module]:
    """Switch fused attention where the model has it; returns the modules that were changed."""
    changed = [m for m in model.modules() if getattr(m, "fused_attn", wanted) is not wanted]
    for module in changed:
        module.fused_attn = wanted  # type: ignore[assignment]
    return changed


def _tuples(value: JSON) -> JSON:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
