"""A search for each of several providers: its own folder, its share of the time, nothing done when one is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import command, tiny_pictures, tiny_recipe

from toolchain.errors import ProviderError
from toolchain.optimize import several
from toolchain.optimize.asked import Asked
from toolchain.runtime import providers
from toolchain.workflow import Places


class Clock:
    """A clock that only searches move."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return tiny_recipe(tmp_path, tiny_pictures(tmp_path / "pictures"))


def test_each_provider_is_searched_in_its_folder_with_an_even_share_of_what_is_left(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    seen: list[tuple[str, Path | None, float, float | None, float]] = []

    def search(
        given: object, asked: Asked, places: Places, wishes: object, progress: object, at: float
    ) -> str:
        seen.append((asked.provider, places.out, asked.budget, asked.sized_by, at))
        clock.now += 10  # much less than its share
        return f"found on {asked.provider}"

    monkeypatch.setattr(several, "time", clock)
    monkeypatch.setattr(several, "optimize", search)
    monkeypatch.setattr(providers, "require", lambda name: name)
    found: Any = several.optimize_each(
        recipe, ("cpu", "cuda"), Asked(budget=100, max_drop=1), Places(out=tmp_path / "out"), started=98.0
    )
    assert found == {"cpu": "found on cpu", "cuda": "found on cuda"}
    assert seen == [
        ("cpu", tmp_path / "out" / "cpu", 50.0, 50.0, 98.0),
        ("cuda", tmp_path / "out" / "cuda", 88.0, 50.0, 110.0),
    ]


def test_without_out_the_folders_lie_where_a_single_search_would_write(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path | None] = []
    monkeypatch.setattr(several, "optimize", lambda given, asked, places, *rest: seen.append(places.out))
    several.optimize_each(recipe, ("cpu",), Asked(max_drop=1))
    assert seen == [several.folder(Places(), "tiny") / "cpu"]
    assert seen[0] == Path("runs/tiny-optimized/cpu")


def test_a_provider_that_is_not_there_is_an_error_before_anything_is_done(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        if name == "cuda":
            raise ProviderError("provider 'cuda' was asked for, but this machine has no NVIDIA driver")
        return name

    monkeypatch.setattr(providers, "require", missing)
    out = tmp_path / "out"
    answer = command(
        "optimize", recipe, "--provider", "cpu", "--provider", "cuda", "--max-drop", 1, "--out", out
    )
    assert answer.code == 2
    assert "provider 'cuda' was asked for" in answer.err
    assert not out.exists()


def test_the_command_passes_only_when_every_provider_has_a_file(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Result:
        def __init__(self, passed: bool) -> None:
            self.passed, self.summary = passed, f"passed: {passed}"

    for ends, code in (((True, True), 0), ((True, False), 3)):
        given = {"cpu": Result(ends[0]), "cuda": Result(ends[1])}
        monkeypatch.setattr(several, "optimize_each", lambda *_, given=given: given)
        answer = command("optimize", recipe, "--provider", "cpu", "--provider", "cuda", "--max-drop", 1)
        assert answer.code == code
        assert answer.out.splitlines() == [f"passed: {end}" for end in ends]


def test_naming_a_provider_twice_is_one_search(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several, "optimize_each", None)  # not called
    answer = command("optimize", recipe, "--provider", "cpu", "--provider", "cpu", "--goal", "accuracy")
    assert answer.code == 2
    assert "--goal accuracy: give a bound as well" in answer.err
