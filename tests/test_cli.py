"""The command line: help that answers fast and shows an example, errors in one sentence, right exit codes."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import toolchain
from toolchain.cli import _COMMANDS, cli

PROGRAM = [sys.executable, "-c", "from toolchain.cli import main; main()"]


def call(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.mark.parametrize("command", ["", *_COMMANDS])
def test_help_shows_an_example_and_imports_nothing_heavy(command: str) -> None:
    script = (
        "import sys; from toolchain.cli import main\n"
        f"sys.argv = ['toolchain'] + {command.split()!r} + ['--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'onnxruntime', 'timm', 'pydantic', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "Example:" in done.stdout
    assert f"toolchain {command}".strip() in done.stdout
    assert done.stdout.strip().endswith("[]"), done.stdout.splitlines()[-1]


def test_the_report_command_loads_what_draws_without_torch() -> None:
    script = (
        "import sys; from toolchain.cli import main\n"
        "sys.argv = ['toolchain', 'report', 'nowhere', '--format', 'html']\n"
        "try: main()\n"
        "except SystemExit as e: print(e.code, 'toolchain.report.html' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "nowhere: no report.json here" in done.stderr
    assert done.stdout.split() == ["2", "True", "False"]


def test_every_command_documents_its_options() -> None:
    for name in _COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.help
        for option in command.params:
            if isinstance(option, click.Option) and option.name != "help":
                assert option.help or option.show_default, f"{name} --{option.name} has no help"


def test_a_mistyped_command_is_guessed() -> None:
    done = CliRunner().invoke(cli, ["rnu"])
    assert done.exit_code == 2
    assert "Did you mean 'run'" in done.output


def test_a_missing_recipe_is_one_sentence_and_exit_code_2() -> None:
    done = call("run", "quikstart")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: quikstart: no such recipe file")
    assert "Traceback" not in done.stderr


def test_recipes_lists_the_shipped_ones() -> None:
    done = call("recipes")
    assert done.returncode == 0
    assert "quickstart" in done.stdout
    assert "resnet50-imagefolder" in done.stdout


def test_doctor_names_providers_and_isa() -> None:
    done = call("doctor")
    assert "provider cpu" in done.stdout
    assert "processor" in done.stdout
    assert done.returncode in (0, 3)


def test_the_front_door_gives_functions_also_after_their_modules_were_imported() -> None:
    for module in set(toolchain._HOME.values()):
        import_module(module)
    wrong = [name for name in toolchain._HOME if not callable(getattr(toolchain, name))]
    assert not wrong, f"{wrong} are hidden by modules of the same name"


@pytest.mark.slow
def test_help_answers_in_under_0_3_seconds() -> None:
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        call("--help")
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.3, seconds
