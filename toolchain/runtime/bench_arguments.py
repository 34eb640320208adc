"""`bench`'s options as words: the runtime's own command line, and how one machine asks another to bench."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from toolchain.runtime import providers
from toolchain.runtime.bench_asked import Asked, Sampling
from toolchain.runtime.errors import ToolchainError
from toolchain.runtime.warm_up import Steadiness


def parse_options(texts: Iterable[str], asked: Collection[str]) -> dict[str, dict[str, str]]:
    """{provider: {name: value}} from "cuda.device_id=0"; session entries ("session.…=1") stand under "".

    asked: the providers that will be used. Raises ToolchainError for a text of another form, or for an option of another
    provider, which would be ignored.
    """
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        owner, dot, rest = name.partition(".")
        if not (equals and dot and rest) or owner not in (*providers.NAMES, "session", "ep", "optimization"):
            known = ", ".join(f"{one}.NAME=VALUE" for one in providers.NAMES)
            raise ToolchainError(f"--option {text}: give {known} or session.NAME=VALUE")
        if owner in providers.NAMES and owner not in asked:
            raise ToolchainError(
                f"--option {text}: nothing runs on {owner}; give --provider {owner} too, or leave it out"
            )
        if owner in providers.NAMES:
            found.setdefault(owner, {})[rest] = value
        else:
            found.setdefault("", {})[name] = value
    return found


def parse_shapes(texts: Iterable[str]) -> dict[str, int]:
    """{dimension: size} from "H=480". Raises ToolchainError for a text of another form."""
    found = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        if not name or not value.isdecimal() or int(value) < 1:
            raise ToolchainError(
                f"--shape {text}: give NAME=SIZE with a whole number above 0, e.g. --shape H=480"
            )
        found[name] = int(value)
    return found


def add_to(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `bench`."""
    sampling = Sampling()
    add = parser.add_argument
    add("--provider", action="append", choices=providers.NAMES, help="may be repeated [cpu]")
    add("--option", action="append", default=[], metavar="PROVIDER.NAME=VALUE")
    add("--threads", action="append", type=int, help="may be repeated [1]")
    add("--batch", action="append", type=int, help="may be repeated [1]")
    add("--spinning", action=argparse.BooleanOptionalAction, default=False)
    add("--pictures", type=Path, metavar="DIR", help="take the input from pictures instead of noise")
    add("--shape", action="append", default=[], metavar="NAME=SIZE", help="a size that the model leaves open")
    add("--file", choices=("fused", "plain"), default="fused", help="which file of a bundle")
    add("--blocks", type=int, default=sampling.blocks)
    add("--calls", type=int, default=sampling.calls, help="a block")
    add("--seconds", type=float, help="time blocks until these are over, instead of --blocks")
    add("--cold-starts", type=int, default=sampling.cold_starts)
    add("--warm-up-seconds", type=float, default=sampling.warm_up.seconds, help="the most that it may take")
    add("--allow-fallback", action="store_true")


def asked(given: argparse.Namespace) -> Asked:
    """What the options of `add_to` ask for. Raises ToolchainError for values that make no sense."""
    sampling = checked(
        Sampling(
            blocks=given.blocks, calls=given.calls, seconds=given.seconds, cold_starts=given.cold_starts,
            warm_up=Steadiness(seconds=given.warm_up_seconds),
        )
    )  # fmt: skip
    asked = tuple(given.provider or ("cpu",))
    return Asked(
        providers=asked, options=parse_options(given.option, asked),
        threads=_counts("--threads", given.threads), batches=_counts("--batch", given.batch),
        spinning=given.spinning, pictures=given.pictures, shapes=parse_shapes(given.shape), file=given.file,
        allow_fallback=given.allow_fallback, sampling=sampling,
    )  # fmt: skip


def words(wanted: Asked) -> list[str]:
    """The command-line words that `asked` reads back as `wanted`, pictures left out: they are a local folder."""
    sampling = wanted.sampling
    found = [f"--provider={name}" for name in wanted.providers]
    found += [f"--option={text}" for text in _option_words(wanted.options)]
    found += [f"--threads={count}" for count in wanted.threads]
    found += [f"--batch={count}" for count in wanted.batches]
    found += [f"--shape={name}={size}" for name, size in wanted.shapes.items()]
    found += [f"--file={wanted.file}", f"--blocks={sampling.blocks}", f"--calls={sampling.calls}"]
    found += [] if sampling.seconds is None else [f"--seconds={sampling.seconds}"]
    found += [f"--cold-starts={sampling.cold_starts}", f"--warm-up-seconds={sampling.warm_up.seconds}"]
    found += ["--spinning"] if wanted.spinning else []
    return found + (["--allow-fallback"] if wanted.allow_fallback else [])


def checked(sampling: Sampling) -> Sampling:
    """The sampling when something is left to time with it. Raises ToolchainError saying which option is wrong."""
    least = {
        "--blocks": (sampling.blocks, 1), "--calls": (sampling.calls, 1), "--cold-starts": (sampling.cold_starts, 0),
        "--seconds": (1.0 if sampling.seconds is None else sampling.seconds, 0),
        "--warm-up-seconds": (sampling.warm_up.seconds, 0),
    }  # fmt: skip
    for name, (value, lowest) in least.items():
        if not value >= lowest:
            raise ToolchainError(f"{name} must be at least {lowest}, not {value}")
    return sampling


def _counts(name: str, given: list[int] | None) -> tuple[int, ...]:
    counts = tuple(dict.fromkeys(given or (1,)))
    if min(counts) < 1:
        raise ToolchainError(f"{name} must be at least 1, not {min(counts)}")
    return counts


def _option_words(options: Mapping[str, Mapping[str, str]]) -> list[str]:
    return [
        f"{owner}.{name}={value}" if owner else f"{name}={value}"
        for owner, own in options.items()
        for name, value in own.items()
    ]
