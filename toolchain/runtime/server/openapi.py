"""The server's OpenAPI 3.0 description, as it is served at /openapi.json."""

from __future__ import annotations

from typing import Any

from toolchain.runtime.server.engine import Loaded
from toolchain.runtime.server.protocol import datatype, shape

_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}


def description(served: Loaded, guarded: bool) -> dict[str, Any]:
    """Describe what is served now; `guarded`: whether a bearer token is needed."""
    model = f"/v2/models/{{model}}/versions/{served.version}"
    name = {
        "name": "model",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "enum": [served.name]},
    }
    paths: dict[str, Any] = {
        "/v2/health/live": {"get": _get("Whether the process answers")},
        "/v2/health/ready": {"get": _get("Whether requests are taken")},
        "/v2": {"get": _get("The server's metadata")},
        "/metrics": {"get": _get("Counters for Prometheus", "text/plain")},
        "/predict": {"post": _post("Classify one picture file", "application/octet-stream", _BYTES)},
    }
    for at in (model, "/v2/models/{model}"):
        paths[at] = {"get": _get("The model's metadata"), "parameters": [name]}
        paths[f"{at}/ready"] = {"get": _get("Whether the model answers"), "parameters": [name]}
        infer = _post("Ask the model for arrays", "application/json", _infer(served))
        paths[f"{at}/infer"] = {"post": infer, "parameters": [name]}
    found: dict[str, Any] = {
        "openapi": "3.0.3",
        "info": {"title": f"Open Inference Protocol v2 for {served.name}", "version": served.version},
        "paths": paths,
    }
    if guarded:
        found["components"] = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
        found["security"] = [{"token": []}]
    return found


_BYTES = {"type": "string", "format": "binary"}


def _infer(served: Loaded) -> dict[str, Any]:
    port = served.bundle.manifest.input
    dimensions = {"type": "array", "items": {"type": "integer", "minimum": 1}, "example": shape(port)}
    given = {
        "name": {"type": "string", "enum": [port.name]},
        "datatype": {"type": "string", "enum": [datatype(port)]},
        "shape": {**dimensions, "minItems": len(port.shape), "maxItems": len(port.shape)},
        "data": {"type": "array", "items": {}},
        "parameters": {"type": "object"},
    }
    one = {"type": "object", "required": ["name", "datatype", "shape"], "properties": given}
    fields = {
        "id": {"type": "string"},
        "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": one},
        "outputs": {"type": "array", "maxItems": 1, "items": {"type": "object"}},
        "parameters": {"type": "object"},
    }
    return {"type": "object", "required": ["inputs"], "properties": fields}


def _get(what: str, kind: str = "application/json") -> dict[str, Any]:
    return {"summary": what, "responses": _responses(kind)}


def _post(what: str, kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    body = {"required": True, "content": {kind: {"schema": schema}}}
    return {"summary": what, "requestBody": body, "responses": _responses("application/json")}


def _responses(kind: str) -> dict[str, Any]:
    refused = {"description": "refused, with a sentence", "content": {"application/json": {"schema": _ERROR}}}
    return {"200": {"description": "answered", "content": {kind: {}}}, "4XX": refused, "503": refused}
