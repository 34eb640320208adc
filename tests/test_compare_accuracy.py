"""Accuracy on the same pictures: saved answers, asked answers, what is lost, what is real."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_helpers import mobile
from PIL import Image
from runtime_helpers import fused_model, make_bundle
from tiny import command

from toolchain.compare import accuracy, answers, sides
from toolchain.compare.answers import NO_ANSWER, Paired
from toolchain.compare.gates import Gates
from toolchain.compare.model import Check
from toolchain.errors import DataError, ModelError
from toolchain.progress import Silent
from toolchain.runtime.bench_input import Wish
from toolchain.runtime.fresh import Setup


def paired(n: int, lost: int, won: int, wrong: int = 0, classes: int = 4) -> Paired:
    """n pictures: `wrong` by both, `lost` by the candidate only, `won` by the base only; the rest right."""
    labels = np.arange(n) % classes
    base, candidate = labels.copy(), labels.copy()
    order = np.random.default_rng(0).permutation(n)
    candidate[order[:lost]] = (labels[order[:lost]] + 1) % classes
    base[order[lost : lost + won]] = (labels[order[lost : lost + won]] + 1) % classes
    both = order[lost + won : lost + won + wrong]
    base[both] = candidate[both] = (labels[both] + 1) % classes
    sure = 0.9 * np.eye(classes) + 0.1 / classes
    return Paired(sure[base], sure[candidate], labels, tuple("abcd"[:classes]), "simulated")


def checks(given: Paired, gates: Gates) -> dict[str, Check]:
    return {check.name: check for check in accuracy.checks(accuracy.score(given, gates), gates)}


def test_a_loss_that_is_real_is_found_and_one_that_is_not_is_said_so() -> None:
    real = accuracy.score(paired(10_000, lost=100, won=50), Gates())
    assert (real.loss, real.lost, real.won) == (pytest.approx(0.5), 100, 50)
    assert real.real
    assert real.p_value < 0.001
    unreal = accuracy.score(paired(10_000, lost=450, won=400), Gates())
    assert unreal.loss == pytest.approx(0.5)
    assert not unreal.real
    assert unreal.p_value > 0.03
    assert "not shown to be real" in checks(paired(10_000, 450, 400), Gates())["accuracy"].note


@pytest.mark.parametrize(
    ("lost", "won", "bound", "verdict"),
    [(0, 0, 1.0, "pass"), (100, 50, 0.1, "regression"), (100, 50, 0.5, "inconclusive"), (100, 50, 1.0, "pass"),
     (50, 100, 0.0, "pass"), (100, 50, None, "not judged")],
)  # fmt: skip
def test_accuracy_is_judged_by_the_whole_interval(
    lost: int, won: int, bound: float | None, verdict: str
) -> None:
    assert checks(paired(10_000, lost, won), Gates(accuracy=bound))["accuracy"].verdict == verdict


@pytest.mark.parametrize(
    ("n", "lost", "won", "bound", "verdict", "told"),
    [
        (30, 0, 1, 1.0, "inconclusive", "30 pictures are too few: a pass needs 195 or more"),
        (30, 4, 0, 1.0, "inconclusive", "not shown to be real"),
        (194, 0, 0, 1.0, "inconclusive", "194 pictures are too few: a pass needs 195 or more"),
        (195, 0, 0, 1.0, "pass", "0 lost, 0 won"),
        (500, 0, 0, 0.0, "inconclusive", "no number of them shows that none is lost"),
    ],
)  # fmt: skip
def test_few_pictures_decide_nothing_by_chance(
    n: int, lost: int, won: int, bound: float, verdict: str, told: str
) -> None:
    found = checks(paired(n, lost, won), Gates(accuracy=bound, class_accuracy={"a": 100}))
    assert found["accuracy"].verdict == verdict
    assert told in found["accuracy"].note
    assert "too few" not in found["class a"].note


def test_a_class_of_three_pictures_passes_no_bound_by_an_answer_gained() -> None:
    found = checks(paired(12, lost=0, won=1), Gates(class_accuracy=5))
    classes = [check for name, check in found.items() if name.startswith("class ")]
    assert [check.verdict for check in classes] == ["inconclusive"] * 4
    assert all("3 pictures are too few: a pass needs 39 or more" in check.note for check in classes)


def test_rounded_probabilities_are_no_logits() -> None:
    rows = np.round(256 * np.array([[0.953, 0.041, 0.003, 0.003], [0.25, 0.25, 0.25, 0.25]])) / 256
    rows[0, 0] += 2 / 256
    found = answers.probabilities(rows)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert found[0, 0] == pytest.approx(0.953, abs=0.01)
    assert answers.probabilities(np.array([[3.0, 0.5, 0.2]]))[0, 0] > 0.8


def test_agreement_and_calibration_have_bounds_of_their_own() -> None:
    given = paired(2000, lost=100, won=20)
    found = checks(given, Gates(agreement=99, calibration=1.0))
    assert found["agreement"].verdict == "regression"
    assert found["agreement"].value == pytest.approx(94.0)
    assert found["calibration error"].verdict == "pass"  # 99 and 95 % right, both claim 92.5
    assert found["calibration error"].value == pytest.approx(2.5 - 6.5)
    overconfident = checks(paired(2000, lost=400, won=20), Gates(calibration=1.0))["calibration error"]
    assert overconfident.verdict == "regression"
    assert overconfident.value == pytest.approx(12.5 - 6.5)
    assert checks(given, Gates(agreement=90, calibration=10))["agreement"].verdict == "pass"
    assert checks(given, Gates(agreement=94))["agreement"].verdict == "inconclusive"


def test_a_class_that_collapses_is_found_where_the_whole_hides_it() -> None:
    given = paired(4000, 0, 0)
    candidate = given.candidate.copy()
    hit = np.flatnonzero(given.labels == 2)[:30]
    candidate[hit] = np.roll(candidate[hit], 1, axis=1)
    worse = Paired(given.base, candidate, given.labels, given.classes, "simulated")
    found = checks(worse, Gates(class_accuracy=1.0))
    assert found["accuracy"].verdict != "regression"
    assert {name: c.verdict for name, c in found.items() if name.startswith("class")} == {
        "class a": "pass", "class b": "pass", "class c": "regression", "class d": "pass",
    }  # fmt: skip
    assert "class c" in checks(worse, Gates(class_accuracy={"c": 5}))
    assert "class a" not in checks(worse, Gates(class_accuracy={"c": 5}))


def test_holms_correction_asks_more_of_many_classes() -> None:
    assert accuracy.holm([0.01, 0.04, 0.9]) == [True, False, False]
    assert accuracy.holm([0.001, 0.02]) == [True, True]
    assert accuracy.holm([0.03] * 10) == [False] * 10
    assert accuracy.holm([]) == []


def test_saved_answers_are_read_from_npz_with_probabilities_or_logits(tmp_path: Path) -> None:
    given = paired(100, 5, 2)
    np.savez(
        tmp_path / "a.npz", base=given.base, candidate=np.log(given.candidate), labels=given.labels,
        classes=np.array(list("abcd")), groups=np.arange(100) // 10,
    )  # fmt: skip
    found = answers.read(tmp_path / "a.npz")
    assert found.classes == ("a", "b", "c", "d", NO_ANSWER)
    assert np.allclose(found.candidate[:, :4], given.candidate)
    scored = accuracy.score(found, Gates())
    assert (scored.lost, scored.won, scored.groups) == (5, 2, 10)
    assert scored.ece is not None


def test_pictures_without_a_group_are_groups_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "label,base,candidate,group\n" + "cat,cat,dog,\n" * 3 + "dog,dog,dog,x\n" * 2
    )
    scored = accuracy.score(answers.read(tmp_path / "a.csv"), Gates())
    assert scored.groups == 4


def test_agreement_and_balanced_accuracy_are_told_by_their_own_measure() -> None:
    labels, groups = np.arange(1000) % 2, tuple(str(k // 50) for k in range(1000))
    base, other = np.eye(2)[labels], np.eye(2)[np.where(np.arange(1000) < 50, 1 - labels, labels)]
    given = Paired(base, other, labels, ("a", "b"), "saved", groups)
    low, high = accuracy.score(given, Gates()).agreement_ci95
    assert low < 90 < 99 < high
    gates = Gates(metric="balanced", accuracy=1)
    note = accuracy.checks(accuracy.score(given, gates), gates)[0].note
    assert note.startswith("balanced, ")
    assert "McNemar" not in note


def test_saved_answers_are_read_from_csv_without_calibration(tmp_path: Path) -> None:
    rows = [("cat", "cat", "dog")] * 3 + [("dog", "cat", "dog")] + [("dog", "dog", "bird")]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("label", "base", "candidate"), *rows])
    scored = accuracy.score(answers.read(tmp_path / "a.csv"), Gates())
    assert (scored.n, scored.lost, scored.won, scored.ece) == (5, 4, 1, None)
    assert [row.name for row in scored.classes] == ["cat", "dog"]


def test_an_answer_that_is_not_finite_is_never_right(tmp_path: Path) -> None:
    given = paired(50, 0, 0)
    candidate = given.candidate.copy()
    candidate[:10] = np.nan
    np.savez(tmp_path / "a.npz", base=given.base, candidate=candidate, labels=given.labels)
    scored = accuracy.score(answers.read(tmp_path / "a.npz"), Gates())
    assert (scored.lost, scored.won) == (10, 0)
    np.savez(tmp_path / "b.npz", base=candidate, candidate=given.base, labels=given.labels)
    with pytest.raises(ModelError, match="no base to compare with"):
        answers.read(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"base": np.ones((3, 2))}, "candidate"),
        ({"base": np.ones((3, 2)), "candidate": np.ones((2, 2)), "labels": np.zeros(3)}, "needed"),
        ({"base": np.ones((3, 2)), "candidate": np.ones((3, 2)), "labels": np.full(3, 2)}, "between 0 and 1"),
        (
            {"base": np.ones((1, 2)), "candidate": np.ones((1, 2)), "labels": np.zeros(1), "classes": np.array(["a"])},
            "name every column",
        ),
    ],
)  # fmt: skip
def test_saved_answers_that_do_not_fit_are_told(
    tmp_path: Path, arrays: dict[str, np.ndarray], sentence: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=sentence):
        answers.read(tmp_path / "a.npz")


def test_files_that_hold_no_answers_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"nothing")
    (tmp_path / "a.csv").write_text("label,base\ncat,cat\n")
    (tmp_path / "b.csv").write_text("label,base,candidate\n")
    (tmp_path / "d.csv").write_text("label,base,candidate\ncat,cat,cat\ndog,dog\n")
    (tmp_path / "e.csv").write_text("label,base,candidate\ncat,cat,cat,dog\n")
    for name, sentence in (
        ("a.npz", "no readable"),
        ("a.csv", "no column 'candidate'"),
        ("b.csv", "no rows"),
        ("c.csv", "No such file"),
        ("d.csv", "line 3 has not as many columns as the first"),
        ("e.csv", "line 2 has not as many columns"),
    ):
        with pytest.raises(DataError, match=sentence):
            answers.read(tmp_path / name)


def pictures(folder: Path) -> Path:
    """Four noisy pictures of each of the three colours that `fused_model` knows."""
    rng = np.random.default_rng(0)
    for index, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 60, (6, 5, 3))
            pixels[..., index] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def ask(base: Path, candidate: Path, folder: Path) -> Paired:
    (first, _), (second, _) = sides.find(base, candidate, "fused", Setup(), Wish(shapes={"H": 6, "W": 5}))
    return answers.ask(first, second, folder, Setup(), Silent())


def test_bundles_are_asked_for_every_picture_with_their_own_class_order(tmp_path: Path) -> None:
    first = make_bundle(tmp_path / "first")
    found = ask(first, make_bundle(tmp_path / "second"), pictures(tmp_path / "tiles"))
    scored = accuracy.score(found, Gates())
    assert (scored.n, scored.base, scored.candidate, scored.agreement) == (12, 100.0, 100.0, 100.0)
    assert {row.name for row in scored.classes} == {"red", "green", "blue"}


def test_pictures_whose_class_nobody_knows_are_told(tmp_path: Path) -> None:
    bundle, folder = make_bundle(tmp_path / "bundle"), pictures(tmp_path / "tiles")
    (folder / "red").rename(folder / "rot")
    with pytest.raises(DataError, match=r"'rot' is no class of .*bundle; its classes are red, green, blue"):
        ask(bundle, bundle, folder)


def test_a_file_that_takes_no_pictures_is_told_what_to_give(tmp_path: Path) -> None:
    onnx.save(mobile(), tmp_path / "plain.onnx")
    (side, _), _ = sides.find(tmp_path / "plain.onnx", tmp_path / "plain.onnx", "fused", Setup(), Wish())
    with pytest.raises(
        ModelError, match=r"takes no pictures .* give bundles, or the answers of both sides by --answers"
    ):
        answers.ask(side, side, pictures(tmp_path / "tiles"), Setup(), Silent())


def test_an_onnx_file_without_names_takes_the_folders_in_order(tmp_path: Path) -> None:
    model = fused_model()
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "fused.onnx")
    folder = pictures(tmp_path / "tiles")
    for old, new in (("red", "0"), ("green", "1"), ("blue", "2")):
        (folder / old).rename(folder / new)
    found = ask(tmp_path / "fused.onnx", tmp_path / "fused.onnx", folder)
    assert accuracy.score(found, Gates()).base == 100.0


def test_the_largest_difference_is_that_of_all_pictures(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "tiles")
    base = make_bundle(tmp_path / "base")
    given = ask(base, base, folder)
    assert given.farthest == 0
    rows = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert answers.farthest(rows, rows + np.array([[0.0, 0.5], [-0.25, 0.0]])) == 0.5
    assert np.isnan(answers.farthest(rows, np.array([[1.0, np.nan], [3.0, 4.0]])))
    asked = command(
        "compare", base, base, "--max-seconds", "0.1", "--set", "difference=0", "--pictures", folder,
        "--json", tmp_path / "c.json",
    )  # fmt: skip
    assert asked.code in (0, 4), asked.err
    checks = json.loads((tmp_path / "c.json").read_text())["checks"]
    (one,) = [check for check in checks if check["name"] == "largest difference"]
    assert (one["verdict"], one["note"]) == ("pass", "absolute, over tiles, 12 pictures")
