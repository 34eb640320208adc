"""A channel plan: what pruning changed in an architecture, as plain numbers instead of a pickled module.

The plan lists every attribute of a module (in_channels, groups, head_dim, normalized_shape, …) and every
tensor shape in which the pruned network differs from the architecture as timm builds it. Applied to a
fresh network of that architecture it gives the pruned structure, into which the weights load strictly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from toolchain.errors import BackboneError

Size = Annotated[int, Field(ge=1)]
Value = int | float | tuple[int, ...]


class ChannelPlan(BaseModel):
    """attributes: module name -> attribute -> new value. shapes: tensor name -> new shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    attributes: Mapping[str, Mapping[str, Value]]
    shapes: Mapping[str, tuple[Size, ...]]


def plan(before: nn.Module, after: nn.Module) -> ChannelPlan:
    """The difference of two networks of one architecture, `after` being the pruned one.

    Raises BackboneError when they differ in more than sizes.
    """
    old_modules, new_modules = dict(before.named_modules()), dict(after.named_modules())
    old, new = _tensors(before), _tensors(after)
    if old_modules.keys() != new_modules.keys() or old.keys() != new.keys():
        odd = sorted((old_modules.keys() ^ new_modules.keys()) | (old.keys() ^ new.keys()))
        raise BackboneError(f"the network's structure was changed, not only its sizes: {', '.join(odd[:5])}")
    attributes = {}
    for name, module in old_modules.items():
        was, now = _numbers(module), _numbers(new_modules[name])
        changed = {key: now[key] for key in sorted(was.keys() & now.keys()) if now[key] != was[key]}
        if changed:
            attributes[name] = changed
    shapes = {name: tuple(new[name].shape) for name in old if new[name].shape != old[name].shape}
    lost = shapes.keys() - after.state_dict().keys()
    if lost:
        raise BackboneError(
            f"pruning changed tensors that are not saved with the weights: {', '.join(sorted(lost))}"
        )
    return ChannelPlan(attributes=attributes, shapes=shapes)


def apply(model: nn.Module, change: ChannelPlan) -> None:
    """Give a fresh network of the architecture the plan's sizes; its changed tensors are then not set.

    Raises BackboneError when the plan names what the network does not have, or makes something larger.
    """
    modules, tensors = dict(model.named_modules()), _tensors(model)
    for name, values in change.attributes.items():
        if name not in modules:
            raise BackboneError(
                f"the channel plan names a module '{name}' that this architecture does not have"
            )
        for key, value in values.items():
            _set_number(modules[name], name, key, value)
    for name, shape in change.shapes.items():
        _check_shape(name, tensors.get(name), shape)
        owner, _, leaf = name.rpartition(".")
        fresh = torch.empty(shape, dtype=tensors[name].dtype)
        is_parameter = isinstance(tensors[name], nn.Parameter)
        setattr(modules[owner], leaf, nn.Parameter(fresh) if is_parameter else fresh)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, those that are not saved included."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _numbers(module: nn.Module) -> dict[str, Value]:
    """The public attributes of a module that are numbers or sequences of whole numbers."""
    found: dict[str, Value] = {}
    for key, value in vars(module).items():
        if key.startswith("_") or isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            found[key] = value
        elif isinstance(value, tuple | list) and value and all(type(item) is int for item in value):
            found[key] = tuple(value)
    return found


def _set_number(module: nn.Module, name: str, key: str, value: Value) -> None:
    known = _numbers(module)
    if key not in known or isinstance(value, tuple) != isinstance(known[key], tuple):
        raise BackboneError(f"the channel plan sets '{name}.{key}', which this architecture does not have")
    kind = type(vars(module)[key])
    setattr(module, key, kind(value) if isinstance(value, tuple) else value)


def _check_shape(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is None:
        raise BackboneError(f"the channel plan names a tensor '{name}' that this architecture does not have")
    smaller = len(shape) == tensor.dim() and all(n <= m for n, m in zip(shape, tensor.shape, strict=True))
    if not smaller:
        raise BackboneError(
            f"the channel plan gives '{name}' the shape {shape}, which does not fit in {tuple(tensor.shape)}"
        )
