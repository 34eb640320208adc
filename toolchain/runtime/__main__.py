"""`python -m toolchain.runtime verify|predict|bench|serve`: models on a device, with numpy, pillow and onnxruntime only."""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from toolchain.runtime import answers, limits, providers
from toolchain.runtime.bundle import Bundle
from toolchain.runtime.errors import PictureError, ToolchainError
from toolchain.runtime.pictures import find_pictures
from toolchain.runtime.server import arguments as server_arguments
from toolchain.runtime.server.opening import Opened, opened
from toolchain.runtime.server.threads import usable_cores
from toolchain.runtime.whole import write_out

_HOST_FAILED, _STOPPED = 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for a wrong input, 3 for a bundle that differs, 130 after Ctrl-C."""
    words = sys.argv[1:] if argv is None else argv
    arguments = _parser(timing=words[:1] == ["bench"]).parse_args(words)
    try:
        code = int(arguments.work(arguments))
        sys.stdout.flush()
        return code
    except ToolchainError as e:
        print(f"Error: {e}", file=sys.stderr)
        return e.exit_code
    except MemoryError:
        print(
            "Error: this needs more memory than it may have; raise --memory-limit if you trust it",
            file=sys.stderr,
        )
        return _HOST_FAILED
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return _STOPPED
    except BrokenPipeError:  # nobody reads any more; Python flushes once more when it ends
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return _HOST_FAILED
    except OSError as e:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # it may be what failed
        print(f"Error: {f'{e.filename}: ' if e.filename else ''}{e.strerror or e}", file=sys.stderr)
        return _HOST_FAILED


def _verify(arguments: argparse.Namespace) -> int:
    _limit(arguments)
    found = Bundle.load(arguments.bundle).verify(arguments.isa)
    print(f"verified: {arguments.bundle}")
    print(f"  identity  {found.identity}")
    print(f"  files     {found.files} unchanged")
    print(
        f"  answers   {found.golden} golden pictures, {found.agreeing} with the same label, largest difference "
        f"{found.worst:.2g} (allowed on {found.isa}: {found.tolerance:g}; made on {found.made_on})"
    )
    return 0


def _limit(arguments: argparse.Namespace) -> None:
    if arguments.memory_limit is not None:
        limits.limit_memory(arguments.memory_limit)


def _predict(arguments: argparse.Namespace) -> int:
    _limit(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # file names are bytes, and not all of them are text
    paths = find_pictures(arguments.pictures)
    if not paths:
        raise PictureError(f"no pictures in {', '.join(map(str, arguments.pictures))}")
    bundle = Bundle.load(arguments.bundle)
    session = bundle.session(arguments.provider, arguments.threads)
    rows = []
    for row in answers.answers(bundle, paths, session):
        rows.append(row)
        if row.error:
            print(f"Error: {row.error}", file=sys.stderr)
        elif not arguments.json:
            print(answers.line(row))
    if arguments.json:
        print(json.dumps([answers.as_json(row) for row in rows], indent=1, ensure_ascii=False))
    if arguments.csv:
        table = io.StringIO(newline="")
        answers.write_csv(rows, bundle.manifest.labels, table)
        try:
            write_out(arguments.csv, table.getvalue().encode(errors="backslashreplace"))
        except OSError as e:
            print(f"Error: {arguments.csv}: cannot be written ({e.strerror})", file=sys.stderr)
            return _HOST_FAILED
    return PictureError.exit_code if any(row.error for row in rows) else 0


def _bench(arguments: argparse.Namespace) -> int:
    from toolchain.runtime import bench_arguments
    from toolchain.runtime.bench import LACKING, bench, was_stopped

    record = bench(arguments.model, bench_arguments.asked(arguments))
    print(json.dumps(record.as_json()))
    return _STOPPED if was_stopped(record.notes) else int(any(LACKING in note for note in record.notes))


def _serve(arguments: argparse.Namespace) -> int:
    settings = server_arguments.asked(arguments)
    limited = arguments.memory_limit is not None  # a thread has a heap of its own, which would count
    # All cores: nobody is served yet. A device with two imports the server on the other one meanwhile.
    proof = functools.partial(opened, settings.bundle, 1 if limited else usable_cores())
    first = proof if limited else _beside(proof)
    from toolchain.runtime.server.serve import serve

    _limit(arguments)
    serve(settings, first)
    return 0


def _beside(work: Callable[[], Opened]) -> Callable[[], Opened]:
    """Begin it in a thread; what is returned waits for its end, and gives or raises what it did."""
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(1)
    begun = pool.submit(work)
    pool.shutdown(wait=False)
    return begun.result


def _parser(*, timing: bool) -> argparse.ArgumentParser:
    """timing: with the options of `bench`, whose modules a server should not take the time to import."""
    what = "Verify, ask, time and serve a bundle on a device; needs numpy, pillow and onnxruntime only."
    parser = argparse.ArgumentParser(prog="python -m toolchain.runtime", description=what)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    verify = commands.add_parser(
        "verify", help="recheck a bundle's hashes and golden answers on this machine"
    )
    verify.add_argument("bundle", type=Path)
    verify.add_argument(
        "--isa",
        metavar="FAMILY",
        help="judge by this family's tolerance: an emulated processor shows the host's name",
    )
    verify.set_defaults(work=_verify)
    predict = commands.add_parser("predict", help="classify pictures, or folders of them")
    predict.add_argument("bundle", type=Path)
    predict.add_argument("pictures", type=Path, nargs="+", metavar="PICTURE|DIR")
    predict.add_argument("--csv", type=Path, metavar="FILE", help="write the answers as CSV as well")
    predict.add_argument("--json", action="store_true", help="print the answers as JSON")
    predict.add_argument("--provider", choices=providers.NAMES, default="cpu")
    predict.add_argument("--threads", type=int, default=1)
    predict.set_defaults(work=_predict)
    timed = commands.add_parser("bench", help="time a bundle or an ONNX file; prints its record as JSON")
    timed.add_argument("model", type=Path, metavar="MODEL|BUNDLE")
    if timing:
        from toolchain.runtime import bench_arguments

        bench_arguments.add_to(timed)
    timed.set_defaults(work=_bench)
    served = commands.add_parser("serve", help="answer over HTTP: Open Inference Protocol v2 and pictures")
    server_arguments.add_to(served)
    served.set_defaults(work=_serve)
    for asked in (verify, predict, served):
        asked.add_argument(
            "--memory-limit",
            type=int,
            metavar="MB",
            help="refuse what would need more memory than this, libraries included",
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
