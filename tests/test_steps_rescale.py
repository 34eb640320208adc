"""Another input size for the same network, and learning from a teacher of another size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_steps_prune import BACKBONE, LABELS, context

from toolchain.artifact import Artifact, Form
from toolchain.backbones.network import build, load, save
from toolchain.backbones.settings import Backbone
from toolchain.errors import BackboneError, TrainingError
from toolchain.learn.loop import fit
from toolchain.record import JSON, Record
from toolchain.steps import Recover, Rescale


def saved(folder: Path, **changes: JSON) -> Artifact:
    save(*build(Backbone.model_validate({**BACKBONE, **changes}), LABELS, seed=1), folder)
    record = Record(key="k", step="tune", version=1, settings={}, parents={}, libraries={}, seconds=0)
    return Artifact(Form.TORCH, folder, record)


def test_the_weights_stay_and_the_size_is_new(tmp_path: Path) -> None:
    before = saved(tmp_path / "before")
    told = Rescale(size=(24, 32)).run({"model": before}, context(tmp_path / "after"))
    old, _ = load(before.folder)
    new, network = load(tmp_path / "after")
    assert (network.preprocess.height, network.preprocess.width) == (24, 32)
    assert all(torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True))
    macs = {m.where["when"]: m.value for m in told}
    assert macs["after"] > 2 * macs["before"]


def test_a_network_built_for_one_size_is_refused(tmp_path: Path) -> None:
    backbone = {"timm": "vit_tiny_patch16_224", "kwargs": {"depth": 1}, "preprocess": {"size": 32}}
    with pytest.raises(BackboneError, match="'vit_tiny_patch16_224' is built for one input size"):
        Rescale(size=48).run({"model": saved(tmp_path / "vit", **backbone)}, context(tmp_path / "out"))


def test_a_size_at_which_a_network_cannot_run_is_one_sentence(tmp_path: Path) -> None:
    """It ended a search with a traceback."""
    wide = saved(tmp_path / "wide", timm="inception_v3", kwargs={}, preprocess={"size": 96})
    with pytest.raises(BackboneError, match="rescale: 'inception_v3' cannot run at 64 x 64"):
        Rescale(size=64).run({"model": wide}, context(tmp_path / "out"))


def test_a_teacher_of_another_size_teaches_but_not_one_with_other_colours(tmp_path: Path) -> None:
    small, teacher = saved(tmp_path / "small"), saved(tmp_path / "big", preprocess={"size": 24})
    step = Recover(teacher="tuned", epochs=1, batch_size=4)
    step.run({"model": small, "teacher": teacher}, learning(tmp_path / "out"))
    network = json.loads((tmp_path / "out" / "network.json").read_text())
    assert network["preprocess"]["height"] == 16
    other = saved(tmp_path / "other", preprocess={"size": 24, "mean": [0.1, 0.1, 0.1]})
    with pytest.raises(TrainingError, match="other preprocess"):
        step.run({"model": small, "teacher": other}, learning(tmp_path / "again"))


def test_a_teacher_sees_the_pictures_at_its_own_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, teacher = saved(tmp_path / "small"), saved(tmp_path / "big", preprocess={"size": [24, 32]})
    seen = set[tuple[int, ...]]()

    def watched(*given: Any, teacher: torch.nn.Module, **named: Any) -> Any:
        inner = teacher.get_submodule("network")
        inner.register_forward_pre_hook(lambda _, batch: seen.add(tuple(batch[0].shape[1:])))
        return fit(*given, teacher=teacher, **named)

    monkeypatch.setattr("toolchain.steps.recover.fit", watched)
    step = Recover(teacher="tuned", epochs=1, batch_size=4)
    step.run({"model": small, "teacher": teacher}, learning(tmp_path / "out"))
    assert seen == {(3, 24, 32)}


def learning(folder: Path):  # type: ignore[no-untyped-def]
    """A context in which val has pictures too."""
    from dataclasses import replace

    made = context(folder)
    return replace(made, data=replace(made.data, val=made.data.train))
