"""Structural pruning of whole networks: fewer channels in every layer, on torch-pruning's dependency graph
(DepGraph, https://arxiv.org/abs/2301.12900). What single families need beyond that is in families.py.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch_pruning as tp
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from torch import Tensor, nn

from toolchain.backbones import plan as plans
from toolchain.backbones.architecture import classifiers, deployable, first_line, fuse_attention, seeded
from toolchain.backbones.counts import macs, parameters
from toolchain.backbones.families import arrangement, width, write_back
from toolchain.backbones.importance import Importance, scorer
from toolchain.backbones.network import Network, describe
from toolchain.backbones.settings import Backbone
from toolchain.errors import BackboneError
from toolchain.record import JSON

Gradients = Callable[[nn.Module], None]

_PROTECTED = 1e9  # added to scores of channels that must stay; scores are about 1
_UNSUITED = (
    AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError, ZeroDivisionError,
)  # fmt: skip


class Pruning(BaseModel):
    """How to prune.

    importance: what makes a channel worth keeping (see importance.py). scope: "uniform" takes `ratio` of
    every layer's channels, "global" of all channels together, the least important first.
    ratio: share of channels to remove. max_ratio: greatest share of one layer. iterations: in how many steps;
    scores are computed anew before each. round_to: what is left is rounded down to a multiple of it, because
    vector units want full lanes (16 for depthwise layers in int8); layers smaller than that stay. ignore: patterns
    of module names to leave alone ("layer4.*"); the classifier's outputs always stay.
    ratios: shares of single layers by pattern of their names, in place of `ratio`; where several match, the longest
    pattern counts. Layers whose channels go together have one share.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    later: ClassVar[frozenset[str]] = frozenset({"ratios"})
    importance: Importance = "l2"
    scope: Literal["uniform", "global"] = "uniform"
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.3
    max_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.9
    iterations: Annotated[int, Field(ge=1, le=100)] = 1
    round_to: Annotated[int, Field(ge=1, le=256)] = 8
    ignore: tuple[str, ...] = ()
    ratios: Mapping[str, Annotated[float, Field(ge=0, lt=1)]] = {}

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.ratio > self.max_ratio:
            raise ValueError(f"ratio {self.ratio} is greater than max_ratio {self.max_ratio}")
        for pattern, share in self.ratios.items():
            if share > self.max_ratio:
                raise ValueError(f"ratios: {pattern}: {share} is greater than max_ratio {self.max_ratio}")
        return self

    @model_serializer(mode="wrap")
    def _plain(self, plain: SerializerFunctionWrapHandler) -> dict[str, JSON]:
        """Without what came later and is not used: what was pruned before keeps its key."""
        found: dict[str, JSON] = plain(self)
        return {name: value for name, value in found.items() if value or name not in self.later}


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of one picture, parameters, and output channels of all layers but the classifier."""

    macs: int
    parameters: int
    channels: int


def cost(model: nn.Module, network: Network) -> Cost:
    """Count what a network costs in the form it is exported in."""
    shipped = deployable(model)
    last = classifiers(shipped)
    layers = [m for m in shipped.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m not in last]
    return Cost(macs(shipped, network.preprocess), parameters(shipped), sum(map(width, layers)))


def prune(
    model: nn.Module, network: Network, pruning: Pruning, *,
    seed: int = 0, gradients: Gradients | None = None, advance: Callable[[], None] = lambda: None,
) -> Network:  # fmt: skip
    """Prune a model in place and return its description with the channel plan to rebuild it from.

    gradients: fills the parameters' `grad` before each iteration (importance "taylor" needs it).
    advance: called after each iteration. The model ends on the CPU in eval mode; it has been run, and rebuilt
    from its plan with the same outputs. Raises BackboneError when this architecture cannot be pruned or nothing was.
    """
    if pruning.importance == "taylor" and gradients is None:
        raise BackboneError("importance 'taylor' needs gradients on training pictures")
    _check_finite(model)
    before = macs(model.eval(), network.preprocess)
    with _suited(network):
        pruner = _pruner(model, network, pruning)
    for iteration in range(pruning.iterations):
        model.zero_grad()
        if gradients is not None and pruning.importance == "taylor":
            gradients(model)
        with _suited(network), seeded(seed + iteration):
            pruner.step()
            write_back(model)
        advance()
    model.zero_grad()
    with _suited(network):
        after = macs(model, network.preprocess)
    if after >= before:
        raise BackboneError(_nothing(network, pruning))
    with _suited(network):
        return _planned(model.cpu(), network)


@dataclass(frozen=True)
class Part:
    """Channels that can only go together. `name`: the first layer that gives them; `scores`: of each, ascending;
    gives, takes: the layers whose outputs and inputs they are."""

    name: str
    scores: tuple[float, ...]
    gives: tuple[str, ...]
    takes: tuple[str, ...]


def parts(model: nn.Module, network: Network, pruning: Pruning) -> list[Part]:
    """What can be pruned apart from the rest, with the importance of each channel. The model stays as it is.

    Channels that belong to heads (attention) or groups are left out: `ratio` goes for them. For "taylor" the
    parameters must hold gradients. Raises BackboneError as `prune`.
    """
    names = {module: name for name, module in model.named_modules()}
    with _groups(model, network, pruning) as (pruner, groups):
        found = [_part(group, pruner, names) for group in groups]
    return [part for part in found if part is not None]


@dataclass(frozen=True)
class Readers:
    """Who reads the channels of a part. order: its channels, the least important first; inputs: by layer, which channel
    each of its inputs is, [K, 2] of (channel, input)."""

    name: str
    order: tuple[int, ...]
    inputs: Mapping[str, Tensor]


def readers(model: nn.Module, network: Network, pruning: Pruning) -> list[Readers]:
    """The parts as `parts` has them. A layer that reads nothing of a channel answers as after that channel was pruned.

    Raises BackboneError as `prune`.
    """
    names = {module: name for name, module in model.named_modules()}
    with _groups(model, network, pruning) as (pruner, groups):
        found = [(_part(group, pruner, names), group) for group in groups]
        return [
            Readers(part.name, _ascending(group, pruner), _inputs(group, pruner, names))
            for part, group in found
            if part is not None
        ]


def _ascending(group: tp.dependency.Group, pruner: _Pruner) -> tuple[int, ...]:
    scores = pruner.importance(group).detach().cpu().double().nan_to_num(0.0)
    return tuple(scores.argsort(stable=True).tolist())


def _inputs(group: tp.dependency.Group, pruner: _Pruner, names: Mapping[nn.Module, str]) -> dict[str, Tensor]:
    """Readers' inputs by layer. Depthwise convolutions hand each channel on to its own reader; others with groups belong
    to no part."""
    found: dict[str, list[Tensor]] = {}
    for item in group:
        layer = item.dep.target.module
        if not isinstance(layer, nn.Conv2d | nn.Linear) or not pruner.DG.is_in_channel_pruning_fn(
            item.dep.handler
        ):
            continue
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            continue
        pairs = torch.tensor([item.root_idxs, item.idxs]).T
        found.setdefault(names[layer], []).append(pairs)
    return {name: torch.cat(pairs) for name, pairs in found.items()}


@contextmanager
def _groups(
    model: nn.Module, network: Network, pruning: Pruning
) -> Iterator[tuple[_Pruner, list[tp.dependency.Group]]]:
    """The pruner of a model that stays as it is, and what it would prune together."""
    _check_finite(model)
    with _suited(network):
        pruner = _pruner(model.eval(), network, pruning)
        groups = pruner.DG.get_all_groups(
            ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types
        )
        yield pruner, list(groups)


def _part(group: tp.dependency.Group, pruner: _Pruner, names: Mapping[nn.Module, str]) -> Part | None:
    layers = [(item.dep, item.dep.target.module) for item in group]
    wide = [(dep, names[layer]) for dep, layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)]
    gives = dict.fromkeys(name for dep, name in wide if pruner.DG.is_out_channel_pruning_fn(dep.handler))
    takes = dict.fromkeys(name for dep, name in wide if pruner.DG.is_in_channel_pruning_fn(dep.handler))
    scores = pruner.importance(group)
    if not gives or scores is None or pruner._get_channel_groups(group) > 1:
        return None
    order = list(names.values()).index
    ascending = sorted(scores.detach().cpu().double().nan_to_num(0.0).tolist())
    return Part(min(gives, key=order), tuple(ascending), tuple(gives), tuple(takes))


def check_prunable(backbone: Backbone, pruning: Pruning | None = None) -> None:
    """Try pruning on a copy with random weights (a second or two), before anything is trained.

    Raises BackboneError when the architecture cannot be pruned in this way.
    """
    check_network_prunable(describe(backbone, ("a", "b")), pruning)


def check_network_prunable(network: Network, pruning: Pruning | None = None) -> None:
    """The same for a saved network."""
    wanted = pruning or Pruning()
    if wanted.importance == "taylor":  # needs pictures, and says nothing about the structure
        wanted = wanted.model_copy(update={"importance": "l2"})
    model = network.skeleton()
    with seeded(0), torch.no_grad():  # a pruned network's skeleton holds what lay in memory
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.fill_(1.0) if name.endswith("running_var") else tensor.normal_(0, 0.05)
    prune(model, network, wanted)


class _Pruner(tp.pruner.BasePruner):  # type: ignore[misc]
    """torch-pruning's pruner, in which `max_ratio` also holds within one step of global pruning."""

    first: dict[Any, int]

    def estimate_importance(self, group: tp.dependency.Group) -> Tensor | None:
        """Scores of a group's channels, averaged over heads; of each layer the best are out of reach."""
        found = super().estimate_importance(group)
        if found is None:
            return None
        heads = self._get_channel_groups(group)
        # A group whose weights are all zero has the score 0 / 0.
        scores = found.detach().cpu().double().view(heads, -1).mean(0).nan_to_num(0.0)
        root = group[0].dep
        first = self.first.setdefault((root.target.module, root.handler), len(scores))
        unit = self.round_to // math.gcd(self.round_to, heads)
        kept = math.ceil(first * (1 - self.max_pruning_ratio) / unit) * unit
        best = scores.topk(min(kept, len(scores))).indices
        scores[best] += _PROTECTED
        repeated: Tensor = scores.repeat(heads)
        return repeated


def _pruner(model: nn.Module, network: Network, pruning: Pruning) -> _Pruner:
    """Trace the model. The dictionaries are given because torch-pruning's defaults are shared between pruners."""
    family = arrangement(model)
    device = next(model.parameters()).device
    for parameter in model.parameters():
        parameter.requires_grad_(True)  # tracing follows autograd
    own = _own_shares(model, pruning.ratios)
    fused = fuse_attention(model, False)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # parameters outside layers (position embeddings) are pruned as they should
        pruner = _Pruner(
            model, (_pictures(network).to(device),), scorer(pruning.importance),
            global_pruning=pruning.scope == "global", pruning_ratio=pruning.ratio,
            max_pruning_ratio=pruning.max_ratio, iterative_steps=pruning.iterations, round_to=pruning.round_to,
            pruning_ratio_dict={layer: ratio for layer, (_, ratio) in own.items()},
            ignored_layers=[*classifiers(model), *family.fixed, *_ignored(model, pruning.ignore)],
            num_heads=dict(family.heads), in_channel_groups={}, out_channel_groups={}, channel_groups={},
        )  # fmt: skip
    pruner.first = {}
    _agree(pruner, own)
    for module in fused:
        module.fused_attn = True  # type: ignore[assignment]
    return pruner


def _ignored(model: nn.Module, patterns: tuple[str, ...]) -> list[nn.Module]:
    modules = dict(model.named_modules())
    found = []
    for pattern in patterns:
        matched = [module for name, module in modules.items() if name and fnmatchcase(name, pattern)]
        if not matched:
            known = ", ".join(name for name, _ in model.named_children())
            raise BackboneError(f"prune.ignore: no module is called '{pattern}'; the outermost are {known}")
        found += matched
    return found


def _own_shares(model: nn.Module, ratios: Mapping[str, float]) -> dict[nn.Module, tuple[int, float]]:
    """The layers that a pattern of `ratios` names, each with the longest one's length and share."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    found: dict[nn.Module, tuple[int, float]] = {}
    for pattern in sorted(ratios, key=lambda pattern: (len(pattern), pattern)):
        matched: dict[nn.Module, tuple[int, float]] = {
            layer: (len(pattern), ratios[pattern])
            for name, layer in layers.items()
            if fnmatchcase(name, pattern)
        }
        if not matched:
            known = ", ".join(list(layers)[:3])
            raise BackboneError(f"prune.ratios: no layer is called '{pattern}'; layers are {known}, …")
        found |= matched
    return found


def _agree(pruner: _Pruner, own: Mapping[nn.Module, tuple[int, float]]) -> None:
    """Give layers whose channels go together the share of the longest pattern among them.

    torch-pruning would take that of the first layer it comes upon.
    """
    groups = pruner.DG.get_all_groups(
        ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types
    )
    for group in groups if own else ():
        members = [
            item.dep.target.module
            for item in group
            if item.dep.target.module in own and pruner.DG.is_out_channel_pruning_fn(item.dep.handler)
        ]
        if members:
            longest = max(members, key=lambda layer: own[layer][0])
            share = pruner.pruning_ratio_dict[longest]
            pruner.pruning_ratio_dict |= dict.fromkeys(members, share)


def _planned(model: nn.Module, network: Network) -> Network:
    """Describe the pruned model, and prove that the description and the weights give it back."""
    rebuilt = network.unpruned()
    change = plans.plan(rebuilt, model)
    plans.apply(rebuilt, change)
    rebuilt.load_state_dict(model.state_dict())
    pictures = _pictures(network)
    with torch.no_grad():
        wanted, found = model(pictures), rebuilt(pictures)
    near = 1e-5 * float(wanted.abs().max())
    if not torch.allclose(found, wanted, rtol=1e-4, atol=near, equal_nan=True):
        raise BackboneError(
            f"'{network.architecture}' does not answer alike when rebuilt from its channel plan"
        )
    return network.model_copy(update={"plan": change})


def _pictures(network: Network) -> Tensor:
    """Two made-up pictures, [2, 3, height, width]."""
    size = (2, 3, network.preprocess.height, network.preprocess.width)
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


def _check_finite(model: nn.Module) -> None:
    for name, value in model.named_parameters():
        if not torch.isfinite(value).all():
            raise BackboneError(
                f"the weights of '{name}' are not finite, the network before pruning is broken"
            )


@contextmanager
def _suited(network: Network) -> Iterator[None]:
    """Say plainly that an architecture cannot be pruned, whatever torch-pruning stumbled over."""
    try:
        yield
    except _UNSUITED as error:
        raise BackboneError(
            f"'{network.architecture}' cannot be pruned ({type(error).__name__}: {first_line(error)}): take out the "
            "prune step, leave the layers concerned alone with its 'ignore', or take another family "
            "(ResNet, MobileNet, EfficientNet, ConvNeXt, RepVGG, ViT)"
        ) from error


def _nothing(network: Network, pruning: Pruning) -> str:
    why = f"ratio {pruning.ratio} with round_to {pruning.round_to} leaves every layer as it is"
    if pruning.importance == "bn_scale":
        why += ", or it has no batch normalisation, which 'bn_scale' needs"
    return f"nothing of '{network.architecture}' was pruned: {why}"
