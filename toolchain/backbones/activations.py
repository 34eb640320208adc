"""Activations that kernels like better, put in the place of those that an architecture was designed with.

A plan by module name, kept with the network: the architecture as timm builds it, changed by the plan, takes the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from toolchain.errors import BackboneError

Activation = Literal["relu", "relu6", "hard-sigmoid"]
Smooth = Literal["relu", "relu6"]

_MAKERS: Mapping[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hard-sigmoid": nn.Hardsigmoid,
}
# By the names of classes, because timm has its own beside torch's.
_SMOOTH = frozenset({"SiLU", "Swish", "SwishMe", "HardSwish", "Hardswish", "HardSwishMe", "Mish", "MishMe"})
_GATES = frozenset({"Sigmoid"})


def replaceable(
    model: nn.Module, smooth: Smooth, gates: bool, keep: Iterable[str] = ()
) -> dict[str, Activation]:
    """What to put where: `smooth` for SiLU (swish), hard-swish and Mish, a hard-sigmoid for sigmoids if `gates`.

    keep: patterns of module names (`blocks.0.*`) that are left alone. Raises BackboneError for one that matches no
    activation of these kinds.
    """
    found: dict[str, Activation] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        kind = type(module).__name__
        if kind in _SMOOTH:
            found[name] = smooth
        elif gates and kind in _GATES:
            found[name] = "hard-sigmoid"
    for pattern in keep:
        if not any(fnmatchcase(name, pattern) for name in found):
            some = ", ".join(list(found)[:4])
            raise BackboneError(f"activations.keep {pattern!r}: matches no activation ({some}, ...)")
    return {n: new for n, new in found.items() if not any(fnmatchcase(n, pattern) for pattern in keep)}


def apply(model: nn.Module, plan: Mapping[str, Activation]) -> None:
    """Put the plan's activations in their places. Raises BackboneError when the network has no such module."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, wanted in plan.items():
        if name not in modules or any(True for _ in modules[name].parameters()):
            raise BackboneError(
                f"the network's list of activations names '{name}', which is no activation of this architecture"
            )
        owner, _, leaf = name.rpartition(".")
        fresh = _MAKERS[wanted]()
        fresh.train(modules[name].training)
        setattr(modules[owner], leaf, fresh)
