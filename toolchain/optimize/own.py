"""Variants of the recipe that the search would not come to by itself: tried as they are, so that it ends behind no run."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from toolchain.choose import BASE
from toolchain.recipe import TRUNK, Recipe, Variant, needs
from toolchain.steps import (
    Activations,
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
    WeightOnly,
)

# What designs are made of (design.py): with other settings, the search comes to these.
COMPOSED = (
    Activations, Export, FallBack, FoldGates, Half, Join, Narrow, Prune, Qat, Quantize, Recover, Rescale,
)  # fmt: skip

INTEGERS = (FallBack, Qat, Quantize, WeightOnly)  # no way to be fast on CUDA (search.WAYS)


def own_variants(recipe: Recipe, provider: str) -> dict[str, Variant]:
    """By name, each as one chain from fp32 or `tuned` on.

    Left out: other providers' variants, adopted files, other networks, integers on CUDA, and what designs are made of
    anyway.
    """
    found: dict[str, Variant] = {}
    for name, variant in recipe.for_providers([provider])[0].variants.items():
        whole = flattened(recipe, variant, until={BASE})
        known = name == BASE or all(isinstance(step, COMPOSED) for step in whole.steps)
        slow = provider == "cuda" and any(isinstance(step, INTEGERS) for step in whole.steps)
        if not known and not slow and whole.adopt is None and needs(whole) <= {BASE, TRUNK}:
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
