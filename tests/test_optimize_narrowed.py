"""When a search narrows, and what it makes of that, in made-up worlds where the truth is known."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from optimize_worlds import Narrowed, World, found_best, grows, judged, never

from toolchain.optimize.arms import Arm
from toolchain.optimize.asked import Asked
from toolchain.optimize.design import TOP, Design
from toolchain.optimize.known import narrowings
from toolchain.optimize.points import Failure, Point, points
from toolchain.optimize.search import Search


def test_narrowing_comes_first_and_is_bisected() -> None:
    world = Narrowed(Asked(max_drop=1.0), never, arms=(Arm("table"), Arm("uniform")))
    trained = [design for design in world.run() if design.trained]
    names = [design.name for design in trained if design.narrowed]
    assert names[0] == "n75-e6-int8-qat"
    assert len(names) == len(set(names)) <= 5
    assert all(design.narrowed for design in trained[: len(names)])
    assert any(design.shape == "uniform" for design in trained)
    assert found_best(world) == "n70-e6-int8-qat"


def test_smaller_inputs_that_the_network_bears_are_narrowed_before_the_whole() -> None:
    world = Narrowed(Asked(max_drop=1.0), lambda design: 0.0 if design.size else -0.2)
    narrowed = [design for design in world.run() if design.narrowed]
    assert {design.size for design in narrowed[:3]} == {96}
    assert all(not design.epochs for design in narrowed[:3])
    assert found_best(world) == "s96-n60-e6-int8-qat"


def test_at_inputs_that_it_does_not_bear_the_network_is_recovered_and_narrowed() -> None:
    world = Narrowed(
        Asked(max_drop=1.0), lambda design: (0.1 if design.epochs else -0.2) if design.size else -0.2
    )
    world.run()
    assert found_best(world) == "s96-e4-n60-e6-int8-qat"


class Wide(Narrowed):
    """`narrow` cannot take more than 60 %."""

    def measure(self, design: Design) -> Point:
        if design.narrow > 0.6:
            return Failure(design, "no less than 0.4 can be left", too_small=True)  # type: ignore[return-value]
        return super().measure(design)


def test_what_cannot_be_narrowed_so_far_is_asked_for_less() -> None:
    world = Wide(Asked(max_drop=1.0), never, arms=())
    world.run()
    assert found_best(world) == "n60-e6-int8-qat"


def test_what_fails_otherwise_is_not_tried_again_with_less() -> None:
    class Broken(Narrowed):
        def measure(self, design: Design) -> Point:
            if design.narrowed:
                return Failure(design, "qat cannot simulate that")  # type: ignore[return-value]
            return super().measure(design)

    world = Broken(Asked(max_drop=1.0), never, arms=())
    assert [design.narrow for design in world.run() if design.narrowed] == [0.75]


def test_a_bound_that_narrowing_cannot_reach_is_none() -> None:
    """What was too small for one size is beyond all of them, so the search is for what comes closest."""
    world = Wide(Asked(max_drop=1.0, max_latency_ms=0.1), never, arms=())
    world.run()
    narrowed = [p.design.narrow for p in points(world.history) if p.design.narrowed]
    assert max(narrowed) == 0.6


def test_nothing_is_made_of_a_narrowed_network_but_what_it_is() -> None:
    world = Narrowed(Asked(max_drop=1.0), never, arms=())
    assert {design.scheme for design in world.run() if design.narrowed} == {"int8-qat"}


def test_without_epochs_to_teach_nothing_is_narrowed() -> None:
    assert not any(design.narrowed for design in World(Asked(max_drop=1.0), grows).run())


def test_sizes_that_have_to_be_recovered_are_narrowed_behind_all_pruning() -> None:
    world = Narrowed(Asked(max_drop=1.0), lambda design: 0.1 if design.epochs else -0.2)
    trained = [design for design in world.run() if design.trained]
    composed = [number for number, design in enumerate(trained) if design.narrowed and design.epochs]
    assert composed
    before = {(d.shape, d.size) for d in trained[: min(composed)] if not d.narrowed}
    assert before == {(arm.shape, arm.size) for arm in world.arms}


class Spare(Narrowed):
    """Pruned to the edge, a network still holds until `bears` of what is left is gone as well."""

    bears = 0.3


def test_the_best_pruned_network_is_narrowed_little_by_little_when_nothing_else_is_left() -> None:
    world = Spare(Asked(max_drop=1.0), grows, arms=(Arm("table"),))
    tried = world.run()
    composed = [design for design in tried if design.narrowed and design.ratio]
    assert found_best(world) == "t70-e16-n30-e6-int8-qat"
    assert {design.network for design in composed} == {Design(0.7, "table", epochs=16)}
    assert composed[0].narrow == 0.05
    assert tried[-len(composed) :] == composed


def test_how_little_a_pruned_network_can_be_narrowed_says_nothing_of_the_whole() -> None:
    class Stiff(Spare):
        def measure(self, design: Design) -> Point:
            if design.narrowed and design.ratio:
                return Failure(design, "no less than 0.9 can be left", too_small=True)  # type: ignore[return-value]
            return super().measure(design)

    world = Stiff(Asked(max_drop=1.0), grows, arms=(Arm("table"),))
    world.run()
    arms = list(narrowings(world.history, world.space()))
    assert [arm.top for arm in arms if not arm.narrows or not arm.narrows.ratio] == [TOP]
    assert [arm.top for arm in arms if arm.narrows and arm.narrows.ratio] == [0.0]


def test_where_no_point_keeps_the_bound_on_latency_the_fastest_that_keeps_the_accuracy_is_narrowed() -> None:
    world = Narrowed(Asked(max_drop=1.0, max_latency_ms=0.15), grows, arms=(Arm("table"),))
    pruned = Design(0.5, "table", epochs=4, scheme="int8")
    found = judged(*(world.measure(design) for design in (Design(), Design(scheme="int8"), pruned)))
    assert not any(point.feasible for point in points(found))
    assert [arm.narrows for arm in narrowings(found, world.space())] == [Design(), pruned.network]


def test_what_other_steps_could_not_narrow_limits_nothing() -> None:
    world = Spare(Asked(max_drop=1.0), grows, arms=(Arm("table"),))
    world.run()
    refused = Design(own="hand-made")
    world.history[refused] = Failure(refused, "no less than 0.9 can be left", too_small=True)
    assert {arm.top for arm in narrowings(world.history, world.space())} == {TOP}


def test_with_goal_accuracy_a_pruned_network_is_not_narrowed() -> None:
    world = Spare(Asked(max_latency_ms=0.2, goal="accuracy"), grows, arms=(Arm("table"),))
    assert not any(design.narrowed and design.ratio for design in world.run())


def test_a_narrowed_network_is_predicted_from_its_integers_as_they_are() -> None:
    """Behind `int8-narrow` what goes first has gone already."""
    world = Narrowed(Asked(max_drop=1.0), never)
    network = Design(0.9, "table", epochs=4)
    found = {design: world.measure(design) for design in (Design(), network)}
    for scheme, share in (("int8", 0.2), ("int8-narrow", 0.1)):
        design = replace(network, scheme=scheme)
        found[design] = replace(found[network], design=design, share=share)
    trials = SimpleNamespace(reach=0.8, backbone="", whole=Design())
    search = Search(trials, lambda _: None, found)  # type: ignore[arg-type]
    narrowed = replace(network, narrow=0.5, taught=6, scheme="int8-qat")
    assert search.predict(narrowed) == pytest.approx(0.2 * (1 - 0.8 * 0.5))


def test_a_size_is_predicted_from_the_same_size_quantized_otherwise() -> None:
    world = World(Asked(max_drop=1.0), never)
    shares = {Design(): 1.0, Design(scheme="int8"): 0.5, Design(size=96, scheme="int8"): 0.25}
    found = {
        design: replace(world.measure(design), share=share, latency_ms=share)
        for design, share in shares.items()
    }
    trials = SimpleNamespace(backbone="", whole=Design(), costs=None, recipe_side=160)
    search = Search(trials, lambda _: None, found)  # type: ignore[arg-type]
    assert search.predict(Design(size=96)) == pytest.approx(0.5)
    assert search.predict(Design(size=64)) == pytest.approx((64 / 160) ** 1.6)
