"""A part whose readers are deaf to some channels answers as the network that was really pruned of them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from test_backbones_pruning import make
from test_steps_prune import context, network
from torch import nn

from toolchain.artifact import Artifact
from toolchain.backbones.network import load
from toolchain.backbones.pruning import Pruning, prune, readers
from toolchain.backbones.sensitivity import SHARES, alone
from toolchain.errors import BackboneError
from toolchain.report.pruning import SHOWN, drawing, pruning
from toolchain.steps.prune import Prune

__all__ = ["network"]  # the fixture
ANY = Pruning(round_to=1)


def stirred(name: str) -> tuple[nn.Module, object]:
    """A network whose norms do something."""
    torch.manual_seed(0)
    model, described = make(name)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
            nn.init.uniform_(norm.running_mean, -0.3, 0.3)
    return model, described


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
def test_unread_channels_count_as_pruned_ones(name: str) -> None:
    model, described = stirred(name)
    pictures = torch.randn(3, 3, 32, 32)
    parts = readers(model, described, ANY)
    before = copy.deepcopy(model.state_dict())
    answers = {one.part: one.logits for one in alone(model, parts, [pictures[:2], pictures[2:]], [0.5])}
    for part in parts[:: max(1, len(parts) // 6)]:
        pruned = copy.deepcopy(model)
        prune(pruned, described, ANY.model_copy(update={"ratios": {"*": 0.0, part.name: 0.5}}))
        with torch.no_grad():
            torch.testing.assert_close(
                torch.from_numpy(answers[part.name]), pruned(pictures), rtol=1e-4, atol=1e-5
            )
    assert {"", *(part.name for part in parts)} == answers.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_a_grouped_convolution_reads_is_left_out() -> None:
    model, described = make("regnety_002")
    grouped = [
        name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and 1 < m.groups < m.in_channels
    ]
    read = {layer for part in readers(model, described, ANY) for layer in part.inputs}
    assert grouped
    assert not read & set(grouped)


def test_a_pruning_that_probes_measures_every_part_and_prunes_as_without(
    network: Artifact, tmp_path: Path
) -> None:
    probing = Prune(ratio=0.5, probe=6).run({"model": network}, context(tmp_path / "a"))
    plain = Prune(ratio=0.5).run({"model": network}, context(tmp_path / "b"))
    assert [m for m in probing if not m.name.endswith("_pruned")] == list(plain)
    ours, theirs = (load(tmp_path / name)[0].state_dict() for name in ("a", "b"))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    parts = readers(*load(network.folder), Pruning())
    found = pruning("pruned", probing)
    assert found is not None
    assert {part.name for part in found.parts} == {part.name for part in parts}
    assert all(part.shares == SHARES for part in found.parts)
    middle = [part.sqnr[1] for part in found.parts]
    assert middle == sorted(middle)
    assert any(part.sqnr[0] > part.sqnr[2] + 1 for part in found.parts), "more pruned, more lost"
    assert pruning("pruned", plain) is None


def test_probing_needs_training_pictures(network: Artifact, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"prune\.probe.*training pictures"):
        Prune(probe=8).run({"model": network}, context(tmp_path / "a", pictures=0))


def test_a_pruning_that_does_not_probe_keeps_its_key() -> None:
    assert "probe" not in Prune(ratio=0.4).model_dump(mode="json")
    assert "ratios" not in Prune(ratio=0.4).model_dump(mode="json")
    assert Prune(probe=8, ratios={"a": 0.1}).model_dump(mode="json").items() >= {"probe": 8}.items()


def test_the_picture_has_a_dot_for_each_share_and_is_cut(network: Artifact, tmp_path: Path) -> None:
    found = pruning("pruned", Prune(probe=4).run({"model": network}, context(tmp_path / "a")))
    assert found is not None
    picture = str(drawing(found))
    assert picture.count("<circle") == len(SHARES) * (len(found.parts) + 1)  # and the legend's
    assert all(part.name in picture for part in found.parts)
    long = found.model_copy(update={"parts": found.parts * 20})
    assert str(drawing(long)).count("<circle") == len(SHARES) * (SHOWN + 1)
