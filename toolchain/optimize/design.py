"""A design: the settings that make one candidate, and the recipe's variant that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from toolchain.artifact import Form
from toolchain.recipe import TRUNK, Recipe, Variant
from toolchain.record import JSON
from toolchain.step import Step
from toolchain.steps import (
    Activations,
    AnyStep,
    Export,
    FallBack,
    FoldGates,
    Half,
    Join,
    Narrow,
    Prune,
    Qat,
    Quantize,
    Recover,
    Rescale,
    Tune,
)
from toolchain.steps.quantize import PERCENTILE, Target

Shape = Literal["table", "uniform"]
Scheme = Literal[
    "fp32", "int8", "int8-stem", "int8-narrow", "int8-adaptive", "int8-percentile", "int8-mixed", "int8-qat", "fp16"
]  # fmt: skip
# The steps that designs are made of.
COMPOSED = (
    Activations, Export, FallBack, FoldGates, Half, Join, Narrow, Prune, Qat, Quantize, Recover, Rescale,
)  # fmt: skip
_LONGEST = 64  # of a variant's name
TOP = 0.95  # the greatest share of a layer's channels that is pruned, unless the recipe says
Widths = Callable[["Design"], Mapping[str, float]]

_StepT = TypeVar("_StepT", bound=Step)


@dataclass(frozen=True)
class Design:
    """One candidate.

    ratio: share of channels to prune from every layer; with shape "table" it says how fast the network shall be,
    namely as one pruned so from every layer, and the latency table says which layers give how much.
    epochs: of recovery. size: the input's side in pixels (None: the recipe's). scheme: how the file is quantized;
    "int8" is the recipe's own settings, "int8-stem" the same with the stem the other way round (float, or integer).
    narrow: the share of the products that `narrow` takes from that network; taught: epochs for which its integers are then
    trained (narrowing.py). relu: activations without integer kernels are replaced (steps/activations.py). backbone: the
    name of another of the recipe's networks; none is `tuned`, whose own fp32 everything is compared with. own: the
    recipe's variant of this name as it is (own.py); all else is then as fp32 has it.
    """

    ratio: float = 0.0
    shape: Shape = "uniform"
    importance: str = ""
    size: int | None = None
    epochs: int = 0
    scheme: Scheme = "fp32"
    relu: bool = False
    backbone: str = ""
    own: str = ""
    narrow: float = 0.0
    taught: int = 0

    @property
    def name(self) -> str:
        """The variant's name: `small-s96-relu-t50-e8-int8`, `s96-t50-e8-n60-e6-int8-qat`, `own-pruned-int8`."""
        if self.own:
            return f"own-{self.own}"[:_LONGEST]
        parts = [self.backbone] if self.backbone else []
        parts += [f"s{self.size}"] if self.size else []
        parts += ["relu"] if self.relu else []
        if self.ratio:
            parts.append(f"{self.shape[0]}{round(100 * self.ratio)}")
            parts += [self.importance.replace("_", "-")] if self.importance else []
        parts += [f"e{self.epochs}"] if self.epochs else []
        parts += [f"n{round(100 * self.narrow)}"] if self.narrow else []
        parts += [f"e{self.taught}"] if self.taught else []
        return "-".join([*parts, self.scheme])

    @property
    def network(self) -> Design:
        """The network in float that the file is made from, before it is narrowed."""
        return replace(self, scheme="fp32", narrow=0.0, taught=0)

    @property
    def whole(self) -> Design:
        """The backbone as it was tuned, or with its activations replaced, in float."""
        return Design(relu=self.relu, backbone=self.backbone)

    @property
    def narrowed(self) -> bool:
        """Whether `narrow` makes it smaller, as far as it says."""
        return self.narrow > 0

    @property
    def trained(self) -> bool:
        """Whether it needs training of its own."""
        return self.epochs > 0 or self.taught > 0

    @property
    def untrained(self) -> Design:
        """The same without training: what takes as long to answer."""
        return replace(self, epochs=0, taught=0)


class Template:
    """The steps that designs are made of: those of the recipe where it has them, with what a design changes.

    What the recipe does to fp32 beside its export (another size before it, `join` behind it) is done to every design.
    """

    def __init__(
        self, recipe: Recipe, max_drop: float | None, targets: Sequence[Target] = (), backbone: str = ""
    ) -> None:
        """targets: processors that every candidate must be right on, in place of the recipe's where given.
        backbone: what all designs start from; settings that name layers of the recipe's own are left out for another.
        """
        self._trunk = backbone or TRUNK
        self.fp32 = recipe.variants["fp32"]
        self.trainable = recipe.trunk is not None and self.fp32.source == TRUNK
        self._before = [step for step in self.fp32.steps if step.gives is Form.TORCH]
        self._after = [step for step in self.fp32.steps if step.takes.get("model") is Form.ONNX]
        own = (step for step in self.fp32.steps if isinstance(step, Export))
        self.export = next(own, None) or _first(recipe, Export) or Export()
        self.prune = _first(recipe, Prune) or Prune()
        self.most = self.prune.max_ratio if "max_ratio" in self.prune.model_fields_set else TOP
        pruned = {"ratios": bool(self.prune.ratios), "scope": self.prune.scope != "uniform"}
        # What the recipe says and the search decides instead.
        self.chooses = [f"prune.{name}" for name, told in pruned.items() if told and self.trainable]
        self.prune = changed(self.prune, probe=0)  # once a search is enough, see Trials.sensitivity
        self.recover = _first(recipe, Recover) or _recover(recipe)
        # One for some layers only (a stem) is no way to make the network smaller.
        self.narrow = _first(recipe, Narrow, lambda step: not step.layers) or Narrow()
        self.quantize = _quantize(recipe, targets or recipe.targets)
        if self.quantize.scheme == "dynamic":  # which knows none of the ways that are tried
            self.quantize = changed(self.quantize, scheme="auto")
            self.chooses.append("quantize.scheme")
        if backbone:
            self._before = [_of(step, backbone) for step in self._before]
            self._after = [_of(step, backbone) for step in self._after]
            self.prune, self.recover = _of(self.prune, backbone), _of(self.recover, backbone)
            self.quantize = _of(self.quantize, backbone)
        self.qat = _qat(recipe, self.quantize, self.recover)
        self._agreement = max(90.0, 100.0 - (1.0 if max_drop is None else max_drop))

    def variant(self, design: Design, widths: Widths) -> Variant:
        """The recipe's variant for a design. widths: shares by layer for designs of shape "table"."""
        steps: list[AnyStep] = [*self._network(design, widths)]
        if not steps and self._trunk == TRUNK:
            return Variant(source="fp32", steps=tuple(changed(step) for step in self._scheme(design)))
        made = (*self._before, *steps, self.export, *self._after, *self._scheme(design))
        return Variant(source=self._trunk, steps=tuple(changed(step) for step in made))

    def _network(self, design: Design, widths: Widths) -> Iterator[AnyStep]:
        if design.size:
            yield Rescale(size=design.size)
        if design.relu:
            yield Activations(timed=False)
        if design.ratio:
            ratios: dict[str, JSON] = dict(widths(design)) if design.shape == "table" else {}
            changes: dict[str, JSON] = {"ratio": design.ratio, "scope": "uniform", "ratios": ratios}
            if design.importance:
                changes["importance"] = design.importance
            # What the latency table is measured on is smaller still than what may be proposed.
            yield changed(self.prune, max_ratio=max(self.most, design.ratio), **changes)
        if design.epochs:
            warmup = min(self.recover.warmup_epochs, 0.2 * design.epochs)
            yield changed(self.recover, epochs=design.epochs, warmup_epochs=warmup)

    def _scheme(self, design: Design) -> Iterator[AnyStep]:
        if design.relu and design.scheme not in ("fp32", "fp16"):
            yield FoldGates(timed=False)
        match design.scheme:
            case "int8":
                yield self.quantize
            case "int8-stem":
                yield changed(self.quantize, float_stem=not self.quantize.float_stem)
            case "int8-narrow":
                yield from (self.narrow, Join(), self.quantize)
            case "int8-adaptive":
                signed = {"weight": "s8", "percentile": PERCENTILE}
                yield changed(self.quantize, calibration="mse", rounding="adaptive", **signed)
            case "int8-percentile":
                yield changed(self.quantize, calibration="percentile")
            case "int8-mixed":
                # Layers fall back between roundings, and the head would be fitted to a network that is not shipped.
                rounds = changed(self.quantize, float_products=False, refit_head=False)
                yield FallBack(quantize=rounds, min_agreement=self._agreement)
            case "int8-qat":
                yield self.qat
            case "fp16":
                yield Half()
            case "fp32":
                return


def _of(step: _StepT, backbone: str) -> _StepT:
    """A step of the recipe for another backbone: no patterns of layers, and the teacher is the backbone itself."""
    changes: dict[type[Step], dict[str, JSON]] = {
        Prune: {"ignore": [], "ratios": {}}, Recover: {"teacher": backbone}, Activations: {"keep": []},
        Quantize: {"exclude": [], "operators": None, "refit_head": False},
    }  # fmt: skip
    if isinstance(step, Quantize):
        changes[Quantize]["float_products"] = bool(step.float_products)
    return changed(step, **changes.get(type(step), {}))


def _first(
    recipe: Recipe, kind: type[_StepT], wanted: Callable[[_StepT], bool] = lambda _: True
) -> _StepT | None:
    steps = (step for variant in recipe.variants.values() for step in variant.steps)
    return next((step for step in steps if isinstance(step, kind) and wanted(step)), None)


def _quantize(recipe: Recipe, targets: Sequence[Target]) -> Quantize:
    """The recipe's quantization, right on the targets."""
    own = _first(recipe, Quantize) or Quantize()
    return changed(own, targets=tuple(targets), weight_bits="auto") if targets else own


def _qat(recipe: Recipe, quantize: Quantize, recover: Recover) -> Qat:
    """Training of the integers: the recipe's, or short and with the pictures as recovery has them."""
    own = _first(recipe, Qat) or Qat(teacher="fp32", augment=recover.augment, batch_size=recover.batch_size)
    trainable = {"scheme": "static", "weight": "s8"}
    integers = quantize.model_dump(exclude_unset=True, exclude={"step"}) | trainable
    return changed(own, teacher="fp32", quantize={"step": "quantize", **integers})


def _recover(recipe: Recipe) -> Recover:
    """Recovery for a recipe that has none: as it was tuned, all of the network."""
    if not isinstance(recipe.tune, Tune):
        return Recover(teacher=TRUNK, epochs=10)
    same = recipe.tune.model_dump(exclude_unset=True, include=set(Recover.model_fields) - {"step", "train"})
    return Recover.model_validate({**same, "teacher": TRUNK})


def changed(step: _StepT, **changes: JSON) -> _StepT:
    """The step with other settings, checked; its name counts as given, so that it is written into recipes."""
    return type(step).model_validate({**step.model_dump(exclude_unset=True), "step": step.step, **changes})
