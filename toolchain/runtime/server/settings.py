"""What a server was asked to do, and its limits."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from toolchain.runtime.errors import ToolchainError

# What --help says of each limit.
LIMITS = {
    "body": "bytes of a request as sent", "unpacked": "bytes of a request unpacked",
    "json": "bytes of an infer request's JSON", "buffered": "bytes of all requests held at once",
    "pixels": "pixels of a picture or batch", "pixels_held": "pixels worked on at once",
    "batch": "pictures of an infer request", "queue": "requests that wait", "connections": "open connections",
    "header_seconds": "for a request's head", "body_seconds": "for a request's body",
    "work_seconds": "from queueing to the answer", "idle_seconds": "between two requests",
    "drain_seconds": "to finish after SIGTERM",
}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What one client can take of the machine; all are above 0.

    body: bytes of a request's body as sent, and unpacked: after its content encoding. json: bytes of an infer
    request's JSON part, whose objects take up to twenty times that in memory. buffered: bytes of all bodies that
    are held at once. pixels: of one picture, and of one infer request's whole batch. pixels_held: of all pictures
    that are decoded and asked about at once, or `pixels` where that is more; further ones wait. A pixel takes up to
    30 bytes on its way, so that 60 million are 1.8 GB, however small their files. batch: pictures of an infer
    request, for the model enlarges small ones to its own size. queue: requests that wait for a worker. Seconds:
    header for a request's head, body for its body, work from queueing to the answer, idle between two requests,
    drain after SIGTERM. connections: open at once; each needs an open file.
    """

    body: int = 32 << 20
    unpacked: int = 64 << 20
    json: int = 8 << 20
    buffered: int = 256 << 20
    pixels: int = 40_000_000
    pixels_held: int = 60_000_000
    batch: int = 16
    queue: int = 64
    connections: int = 512
    header_seconds: float = 10.0
    body_seconds: float = 20.0
    work_seconds: float = 10.0
    idle_seconds: float = 75.0
    drain_seconds: float = 20.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                raise ToolchainError(f"the limit '{field.name}' must be above 0")


@dataclass(frozen=True)
class Settings:
    """Where to listen and what to serve.

    bundle: a folder, or a link to one (hot swap reads it again). threads of a session and workers (calls at
    once): None takes them from the bundle's measurements. token: what clients must bear, or None.
    certificate, key: PEM files for TLS, both or none. grpc_port: where gRPC is answered as well, or None.
    """

    bundle: Path
    host: str = "127.0.0.1"
    port: int = 8080
    provider: str = "cpu"
    threads: int | None = None
    workers: int | None = None
    token: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    grpc_port: int | None = None
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        for name in ("threads", "workers"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ToolchainError(f"--{name} must be at least 1, not {value}")
        for name, port in (("port", self.port), ("grpc-port", self.grpc_port or 0)):
            if not 0 <= port <= 65535:
                raise ToolchainError(f"--{name} must be 0 to 65535, not {port}")
        if (self.certificate is None) != (self.key is None):
            raise ToolchainError("TLS needs both --tls-certificate and --tls-key")


def read_token(path: Path) -> str:
    """The bearer token that a file holds. Raises ToolchainError when it cannot be read or is no token."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as e:
        raise ToolchainError(f"{path}: cannot be read as a token file ({e})") from e
    if len(token) < 16 or not token.isprintable() or " " in token:
        raise ToolchainError(f"{path}: a token has 16 or more printable characters and no spaces")
    return token
