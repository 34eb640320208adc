"""Turn pydantic's findings into sentences with YAML paths and a guess at what was meant."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from toolchain.step import Step

# What pydantic calls the branches of a setting of several types.
_TYPE = re.compile(r"constrained-\w+|bool|(tuple|dict|list|literal|lax-or-strict|function-\w+)\[.*")


def nearest(word: str, known: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" when something known is close to `word`, else nothing."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def behind_the_end(
    variants: Mapping[str, tuple[str | None, Sequence[Step]]], providers: Collection[str]
) -> Iterator[str]:
    """One sentence for each variant that goes on behind a step which ends it (Step.ends), or is measured on CUDA then.

    variants: what each is made from, and its steps.
    """
    ended = {name: steps[-1].step for name, (_, steps) in variants.items() if steps and steps[-1].ends}
    for name, (source, steps) in variants.items():
        for index, step in enumerate(steps[:-1]):
            if step.ends:
                yield f"variants.{name}.steps[{index}] '{step.step}': nothing can come behind it, put it last"
        roles = {getattr(step, role) for step in steps for role in step.takes if role != "model"}
        for used in sorted({str(source), *roles} & ended.keys()):
            yield f"variants.{name}: nothing can be made from '{used}', for it ends with '{ended[used]}'"
    for name in ended.keys() if "cuda" in providers else ():
        yield f"variants.{name}: '{ended[name]}' makes files for the CPU, and measure.providers names 'cuda'"


def problems(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One sentence for each setting in question, with the path as the recipe's author wrote it."""
    found: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        sentence = _sentence(item, model)
        found.setdefault(_path(_written(item["loc"])), []).append(sentence)
    # A setting that may be one of several types has a problem with each of them; the deeper one is of the
    # type that was meant.
    return [
        first + "".join(f", or {other.removeprefix(f'{path}: ')}" for other in others)
        for path, (first, *others) in found.items()
        if not any(deeper.startswith((f"{path}.", f"{path}[")) for deeper in found if path)
    ]


def _written(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The location without the types that pydantic puts into it where several are possible."""
    return tuple(part for part in location if isinstance(part, int) or not _TYPE.fullmatch(part))


def _sentence(item: ErrorDetails, model: type[BaseModel]) -> str:
    path, kind, given = _path(_written(item["loc"])), item["type"], item.get("input")
    context = item.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{path}: unknown setting{nearest(str(item['loc'][-1]), _fields(model, item['loc'][:-1]))}"
    if kind == "missing":
        return f"{path}: missing"
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        named = str(context.get("tag") or given)
        if isinstance(given, dict) and "step" not in given:
            return f"{path}: a step is its name, or one name with its settings: {{prune: {{ratio: 0.5}}}}"
        known = [name.strip(" '") for name in str(context.get("expected_tags", "")).split(",")]
        listed = f"; known: {', '.join(known)}" if any(known) else ""
        return f"{path}: unknown step '{named}'{nearest(named, known)}{listed}"
    message = item["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if kind == "value_error" or isinstance(given, dict | list) or not path:
        return f"{path}: {message}".removeprefix(": ")
    return f"{path}: {message}, not {given!r}"


def _path(location: tuple[int | str, ...]) -> str:
    """variants.int8.steps[0].quantize.bits from pydantic's location (the step's tag names the step)."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part != "[key]":
            text += f".{part}" if text else str(part)
    return text


def _fields(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The settings known at a location, to guess from."""
    here: list[Any] = [model]
    for part in location:
        here = [below for kind in here for below in _below(kind, part)]
    names = []
    for kind in _models(here):
        names += [field.alias or name for name, field in kind.model_fields.items() if name != "step"]
    return names


def _below(kind: Any, part: int | str) -> list[Any]:
    """The types one location part further down."""
    models = _models([kind])
    if isinstance(part, int) or not models:
        return list(get_args(kind)) or [kind]
    tagged = [m for m in models if "step" in m.model_fields and m.model_fields["step"].default == part]
    if tagged:
        return list(tagged)
    fields = [f for m in models for n, f in m.model_fields.items() if part in (n, f.alias)]
    return [field.annotation for field in fields] or models


def _models(kinds: Iterable[Any]) -> list[type[BaseModel]]:
    """All model classes inside annotations (unions, tuples, dictionaries, Annotated)."""
    found: list[type[BaseModel]] = []
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found.append(kind)
        elif get_origin(kind) is not None:
            found += _models(get_args(kind))
    return found
