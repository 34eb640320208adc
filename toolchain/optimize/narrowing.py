"""Narrowing: a network without hidden channels that it can do without, its integers trained towards fp32's answers.

What pruning by magnitude breaks has to be learnt again; what `narrow` takes out is mostly made up for before any training
(steps/narrow.py), and the rest is learnt from fp32's answers. With few pictures that is the difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx import ModelProto

from toolchain.calibration import costs
from toolchain.choose import BASE
from toolchain.optimize.design import Design, changed
from toolchain.optimize.own import flattened
from toolchain.recipe import Recipe, Variant, needs
from toolchain.steps import AnyStep, Join, Narrow, Qat
from toolchain.steps.narrow import narrowable

_RATE = 1e-4  # of learning; on two tasks as good as any from 1e-5 to 1e-3


@dataclass(frozen=True)
class Narrowing:
    """What narrowed designs are: steps with `narrow` and, behind it, `qat`."""

    steps: tuple[AnyStep, ...]

    @property
    def epochs(self) -> int:
        """Epochs for which the integers are trained."""
        return next(step.epochs for step in self.steps if isinstance(step, Qat))

    def reach(self, model: ModelProto, *, inverted: bool = False) -> float:
        """The share of a network's products that makes or reads channels which could go; inverted: of blocks with
        depthwise convolutions, which are widest inside (arXiv:1801.04381)."""
        least = next(step.multiple for step in self.steps if isinstance(step, Narrow) and not step.layers)
        found = [chain for chain in narrowable(model, least) if chain.depthwise or not inverted]
        touched = {
            layer.node.output[0] for one in found for layer in (one.writer, *one.depthwise, one.reader)
        }
        products = costs.products(model)
        return sum(products[name] for name in touched) / max(sum(products.values()), 1)

    def variant(self, design: Design) -> Variant:
        """The steps behind a design's network, narrowed as far as it says; untaught its integers are not trained.

        At another input size fp32 is no teacher, and the network itself is.
        """
        network = design.network
        source = BASE if network == Design() else network.name
        teacher = network.name if design.size else BASE
        return Variant(source=source, steps=tuple(self._changed(design, teacher)))

    def _changed(self, design: Design, teacher: str) -> Iterator[AnyStep]:
        for step in self.steps:
            if isinstance(step, Narrow) and not step.layers:
                told = step.model_dump(exclude_unset=True, exclude={"min_sqnr"})
                share = round(1 - design.narrow, 2)
                yield Narrow.model_validate(told | {"step": "narrow", "max_products": share})
            elif isinstance(step, Qat) and not design.taught:
                yield changed(step.quantize)
            else:
                yield changed(step, **({"teacher": teacher} if "teacher" in step.takes else {}))


def narrowing(recipe: Recipe, qat: Qat, *, own: bool) -> Narrowing:
    """The recipe's own steps, if it has them behind fp32 (and `own`); else `narrow`, `join` and `qat`.

    qat: the recipe's, or the usual one, which is for networks that lost little and learns too slowly here.
    """
    for variant in recipe.for_providers(["cpu"])[0].variants.values() if own else ():
        whole = flattened(recipe, variant, until={BASE})
        if whole.source == BASE and needs(whole) == {BASE} and _narrows(whole):
            return Narrowing(whole.steps)
    learnt = qat if "lr" in qat.model_fields_set else qat.model_copy(update={"lr": _RATE})
    return Narrowing((Narrow(), Join(), learnt))


def _narrows(variant: Variant) -> bool:
    """Whether all of the network is narrowed, once, and the integers are trained behind that."""
    found = [step for step in variant.steps if isinstance(step, Qat | Narrow)]
    return [type(step) for step in found if isinstance(step, Qat) or not step.layers] == [Narrow, Qat]
