"""A part whose readers are deaf to some channels answers as the network that was really pruned of them."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from test_backbones_pruning import make
from test_steps_prune import context, network
from torch import nn

from toolchain.artifact import Artifact
from toolchain.backbones.network import load
from toolchain.backbones.pruning import Pruning, parts, prune, readers
from toolchain.backbones.sensitivity import SHARES, alone
from toolchain.errors import BackboneError
from toolchain.report.parts import PrunedPart, PruningSensitivity
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
    found = readers(model, described, ANY)
    before = copy.deepcopy(model.state_dict())
    answers = {one.part: one.logits for one in alone(model, found, [pictures[:2], pictures[2:]], [0.5])}
    for part in found[:: max(1, len(found) // 6)]:
        pruned = copy.deepcopy(model)
        prune(pruned, described, ANY.model_copy(update={"ratios": {"*": 0.0, part.name: 0.5}}))
        with torch.no_grad():
            torch.testing.assert_close(
                torch.from_numpy(answers[part.name]), pruned(pictures), rtol=1e-4, atol=1e-5
            )
    assert {"", *(part.name for part in found)} == answers.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_a_grouped_convolution_reads_belongs_to_no_part() -> None:
    model, described = make("regnety_002")
    grouped = {
        n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and 1 < m.groups < m.in_channels
    }
    found = readers(model, described, ANY)
    assert grouped
    assert found
    assert not {layer for part in found for layer in part.inputs} & grouped
    assert {part.name for part in found} == {part.name for part in parts(model, described, ANY)}


def test_a_pruning_that_probes_measures_every_part_and_prunes_as_without(
    network: Artifact, tmp_path: Path
) -> None:
    probing = Prune(ratio=0.5, probe=6).run({"model": network}, context(tmp_path / "a"))
    plain = Prune(ratio=0.5).run({"model": network}, context(tmp_path / "b"))
    assert [m for m in probing if not m.name.endswith("_pruned")] == list(plain)
    ours, theirs = (load(tmp_path / name)[0].state_dict() for name in ("a", "b"))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    known = readers(*load(network.folder), Pruning())
    found = pruning("pruned", probing)
    assert found is not None
    assert {part.name for part in found.parts} == {part.name for part in known}
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


def test_parts_of_which_nothing_was_heard_do_not_stretch_the_picture() -> None:
    whole = PrunedPart(name="dead", shares=SHARES, sqnr=(200.0, 180.0, 160.0), agreement=(1.0, 1.0, 1.0))
    heard = PrunedPart(name="heard", shares=SHARES, sqnr=(30.0, 20.0, 10.0), agreement=(1.0, 0.9, 0.5))
    picture = str(drawing(PruningSensitivity(artifact="pruned", parts=(heard, whole))))
    places = [float(at) for at in re.findall(r'<circle cx="([0-9.]+)"', picture)][len(SHARES) :]
    assert len(set(places[3:])) == 1, "all at the end of the scale"
    assert max(places[:3]) - min(places[:3]) > 200
