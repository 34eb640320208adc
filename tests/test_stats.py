"""Intervals that mean what they say: coverage by simulation, groups, degenerate cases, time."""

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from toolchain import stats


def answers(right, labels, classes=3):
    """Probabilities [n, C] that answer rightly where `right` says so."""
    labels = np.asarray(labels)
    answer = np.where(np.asarray(right, dtype=bool), labels, (labels + 1) % classes)
    return np.eye(classes, dtype=np.float32)[answer] * 0.8 + 0.05


def test_top1_and_balanced_differ_when_classes_do():
    labels = np.array([0] * 9 + [1])
    always_zero = answers([True] * 9 + [False], labels, classes=2)
    assert stats.top1(always_zero, labels) == pytest.approx(0.9)
    assert stats.balanced(always_zero, labels) == pytest.approx(0.5)
    found = stats.recalls(answers([True] * 10, labels, classes=3), labels)
    assert found[:2].tolist() == [1, 1]
    assert np.isnan(found[2])  # no picture of that class


def test_balanced_ignores_classes_without_pictures():
    labels = np.array([0, 0, 2, 2])
    assert stats.balanced(answers([1, 1, 1, 0], labels), labels) == pytest.approx(0.75)


@pytest.mark.parametrize("shape", [(3, 2), (4,), (0, 2)])
def test_shapes_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError):
        stats.top1(np.zeros(shape), np.zeros(4 if shape != (0, 2) else 0, dtype=int))


@given(st.integers(1, 400), st.data())
@settings(max_examples=60, deadline=None)
def test_wilson_is_scipys_and_holds_its_share(n, data):
    successes = data.draw(st.integers(0, n))
    found = stats.wilson(successes, n)
    reference = scipy_stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert found.ci95 == pytest.approx((reference.low, reference.high), abs=1e-9)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_wilson_refuses_no_pictures():
    with pytest.raises(ValueError):
        stats.wilson(0, 0)


def test_difference_is_reference_minus_candidate_in_points():
    labels = np.zeros(200, dtype=int)
    reference = answers(np.arange(200) < 180, labels)  # 90 %
    candidate = answers(np.arange(200) < 170, labels)  # 85 %
    drop = stats.accuracy_difference(reference, candidate, labels)
    assert drop.value == pytest.approx(5.0)
    assert 0 < drop.low < 5 < drop.high < 10
    assert drop.excludes(0)
    gain = stats.accuracy_difference(candidate, reference, labels)
    assert gain.value == pytest.approx(-5.0)


@pytest.mark.parametrize("metric", ["top1", "balanced"])
def test_difference_interval_covers_the_truth(metric):
    """95 % intervals of 300 simulated pairs hold the true drop of 3 points 92 to 98 times in 100."""
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        labels = generator.integers(0, 3, 400)
        first = generator.random(400) < 0.9
        flipped = generator.random(400) < 1 / 30  # of those right, 1 in 30 is lost: 3 points
        second = first & ~flipped
        drop = stats.accuracy_difference(
            answers(first, labels), answers(second, labels), labels, metric=metric
        )
        covered += drop.low <= 3 <= drop.high
    assert 276 <= covered <= 294


def test_pictures_of_a_group_count_once():
    """Forty groups of ten equal pictures know as much as forty pictures, not as four hundred."""
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 3, 40)
    first, second = generator.random(40) < 0.9, generator.random(40) < 0.8
    alone = stats.accuracy_difference(answers(first, labels), answers(second, labels), labels)
    tenfold = [np.repeat(values, 10) for values in (first, second, labels)]
    groups = [f"tile{k}" for k in np.repeat(np.arange(40), 10)]
    first, second = answers(tenfold[0], tenfold[2]), answers(tenfold[1], tenfold[2])
    grouped = stats.accuracy_difference(first, second, tenfold[2], groups)
    naive = stats.accuracy_difference(first, second, tenfold[2])
    assert grouped.ci95 == pytest.approx(alone.ci95, abs=1.5)
    assert naive.high - naive.low < 0.5 * (grouped.high - grouped.low)


@pytest.mark.parametrize("count", [2, 3, 5, 9])
def test_the_interval_of_few_groups_covers_the_truth(count):
    """Losses that differ from group to group, nought on the whole; drawing the groups again alone would hold far less."""
    rng, held = np.random.default_rng(7), 0
    labels, groups = np.zeros(100 * count, np.int64), [str(k) for k in np.repeat(np.arange(count), 100)]
    for _ in range(200):
        shares = np.repeat(rng.uniform(-0.2, 0.2, count), 100)
        drawn = rng.random(100 * count) < np.abs(shares)
        base, candidate = ~(drawn & (shares < 0)), ~(drawn & (shares > 0))
        found = stats.accuracy_difference(
            answers(base, labels, 2), answers(candidate, labels, 2), labels, groups
        )
        held += found.low <= 0 <= found.high
    assert held >= 0.9 * 200


def test_of_one_group_whose_answers_change_nothing_is_certain():
    labels = np.zeros(1000, np.int64)
    right, one = np.arange(1000) >= 0, ["patient"] * 1000
    found = stats.accuracy_difference(
        answers(right, labels, 2), answers(np.arange(1000) > 59, labels, 2), labels, one
    )
    assert (found.value, found.ci95) == (pytest.approx(6), (-100, 100))
    same = stats.accuracy_difference(answers(right, labels, 2), answers(right, labels, 2), labels, one)
    assert same.high < 0.5


def test_groups_of_one_are_no_groups():
    labels = np.arange(100) % 3
    first, second = answers(np.arange(100) % 9 > 0, labels), answers(np.arange(100) % 5 > 0, labels)
    names = [str(k) for k in range(100)]
    assert stats.accuracy_difference(first, second, labels, names) == stats.accuracy_difference(
        first, second, labels
    )


@pytest.mark.parametrize("metric", ["top1", "balanced"])
def test_equal_answers_are_no_certainty(metric):
    few, many = np.arange(30) % 3, np.arange(3000) % 3
    narrow = stats.accuracy_difference(answers(many < 9, many), answers(many < 9, many), many, metric=metric)
    wide = stats.accuracy_difference(answers(few < 9, few), answers(few < 9, few), few, metric=metric)
    assert narrow.value == wide.value == 0
    assert 0 < narrow.high < 0.2
    assert 3 < wide.high < 10
    assert wide.low == -wide.high


@pytest.mark.parametrize("metric", ["top1", "balanced"])
def test_one_answer_gained_is_no_proof_that_none_is_lost(metric):
    """A bootstrap of one gain draws no loss; the interval used to end at 0."""
    labels = np.arange(30) % 3
    won = stats.accuracy_difference(
        answers(labels < 0, labels), answers(np.arange(30) < 1, labels), labels, metric=metric
    )
    none = stats.accuracy_difference(
        answers(labels < 0, labels), answers(labels < 0, labels), labels, metric=metric
    )
    assert won.high > 2
    assert won.high - won.low > none.high - none.low


def test_difference_interval_covers_the_truth_where_flips_are_rare():
    rng = np.random.default_rng(5)
    labels, held = np.zeros(40, np.int64), 0
    for _ in range(300):
        drawn = rng.random(40)
        base, candidate = drawn > 0.04, (drawn > 0.08) | (drawn < 0.04)  # 4 % lost, 4 % won: no difference
        found = stats.accuracy_difference(answers(base, labels, 2), answers(candidate, labels, 2), labels)
        held += found.low <= 0 <= found.high
    assert held >= 0.93 * 300


@pytest.mark.parametrize("metric", ["top1", "balanced"])
def test_no_flip_is_not_judged_worse_than_one_each_way(metric):
    """Rare classes and large groups must not fail a file that answers exactly as the reference does."""
    labels = np.repeat([0, 1, 2], [170, 20, 10])
    groups = [f"tile{k // 5}" for k in range(200)]
    base = np.arange(200) % 17 > 0
    flipped = base.copy()
    flipped[[3, 171]], flipped[[17, 187]] = False, True
    none = stats.accuracy_difference(answers(base, labels), answers(base, labels), labels, groups, metric)
    some = stats.accuracy_difference(answers(base, labels), answers(flipped, labels), labels, groups, metric)
    assert 0 < none.high - none.low <= some.high - some.low


def test_accuracy_interval_is_wilsons_unless_pictures_come_in_groups():
    labels = np.arange(90) % 3
    found = answers(np.arange(90) % 10 > 0, labels)
    assert stats.accuracy_interval(found, labels) == stats.wilson(81, 90)
    groups = [f"g{k // 9}" for k in range(90)]
    grouped = stats.accuracy_interval(found, labels, groups)
    assert grouped.value == pytest.approx(0.9)
    assert grouped.low < 0.9 < grouped.high
    perfect = stats.accuracy_interval(answers(np.ones(90), labels), labels, groups)
    assert perfect.ci95 == stats.wilson(10, 10).ci95  # ten groups, all right


def test_mcnemar_is_the_exact_sign_test_of_flips():
    labels = np.zeros(50, dtype=int)
    first, second = np.ones(50, dtype=bool), np.ones(50, dtype=bool)
    second[:6], first[6] = False, False  # 6 lost, 1 won
    expected = scipy_stats.binomtest(1, 7).pvalue
    assert stats.mcnemar(answers(first, labels), answers(second, labels), labels) == pytest.approx(expected)
    assert stats.mcnemar(answers(first, labels), answers(first, labels), labels) == 1.0


def test_agreement_is_of_answers_not_of_rightness():
    labels = np.zeros(100, dtype=int)
    wrong_one, wrong_two = np.tile([0.1, 0.8, 0.1], (100, 1)), np.tile([0.1, 0.1, 0.8], (100, 1))
    assert stats.agreement(wrong_one, wrong_two).value == 0
    assert stats.agreement(wrong_one, answers(np.zeros(100), labels)).value == 1


def test_ratio_of_medians_covers_and_withstands_spikes():
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(60):
        load = generator.lognormal(0, 0.1, (20, 1))  # the machine's mood, shared by both sides of a round
        a = (2e6 * load * generator.lognormal(0, 0.05, (20, 25))).astype(np.int64)
        b = (1e6 * load * generator.lognormal(0, 0.05, (20, 25))).astype(np.int64)
        b[3] *= 20
        ratio = stats.ratio_of_medians(a, b)
        covered += ratio.low <= 2.0 <= ratio.high
        assert ratio.low <= ratio.value <= ratio.high
        assert ratio.block_p10 < ratio.block_p90
        assert ratio.value == pytest.approx(2, rel=0.12)
    assert covered >= 52


def test_ratio_of_medians_equals_a_plain_bootstrap():
    generator = np.random.default_rng(4)
    a, b = generator.integers(900, 1300, (30, 25)), generator.integers(500, 700, (30, 25))
    picks = generator.integers(0, 30, (2000, 30))
    plain = np.median(a[picks].reshape(2000, -1), axis=1) / np.median(b[picks].reshape(2000, -1), axis=1)
    ratio = stats.ratio_of_medians(a, b)
    assert ratio.ci95 == pytest.approx(tuple(np.quantile(plain, (0.025, 0.975))), abs=0.004)


def test_ratio_of_medians_of_many_samples_stays_close():
    generator = np.random.default_rng(5)
    a, b = generator.normal(2e6, 1e5, (100, 200)), generator.normal(1e6, 5e4, (100, 200))
    ratio = stats.ratio_of_medians(a.astype(np.int64), b.astype(np.int64))
    assert ratio.high - ratio.low < 0.01
    assert ratio.value == pytest.approx(2.0, abs=0.005)


@pytest.mark.parametrize("shapes", [((5, 3), (4, 3)), ((15,), (15,)), ((1, 30), (1, 30))])
def test_blocks_must_be_paired(shapes):
    with pytest.raises(ValueError, match="needed: blocks"):
        stats.ratio_of_medians(np.ones(shapes[0], dtype=int), np.ones(shapes[1], dtype=int))


@pytest.mark.parametrize(("q", "needed"), [(0.5, 20), (0.9, 100), (0.99, 1000), (0.1, 100)])
def test_percentiles_need_samples(q, needed):
    assert stats.percentile(np.arange(needed - 1), q) is None
    assert stats.percentile(np.arange(needed), q) == pytest.approx(q * (needed - 1))


def test_percentile_refuses_per_cents():
    with pytest.raises(ValueError):
        stats.percentile(np.arange(1000), 99)


def test_thin_keeps_ends_and_shape():
    samples = np.random.default_rng(6).lognormal(10, 1, (40, 25)).astype(np.int64)
    kept = stats.thin(samples, 200)
    assert len(kept) == 200
    assert (kept[0], kept[-1]) == (samples.min(), samples.max())
    assert np.median(kept) == pytest.approx(np.median(samples), rel=0.02)
    assert stats.thin(np.array([3, 1, 2])) == [1, 2, 3]


def test_same_input_same_interval_and_fast():
    generator = np.random.default_rng(7)
    labels = generator.integers(0, 12, 2000)
    first, second = (generator.random((2000, 12)).astype(np.float32) for _ in range(2))
    groups = [f"g{k}" for k in generator.integers(0, 500, 2000)]
    calls = {
        "top1": lambda: stats.accuracy_difference(first, second, labels),
        "balanced": lambda: stats.accuracy_difference(first, second, labels, metric="balanced"),
        "grouped": lambda: stats.accuracy_difference(first, second, labels, groups),
        "both": lambda: stats.accuracy_difference(first, second, labels, groups, "balanced"),
    }
    for name, call in calls.items():
        found, seconds = call(), []
        for _ in range(5):
            start = time.perf_counter()
            assert call() == found
            seconds.append(time.perf_counter() - start)
        assert min(seconds) < 0.1, name  # about 0.01 to 0.03 s on a quiet machine


def test_an_interval_of_a_percentile_draws_whole_blocks() -> None:
    rng = np.random.default_rng(3)
    calm = rng.integers(900, 1100, (50, 40))
    found = stats.percentile_interval(calm, 0.5)
    assert found is not None
    assert found.low <= found.value <= found.high
    assert found.high - found.low < 30
    shifts = rng.integers(0, 1000, 50)[:, None]  # blocks differ: calls within one tell little
    shifted = stats.percentile_interval(calm + shifts, 0.5)
    assert shifted is not None
    assert shifted.high - shifted.low > 100
    assert stats.percentile_interval(calm, 0.999) is None
    assert stats.percentile_interval(calm.reshape(1, -1), 0.5) is None


def test_an_interval_of_many_blocks_needs_little_memory() -> None:
    rng = np.random.default_rng(5)
    blocks = rng.integers(900, 1100, (5_003, 10))
    blocks[4000:] += 500  # the last ones count as well: 20 % of the time lies there
    tracemalloc.start()
    found = stats.percentile_interval(blocks, 0.99)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found is not None
    assert 1500 < found.low <= found.value <= found.high < 1600
    assert peak < 120e6


def test_an_interval_of_p99_covers_it() -> None:
    rng = np.random.default_rng(4)
    true = 100 * np.log(100)
    held = 0
    for _ in range(60):
        found = stats.percentile_interval(rng.exponential(100, (40, 50)).round(3), 0.99)
        held += found is not None and found.low <= true <= found.high
    assert held >= 50
