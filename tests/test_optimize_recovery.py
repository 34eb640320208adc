"""How long a search recovers what it pruned, in made-up worlds where the truth is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
from optimize_worlds import World, found_best, grows, judged, ratio

from toolchain.optimize.arms import Arm
from toolchain.optimize.asked import Asked, Goal
from toolchain.optimize.bisection import begins
from toolchain.optimize.design import Design
from toolchain.optimize.points import Miss, Probe, points


def reaches(design: Design) -> float:
    """Longer recovery carries far, as on blood cells: to 0.55, 0.8 and 0.9; another size is learnt in 8 epochs at least."""
    edge = {0: -1.0, 4: 0.55, 8: 0.8, 16: 0.9}[design.epochs]
    return edge - (0.3 if design.size and design.epochs < 8 else 0.0)


def recovered(world: World) -> list[tuple[int | None, float, int]]:
    """Size, ratio and epochs of the networks that were trained, in order."""
    return list(
        dict.fromkeys((d.size, d.ratio, d.epochs) for d in world.run() if d.epochs and not d.narrowed)
    )


def test_what_a_short_recovery_missed_by_little_is_recovered_longer_before_more_is_left() -> None:
    tried = recovered(World(Asked(max_drop=1.0), reaches, {"int8": 0.5}, arms=(Arm("table"),)))
    assert tried[0] == (None, 0.5, 4)
    failed = next(one for one in tried if one[1] > 0.5)
    assert tried[tried.index(failed) + 1] == (None, failed[1], 8)


def test_what_a_short_recovery_missed_by_far_is_first_tried_with_more_left() -> None:
    world = World(Asked(max_drop=1.0), lambda design: 0.6 if design.epochs > 4 else 0.5, arms=(Arm("table"),))
    tried = recovered(world)
    far = next(one for one in tried if one[1] >= 0.75)
    assert tried[tried.index(far) + 1][2] == 4


def test_another_size_begins_with_the_recovery_that_its_own_size_needed() -> None:
    world = World(Asked(max_drop=1.0), reaches, arms=(Arm("table"), Arm("table", size=96)))
    tried = recovered(world)
    assert {epochs for size, _, epochs in tried if size} <= {8, 16}
    assert found_best(world).startswith("s96-t90-e16")


def test_a_size_whose_recovery_is_known_comes_first_until_it_fails() -> None:
    arms = (Arm("table"), Arm("table", size=96), Arm("uniform"))
    world = World(Asked(max_drop=1.0), reaches, arms=arms)
    tried = recovered(world)
    longer = next(number for number, (size, _, epochs) in enumerate(tried) if not size and epochs == 8)
    assert tried[longer + 1][0] == 96
    failed = next(
        n for n, one in enumerate(tried) if one[0] and one[1] > reaches(Design(epochs=one[2], size=96))
    )
    assert not any(size is None for size, _, _ in tried[longer + 1 : failed])


def test_a_longer_recovery_that_got_no_further_says_nothing_of_other_sizes() -> None:
    world = World(
        Asked(max_drop=1.0),
        lambda design: 0.3 if design.size else 0.5,
        arms=(Arm("table"), Arm("table", size=96)),
    )
    assert next(epochs for size, _, epochs in recovered(world) if size) == 4


class Hopeful(World):
    """Files are slower than predicted."""

    def predict(self, design: Design) -> float:
        return 0.6 * self.latency(design)


def test_with_goal_accuracy_the_shortest_recovery_is_bisected_to_its_end() -> None:
    asked = Asked(max_drop=1.0, max_latency_ms=0.15, goal="accuracy")
    world = Hopeful(asked, reaches, arms=(Arm("table"), Arm("table", size=96)))
    tried = recovered(world)
    for size in (None, 96):
        lengths = [epochs for side, _, epochs in tried if side == size]
        assert lengths == sorted(lengths)
        assert lengths[0] == 4
    small = [p for p in points(world.history) if p.small and p.design.epochs == 4 and not p.design.size]
    assert len(small) > 1
    assert any(0 < point.worst <= 7.5 for point in small)


@pytest.mark.parametrize("goal", ["latency", "size"])
def test_nothing_is_recovered_briefly_that_is_larger_than_what_a_longer_recovery_kept(goal: Goal) -> None:
    tried = recovered(World(Asked(max_drop=1.0, goal=goal), reaches, arms=(Arm("table"),)))
    kept = next(number for number, (_, ratio, epochs) in enumerate(tried) if epochs == 8 and ratio <= 0.8)
    assert not any(ratio <= tried[kept][1] for _, ratio, _ in tried[kept + 1 :])


def test_a_file_that_was_too_slow_to_be_trained_says_nothing_of_other_sizes() -> None:
    arms = (Arm("uniform"), Arm("uniform", size=96))
    world = World(Asked(max_drop=1.0, max_latency_ms=0.3), grows, arms=arms)
    failed, longer = Design(0.7, epochs=4), Design(0.7, epochs=8)
    known = judged(world.measure(failed), Probe(longer, 0.4))
    assert begins(known, world.space(), arms[1]) == 0
    known = {**known, longer: replace(world.measure(longer), misses=())}
    assert begins(known, world.space(), arms[1]) == 1
    accuracy = replace(world.space(), asked=replace(world.asked, goal="accuracy"))
    assert begins(known, accuracy, arms[1]) == 0


def test_longer_recovery_starts_where_the_shorter_one_failed() -> None:
    world = World(Asked(max_drop=1.0), grows, arms=(Arm("uniform"),))
    history = judged(*(world.measure(Design(r, epochs=4)) for r in (0.5, 0.55, 0.6, 0.7)))
    assert ratio(history, Asked(max_drop=1.0), level=1) == 0.55


@pytest.mark.parametrize(("beaten", "first"), [(0.5, 0.55), (0.6, 0.65), (0.8, None)])
def test_longer_recovery_goes_on_where_the_best_is_beaten_if_that_is_near(
    beaten: float, first: float | None
) -> None:
    world = World(
        Asked(max_drop=1.0), lambda design: 0.5 if not design.size else 0.95, arms=(Arm("uniform"),)
    )
    other = world.measure(Design(beaten, "table", epochs=4))
    other = replace(other, share=(1 - beaten) ** 1.5, misses=())
    history = judged(other, *(world.measure(Design(r, epochs=4)) for r in (0.5, 0.55, 0.7)))
    assert ratio(history, Asked(max_drop=1.0), level=1) == first
    assert ratio(history, Asked(max_drop=1.0), level=1, patient=True) == (first or 0.85)


def test_what_looks_hopeless_is_recovered_longer_when_nothing_else_is_left() -> None:
    """As on blood cells at 96 pixels: 4 epochs end far off, 32 hold."""

    def late(design: Design) -> float:
        return 0.4 if not design.size else (0.7 if design.epochs == 16 else -0.5)

    world = World(Asked(max_drop=1.0), late, arms=(Arm("table"), Arm("table", size=96)))
    tried = recovered(world)
    sized = [number for number, (size, _, epochs) in enumerate(tried) if size and epochs > 4]
    assert min(sized) > max(
        number for number, (size, _, epochs) in enumerate(tried) if not size or epochs == 4
    )
    assert found_best(world) == "s96-t70-e16-int8"


def test_a_recovery_is_hopeless_by_the_bound_that_it_misses_most() -> None:
    """A loss of accuracy misses the drop, its bad end and classes' recall at once."""
    world = World(Asked(max_drop=1.0), grows, arms=(Arm("uniform"),))
    point = world.measure(Design(0.55, epochs=4))
    names = ("max_drop", "max_drop_worst", "min_recall.rare")
    several = replace(point, misses=tuple(Miss(name, 1.0, 11.0, "points") for name in names))
    once = replace(point, misses=(Miss("max_drop", 1.0, 31.0, "points"),))
    assert (several.worst, several.too_wrong, once.worst) == (10.0, 30.0, 30.0)
    assert ratio(judged(several), Asked(max_drop=1.0), level=1) == 0.55
    assert ratio(judged(once), Asked(max_drop=1.0), level=1) is None
    assert ratio(judged(once), Asked(max_drop=1.0), level=1, patient=True) == 0.55
