"""Simulated rounding against torch's own and onnxruntime's; a teacher in ONNX Runtime against its torch self."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx.helper import make_node
from onnx_helpers import mobile, model, run

from toolchain.learn.checkpoint import identity
from toolchain.simulate.answering import Answering
from toolchain.simulate.network import Simulated
from toolchain.simulate.rounding import rounded

NUMBERS = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 40, 40)).astype(np.float32))
SCALES = [(0.0123, 17, 0, 255), (0.02, 0, -127, 127), (0.5, -3, -128, 127)]


@pytest.mark.parametrize("settings", SCALES)
def test_numbers_are_rounded_as_torch_does_and_get_its_gradients(
    settings: tuple[float, int, int, int],
) -> None:
    found, expected = ([NUMBERS.clone().requires_grad_(), None] for _ in range(2))
    for pair, function in ((found, rounded), (expected, torch.fake_quantize_per_tensor_affine)):
        pair[1] = function(pair[0], *settings)
        (pair[1] * torch.arange(40)).sum().backward()
    apart = (found[1] - expected[1]).abs()
    assert (
        apart > 1e-6
    ).float().mean() < 1e-3  # torch adds the zero point before it rounds, which moves halves
    assert apart.max() <= settings[0] + 1e-6
    assert torch.equal(found[0].grad, expected[0].grad)


@pytest.mark.parametrize("settings", SCALES)
def test_numbers_are_rounded_as_onnxruntime_does(settings: tuple[float, int, int, int]) -> None:
    scale, zero, low, _ = settings
    kind = np.iinfo(np.uint8 if low == 0 else np.int8)
    step = np.array(scale, np.float32)
    nodes = [
        make_node("QuantizeLinear", ["input", "scale", "zero"], ["integers"], name="q"),
        make_node("DequantizeLinear", ["integers", "scale", "zero"], ["logits"], name="d"),
    ]
    source = model(nodes, {"scale": step, "zero": np.array(zero, kind.dtype)}, shape=("N", 3, 40, 40))
    halves = torch.arange(-2400, 2400).reshape(1, 3, 40, 40) * (step / 2)
    for pictures in (NUMBERS, halves):
        answers = run(source, pictures.numpy(), optimize=False)
        mine = rounded(pictures, float(step), zero, int(kind.min), int(kind.max))
        np.testing.assert_allclose(mine.numpy(), answers, atol=scale * 1e-3)


def test_a_teacher_answers_in_onnxruntime_as_in_torch() -> None:
    source = mobile(side=16)
    pictures = NUMBERS[:, :, :16, :16].to(memory_format=torch.channels_last)
    teacher, simulated = Answering(source), Simulated(source).eval()
    with torch.no_grad():
        assert torch.allclose(teacher(pictures), simulated(pictures), atol=1e-5)
    assert not teacher(pictures.requires_grad_()).requires_grad


def test_trainings_with_other_teachers_have_other_checkpoints() -> None:
    before = identity({}, [Answering(mobile())])
    assert identity({}, [Answering(mobile())]) == before
    assert identity({}, [Answering(mobile(seed=1))]) != before
