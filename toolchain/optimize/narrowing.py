"""Narrowing: the network without hidden channels that it can do without, its integers trained towards fp32's answers.

For few pictures: what pruning by magnitude breaks has to be learnt again from them; what `narrow` takes out is mostly made
up for before any training (steps/narrow.py), and the rest is learnt from fp32's answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx import ModelProto

from toolchain.calibration.chains import chains
from toolchain.choose import BASE
from toolchain.optimize.design import Design
from toolchain.optimize.own import flattened
from toolchain.recipe import TRUNK, Recipe, Variant, needs
from toolchain.steps import AnyStep, Join, Narrow, Qat

_RATE = 1e-4  # of learning; on two tasks as good as any from 1e-5 to 1e-3


@dataclass(frozen=True)
class Narrowing:
    """The variant that designs of shape "narrow" are: a chain with `narrow` and, behind it, `qat`."""

    whole: Variant

    @property
    def epochs(self) -> int:
        """Epochs for which the integers are trained."""
        return next(step.epochs for step in self.whole.steps if isinstance(step, Qat))

    def fits(self, model: ModelProto) -> bool:
        """Whether there are channels in a network that could go."""
        least = next(
            step.multiple for step in self.whole.steps if isinstance(step, Narrow) and is_whole(step)
        )
        return any(chain.channels > least for chain in chains(model, wide=True))

    def variant(self, design: Design) -> Variant:
        """The chain for a design: narrowed by its ratio; without epochs its integers are not trained."""
        return self.whole.model_copy(update={"steps": tuple(self._steps(design))})

    def _steps(self, design: Design) -> Iterator[AnyStep]:
        for step in self.whole.steps:
            if is_whole(step):
                told = step.model_dump(exclude_unset=True, exclude={"min_sqnr"})
                yield Narrow.model_validate(
                    told | {"step": "narrow", "max_products": round(1 - design.ratio, 2)}
                )
            elif isinstance(step, Qat) and not design.epochs:
                yield step.quantize
            else:
                yield step


def narrowing(recipe: Recipe, qat: Qat, *, own: bool) -> Narrowing:
    """The recipe's own chain, if it has one (and `own`), narrowed otherwise; else `narrow`, `join` and `qat` behind fp32.

    qat: the recipe's, or the usual one, which is for networks that lost little and learns too slowly here.
    """
    for variant in recipe.for_providers(["cpu"])[0].variants.values() if own else ():
        whole = flattened(recipe, variant, until={BASE})
        if whole.adopt is None and needs(whole) <= {BASE, TRUNK} and _is_narrowing(whole):
            return Narrowing(whole)
    learnt = qat if "lr" in qat.model_fields_set else qat.model_copy(update={"lr": _RATE})
    return Narrowing(Variant(source=BASE, steps=(Narrow(), Join(), learnt)))


def is_whole(step: AnyStep) -> bool:
    """Whether a step narrows all of the network, not only layers that it names."""
    return isinstance(step, Narrow) and not step.layers


def _is_narrowing(variant: Variant) -> bool:
    kinds = [isinstance(step, Qat) for step in variant.steps if is_whole(step) or isinstance(step, Qat)]
    return kinds == [False, True]
