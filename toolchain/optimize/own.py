"""Variants of the recipe with steps that the search makes nothing of by itself, which are tried as they are."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from toolchain.choose import BASE
from toolchain.optimize.design import COMPOSED
from toolchain.recipe import TRUNK, Recipe, Variant, needs
from toolchain.steps import FallBack, Qat, Quantize, Recover, WeightOnly

INTEGERS = (FallBack, Qat, Quantize, WeightOnly)  # no way to be fast on CUDA (search.WAYS)
TRAININGS = (Qat, Recover)


def own_variants(recipe: Recipe, provider: str) -> dict[str, Variant]:
    """By name, each as one chain from fp32 or `tuned` on.

    Left out: other providers' variants, adopted files, other networks and teachers, on CUDA integers and what is laid
    out for a processor, and what consists of steps that designs are made of.
    """
    found: dict[str, Variant] = {}
    for name, variant in recipe.for_providers([provider])[0].variants.items():
        whole = flattened(recipe, variant, until={BASE})
        known = name == BASE or all(isinstance(step, COMPOSED) for step in whole.steps)
        unfit = provider == "cuda" and any(step.ends or isinstance(step, INTEGERS) for step in whole.steps)
        if not known and not unfit and whole.adopt is None and needs(whole) <= {BASE, TRUNK}:
            found[name] = whole
    return found


def flattened(recipe: Recipe, variant: Variant, until: AbstractSet[str] = frozenset()) -> Variant:
    """A variant as one chain from where the first of those that it is made from starts; from an adopted file, or one of
    `until`, where there is one on the way."""
    whole = variant
    while whole.source is not None and whole.source in recipe.variants.keys() - until:
        before = recipe.variants[whole.source]
        if before.adopt is not None:
            break
        whole = whole.model_copy(update={"source": before.source, "steps": (*before.steps, *whole.steps)})
    return whole


def is_trained(variant: Variant) -> bool:
    """Whether a step of it trains."""
    return any(isinstance(step, TRAININGS) for step in variant.steps)
