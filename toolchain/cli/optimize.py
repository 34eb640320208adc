"""`toolchain optimize`: a budget in, the best file out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import click

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("recipe")
@click.option(
    "--provider", "on", multiple=True, type=click.Choice(["cpu", "cuda"]), default=["cpu"], show_default=True,
    help="Where the file answers; repeat it for the best file on each.",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Of the device that answers."
)
@click.option("--max-latency", metavar="TIME", help="Median of the plain file, e.g. 3ms, 300us.")
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    metavar="POINTS",
    help="Accuracy to lose against fp32 [default: the recipe's].",
)
@click.option("--max-size", metavar="SIZE", help="Of the fused file, e.g. 5MB, 800kB.")
@click.option("--max-memory", metavar="SIZE", help="Peak of a fresh process that answers, e.g. 200MB.")
@click.option(
    "--goal", type=click.Choice(["latency", "accuracy", "size", "memory"]), default="latency", show_default=True,
    help="What to make best within the bounds; accuracy needs a bound on latency, size or memory.",
)  # fmt: skip
@click.option(
    "--target", "targets", multiple=True, type=click.Choice(["x86-vnni", "x86-avx2", "arm64"]),
    help="A processor that the file must be right on; repeat it for several [default: the recipe's].",
)  # fmt: skip
@click.option(
    "--backbone", "backbones", multiple=True, metavar="bundled/NAME|timm/NAME",
    help="Another network to choose from, beside the recipe's own and its 'networks'; repeat it for several.",
)  # fmt: skip
@click.option(
    "--budget",
    metavar="TIME",
    default="30m",
    show_default=True,
    help="Wall time of this start, e.g. 90s, 30m, 2h.",
)
@click.option("--out", type=_FOLDER, help="Where report and bundle go [default: runs/NAME-optimized].")
@click.option("--data", type=_FOLDER, help="An image folder to use instead of the recipe's data.")
@click.option(
    "--store", type=_FOLDER, envvar="TOOLCHAIN_STORE", default=Path(".toolchain"), show_default=True,
    help="Where finished steps are kept.",
)  # fmt: skip
@click.option(
    "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change one setting, e.g. tune.epochs=3."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to train.")
def optimize(
    recipe: str, on: tuple[Literal["cpu", "cuda"], ...], threads: int, max_drop: float | None, budget: str,
    goal: Literal["latency", "accuracy", "size", "memory"], **options: object,
) -> int:  # fmt: skip
    """Search for the best file of RECIPE within bounds: pruning, activations, input size, recovery, quantization.

    Every point is measured: latency in ONNX Runtime, accuracy on val. Ends within --budget; started again, it goes on
    with what is finished. Exit code 3 when no point keeps the bounds: then it tells the closest ones, and what would
    have to give.

    \b
    Example:
      toolchain optimize quickstart --max-drop 1.0 --budget 10m
      toolchain optimize recipe.yaml --provider cpu --threads 1 --max-latency 3ms --max-drop 1.0
      toolchain optimize recipe.yaml --max-drop 1.0 --backbone bundled/small --backbone timm/resnet18
      toolchain optimize recipe.yaml --goal accuracy --max-latency 2ms --max-size 3MB
      toolchain optimize recipe.yaml --max-drop 1.0 --provider cpu --provider cuda
      toolchain optimize recipe.yaml --max-drop 1.0 --target x86-vnni --target x86-avx2 --target arm64
    """
    started = time.monotonic()
    from toolchain.cli.progress import Bars
    from toolchain.optimize.asked import Asked, amount
    from toolchain.optimize.several import optimize_each
    from toolchain.optimize.workflow import optimize as search
    from toolchain.workflow import Places, Wishes

    def given(option: str, unit: Literal["ms", "MB", "s"]) -> float | None:
        text = options[option.removeprefix("--").replace("-", "_")]
        return None if text is None else amount(option, str(text), unit)

    asked = Asked(
        provider=on[0], threads=threads, max_latency_ms=given("--max-latency", "ms"), max_drop=max_drop,
        max_megabytes=given("--max-size", "MB"), max_memory_mb=given("--max-memory", "MB"), goal=goal,
        budget=amount("--budget", budget, "s"), targets=options["targets"],  # type: ignore[arg-type]
        backbones=options["backbones"],  # type: ignore[arg-type]
    )  # fmt: skip
    places = Places(out=options["out"], store=options["store"], data=options["data"])  # type: ignore[arg-type]
    wishes = Wishes(overrides=options["overrides"], device=options["device"])  # type: ignore[arg-type]
    named = tuple(dict.fromkeys(on))
    if len(named) == 1:
        results = [search(recipe, asked, places, wishes, Bars(), started)]
    else:
        results = list(optimize_each(recipe, named, asked, places, wishes, Bars(), started).values())
    for result in results:
        click.echo(result.summary)
    return 0 if all(result.passed for result in results) else 3
