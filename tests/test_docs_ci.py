"""docs/ci.md: its YAML parses, its commands exist with these options, its defaults are the real ones."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
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


_STAND_IN = """#!/bin/sh
echo "$@" >> "$CALLS"
case $1 in
run) test -f "$2" && mkdir -p "$4/bundle" ;;
compare)
    test -d "$2" && test -d "$3" || exit 2
    for file in compare.json compare.xml compare.md; do echo "told: $CODE" > $file; done
    exit $CODE ;;
esac
"""


@pytest.mark.parametrize(("code", "github", "gitlab"), [(0, 0, 0), (3, 3, 3), (4, 0, 4)])
def test_the_steps_of_the_examples_do_what_is_said(
    code: int, github: int, gitlab: int, tmp_path: Path
) -> None:
    """Run as the runners do, twice over: a runner of one's own keeps its folders. `toolchain` and pip are stand-ins."""
    _, pull, _, merge = map(yaml.safe_load, BLOCKS)
    project, base = _repository(tmp_path)
    environment = _environment(tmp_path, code) | {"CI_MERGE_REQUEST_DIFF_BASE_SHA": base}
    steps = [
        step["run"]
        for step in pull["jobs"]["compare"]["steps"]
        if "run" in step and "gh pr" not in step["run"]
    ]
    texts = [text.replace("${{ github.event.pull_request.base.sha }}", base) for text in steps]
    for _ in range(2):
        codes = [_shell(["bash", "-e", "-c", text], project, environment) for text in texts]
        assert codes[:-1] == [0] * (len(texts) - 1)
        assert codes[-1] == github
        assert "told" in (tmp_path / "summary").read_text()
        assert (
            _shell(["bash", "-e", "-c", "\n".join(merge["compare"]["script"])], project, environment)
            == gitlab
        )
        assert (
            _shell(["bash", "-e", "-c", "\n".join(merge["compare"]["after_script"])], project, environment)
            == 0
        )
    assert "run ../base/recipe.yaml --out runs/base" in (tmp_path / "calls").read_text()


def _repository(folder: Path) -> tuple[Path, str]:
    """A repository with a recipe, and its first commit."""
    project = folder / "project"
    project.mkdir()
    (project / "recipe.yaml").write_text("name: x\n")
    git = ["git", "-C", str(project), "-c", "user.name=x", "-c", "user.email=x@localhost"]
    for words in (["init", "-q"], ["add", "recipe.yaml"], ["commit", "-q", "-m", "base"]):
        subprocess.run([*git, *words], check=True)
    said = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return project, said.stdout.strip()


def _environment(folder: Path, code: int) -> dict[str, str]:
    for name, text in (("toolchain", _STAND_IN), ("pip", "#!/bin/sh\n")):
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    return {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "CODE": str(code), "CALLS": str(folder / "calls"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary"),
    }  # fmt: skip


def _shell(words: list[str], folder: Path, environment: dict[str, str]) -> int:
    return subprocess.run(words, cwd=folder, env=environment, timeout=60, check=False).returncode
