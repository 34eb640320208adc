"""The JSON schema of recipes as people write them, for editors (docs/recipe.schema.json)."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, get_args

from toolchain.recipe import Recipe
from toolchain.steps import AnyStep

_STEPS = get_args(get_args(AnyStep)[0])


def recipe_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12): the models' schema with the short spellings of steps put in."""
    schema = Recipe.model_json_schema(by_alias=True)
    models: dict[str, Any] = schema["$defs"]
    for model in models.values():
        model.get("properties", {}).pop("step", None)
    models["Network"] = deepcopy(models["Tune"])
    schema["properties"]["networks"] = _renamed(schema["properties"]["networks"])
    for name in ("Tune", "Load"):
        models[name]["properties"].pop("backbone", None)
        required = [field for field in models[name].get("required", []) if field != "backbone"]
        models[name]["required"] = required
    named = {"type": "string", "pattern": "^bundled/"}
    schema["properties"]["backbone"]["anyOf"].insert(0, named)
    network = models["Network"]["properties"]
    network["backbone"] = {"anyOf": [named, network["backbone"]]}
    models["Variant"]["properties"]["steps"]["items"] = {"anyOf": _spellings(models)}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "toolchain recipe"
    return schema


def _renamed(networks: dict[str, Any]) -> dict[str, Any]:
    """A network has its backbone in itself, where `tune` takes the recipe's."""
    reference = {"$ref": "#/$defs/Network"}
    patterns = dict.fromkeys(networks["patternProperties"], reference)
    return networks | {"patternProperties": patterns, "additionalProperties": False}


def _spellings(models: dict[str, Any]) -> list[dict[str, Any]]:
    """A step is a bare name, or a mapping of one name to its settings."""
    names = {step.__name__: str(step.model_fields["step"].default) for step in _STEPS}
    bare = [name for model, name in names.items() if not models[model].get("required")]
    found: list[dict[str, Any]] = [{"enum": bare}]
    for model, name in names.items():
        found.append(
            {
                "type": "object",
                "properties": {name: {"$ref": f"#/$defs/{model}"}},
                "required": [name],
                "additionalProperties": False,
            }
        )
    return found
