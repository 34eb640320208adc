"""Checkpoints: whole or not at all, and believed only when they are ours."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
import torch
from learn_helpers import Lines, tiny

from toolchain.errors import HostError
from toolchain.learn import checkpoint as checkpoints
from toolchain.learn.checkpoint import Checkpoint, identity

CPU = torch.device("cpu")
STATE = {"weights": torch.arange(6.0).reshape(2, 3), "rows": [{"epoch": 1, "loss": 0.5}], "kept": {}}


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoint:
    found = Checkpoint(tmp_path / "checkpoint", "mine")
    found.save(STATE)
    return found


def test_what_was_saved_comes_back(saved: Checkpoint) -> None:
    lines = Lines()
    state = saved.load(CPU, lines)
    assert state is not None
    assert torch.equal(state["weights"], STATE["weights"])
    assert state["rows"] == STATE["rows"]
    assert lines.said == []


def test_none_is_there(tmp_path: Path) -> None:
    lines = Lines()
    assert Checkpoint(tmp_path / "checkpoint", "mine").load(CPU, lines) is None
    assert lines.said == []


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_damaged_one_is_told_and_ignored(saved: Checkpoint, damage: str) -> None:
    content = bytearray(saved.path.read_bytes())
    flipped = content[:-20] + bytes([content[-20] ^ 1]) + content[-19:]
    changed = {"cut": content[:-100], "flipped": flipped, "empty": b"", "text": b"hello"}[damage]
    saved.path.write_bytes(changed)
    lines = Lines()
    assert saved.load(CPU, lines) is None
    assert len(lines.said) == 1
    assert "damaged" in lines.said[0]
    assert str(saved.path) in lines.said[0]


def test_one_of_another_training_is_told_and_ignored(saved: Checkpoint) -> None:
    lines = Lines()
    assert Checkpoint(saved.path, "yours").load(CPU, lines) is None
    assert "another training" in lines.said[0]


class _Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_code_in_a_checkpoint_is_not_run(
    saved: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save({"identity": "mine", "bomb": _Bomb()}, buffer)
    body = buffer.getvalue()
    magic = checkpoints._MAGIC
    digest = hashlib.sha256(body).digest()
    saved.path.write_bytes(magic + digest + body)
    assert saved.load(CPU, Lines()) is None
    assert not (tmp_path / "exploded").exists()


def test_a_write_that_fails_leaves_the_old_one(saved: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(HostError, match="No space left on device"):
        saved.save({"weights": torch.zeros(1)})
    monkeypatch.undo()
    state = saved.load(CPU, Lines())
    assert state is not None
    assert torch.equal(state["weights"], STATE["weights"])
    assert [path.name for path in saved.path.parent.iterdir()] == ["checkpoint"]


def test_the_identity_tells_settings_and_weights_apart() -> None:
    model, _ = tiny()
    changed, _ = tiny()
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1
    found = {
        identity({"lr": 1}, [model]),
        identity({"lr": 2}, [model]),
        identity({"lr": 1}, [changed]),
        identity({"lr": 1}, [model, model]),
    }
    assert len(found) == 4
    assert identity({"lr": 1}, [model]) in found
