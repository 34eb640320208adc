"""docs/ci.md: its YAML parses, its commands exist with these options, its defaults are the real ones."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from toolchain.cli import cli
from toolchain.compare.gates import Gates

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "ci.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


def commands(value: Any) -> list[str]:
    """Every `toolchain …` line of a pipeline."""
    if isinstance(value, dict):
        return [line for item in value.values() for line in commands(item)]
    if isinstance(value, list):
        return [line for item in value for line in commands(item)]
    text = str(value).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip().startswith("toolchain ")]


def test_there_is_a_file_of_bounds_two_workflows_and_a_gitlab_job() -> None:
    gates, github, nightly, gitlab = map(yaml.safe_load, BLOCKS)
    assert Gates.model_validate(gates) == Gates()
    for workflow in (github, nightly):
        assert True in workflow  # YAML 1.1 reads the key `on` as true
        steps = workflow["jobs"]["compare"]["steps"]
        assert all(("uses" in step) != ("run" in step) for step in steps)
    assert gitlab["compare"]["allow_failure"] == {"exit_codes": 4}
    assert gitlab["compare"]["artifacts"]["reports"]["junit"] == "compare.xml"


@pytest.mark.parametrize(
    "line", sorted({line for block in BLOCKS for line in commands(yaml.safe_load(block))})
)
def test_every_command_of_the_examples_exists_with_its_options(line: str) -> None:
    name, *words = shlex.split(re.sub(r"\$\{\{.*?\}\}", "x", line))[1:]
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    options = {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}
    unknown = [word for word in words if word.startswith("--") and word not in options]
    assert not unknown, f"toolchain {name} has no {unknown}"
