"""From a recipe's text to plain values: YAML (read here only), environment variables, `--set`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from toolchain.errors import RecipeError
from toolchain.record import JSON


class _Loader(yaml.SafeLoader):
    """YAML's safe loader that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a setting's name must be plain text (quote a value that starts with { or [)",
                    key.start_mark,
                )  # fmt: skip
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key.value}' is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


RECIPE = "a recipe is a mapping (name:, data:, variants:, …), this is not"


def parse(path: Path, otherwise: str = RECIPE, *, empty: bool = False) -> dict[str, JSON]:
    """Read a YAML file whose outermost value is a mapping; RecipeError naming the line of what is wrong.

    otherwise: what to say when it is no mapping. empty: a file without a line, or of comments alone, is an empty one.
    """
    try:
        raw = _value(path.read_text(encoding="utf-8"), path.name)
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path.name}: not readable as YAML, it is no UTF-8 text ({error.reason})"
        ) from None
    if raw is None and empty:
        return {}
    if not isinstance(raw, dict):
        raise RecipeError(f"{path.name}: {otherwise}")
    return raw


def _value(text: str, source: str) -> JSON:
    """What a YAML text says; RecipeError naming the line."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{source}{line}: not readable as YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a 13th month
        raise RecipeError(f"{source}: not readable as YAML: {' '.join(str(error).split())}") from None


_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def expand(raw: Mapping[str, JSON]) -> dict[str, JSON]:
    """Replace `${NAME}` and `${NAME:-default}` in every string; RecipeError for a variable that is not set."""
    try:
        return {key: _expand(item, str(key)) for key, item in raw.items()}
    except RecursionError:
        raise RecipeError("an anchor (&name) of the recipe is used within itself: write it out") from None


def _expand(value: JSON, path: str) -> JSON:
    if isinstance(value, Mapping):
        return {key: _expand(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replaced(match: re.Match[str]) -> str:
        found = os.environ.get(match[1]) or match[2]
        if found is None:
            raise RecipeError(f"{path}: the environment variable {match[1]} is not set; export {match[1]}=…")
        return found

    return _VARIABLE.sub(replaced, value)


def set_value(raw: dict[str, JSON], override: str, example: str = "tune.epochs=3") -> None:
    """Set one value of the raw recipe: path=value, with names and [index] in the path, the value in YAML.

    Raises RecipeError when it is not of that form, or the recipe has no such place.
    """
    path, equals, text = override.partition("=")
    parts = re.findall(r"[^.\[\]]+", path)
    if not equals or not parts:
        raise RecipeError(f"--set {override}: write it as path=value, e.g. --set {example}")
    if not text.strip():
        raise RecipeError(
            f"--set {override}: there is no value; write null to take the setting away, '' for no text"
        )
    here: JSON = raw
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        key: int | str = int(part) if isinstance(here, list) and part.isdigit() else part
        if isinstance(here, list) and (not isinstance(key, int) or key >= len(here)):
            raise RecipeError(f"--set {path}: the list has {len(here)} items, '{part}' is none of them")
        if not isinstance(here, dict | list):
            raise RecipeError(f"--set {path}: '{parts[depth - 1]}' is a plain value and has no '{part}'")
        if last:
            here[key] = _value(text, f"--set {override}")  # type: ignore[index]
        elif isinstance(here, dict):
            here = here.setdefault(str(key), {})
        else:
            here = here[key]  # type: ignore[index]
