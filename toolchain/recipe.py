"""Recipes: what may stand in one, and what it means. Names and lists, no logic; every problem is told with its path.

    name: surface-inspection
    data: {folder: ./tiles}
    backbone: {timm: mobilenetv2_100, weights: ./mobilenetv2.safetensors}
    tune: {epochs: 20, optimizer: adamw}             # makes the artifact `tuned`
    variants:
      fp32:   {from: tuned, steps: [export]}
      int8:   {from: fp32,  steps: [quantize]}
      pruned: {from: tuned, steps: [{prune: {ratio: 0.5}}, {recover: {teacher: tuned}}, export]}

Paths are relative to the recipe's folder; `${NAME}` and `${NAME:-default}` take environment variables
(quote them inside braces: {folder: "${PICTURES}"}).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolchain.artifact import Form
from toolchain.backbones.settings import Backbone
from toolchain.data.settings import DataSettings
from toolchain.errors import RecipeError
from toolchain.measure.settings import Measure
from toolchain.recipe_problems import behind_the_end, nearest, problems
from toolchain.recipe_text import expand, parse, set_value
from toolchain.record import JSON
from toolchain.steps import Adopt, AnyStep, Load, Tune
from toolchain.steps.quantize import Target

TRUNK = "tuned"
LONGEST = 24  # of a network's name, which begins the names of what `optimize` makes of it
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
NetworkName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,23}$")]
Percent = Annotated[float, Field(ge=0, le=100)]
_ModelT = TypeVar("_ModelT", bound=BaseModel)


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Gates(_Settings):
    """What a file must keep to be chosen; decided on val, from the file itself.

    max_drop: points of `metric` that a variant may lose against fp32 on the same pictures (point
    estimate); the bad end of its 95 % interval may lose `max_drop_worst` (2 points more when not given).
    min_top1, min_balanced: percent. min_recall: percent, one figure for all classes or one a class.
    max_latency_ms: median of the plain file on the first provider, thread count and batch measured.
    max_megabytes: size of the fused file (10^6 bytes).
    parity: greatest difference of probabilities between the trained network and the fp32 file; what is beyond the
    export's own `parity_tolerance` ends the run before it comes to gates.
    """

    metric: Literal["top1", "balanced"] = "top1"
    max_drop: float | None = Field(default=1.0, ge=0)
    max_drop_worst: float | None = Field(default=None, ge=0)
    min_top1: float | None = Field(default=None, ge=0, le=100)
    min_balanced: float | None = Field(default=None, ge=0, le=100)
    min_recall: Percent | dict[str, Percent] | None = None
    max_latency_ms: float | None = Field(default=None, gt=0)
    max_megabytes: float | None = Field(default=None, gt=0)
    parity: float = Field(default=1e-3, gt=0)


class Variant(_Settings):
    """A named file: made from another artifact by steps, or taken from a foreign ONNX file.

    provider: make and measure it only where this ONNX Runtime provider is measured (fp16 for cuda).
    intermediate: others are made from it or taught by it; it is neither measured nor shipped.
    """

    source: Name | None = Field(default=None, alias="from")
    steps: tuple[AnyStep, ...] = ()
    adopt: Adopt | None = None
    provider: Literal["cpu", "cuda"] | None = None
    intermediate: bool = False


class Recipe(_Settings):
    """A whole run: data, a trunk (`tuned`) and named variants of it, what to measure, what must hold.

    networks: other networks by name, for variants made `from` them and for `toolchain optimize` to choose among; each
    with its backbone, trained as `tune` says but for what it says itself.
    targets: processors that every quantized file must be right on: those of each `quantize` that names none itself.
    """

    name: Name
    description: str = ""
    seed: int = Field(default=0, ge=0, lt=2**31)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(default=None, ge=1, le=256)
    data: DataSettings
    backbone: Backbone | None = None
    tune: Tune | None = None
    tuned: Load | None = None
    networks: dict[NetworkName, Tune] = {}
    variants: dict[Name, Variant]
    targets: tuple[Target, ...] = ()
    measure: Measure = Measure()
    gates: Gates = Gates()

    @property
    def trunk(self) -> Tune | Load | None:
        """The step that makes `tuned`."""
        return self.tune or self.tuned

    def for_providers(self, providers: Sequence[str]) -> tuple[Recipe, dict[str, str]]:
        """The recipe without the variants of other providers (and what is made from those), and why each is left out."""
        kept, left = dict(self.variants), dict[str, str]()
        while True:
            out = {
                name: f"needs provider {variant.provider}"
                if variant.provider
                else f"made from {variant.source}"
                for name, variant in kept.items()
                if (variant.provider and variant.provider not in providers) or needs(variant) & left.keys()
            }
            if not out:
                return self.model_copy(update={"variants": kept}), left
            left |= out
            kept = {name: variant for name, variant in kept.items() if name not in out}

    def nodes(self) -> dict[str, Node]:
        """Every artifact to make, by name, each after its inputs; networks that no variant needs are not made."""
        found: dict[str, Node] = {}
        if self.trunk is not None:
            found[TRUNK] = Node(TRUNK, self.trunk, {}, None)
        waiting = dict(self.variants)
        wanted = {name for variant in waiting.values() for name in needs(variant)}
        found |= {name: Node(name, net, {}, None) for name, net in self.networks.items() if name in wanted}
        while waiting:
            ready = [name for name, variant in waiting.items() if needs(variant) <= found.keys()]
            for name in ready:
                found.update(_chain(name, waiting.pop(name)))
            if not ready:  # names were checked, so what is left waits for itself
                raise RecipeError(f"variants {', '.join(sorted(waiting))}: each is made from the other")
        return found


@dataclass(frozen=True)
class Node:
    """One artifact of a run. `inputs` maps roles to node names; `variant` is set on a variant's last node."""

    name: str
    step: AnyStep | Load | Tune | Adopt
    inputs: Mapping[str, str]
    variant: str | None


def origin(node: Node, nodes: Mapping[str, Node]) -> Node:
    """What a node's network was at first: `tuned`, another network, or a file that was adopted."""
    while "model" in node.inputs:
        node = nodes[node.inputs["model"]]
    return node


def load(source: str | Path, overrides: Sequence[str] = (), data: Path | None = None) -> Recipe:
    """Read a recipe: a YAML file, or the name of one that comes with the toolchain (`toolchain recipes`).

    overrides: "path=value" settings, values in YAML ("tune.epochs=3", "variants.pruned.steps[0].prune.ratio=0.3").
    data: replaces the recipe's data by this image folder.
    Raises RecipeError listing every problem with its YAML path.
    """
    path = find(source)
    raw = parse(path)
    for override in overrides:
        set_value(raw, override)
    if data is not None:
        raw["data"] = _with_folder(raw.get("data"), data)
    return build(raw, path.parent, path.name)


def build(raw: Mapping[str, JSON], base: Path, title: str = "recipe") -> Recipe:
    """Make a Recipe of parsed YAML. `base` is the folder that relative paths start from."""
    expanded = _long_form(expand(raw))
    try:
        recipe = Recipe.model_validate(expanded)
    except ValidationError as error:
        lines = [_as_written(line, raw) for line in problems(error, Recipe) if not _shared(line, raw)]
        raise RecipeError(_listed(title, list(dict.fromkeys(lines)))) from None
    found = list(_graph_problems(recipe))
    if found:
        raise RecipeError(_listed(title, found))
    return _absolute(recipe, base)


def shipped() -> dict[str, Path]:
    """The recipes that come with the toolchain, by name: of the checkout, or where a wheel put them."""
    checkout = Path(__file__).resolve().parent.parent / "recipes"
    folder = checkout if checkout.is_dir() else Path(sys.prefix, "share", "toolchain", "recipes")
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(source: str | Path) -> Path:
    """The file of a recipe given by path or by shipped name; RecipeError when there is none."""
    path = Path(source)
    if path.is_file():
        return path.resolve()
    ours = shipped()
    if str(source) in ours:
        return ours[str(source)]
    hint = nearest(str(source), ours)
    raise RecipeError(
        f"{source}: no such recipe file, nor a shipped recipe{hint}; 'toolchain recipes' lists those"
    )


def _with_folder(given: JSON, folder: Path) -> JSON:
    """The data section for another image folder; split and duplicate settings stay."""
    kept = given if isinstance(given, dict) else {}
    sources = ("folder", "csv", "root", "source", "groups")
    return {**{k: v for k, v in kept.items() if k not in sources}, "folder": str(folder.resolve())}


def _long_form(raw: Mapping[str, JSON]) -> dict[str, JSON]:
    """Turn the short spellings of steps into the models' fields."""
    full = dict(raw)
    if isinstance(full.get("tune"), dict):
        own = {"backbone": full["backbone"]} if full.get("backbone") is not None else {}
        full["tune"] = {"step": "tune", **own, **full["tune"]}
        if isinstance(full.get("networks"), dict):
            full["networks"] = {n: _long_network(own, full["tune"]) for n, own in full["networks"].items()}
    if isinstance(full.get("tuned"), dict):
        full["tuned"] = {"step": "load", "backbone": full.get("backbone"), **full["tuned"]}
    if isinstance(full.get("variants"), dict):
        targets = full.get("targets") or None
        full["variants"] = {n: _long_variant(variant, targets) for n, variant in full["variants"].items()}
    return full


def _long_network(own: JSON, tune: Mapping[str, JSON]) -> JSON:
    """What `tune` says but for the backbone, and what the network says itself."""
    if not isinstance(own, dict):
        return own
    return {name: value for name, value in tune.items() if name != "backbone"} | own


def _long_variant(variant: JSON, targets: JSON) -> JSON:
    if not isinstance(variant, dict):
        return variant
    full = dict(variant)
    if isinstance(full.get("steps"), list):
        full["steps"] = [_targeted(_long_step(step), targets) for step in full["steps"]]
    if isinstance(full.get("adopt"), dict):
        full["adopt"] = {"step": "adopt", **full["adopt"]}
    return full


def _long_step(step: JSON) -> JSON:
    if isinstance(step, str):
        return {"step": step}
    if isinstance(step, dict) and len(step) == 1:
        name, settings = next(iter(step.items()))
        if settings is None or isinstance(settings, dict):
            return {"step": name, **(settings or {})}
    return step


def _targeted(step: JSON, targets: JSON) -> JSON:
    """A step that quantizes with the recipe's targets, unless it names its own."""
    if not isinstance(step, dict) or targets is None:
        return step
    if step.get("step") == "quantize":
        return {"targets": targets, **step}
    inner = step.get("quantize", {})
    if step.get("step") in ("fall_back", "qat") and isinstance(inner, dict):
        return {**step, "quantize": {"targets": targets, **inner}}
    return step


def _listed(title: str, found: Sequence[str]) -> str:
    if len(found) == 1:
        return f"{title}: {found[0]}"
    return f"{title}: {len(found)} problems" + "".join(f"\n  {line}" for line in found)


def _as_written(line: str, raw: Mapping[str, JSON]) -> str:
    """A problem's sentence with the path where its author gave the backbone, which is a setting of the trunk."""
    for trunk in ("tune", TRUNK):
        given = raw.get(trunk)
        if not (isinstance(given, Mapping) and "backbone" in given) and line.startswith(f"{trunk}.backbone"):
            return line.removeprefix(f"{trunk}.")
    return line


def _shared(line: str, raw: Mapping[str, JSON]) -> bool:
    """Whether a problem of a network's is one of `tune`, and told there."""
    networks = raw.get("networks")
    parts = re.split(r"[.:\[]", line, maxsplit=3)
    if parts[0] != "networks" or len(parts) < 3 or not isinstance(networks, Mapping):
        return False
    own, tune = networks.get(parts[1]), raw.get("tune")
    return isinstance(own, Mapping) and isinstance(tune, Mapping) and parts[2] in tune and parts[2] not in own


def needs(variant: Variant) -> set[str]:
    """Names of the artifacts a variant is made from."""
    names = {variant.source} if variant.source else set()
    return names | {name for step in variant.steps for _, name in _roles(step)}


def _roles(step: AnyStep) -> Iterable[tuple[str, str]]:
    """The inputs of a step besides the one before it: (role, artifact name)."""
    return [(role, str(getattr(step, role))) for role in step.takes if role != "model"]


def _chain(name: str, variant: Variant) -> dict[str, Node]:
    """The nodes of one variant, in order."""
    if variant.adopt is not None:
        return {name: Node(name, variant.adopt, {}, name)}
    nodes, before = {}, str(variant.source)
    for index, step in enumerate(variant.steps):
        last = index == len(variant.steps) - 1
        label = name if last else f"{name}/{index}-{step.step}"
        inputs = {"model": before, **dict(_roles(step))}
        nodes[label] = Node(label, step, inputs, name if last else None)
        before = label
    return nodes


def _graph_problems(recipe: Recipe) -> Iterable[str]:
    """Names that do not exist and steps in an impossible order, each with its path."""
    if recipe.tune and recipe.tuned:
        yield "tune, tuned: give one of them: training settings, or a finished checkpoint"
    if recipe.networks and not recipe.tune:
        yield "networks: there is no 'tune' that says how they are trained"
    for taken in sorted({TRUNK, *recipe.networks} & recipe.variants.keys()):
        yield f"variants.{taken}: '{taken}' is a network's name, take another"
    for taken in {TRUNK, "fp32"} & recipe.networks.keys():
        yield f"networks.{taken}: '{taken}' has a meaning of its own, take another name"
    if "fp32" not in recipe.variants:
        yield "variants.fp32: missing; it is what every other variant is compared with"
    elif recipe.variants["fp32"].provider:
        yield "variants.fp32.provider: every machine makes and measures fp32, leave this out"
    elif recipe.variants["fp32"].intermediate:
        yield "variants.fp32.intermediate: fp32 is what every variant is compared with, leave this out"
    forms = dict.fromkeys([TRUNK] if recipe.trunk else [], Form.TORCH) | dict.fromkeys(
        recipe.networks, Form.TORCH
    )
    forms |= {name: v.steps[-1].gives if v.steps else Form.ONNX for name, v in recipe.variants.items()}
    chains = {name: (variant.source, variant.steps) for name, variant in recipe.variants.items()}
    yield from behind_the_end(chains, recipe.measure.providers)
    for name, variant in recipe.variants.items():
        yield from _variant_problems(f"variants.{name}", variant, forms)


def _variant_problems(path: str, variant: Variant, forms: Mapping[str, Form]) -> Iterable[str]:
    if (variant.adopt is None) == (variant.source is None) or (variant.adopt is not None) == bool(
        variant.steps
    ):
        yield f"{path}: give either 'from' and 'steps', or 'adopt'"
        return
    if variant.adopt is not None:
        return
    source = str(variant.source)
    if source not in forms:
        yield f"{path}.from: there is no artifact '{source}'{nearest(source, forms)}"
        return
    form, before = forms[source], source
    for index, step in enumerate(variant.steps):
        where = f"{path}.steps[{index}] '{step.step}'"
        if step.takes.get("model", form) is not form:
            put = ": put 'export' before it" if form is Form.TORCH else ""
            yield f"{where} takes {step.takes['model']}, but '{before}' is {form}{put}"
            return
        for role, name in _roles(step):
            if name not in forms:
                yield f"{where} {role}: there is no artifact '{name}'{nearest(name, forms)}"
            elif forms[name] is not step.takes[role]:
                yield f"{where} {role}: takes {step.takes[role]}, but '{name}' is {forms[name]}"
        form, before = step.gives, step.step
    if form is not Form.ONNX:
        yield f"{path}: ends as a {form} network: put 'export' at its end"


def _absolute(model: _ModelT, base: Path) -> _ModelT:
    """A copy in which every relative path starts from `base`."""

    def walk(value: Any) -> Any:
        if isinstance(value, Path):
            return base / value.expanduser()
        if isinstance(value, BaseModel):
            return _absolute(value, base)
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return tuple(walk(item) for item in value)
        return value

    changed = {name: walk(value) for name, value in model if name in model.model_fields_set}
    return model.model_copy(update=changed)
