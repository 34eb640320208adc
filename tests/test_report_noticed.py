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
    assert told("prune", {}, measured[:1]) == ""


def test_a_changed_graph_tells_its_price() -> None:
    def price(value: float, **where: str) -> list[Measurement]:
        return [Measurement(name="price", value=value, where=where)]

    assert (
        told("narrow", {}, price(0.724)) == "narrow: 0.72 times the latency of the file before (timed once)"
    )
    assert "0.91 times the latency of the file before, both in int8" in told(
        "pad_stem", {}, price(0.91, form="int8")
    )
    assert told("join", {}, price(0.998)) == ""
    assert told("fall_back", {}, price(1.03, layer="conv")) == ""


def test_rounded_files_tell_how_far_their_answers_moved() -> None:
    noise = Measurement(name="sqnr", value=60.48, unit="dB")
    said = "weight_only: logits with 60.5 dB of signal over noise against the file before"
    assert told("weight_only", {}, [noise]) == said
    slower = Measurement(name="price", value=1.47)
    assert (
        told("weight_only", {}, [noise, slower])
        == f"{said}, 1.47 times the latency of the file before (timed once)"
    )
    assert told("half", {}, [noise]).startswith("half: logits with 60.5 dB")
    assert told("half", {}, []) == ""


def test_an_optimized_file_tells_how_soon_it_is_ready_and_where() -> None:
    loads = {("before", "fused"): 39.3, ("after", "fused"): 19.34}
    measured = [
        Measurement(name="load", value=ms, unit="ms", where={"state": state, "file": file})
        for (state, file), ms in loads.items()
    ]
    said = told("optimize_offline", {"target": "onnxruntime 1.31.1 on x86"}, measured)
    assert said.endswith("ready in 19.3 ms instead of 39.3, on onnxruntime 1.31.1 on x86 only")
    faster = told("optimize_offline", {"target": "this"}, [*measured, Measurement(name="price", value=0.97)])
    assert faster.endswith("on this only; 0.97 times the latency of the file before (timed once)")
