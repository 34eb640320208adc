"""Figures from kept answers, against figures worked out by hand or by another library."""

import json

import numpy as np
import pytest
from sklearn import metrics as reference

from toolchain.measure.calibration import (
    NEVER,
    calibration,
    fit_temperature,
    fit_thresholds,
    heat,
)
from toolchain.measure.metrics import (
    Accuracy,
    accuracy,
    calibration_error,
    confusion,
    nll,
    reliability,
    worst_mistakes,
)

NAMES = ("blowhole", "break", "crack")


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def answers():
    """1,500 pictures whose probabilities are exactly right: labels are drawn from them."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (1500, 3))
    probabilities = softmax(logits)
    labels = (probabilities.cumsum(axis=1) < generator.random((1500, 1))).sum(axis=1).clip(0, 2)
    return logits, labels


def test_accuracy_agrees_with_sklearn(answers):
    logits, labels = answers
    probabilities = softmax(logits)
    found = accuracy(probabilities, labels, NAMES)
    predicted = probabilities.argmax(axis=1)
    assert found.top1 == pytest.approx(reference.accuracy_score(labels, predicted))
    assert found.balanced == pytest.approx(reference.balanced_accuracy_score(labels, predicted))
    assert np.array(found.confusion).tolist() == reference.confusion_matrix(labels, predicted).tolist()
    recalls = reference.recall_score(labels, predicted, average=None)
    assert list(found.per_class.values()) == pytest.approx(recalls.tolist())
    assert found.nll == pytest.approx(reference.log_loss(labels, probabilities), rel=1e-5)
    assert sum(found.per_class_n.values()) == found.n == 1500
    assert found.ci95[0] < found.top1 < found.ci95[1]
    assert found.groups is None


def test_a_class_without_pictures_is_null_not_nought():
    found = accuracy(softmax(np.eye(3)[[0, 1, 0]] * 3.0), np.array([0, 1, 1]), NAMES)
    assert found.per_class == {"blowhole": 1.0, "break": 0.5, "crack": None}
    assert found.per_class_ci95["crack"] is None
    assert found.balanced == pytest.approx(0.75)
    again = Accuracy.model_validate_json(found.model_dump_json())
    assert again == found
    assert "NaN" not in json.dumps(found.model_dump(mode="json"))


def test_most_confused_pairs_come_first():
    labels = np.array([0] * 5 + [1] * 3 + [2])
    predicted = np.array([1, 1, 1, 0, 0, 0, 1, 1, 2])
    found = accuracy(softmax(np.eye(3)[predicted] * 3.0), labels, NAMES)
    assert [(p.label, p.predicted, p.n) for p in found.most_confused] == [
        ("blowhole", "break", 3),
        ("break", "blowhole", 1),
    ]


def test_many_classes_keep_no_dense_matrix():
    labels = np.arange(400) % 200
    found = accuracy(
        softmax(np.eye(200)[(labels + (labels == 7)) % 200] * 5.0), labels, [f"c{k}" for k in range(200)]
    )
    assert found.confusion is None
    assert [(p.label, p.predicted, p.n) for p in found.most_confused] == [("c7", "c8", 2)]
    assert len(found.model_dump_json()) < 30_000


def test_groups_widen_the_interval(answers):
    logits, labels = answers
    order = np.lexsort((softmax(logits).argmax(axis=1) == labels, labels))  # groups of like pictures
    probabilities, labels = softmax(logits)[order], labels[order]
    groups = [f"g{k // 30}" for k in range(1500)]
    alone, grouped = accuracy(probabilities, labels, NAMES), accuracy(probabilities, labels, NAMES, groups)
    assert grouped.groups == 50
    assert grouped.ci95[1] - grouped.ci95[0] > 2 * (alone.ci95[1] - alone.ci95[0])


def test_names_must_fit_the_answers():
    with pytest.raises(ValueError, match="3 probabilities a picture for 2 classes"):
        accuracy(softmax(np.eye(3)), np.arange(3), NAMES[:2])


def test_confusion_rows_are_labels():
    assert confusion(softmax(np.eye(3)[[2, 2]]), np.array([0, 0])).tolist() == [
        [0, 0, 2],
        [0, 0, 0],
        [0, 0, 0],
    ]


def test_calibration_error_by_hand():
    probabilities = np.array([[0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.6, 0.4]])
    labels = np.array([0, 0, 1, 1, 0])  # 50 % right at 0.8, 100 % right at 0.6
    assert calibration_error(probabilities, labels) == pytest.approx(0.8 * 0.3 + 0.2 * 0.4)
    filled = [b for b in reliability(probabilities, labels) if b.n]
    assert [(b.n, b.accuracy) for b in filled] == [(1, 1.0), (4, 0.5)]
    assert sum(b.n for b in reliability(np.array([[1.0, 0.0]]), np.array([0]))) == 1


def test_a_sure_wrong_answer_costs_much_but_not_infinitely():
    assert 80 < nll(np.array([[1.0, 0.0]], dtype=np.float32), np.array([1])) < 90


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_temperature_undoes_what_was_done(answers, scale):
    logits, labels = answers
    assert fit_temperature(softmax(logits * scale), labels) == pytest.approx(scale, rel=0.12)


def test_temperature_keeps_answers_and_mends_calibration(answers):
    logits, labels = answers
    sharp = softmax(logits * 3)
    found = calibration(sharp, labels, fit_temperature(sharp, labels), "val")
    assert found.ece_after < 0.5 * found.ece_before
    assert found.nll_after < found.nll_before
    assert (heat(sharp, 2.5).argmax(axis=1) == sharp.argmax(axis=1)).all()
    assert heat(sharp, 1.0) == pytest.approx(sharp, abs=1e-6)


def test_heat_is_a_softmax_of_cooler_logits(answers):
    logits, _ = answers
    assert heat(softmax(logits), 2.0) == pytest.approx(softmax(logits / 2.0), abs=1e-6)


def test_no_mistakes_are_no_reason_to_be_surer():
    labels = np.arange(60) % 3
    assert fit_temperature(softmax(np.eye(3)[labels] * 2.0), labels) == pytest.approx(1.0)


def test_probabilities_of_nought_do_not_break_the_fit():
    labels = np.array([0, 1, 2, 0])
    answers = np.eye(3, dtype=np.float32)[[0, 1, 2, 1]]
    temperature = fit_temperature(answers, labels)
    assert 1 < temperature <= 20.001
    assert np.isfinite(heat(answers, temperature)).all()


def test_thresholds_are_the_smallest_that_hold():
    confidence = np.array([0.95, 0.9, 0.8, 0.7, 0.6])
    labels = np.array([0, 0, 0, 1, 0])  # the one at 0.7 is wrong
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    found = fit_thresholds(probabilities, labels, ("ok", "bad"))
    assert found["ok"].value == pytest.approx(0.75)  # midway between 0.8 and 0.7
    assert (found["ok"].n, found["ok"].accepted, found["ok"].precision) == (5, 3, 1.0)
    assert fit_thresholds(probabilities, labels, ("ok", "bad"), target=0.8)["ok"].value == 0.0


def test_a_class_without_proof_is_never_certain():
    probabilities = np.array([[0.99, 0.01, 0.0], [0.9, 0.1, 0.0]])
    found = fit_thresholds(probabilities, np.array([1, 0]), NAMES)
    assert found["blowhole"].value == NEVER  # its surest answer is wrong
    assert found["crack"].value == NEVER  # never answered
    assert found["crack"].precision is None
    assert found["blowhole"].accepted == 0


def test_equal_probabilities_are_accepted_together():
    probabilities = np.tile([[0.9, 0.1]], (4, 1))
    found = fit_thresholds(probabilities, np.array([0, 0, 0, 1]), ("ok", "bad"))
    assert found["ok"].value == NEVER  # 0.9 is right three times in four: no threshold parts them


def test_worst_mistakes_are_the_surest_wrong_answers():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.99, 0.01]])
    labels = np.array([1, 0, 0, 0])
    found = worst_mistakes(probabilities, labels, 2)
    assert [(m.index, m.label, m.predicted) for m in found] == [(0, 1, 0), (1, 0, 1)]
    assert found[0].probability == pytest.approx(0.9)
    assert worst_mistakes(probabilities, np.array([0, 1, 1, 0])) == []
