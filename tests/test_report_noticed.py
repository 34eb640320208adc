"""Sentences about what steps found out of their own worth."""

from __future__ import annotations

from toolchain.record import Measurement
from toolchain.report.noticed import told


def test_replaced_activations_tell_how_many_and_what_it_gained() -> None:
    measured = [
        Measurement(name="replaced", value=33, where={"by": "relu"}),
        Measurement(name="replaced", value=16, where={"by": "hard-sigmoid"}),
        Measurement(name="speedup", value=1.5, where={"form": "int8"}),
    ]
    said = told("activations", {}, measured)
    assert "33 by relu, 16 by hard-sigmoid" in said
    assert "1.50 times as fast in int8" in said
    assert "times as fast" not in told("activations", {}, measured[:2])


def test_targets_tell_what_they_cost() -> None:
    measured = [
        Measurement(name="agreement", value=0.98, where={"weights": "portable"}),
        Measurement(name="agreement", value=0.991, where={"weights": "8 bits"}),
        Measurement(name="price", value=1.01, where={"weights": "portable"}),
    ]
    said = told("quantize", {"targets": ["x86-vnni", "x86-avx2"]}, measured)
    assert "one file for x86-vnni, x86-avx2" in said
    assert "98.0 % of the answers are float's instead of 99.1 %" in said
    assert "at 1.01 times its latency" in said
    assert told("quantize", {"targets": []}, measured[:1]) == ""
    assert told("prune", {}, measured) == ""
