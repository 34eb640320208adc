"""The options of `serve`, which both command lines share; nothing here imports the server itself."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from toolchain.runtime import providers
from toolchain.runtime.server.settings import LIMITS, Limits, Settings, read_token


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the bundle and every option to `parser`."""
    parser.add_argument("bundle", type=Path, help="a bundle's folder, or a link to one")
    parser.add_argument("--host", default="127.0.0.1", help="[default: %(default)s]")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one [default: %(default)s]")
    parser.add_argument(
        "--grpc-port", type=int, help="answer gRPC there as well; 0 takes a free one (needs grpcio)"
    )
    parser.add_argument("--provider", choices=providers.NAMES, default="cpu")
    parser.add_argument("--threads", type=int, help="of a call [default: from the bundle's measurements]")
    parser.add_argument("--workers", type=int, help="calls at once [default: cores / threads]")
    parser.add_argument("--token-file", type=Path, help="clients must bear the token in this file")
    parser.add_argument("--tls-certificate", type=Path, help="PEM file with the certificate (chain)")
    parser.add_argument("--tls-key", type=Path, help="PEM file with its key")
    for field in fields(Limits):
        kind = float if field.name.endswith("_seconds") else int
        flag = f"--limit-{field.name.replace('_', '-')}"
        about = f"{LIMITS[field.name]} [default: %(default)s]"
        parser.add_argument(flag, type=kind, default=field.default, metavar="N", help=about)


def asked(arguments: argparse.Namespace) -> Settings:
    """The settings that were asked for. Raises ToolchainError for ones that do not fit."""
    limits = Limits(**{field.name: getattr(arguments, f"limit_{field.name}") for field in fields(Limits)})
    return Settings(
        bundle=arguments.bundle,
        host=arguments.host,
        port=arguments.port,
        provider=arguments.provider,
        threads=arguments.threads,
        workers=arguments.workers,
        token=None if arguments.token_file is None else read_token(arguments.token_file),
        certificate=arguments.tls_certificate,
        key=arguments.tls_key,
        grpc_port=arguments.grpc_port,
        limits=limits,
    )
