"""Tune and Recover as steps: flat settings, what counts for the key, what lies in `out` afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learn_helpers import TINY, context, data, tiny
from pydantic import ValidationError

from toolchain.artifact import Artifact, Form
from toolchain.backbones.network import load, save
from toolchain.backbones.pruning import Pruning, prune
from toolchain.errors import TrainingError
from toolchain.record import Record
from toolchain.steps.recover import Recover
from toolchain.steps.tune import Tune

FAST = {"epochs": 2, "batch_size": 8, "lr": 0.005, "workers": 0}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def artifact(folder: Path) -> Artifact:
    record = Record(key="0", step="tune", version=1, settings={}, parents={}, libraries={}, seconds=0)
    return Artifact(Form.TORCH, folder, record)


def stored(model, network, folder: Path) -> Artifact:
    save(model, network, folder)
    return artifact(folder)


def test_tune_leaves_a_network_that_loads_and_says_what_it_reached(tmp_path: Path) -> None:
    lent = context(tmp_path)
    found = Tune(backbone=TINY, **FAST).run({}, lent)
    model, network = load(lent.out)
    assert network.labels == lent.data.labels
    assert network.provenance.source == "random"
    assert not model.training
    values = {m.name: m for m in found}
    assert values["top1"].where["split"] == "val"
    assert 0 <= values["balanced"].value <= 1
    assert values["epochs"].value == 2
    assert values["macs"].value > 0
    assert {path.name for path in lent.out.iterdir()} == {
        "network.json", "weights.safetensors", "curves.json", "tensorboard",
    }  # fmt: skip


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    step = Tune(backbone=TINY, **FAST)
    written = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        lent = context(tmp_path / name, seed=seed)
        step.run({}, lent)
        written.append((lent.out / "weights.safetensors").read_bytes())
    assert written[0] == written[1]
    assert written[0] != written[2]


def test_settings_are_flat_and_typos_are_told() -> None:
    step = Tune.model_validate(
        {"step": "tune", "backbone": TINY, "epochs": 3, "optimizer": "sgd", "lr": 0.01}
    )
    assert (step.epochs, step.optimizer, step.lr) == (3, "sgd", 0.01)
    with pytest.raises(ValidationError, match="epohcs"):
        Tune.model_validate({"backbone": TINY, "epohcs": 3})


def test_a_weights_file_is_a_root_and_workers_are_no_setting_of_the_key(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    step = Tune(backbone=TINY.model_copy(update={"weights": weights}))
    assert step.roots() == {"backbone.weights": weights}
    assert Tune(backbone=TINY).roots() == {}
    one, two = (Tune(backbone=TINY, workers=n, checkpoint_seconds=n) for n in (0, 4))
    assert one.model_dump(mode="json") == two.model_dump(mode="json")


def test_recover_teaches_a_pruned_network(tmp_path: Path) -> None:
    teaching = context(tmp_path / "teacher", data(noise=40.0))
    Tune(backbone=TINY, **{**FAST, "epochs": 6}).run({}, teaching)
    model, network = load(teaching.out)
    pruned = prune(model, network, Pruning(ratio=0.5, round_to=4), seed=0)
    inputs = {"model": stored(model, pruned, tmp_path / "pruned"), "teacher": artifact(teaching.out)}
    step = Recover(teacher="tuned", temperature=2.0, alpha=0.5, **{**FAST, "epochs": 12})
    lent = context(tmp_path / "recovered", data(noise=40.0))
    reached = {m.name: m.value for m in step.run(inputs, lent)}
    small, described = load(lent.out)
    assert described.plan == pruned.plan
    assert sum(p.numel() for p in small.parameters()) < sum(
        p.numel() for p in load(teaching.out)[0].parameters()
    )
    assert reached["top1"] > 0.8


def test_a_teacher_of_other_preprocessing_is_refused(tmp_path: Path) -> None:
    model, network = tiny()
    other = network.model_copy(
        update={"preprocess": network.preprocess.model_copy(update={"mean": (0.1, 0.1, 0.1)})}
    )
    inputs = {
        "model": stored(model, network, tmp_path / "model"),
        "teacher": stored(model, other, tmp_path / "teacher"),
    }
    with pytest.raises(TrainingError, match="teacher 'tuned' has other preprocess"):
        Recover(teacher="tuned", **FAST).run(inputs, context(tmp_path / "run"))
