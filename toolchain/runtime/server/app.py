"""The ASGI application: which path is answered by what, and how refusals are told."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolchain.runtime.errors import ModelError, PictureError, ToolchainError
from toolchain.runtime.pictures import decode
from toolchain.runtime.server import body, openapi, protocol
from toolchain.runtime.server.engine import Engine, Loaded
from toolchain.runtime.server.metrics import CONTENT_TYPE, Metrics
from toolchain.runtime.server.refusals import RefusedError, busy
from toolchain.runtime.server.settings import Settings

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_JSON, _HTML = "application/json", "text/html; charset=utf-8"
_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/ready|/infer)?")
_OPEN = frozenset({"page", "live", "ready"})  # answered without a token: they tell nothing of the model
_PLAIN = {
    "/": "page", "/v2": "server", "/v2/health/live": "live", "/v2/health/ready": "ready", "/metrics": "metrics",
    "/openapi.json": "openapi", "/predict": "predict",
}  # fmt: skip
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src blob:; connect-src 'self'; frame-ancestors 'none'"
}


@dataclass(frozen=True)
class Request:
    """One request: the route's name, the model it names if any, its headers, and its body as it arrives."""

    route: str
    model: str | None
    version: str | None
    headers: Mapping[bytes, bytes]
    incoming: body.Incoming

    def header(self, name: bytes) -> str | None:
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")


@dataclass(frozen=True)
class Response:
    """What goes back."""

    content: bytes
    kind: str = _JSON
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class App:
    """Answers requests with an engine; every request is counted in `metrics`."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.metrics = Metrics()
        self._engine = engine
        self._limits = settings.limits
        self._reader = body.Reader(settings.limits)
        self._token = None if settings.token is None else settings.token.encode()
        self._page = Path(__file__).with_name("page.html").read_bytes()
        self._routes = {
            "page": self._show_page, "live": self._live, "ready": self._ready, "server": self._server,
            "metrics": self._show_metrics, "openapi": self._openapi, "model": self._model,
            "model_ready": self._ready, "infer": self._infer, "predict": self._predict,
        }  # fmt: skip

    async def __call__(self, scope: MutableMapping[str, Any], receive: body.Receive, send: Send) -> None:
        """ASGI 3, http only."""
        start = time.perf_counter()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        incoming = body.Incoming(receive, headers)
        route = "other"
        try:
            request = _request(scope, headers, incoming)
            route = request.route
            response = await self._answer(request)
        except body.GoneError:
            self.metrics.aborted += 1
            return
        except RefusedError as e:
            response = _refusal(e)
        except ToolchainError as e:  # of the bundle, not of the request
            print(f"Error: {e}", file=sys.stderr, flush=True)
            response = _refusal(RefusedError(500, "the server failed; its log says why"))
        self.metrics.answered(route, response.status, time.perf_counter() - start)
        # What is left of a body is never read: no client can keep a connection by trickling it.
        await _send(send, response, head=scope["method"] == "HEAD", last=not incoming.whole)

    async def refuse(self, scope: MutableMapping[str, Any], receive: body.Receive, send: Send) -> None:
        """What answers instead of `__call__` when there are too many connections (ASGI 3)."""
        response = _refusal(busy("too many connections are open; try again"))
        self.metrics.answered("other", response.status, 0.0)
        await _send(send, response, head=scope["method"] == "HEAD", last=True)

    async def _answer(self, request: Request) -> Response:
        if request.route not in _OPEN:
            self._check_token(request)
        served = self._engine.current
        if request.model is not None:
            served.check(request.model, request.version)
        return await self._routes[request.route](request, served)

    def _check_token(self, request: Request) -> None:
        scheme, _, given = request.headers.get(b"authorization", b"").partition(b" ")
        if self._token is not None and not (
            hmac.compare_digest(given.strip(), self._token) and scheme.lower() == b"bearer"
        ):
            raise RefusedError(
                401,
                "this server wants the header 'Authorization: Bearer TOKEN'",
                {"www-authenticate": "Bearer"},
            )

    async def _show_page(self, request: Request, served: Loaded) -> Response:
        return Response(self._page, _HTML, headers=_PAGE_HEADERS)

    async def _live(self, request: Request, served: Loaded) -> Response:
        return _json({"live": True})

    async def _ready(self, request: Request, served: Loaded) -> Response:
        if self._engine.draining:
            raise busy("the server is stopping")
        return _json({"ready": True})

    async def _server(self, request: Request, served: Loaded) -> Response:
        return _json({"name": "toolchain", "version": version(), "extensions": ["binary_tensor_data"]})

    async def _show_metrics(self, request: Request, served: Loaded) -> Response:
        engine = self._engine
        gauges = {"held_requests": engine.held, "workers": engine.workers, "session_threads": engine.threads}
        return Response(self.metrics.text(gauges, served.name, served.version).encode(), CONTENT_TYPE)

    async def _openapi(self, request: Request, served: Loaded) -> Response:
        return _json(openapi.description(served, self._token is not None))

    async def _model(self, request: Request, served: Loaded) -> Response:
        declared = served.bundle.manifest
        ports = {"inputs": declared.input, "outputs": declared.output}
        rows = {
            key: [{"name": p.name, "datatype": protocol.datatype(p), "shape": protocol.shape(p)}]
            for key, p in ports.items()
        }
        about = {"name": served.name, "versions": [served.version], "platform": "onnxruntime_onnx"}
        return _json({**about, **rows})

    async def _infer(self, request: Request, served: Loaded) -> Response:
        return await self._with_body(request, lambda content: self._ask(request, served, content))

    async def _predict(self, request: Request, served: Loaded) -> Response:
        if (request.header(b"content-type") or "").startswith("multipart/"):
            raise RefusedError(415, "post the picture's bytes as the body: curl --data-binary @picture.jpg")
        return await self._with_body(request, lambda content: self._classify(served, bytes(content)))

    async def _with_body(self, request: Request, work: Callable[[bytes | bytearray], Response]) -> Response:
        """Read the body, then unpack it and work on it in a worker, so that the event loop stays free."""
        raw = await self._reader.read(request.incoming)
        encoding = request.header(b"content-encoding") or ""
        try:
            return await self._engine.do(lambda: work(body.unpack(raw, encoding, self._limits.unpacked)))
        except ModelError as e:
            print(f"Error: {e}", file=sys.stderr, flush=True)
            raise RefusedError(400, "the model cannot answer for an input of this shape") from e
        except MemoryError as e:
            raise busy("this request needs more memory than there is now") from e
        finally:
            self._reader.release(raw)

    def _ask(self, request: Request, served: Loaded, content: bytes | bytearray) -> Response:
        declared = served.bundle.manifest
        length = request.header(b"inference-header-content-length")
        asked = protocol.parse(content, length, declared, self._limits)
        if asked.array.ndim == 4:
            served.require_shape(asked.array.shape[1], asked.array.shape[2], self._limits.pixels)
        with self._engine.room.take(protocol.pixels(asked.array)):
            output = served.session.run({declared.input.name: asked.array})[0]
        about = {"model_name": served.name, "model_version": served.version}
        content, length_back = protocol.answer(asked, output, declared.output, about)
        if length_back is None:
            return Response(content)
        headers = {"inference-header-content-length": str(length_back)}
        return Response(content, "application/octet-stream", headers=headers)

    def _classify(self, served: Loaded, content: bytes) -> Response:
        start = time.perf_counter()
        with ExitStack() as held:
            try:
                picture = decode(
                    content,
                    name="the picture",
                    max_pixels=self._limits.pixels,
                    before=lambda pixels: held.enter_context(self._engine.room.take(pixels)),
                )
            except PictureError as e:
                raise RefusedError(400, str(e)) from e
            served.require_shape(picture.shape[0], picture.shape[1], self._limits.pixels)
            decoded = time.perf_counter()
            found = served.bundle.predict([picture], served.session)[0]
        end = time.perf_counter()
        took = {"decode": decoded - start, "model": end - decoded, "total": end - start}
        return _json({
            "label": found.label, "probability": found.probability, "certain": found.certain,
            "probabilities": found.probabilities, "model": served.name, "version": served.version,
            "milliseconds": {name: round(1000 * seconds, 4) for name, seconds in took.items()},
        })  # fmt: skip

    async def swap(self, *, back: bool) -> None:
        """Take the bundle that lies at the path now, or go back to the one before; told on standard error."""
        try:
            loaded = await asyncio.to_thread(self._engine.roll_back if back else self._engine.swap)
        except (ToolchainError, OSError, MemoryError) as e:
            self.metrics.swapped("refused")
            print(
                f"Error: {e or 'not enough memory'}; {self._engine.current.version} goes on",
                file=sys.stderr,
                flush=True,
            )
            return
        self.metrics.swapped("rolled_back" if back else "swapped")
        print(f"now serving {loaded.name} {loaded.version}", file=sys.stderr, flush=True)


def _request(scope: Mapping[str, Any], headers: dict[bytes, bytes], incoming: body.Incoming) -> Request:
    """Find the route. Raises RefusedError 404 and 405."""
    path, method = str(scope["path"]), str(scope["method"])
    route, model, version = _PLAIN.get(path), None, None
    if route is None and (found := _MODEL.fullmatch(path)):
        model, version, tail = found.groups()
        route = {None: "model", "/ready": "model_ready", "/infer": "infer"}[tail]
    if route is None:
        raise RefusedError(404, "there is nothing at this path; /openapi.json lists what there is")
    allowed = ("POST",) if route in ("infer", "predict") else ("GET", "HEAD")
    if method not in allowed:
        raise RefusedError(405, f"this path takes {allowed[0]}", {"allow": ", ".join(allowed)})
    return Request(route, model, version, headers, incoming)


def _refusal(error: RefusedError) -> Response:
    return Response(
        json.dumps({"error": error.sentence}).encode(), status=error.status, headers=error.headers
    )


def _json(content: object) -> Response:
    return Response(json.dumps(content).encode())


async def _send(send: Send, response: Response, *, head: bool, last: bool) -> None:
    """Send the answer, without its content for `head`; `last`: the connection ends with it."""
    named = {
        "content-type": response.kind, "content-length": str(len(response.content)),
        "x-content-type-options": "nosniff", **response.headers, **({"connection": "close"} if last else {}),
    }  # fmt: skip
    headers = [(name.encode(), value.encode("latin-1")) for name, value in named.items()]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else response.content})


def version() -> str:
    """What the package around the runtime says, the whole toolchain or the runtime's own distribution."""
    return str(getattr(sys.modules["toolchain"], "__version__", "unknown"))
