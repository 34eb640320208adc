"""The training loop: it learns, does so twice alike, keeps the right epoch, and can be killed anywhere."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from learn_helpers import context, data, pictures, state_bytes, tiny

from toolchain import stats
from toolchain.data.preprocess import Preprocessing
from toolchain.errors import TrainingError
from toolchain.learn.loop import fit
from toolchain.learn.settings import Distillation, EarlyStopping, Training

QUICK = Training(epochs=2, batch_size=8, lr=5e-3, workers=0)


def settings(**changes):
    return Training.model_validate(QUICK.model_dump() | {"workers": 0} | changes)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(folder: Path, training: Training = QUICK, **given):
    model, network = tiny()
    return fit(model, network, training, context(folder, **given))


def answers(model, network, found):
    prepare = Preprocessing(network.preprocess)
    with torch.no_grad():
        inputs = torch.cat([prepare(torch.from_numpy(found.picture(i))[None]) for i in range(len(found))])
        return model(inputs).softmax(1).numpy()


def test_a_batch_of_one_picture_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"batch of one picture: with \d+ pictures take a batch_size of 3 or more \(1 now"
    ):
        trained(tmp_path, settings(batch_size=1, epochs=1))


def test_it_learns_and_says_so(tmp_path: Path) -> None:
    model, network = tiny()
    lent = context(tmp_path)
    model, rows = fit(model, network, settings(epochs=6), lent)
    assert not model.training
    assert rows[-1].val_top1 > 0.9
    assert rows[-1].train_loss < rows[0].train_loss
    kept = next(row for row in rows if row.kept)
    probabilities = answers(model, network, lent.data.val)
    assert stats.top1(probabilities, lent.data.val.labels) == kept.val_top1
    written = json.loads((lent.out / "curves.json").read_text())
    assert [row["epoch"] for row in written] == [1, 2, 3, 4, 5, 6]
    assert sum(row["kept"] for row in written) == 1
    for row in written:
        assert 0 < row["data_seconds"] < row["train_seconds"] < row["seconds"]
    assert list((lent.out / "tensorboard").glob("events.out.tfevents.*"))


def test_the_kept_epoch_is_the_best_by_the_named_metric(tmp_path: Path) -> None:
    _, rows = trained(tmp_path, settings(epochs=5, select="loss"))
    kept = next(row for row in rows if row.kept)
    assert kept.val_loss == min(row.val_loss for row in rows)


def test_the_last_epoch_is_kept_where_the_recipe_says_so(tmp_path: Path) -> None:
    _, rows = trained(tmp_path, settings(epochs=4, select="loss", keep="last"))
    assert [row.epoch for row in rows if row.kept] == [4]


def test_twice_the_same_seed_is_the_same_network_and_another_seed_is_not(tmp_path: Path) -> None:
    first, _ = trained(tmp_path / "a")
    second, _ = trained(tmp_path / "b")
    other, _ = trained(tmp_path / "c", seed=1)
    assert state_bytes(first) == state_bytes(second)
    assert state_bytes(first) != state_bytes(other)


def test_workers_and_checkpoints_change_nothing(tmp_path: Path) -> None:
    plain, _ = trained(tmp_path / "a")
    busy, _ = trained(tmp_path / "b", settings(workers=2, checkpoint_seconds=0))
    assert state_bytes(plain) == state_bytes(busy)


def test_whoever_draws_random_numbers_afterwards_does_not_notice(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained(tmp_path, settings(epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_killed_at_random_moments_it_ends_in_the_very_same_weights(tmp_path: Path) -> None:
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent)])
    done = subprocess.run(
        [sys.executable, str(here / "learn_killed.py"), str(tmp_path), "3", "7"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["status"] == 0
    assert outcome["killed"] >= 1
    said = (tmp_path / "killed" / "said.txt").read_text()
    assert "goes on from epoch" in said
    calm, killed = (tmp_path / name / "network" / "weights.safetensors" for name in ("calm", "killed"))
    assert calm.read_bytes() == killed.read_bytes()


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    first, rows = trained(tmp_path)
    model, network = tiny()
    lent = context(tmp_path)
    again, repeated = fit(model, network, QUICK, lent)
    assert state_bytes(first) == state_bytes(again)
    assert [row.seconds for row in rows] == [row.seconds for row in repeated]


def test_a_checkpoint_of_other_settings_is_not_believed(tmp_path: Path) -> None:
    trained(tmp_path)
    model, network = tiny()
    lent = context(tmp_path)
    changed, _ = fit(model, network, settings(lr=1e-3), lent)
    assert "of another training" in lent.progress.said[0]
    alone, _ = trained(tmp_path / "alone", settings(lr=1e-3))
    assert state_bytes(changed) == state_bytes(alone)


def test_early_stopping_ends_and_stays_ended(tmp_path: Path) -> None:
    stopping = settings(
        epochs=9, lr=1e-9, train="head", early_stopping=EarlyStopping(metric="top1", patience=2)
    )
    _, rows = trained(tmp_path, stopping)
    assert len(rows) < 9
    _, repeated = trained(tmp_path, stopping)
    assert len(repeated) == len(rows)


def test_a_loss_that_is_not_finite_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"the loss .*became .* epoch \d+.* lower lr than 1e\+30"
    ) as error:
        trained(tmp_path, settings(lr=1e30, optimizer="sgd", epochs=3))
    assert "\n" not in str(error.value)


def test_accumulating_two_batches_is_as_good_as_one_twice_the_size(tmp_path: Path) -> None:
    # The head alone, because batch norm sees the batches as they are.
    found = data((16, 16, 16))
    large, _ = trained(tmp_path / "a", settings(batch_size=16, train="head"), found=found)
    small, _ = trained(tmp_path / "b", settings(batch_size=8, accumulate=2, train="head"), found=found)
    for ours, theirs in zip(large.state_dict().values(), small.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_linear_probe_leaves_the_backbone_alone_batch_norm_included(tmp_path: Path) -> None:
    before, _ = tiny()
    model, _ = trained(tmp_path, settings(train="head", weight_decay=0.5))
    changed = {
        name
        for name, value in model.state_dict().items()
        if not torch.equal(value, before.state_dict()[name])
    }
    assert changed == {"fc.weight", "fc.bias"}


def test_averaged_weights_are_what_is_judged(tmp_path: Path) -> None:
    plain, _ = trained(tmp_path / "a")
    averaged, rows = trained(tmp_path / "b", settings(ema=0.99))
    assert state_bytes(plain) != state_bytes(averaged)
    _, network = tiny()
    probabilities = answers(averaged, network, data().val)
    kept = next(row for row in rows if row.kept)
    assert stats.top1(probabilities, data().val.labels) == kept.val_top1


@pytest.mark.parametrize("balance", ["loss", "sampler", "logits"])
def test_balancing_helps_the_rare_class(tmp_path: Path, balance: str) -> None:
    found = dataclasses.replace(data((60, 60, 4), noise=110.0), val=pictures("val", (30, 30, 30), 110.0))
    recalls = {}
    for way in ("none", balance):
        model, network = tiny()
        lent = context(tmp_path / way, found)
        model, _ = fit(model, network, settings(epochs=4, lr=2e-3, balance=way, select="loss"), lent)
        recalls[way] = stats.recalls(answers(model, network, found.val), found.val.labels)[2]
    assert recalls[balance] > recalls["none"]


def test_a_teacher_is_followed_even_where_the_labels_say_otherwise(tmp_path: Path) -> None:
    teacher, _ = trained(tmp_path / "teacher", settings(epochs=6))
    wrong = data()
    turned = tuple(dataclasses.replace(s, label=(s.label + 1) % 3) for s in wrong.train.samples)
    found = dataclasses.replace(wrong, train=dataclasses.replace(wrong.train, samples=turned))
    frozen = state_bytes(teacher)
    model, network = tiny()
    lent = context(tmp_path / "pupil", found)
    distill = Distillation(temperature=2.0, alpha=1.0)
    _, rows = fit(model, network, settings(epochs=6), lent, teacher=teacher, distill=distill)
    assert rows[-1].val_top1 > 0.9
    assert rows[-1].train_top1 < 0.2
    assert state_bytes(teacher) == frozen


def test_a_teacher_on_a_cpu_answers_few_pictures_at_a_time_and_all_of_them(tmp_path: Path) -> None:
    teacher, _ = tiny()
    seen: list[int] = []
    teacher.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    model, network = tiny()
    lent = context(tmp_path, data())
    fit(model, network, settings(epochs=1, batch_size=20), lent, teacher=teacher)
    assert max(seen) == 8
    assert sum(seen) == len(lent.data.train)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd", "nesterov": True, "schedule": "plateau", "patience": 0},
        {"schedule": "one-cycle", "amp": "bf16"},
        {"schedule": "constant", "channels_last": False, "train": 1, "head_lr_factor": 10.0},
        {"mixup": 0.2, "cutmix": 1.0, "balance": "loss", "label_smoothing": 0.1, "clip": 1.0},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_every_way_of_training_lowers_the_loss(tmp_path: Path, changes: dict[str, object]) -> None:
    _, rows = trained(tmp_path, settings(**{"epochs": 4, "lr": 5e-3, **changes}))
    assert rows[-1].train_loss < rows[0].train_loss
    assert all(0 <= row.val_top1 <= 1 for row in rows)


def test_a_plateau_lowers_the_rate(tmp_path: Path) -> None:
    training = settings(
        epochs=4, lr=1e-9, train="head", schedule="plateau", patience=0, factor=0.5, select="top1"
    )
    _, rows = trained(tmp_path, training)
    assert [row.lr for row in rows] == pytest.approx([1e-9, 1e-9, 5e-10, 2.5e-10])


def test_labels_that_differ_and_missing_val_are_told_before_training(tmp_path: Path) -> None:
    model, network = tiny()
    other = network.model_copy(update={"labels": ("green", "red", "blue")})
    with pytest.raises(TrainingError, match="same, in the same order"):
        fit(model, other, QUICK, context(tmp_path))
    with pytest.raises(TrainingError, match="no val pictures"):
        fit(model, network, QUICK, context(tmp_path, data(val=())))
    with pytest.raises(TrainingError, match="999 blocks"):
        fit(model, network, settings(train=999), context(tmp_path))
