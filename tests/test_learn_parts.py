"""What the loop is made of: schedules, losses, mixing, what is trained and by how much, settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learn_helpers import tiny
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from toolchain.backbones.architecture import blocks
from toolchain.learn import optimizer
from toolchain.learn.average import Average
from toolchain.learn.curves import EpochRow, idle, kept
from toolchain.learn.losses import class_offsets, class_weights, cross_entropy, distilled
from toolchain.learn.mixing import mix
from toolchain.learn.schedule import Plateau, factor
from toolchain.learn.settings import Distillation, Training


def rates(steps: int = 10, **settings):
    training = Training(**{"epochs": 4, **settings})
    return np.array([factor(training, step, steps) for step in range(training.epochs * steps)])


def test_warm_up_may_be_a_fraction_of_an_epoch() -> None:
    found = rates(schedule="constant", warmup_epochs=0.5)
    assert found[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert (found[6:] == 1).all()


def test_cosine_falls_from_one_to_nearly_nothing() -> None:
    found = rates(schedule="cosine", warmup_epochs=1)
    assert found[9:11] == pytest.approx([1, 1])
    assert found[25] == pytest.approx(0.5)
    assert (np.diff(found[10:]) < 0).all()
    assert 0 < found[-1] < 0.01


def test_one_cycle_rises_and_falls() -> None:
    found = rates(schedule="one-cycle")
    assert found[0] == pytest.approx(1 / 25)
    assert found.argmax() == 12
    assert found.max() == pytest.approx(1)
    assert (np.diff(found[:13]) > 0).all()
    assert (np.diff(found[12:]) < 0).all()
    assert rates(schedule="one-cycle", warmup_epochs=1).argmax() == 10


def test_a_plateau_waits_for_its_patience() -> None:
    plateau = Plateau(factor=0.1, patience=1)
    scales = []
    for score in (0.5, 0.4, 0.5, 0.6, 0.5, 0.5, 0.5, 0.5):
        plateau.see(score)
        scales.append(plateau.scale)
    assert scales == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001])


def test_class_weights_have_mean_one_over_the_pictures() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [3])
    weights = class_weights(labels, 4)
    assert weights[labels].mean() == pytest.approx(1)
    assert weights[2] == 0
    assert weights[3] / weights[0] == pytest.approx(6)
    assert class_weights(labels, 4, power=0.5)[3] / class_weights(labels, 4, power=0.5)[0] == pytest.approx(
        6**0.5
    )


def test_cross_entropy_is_torchs_and_takes_shares() -> None:
    logits, labels = torch.randn(8, 5), torch.randint(5, (8,))
    torch.testing.assert_close(
        cross_entropy(logits, labels, smoothing=0.1), F.cross_entropy(logits, labels, label_smoothing=0.1)
    )
    weights = torch.rand(5)
    shares = F.one_hot(labels, 5).float()
    torch.testing.assert_close(cross_entropy(logits, labels, weights), cross_entropy(logits, shares, weights))


def test_distillation_follows_hinton() -> None:
    logits = torch.randn(8, 5, requires_grad=True)
    teacher = torch.randn(8, 5)
    loss = torch.tensor(3.0)
    assert distilled(loss, logits, teacher, Distillation(alpha=0)) == 3
    assert distilled(loss, teacher, teacher, Distillation(alpha=1)) == pytest.approx(0, abs=1e-6)
    # At a high temperature the gradient is that of half the squared difference of centred logits, over C.
    hot = distilled(loss, logits, teacher, Distillation(temperature=1000, alpha=1))
    (gradient,) = torch.autograd.grad(hot, logits)
    gap = (logits - logits.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    torch.testing.assert_close(gradient, (gap / 5 / 8).detach(), rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("way", ["mixup", "cutmix"])
def test_mixed_pictures_have_their_shares_of_the_labels(way: str) -> None:
    # Pictures of class k are k everywhere, so a picture's mean is the mean of its labels.
    labels = torch.arange(6)
    pictures = labels.float().view(6, 1, 1, 1).expand(6, 3, 20, 20)
    seen = set()
    for seed in range(5):
        mixed, shares = mix(pictures, labels, 6, Training(**{way: 1.0}), np.random.default_rng(seed))
        torch.testing.assert_close(shares.sum(1), torch.ones(6))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), shares @ torch.arange(6.0), rtol=1e-4, atol=1e-4)
        seen.add(round(float(shares.max()), 4))
    assert len(seen) > 2
    same, plain = mix(pictures, labels, 6, Training(), np.random.default_rng(0))
    assert same is pictures
    assert plain is labels


def test_norms_and_biases_do_not_decay_and_the_head_has_its_rate() -> None:
    model, _ = tiny()
    found = optimizer.make(model, Training(weight_decay=0.1, head_lr_factor=10))
    optimizer.set_rate(found, 0.01)
    settings = {id(p): (g["weight_decay"], g["lr"]) for g in found.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        rate = 0.1 if name.startswith("fc.") else 0.01
        assert settings[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0, pytest.approx(rate)), name
    assert len(settings) == len(list(model.parameters()))


def test_the_last_blocks_are_trained_and_the_rest_stays_in_eval_mode() -> None:
    model, _ = tiny()
    optimizer.Scope(model, 1).train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    last = [id(p) for module in blocks(model)[-1] for p in module.parameters()]
    expected = {n for n, p in model.named_parameters() if id(p) in last or n.startswith("fc.")}
    assert trained == expected
    assert 2 < len(trained) < len(list(model.parameters()))
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training is (f"{name}.weight" in trained)


def test_the_whole_network_is_trained_unless_asked() -> None:
    model, _ = tiny()
    optimizer.Scope(model, "head")
    optimizer.Scope(model, "full").train()
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())


def test_the_average_runs_after_the_weights_batch_statistics_included() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    average = Average(model, decay=0.9)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.fill_(1)
        for value in average.model.state_dict().values():
            value.zero_()
    average.updates = 1000
    for _ in range(2):
        average.update()
    found = average.model.state_dict()
    assert found["0.weight"].item() == pytest.approx(0.19)
    assert found["1.running_var"].item() == pytest.approx(0.19)
    assert found["1.num_batches_tracked"].item() == 1


def test_offsets_are_the_logarithms_of_the_shares() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    assert class_offsets(labels, 2).exp().tolist() == pytest.approx([0.75, 0.25])
    assert class_offsets(labels, 2, 0.5).tolist() == pytest.approx((0.5 * class_offsets(labels, 2)).tolist())
    assert torch.isfinite(class_offsets(labels, 3)).all()
    # With even logits the loss is that of the shares themselves: the rare class is far from learnt.
    losses = [
        cross_entropy(torch.zeros(1, 2) + class_offsets(labels, 2), torch.tensor([k])).item() for k in (0, 1)
    ]
    assert losses == pytest.approx([-np.log(0.75), -np.log(0.25)])


def row(epoch: int, top1: float, loss: float) -> EpochRow:
    return EpochRow(
        epoch=epoch, train_loss=1, train_top1=0, val_loss=loss, val_top1=top1, val_balanced=top1, lr=1,
        seconds=2, train_seconds=1, data_seconds=0.5, pictures_per_second=1,
    )  # fmt: skip


def test_the_best_epoch_among_equals_has_the_lower_loss_then_came_first() -> None:
    rows = [row(1, 0.9, 0.5), row(2, 0.9, 0.4), row(3, 0.8, 0.1), row(4, 0.9, 0.4)]
    assert kept(rows, "top1") is rows[1]
    assert kept(rows, "loss") is rows[2]
    assert idle(rows, "top1") == 3
    assert idle(rows, "loss") == 1
    assert kept(rows, "top1", "last") is rows[-1]
    assert kept([], "top1") is None
    assert idle([], "top1") == 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"epochs": 2, "warmup_epochs": 2}, "must be less than epochs"),
        ({"nesterov": True}, "needs optimizer 'sgd'"),
        ({"train": 0}, "train"),
        ({"optimizer": "adam"}, "optimizer"),
        ({"epohcs": 3}, "epohcs"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Training.model_validate(settings)


def test_what_does_not_change_the_result_is_not_in_the_key() -> None:
    dumped = Training(workers=7, checkpoint_seconds=1).model_dump(mode="json")
    assert dumped == Training().model_dump(mode="json")
    assert "lr" in dumped
    assert Training().decay == 0.05
    assert Training(optimizer="sgd").decay == 1e-4
    assert Training(weight_decay=0).decay == 0
