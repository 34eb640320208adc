"""`manifest.json`: what a bundle says of itself, read strictly, and the identity of what it answers.

The writer of bundles takes its constants and `identity` from here, so that both sides use one code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolchain.runtime.errors import BundleError
from toolchain.runtime.whole import open_plain

JSON = Any  # what json.dumps takes: None, bool, int, float, str, list, dict[str, JSON]

SCHEMA_VERSION = 1
TASK = "image-classification"
MANIFEST = "manifest.json"
MODEL = "model.onnx"
PLAIN_MODEL = "model.plain.onnx"
GOLDEN = "golden.npz"
MEASURED = "measured.json"
CARD = "MODEL_CARD.md"
NOTICE = "NOTICE"
MINIMUM_ONNXRUNTIME = "1.24.4"  # older ones load external data from outside the model's folder
# Files that tell of the model without changing its answers: hashed, but no part of the identity.
BESIDE = frozenset({MEASURED, CARD, NOTICE})

_SEMANTIC = (
    "task", "labels", "input", "output", "preprocessing", "temperature", "thresholds", "tolerances", "golden",
)  # fmt: skip
_MOST_BYTES = 16 << 20  # of manifest.json
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HUGE = 1e300


@dataclass(frozen=True)
class Port:
    """A model's input or output: numpy's name of its type, and its shape (a name where it varies)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Manifest:
    """A manifest of schema version 1, checked. `raw` is the whole JSON object as read.

    input: pictures, uint8 [N, H, W, 3] RGB; output: probabilities, float32 [N, len(labels)].
    temperature: what probabilities p are tempered with, p^(1/temperature) made to add to 1 again.
    thresholds: {label: least tempered probability at which an answer counts as certain}.
    optimized_for: the machines that a model which ONNX Runtime optimized ahead is for, as `session.optimized_for` words
    it, or None: for all.
    tolerances: {ISA family: largest difference to the golden probabilities}; made_on: theirs.
    files: {path in the folder, with slashes: sha256}.
    """

    name: str
    variant: str
    labels: tuple[str, ...]
    input: Port
    output: Port
    preprocessing: Mapping[str, JSON]
    temperature: float
    thresholds: Mapping[str, float]
    minimum_onnxruntime: str
    optimized_for: str | None
    golden: str
    made_on: str
    tolerances: Mapping[str, float]
    files: Mapping[str, str]
    identity: str
    raw: Mapping[str, JSON]


def identity(manifest: Mapping[str, JSON], files: Mapping[str, str]) -> str:
    """The sha256 that names what a bundle answers, in hex.

    It covers the canonical JSON (sorted keys, no spaces, ASCII) of the manifest's semantic fields and the
    hashes in `files` ({path: sha256}) of everything but BESIDE: models, golden answers, external weights.
    """
    part = {field: manifest[field] for field in _SEMANTIC}
    part["files"] = {name: digest for name, digest in files.items() if name not in BESIDE}
    text = json.dumps(part, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read(folder: Path) -> Manifest:
    """Read and check the manifest of a bundle. Raises BundleError naming the file and field."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder")
    try:
        with open_plain(path) as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise BundleError(f"{path}: more than the {_MOST_BYTES} bytes allowed")
        raw = json.loads(content, parse_constant=_no_number)
    except FileNotFoundError as e:
        raise BundleError(f"{folder}: not a bundle, it has no {MANIFEST}") from e
    except OSError as e:
        raise BundleError(f"{path}: cannot be read ({e.strerror})") from e
    except (ValueError, RecursionError) as e:
        raise BundleError(f"{path}: not JSON ({e})") from e
    return parse(raw, str(path))


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def parse(raw: JSON, where: str) -> Manifest:
    """Check a manifest's JSON and return it typed. Raises BundleError as "where: field …"."""
    fields = _Fields(raw, where)
    version = fields.take("schema_version", _is_int, "a whole number")
    if version != SCHEMA_VERSION:
        raise fields.wrong(
            "schema_version", f"is {version}; this runtime reads {SCHEMA_VERSION}, take a newer one"
        )
    if (task := fields.text("task")) != TASK:
        raise fields.wrong("task", f"is {task!r}; this runtime knows {TASK!r}")
    labels = fields.take("labels", _is_labels, "a list of different names")
    golden = _Fields(fields.take("golden", _is_object, "an object"), f"{where}: golden")
    files = fields.take("files", _is_files, "an object of plain relative paths and their sha256")
    manifest = Manifest(
        name=fields.text("name"),
        variant=fields.text("variant"),
        labels=tuple(labels),
        input=_port(fields, "input"),
        output=_port(fields, "output"),
        preprocessing=fields.take("preprocessing", _is_object, "an object"),
        temperature=float(fields.take("temperature", _is_positive, "a number above 0")),
        thresholds=fields.take("thresholds", _is_numbers, "an object of numbers"),
        minimum_onnxruntime=fields.text("minimum_onnxruntime"),
        optimized_for=fields.text("optimized_for") if fields.has("optimized_for") else None,
        golden=golden.text("file"),
        made_on=golden.text("made_on"),
        tolerances=fields.take("tolerances", _is_numbers, "an object of numbers of at least 0"),
        files=files,
        identity=fields.take("identity", _is_sha256, "a sha256"),
        raw=raw,
    )
    _require_whole(fields, manifest)
    return manifest


def _require_whole(fields: _Fields, manifest: Manifest) -> None:
    """Raise BundleError where a file or a label's threshold is missing."""
    needed = (MODEL, PLAIN_MODEL, manifest.golden)
    if missing := [name for name in needed if name not in manifest.files]:
        raise fields.wrong("files", f"lacks {', '.join(missing)}")
    if missing := [label for label in manifest.labels if label not in manifest.thresholds]:
        raise fields.wrong("thresholds", f"lacks {', '.join(missing)}")


def numbers_of(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, for comparing: "1.31.1.dev2" is (1, 31, 1)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


class _Fields:
    """A JSON object whose fields are taken with a check."""

    def __init__(self, raw: JSON, where: str) -> None:
        if not isinstance(raw, dict):
            raise BundleError(f"{where}: must be a JSON object")
        self._raw: dict[str, JSON] = raw
        self._where = where

    def wrong(self, field: str, what: str) -> BundleError:
        return BundleError(f"{self._where}: field '{field}' {what}")

    def take(self, field: str, fits: Callable[[JSON], bool], kind: str) -> JSON:
        if field not in self._raw:
            raise self.wrong(field, "is missing")
        if not fits(self._raw[field]):
            raise self.wrong(field, f"must be {kind}")
        return self._raw[field]

    def has(self, field: str) -> bool:
        return field in self._raw

    def text(self, field: str) -> str:
        return str(self.take(field, lambda value: isinstance(value, str) and value != "", "a text"))


def _port(fields: _Fields, field: str) -> Port:
    port = _Fields(fields.take(field, _is_object, "an object"), field)
    shape = port.take("shape", _is_shape, "a list of names and numbers")
    return Port(port.text("name"), port.text("dtype"), tuple(shape))


def _is_object(value: JSON) -> bool:
    return isinstance(value, dict)


def _is_int(value: JSON) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: JSON) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_HUGE < value < _HUGE


def _is_positive(value: JSON) -> bool:
    return _is_number(value) and value > 0


def _is_numbers(value: JSON) -> bool:
    return isinstance(value, dict) and all(_is_number(v) and v >= 0 for v in value.values())


def _is_shape(value: JSON) -> bool:
    return isinstance(value, list) and all(isinstance(n, str) or (_is_int(n) and n > 0) for n in value)


def _is_labels(value: JSON) -> bool:
    texts = isinstance(value, list) and all(isinstance(label, str) and label for label in value)
    return texts and len(value) > 0 and len(set(value)) == len(value)


def _is_sha256(value: JSON) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _is_files(value: JSON) -> bool:
    return isinstance(value, dict) and all(_is_plain_path(k) and _is_sha256(v) for k, v in value.items())


def _is_plain_path(name: str) -> bool:
    """Whether a path stays in its folder on any system: relative, with slashes, no `.`, `..`, drive or control code."""
    parts: Sequence[str] = name.split("/")
    return (
        name != MANIFEST
        and name.isprintable()
        and not set("\\:") & set(name)
        and not {"", ".", ".."} & set(parts)
    )
