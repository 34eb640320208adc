"""Start a server, keep it until it is told to stop, and drain it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from toolchain.runtime.errors import HostError, ToolchainError
from toolchain.runtime.limits import allow_files, give_back_large_blocks
from toolchain.runtime.server import notify
from toolchain.runtime.server.settings import Settings

try:
    import httptools  # noqa: F401  (uvicorn's quick parser; it would fall back to a slower one in silence)
    import uvicorn
    import uvloop
except ModuleNotFoundError as error:
    raise ToolchainError(f"serving needs {error.name}: pip install uvicorn httptools uvloop") from error

from toolchain.runtime.server.app import App, version
from toolchain.runtime.server.connection import SPARE, connection_type
from toolchain.runtime.server.engine import Engine
from toolchain.runtime.server.opening import Opened

_OWN_FILES = 64  # of the process itself: libraries, models, the event loop


def serve(settings: Settings, first: Callable[[], Opened]) -> None:
    """Answer with the verified bundle that `first` gives until SIGTERM or SIGINT, finish what is in flight, return.

    SIGHUP reads the bundle's path again and swaps to it when it verifies; SIGUSR1 goes back to the one before.
    Raises what `first` and Bundle.session raise, ToolchainError for wrong TLS files or more connections than the
    process may have, HostError when the address cannot be listened on.
    """
    _check_tls(settings)
    allow_files(settings.limits.connections + SPARE + _OWN_FILES)
    give_back_large_blocks()
    listening = _listen(settings)
    with contextlib.closing(listening), contextlib.closing(Engine(settings, first())) as engine:
        app = App(engine, settings)
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # else a line for each piece of garbage
        _keep_what_is_there()
        ready = functools.partial(_greet, settings, engine, listening)
        _Server(_config(app, settings), app, engine, _rpc(settings, engine, app), ready).run(
            sockets=[listening]
        )


def _keep_what_is_there() -> None:
    """Spare the garbage collector what lives as long as the process: libraries, bundle, application."""
    gc.collect()
    gc.freeze()
    gc.enable()  # a start in haste turns it off


class _Loop(uvloop.Loop):
    """An event loop whose servers close connections that do not say hello; asyncio's own 60 seconds are many files."""

    def __init__(self, hello_seconds: float) -> None:
        super().__init__()
        self._hello_seconds = hello_seconds

    async def create_server(self, *arguments: Any, **options: Any) -> Any:
        if options.get("ssl") is not None:
            options["ssl_handshake_timeout"] = self._hello_seconds
        return await super().create_server(*arguments, **options)


class _Beside(Protocol):
    """Another protocol that is answered in the same event loop (`rpc.Rpc`)."""

    async def start(self) -> int: ...

    async def stop(self) -> None: ...


def _rpc(settings: Settings, engine: Engine, app: App) -> Callable[[], _Beside] | None:
    """How gRPC is made once there is an event loop, where it was asked for. Raises ToolchainError without grpcio."""
    if settings.grpc_port is None:
        return None
    from toolchain.runtime.server.rpc import Rpc

    return functools.partial(Rpc, engine, settings, app.metrics, version())


def _greet(settings: Settings, engine: Engine, listening: socket.socket) -> None:
    """Tell a person and a supervisor that requests are answered from now on."""
    scheme = "http" if settings.certificate is None else "https"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(
        f"serving {engine.current.name} {engine.current.version} on {scheme}://{host}:{listening.getsockname()[1]} "
        f"({engine.workers} calls at once, {engine.threads} threads each)",
        flush=True,
    )
    if settings.token is None and settings.host not in ("127.0.0.1", "::1", "localhost"):
        print(
            "Warning: no --token-file, so everybody who reaches this port can ask",
            file=sys.stderr,
            flush=True,
        )
    notify.tell("READY=1")


def _config(app: App, settings: Settings) -> uvicorn.Config:
    limits = settings.limits
    return uvicorn.Config(
        app,
        http=connection_type(limits, app.refuse),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(max(1, limits.idle_seconds)),
        timeout_graceful_shutdown=int(max(1, limits.drain_seconds)),
        ssl_certfile=None if settings.certificate is None else str(settings.certificate),
        ssl_keyfile=None if settings.key is None else str(settings.key),
    )


class _Server(uvicorn.Server):
    """uvicorn's server with our signals: it ends by itself after draining, with exit code 0."""

    def __init__(
        self,
        config: uvicorn.Config,
        app: App,
        engine: Engine,
        beside: Callable[[], _Beside] | None,
        ready: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._make_beside = beside
        self._beside: _Beside | None = None
        self._ready = ready
        self._app = app
        self._engine = engine
        self._swaps: set[asyncio.Task[None]] = set()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        hello_seconds = self._engine.limits.header_seconds
        with asyncio.Runner(loop_factory=functools.partial(_Loop, hello_seconds)) as runner:
            runner.run(self.serve(sockets))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._swap, False)
        loop.add_signal_handler(signal.SIGUSR1, self._swap, True)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer, then tell so: signals are taken already, so that none ends the process undrained."""
        await super().startup(sockets)
        if self._make_beside is not None:
            self._beside = self._make_beside()
            print(f"gRPC on port {await self._beside.start()}", flush=True)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what is in flight, over both protocols at once."""
        await asyncio.gather(super().shutdown(sockets), *([self._beside.stop()] if self._beside else []))

    def _stop(self) -> None:
        self._engine.draining = True
        self.should_exit = True
        with contextlib.suppress(HostError):  # a supervisor that is gone keeps nobody from stopping
            notify.tell("STOPPING=1")

    def _swap(self, back: bool) -> None:
        task = asyncio.get_running_loop().create_task(self._app.swap(back=back))
        self._swaps.add(task)
        task.add_done_callback(self._swaps.discard)


def _listen(settings: Settings) -> socket.socket:
    # As bytes, for which Python needs no tables of international names.
    host = settings.host.encode() if settings.host.isascii() else settings.host
    try:
        family = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((settings.host, settings.port), family=family, backlog=1024)
    except OSError as e:
        raise HostError(
            f"cannot listen on {settings.host} port {settings.port} ({e.strerror}); choose another --port"
        ) from e
    # Connections inherit it. asyncio sets it only where a socket names TCP as its protocol, which these do not; without
    # it the answer's body waits for the client's delayed acknowledgement of its head, 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _no_passphrase(key: Path) -> str:
    """Instead of asking on the terminal, which a service does not have."""
    raise ToolchainError(
        f"{key}: wants a passphrase, which nobody types on a device; give it without one, readable by the server only "
        f"(openssl pkey -in {key.name} -out plain.pem)"
    )


def _check_tls(settings: Settings) -> None:
    if settings.certificate is not None and settings.key is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                settings.certificate, settings.key, functools.partial(_no_passphrase, settings.key)
            )
        except (OSError, ValueError) as e:
            raise ToolchainError(
                f"{settings.certificate}, {settings.key}: no certificate with its key ({e})"
            ) from e
