"""What is tried next, in made-up worlds where the truth is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from optimize_worlds import ARMS, WAYS, World, grows, judged, ratio

from toolchain.optimize.arms import Arm, Space
from toolchain.optimize.asked import Asked, Goal
from toolchain.optimize.design import TOP, Design, Scheme
from toolchain.optimize.known import leading, limit
from toolchain.optimize.points import Failure, History, Miss, Outcome, Point, Probe, pick, points
from toolchain.optimize.strategy import propose


def best_of_all(world: World) -> float:
    ratios = [round(0.05 * k, 2) for k in range(19)]
    designs = [
        arm.design(ratio, epochs, way)  # type: ignore[arg-type]
        for arm in ARMS for ratio in ratios for epochs in (4, 8, 16) for way in WAYS
    ]  # fmt: skip
    found = pick([world.measure(design) for design in designs], "latency")
    assert found is not None
    return found.share


def test_cheap_ways_to_quantize_come_first() -> None:
    tried = World(Asked(max_drop=1.0), grows).run()
    assert [design.name for design in tried[:3]] == ["fp32", "int8", "int8-stem"]
    assert not any(design.trained for design in tried[:3])


def test_variants_of_the_recipe_come_behind_the_ways_to_quantize_and_nothing_is_made_of_them() -> None:
    class Given(World):
        def space(self) -> Space:
            return replace(super().space(), own=("sharp",))

        def latency(self, design: Design) -> float:
            return 0.05 if design.own else super().latency(design)

    world = Given(Asked(max_drop=1.0), grows)
    tried = world.run()
    assert [design.name for design in tried[:4]] == ["fp32", "int8", "int8-stem", "own-sharp"]
    assert [design for design in tried if design.own] == [Design(own="sharp")]
    best = pick(points(world.history), "latency")
    assert best is not None
    assert best.name == "own-sharp"
    assert len(tried) < len(World(Asked(max_drop=1.0), grows).run())  # what cannot beat it is not tried


def test_it_ends_within_5_percent_of_the_best_there_is() -> None:
    world = World(Asked(max_drop=1.0), grows)
    world.run()
    best = pick(points(world.history), "latency")
    assert best is not None
    assert best.share <= 1.05 * best_of_all(world)


def test_it_tries_a_fraction_of_what_could_be_tried() -> None:
    tried = World(Asked(max_drop=1.0), grows).run()
    trained = {design.network for design in tried if design.trained}
    assert len(trained) <= 17  # a tenth of three arms, 19 ratios and three lengths
    assert len(tried) <= 40


def test_a_restart_goes_the_same_way() -> None:
    whole = World(Asked(max_drop=1.0), grows).run()
    world = World(Asked(max_drop=1.0), grows)
    world.history = {design: world.measure(design) for design in whole[:7]}
    assert world.run() == whole[7:]


def test_int8_that_loses_too_much_is_mended() -> None:
    world = World(Asked(max_drop=1.0), grows, {"int8": 5.0, "int8-stem": 5.0, "int8-percentile": 5.0})
    world.run()
    best = pick(points(world.history), "latency")
    assert best is not None
    assert best.design.scheme == "int8-mixed"
    assert best.design.ratio > 0.5


def test_nothing_slower_than_the_bound_is_trained() -> None:
    world = World(Asked(max_drop=1.0, max_latency_ms=0.2), grows)
    tried = world.run()
    first = {design.network: design for design in reversed(tried) if design.trained}
    assert first
    assert all(world.latency(design) <= 0.2 for design in first.values())


def test_goal_accuracy_prunes_no_more_than_the_bound_on_latency_asks() -> None:
    world = World(Asked(max_drop=None, max_latency_ms=0.2, goal="accuracy"), grows)
    world.run()
    best = pick(points(world.history), "accuracy")
    assert best is not None
    assert best.drop == pytest.approx(0.0)
    assert 0.15 < best.latency_ms <= 0.2


def test_a_bound_out_of_reach_still_finds_what_comes_closest() -> None:
    world = World(Asked(max_drop=1.0, max_latency_ms=0.001), grows)
    world.run()
    assert pick(points(world.history), "latency") is None
    accurate = [p.share for p in points(world.history) if p.accurate]
    assert min(accurate) <= 1.05 * best_of_all(World(Asked(max_drop=1.0), grows))


@dataclass
class Split(World):
    """A network whose activations have no integer kernels: only with others is int8 fast."""

    def latency(self, design: Design) -> float:
        slow = 2.2 if design.scheme != "fp32" and not design.relu else 1.0
        return slow * super().latency(design)

    def measure(self, design: Design) -> Point:
        point = super().measure(design)
        if design.relu and not design.trained:
            miss = Miss("max_drop", 1.0, 60.0, "points")
            return replace(point, drop=60.0, misses=(*point.misses, miss))
        return replace(point, slower=point.share > 1)


def test_activations_are_replaced_where_int8_needs_it() -> None:
    arms = (Arm("table", relu=True), *ARMS)
    world = Split(Asked(max_drop=1.0), grows, arms=arms)
    tried = world.run(90)
    best = pick(points(world.history), "latency")
    assert best is not None
    assert best.design.relu
    assert best.design.scheme == "int8"
    assert best.design.ratio > 0.5
    first = next(design for design in tried if design.trained)
    assert (first.relu, first.ratio, first.scheme) == (True, 0.0, "int8")


def test_narrowing_comes_after_training_and_leads_no_search() -> None:
    world = World(Asked(max_drop=1.0), grows)
    narrow = replace(world.measure(Design(scheme="int8")), design=Design(scheme="int8-narrow"), share=0.4)
    history: dict[Design, Outcome] = {
        **judged(world.measure(Design(scheme="int8"))), narrow.design: narrow,
    }  # fmt: skip
    assert leading(history, Design()) == "int8"


def test_a_network_that_cannot_be_pruned_is_still_tried_smaller() -> None:
    arms = (Arm("uniform", size=96, top=0.0),)
    world = World(Asked(max_drop=1.0), lambda design: -0.1 if design.epochs < 8 else 1.0, arms=arms)
    tried = world.run()
    assert not any(design.ratio for design in tried)
    assert Design(size=96, scheme="int8") in tried
    assert Design(size=96, scheme="int8", epochs=4) in tried
    assert pick(points(world.history), "latency") == world.history[Design(size=96, scheme="int8", epochs=8)]


def test_bisection_goes_up_after_success_and_down_after_failure() -> None:
    world = World(Asked(max_drop=1.0), grows, arms=(Arm("uniform"),))
    half = world.measure(Design(0.5, epochs=4))
    assert ratio(judged(), Asked(max_drop=1.0)) == 0.5
    above = ratio(judged(half), Asked(max_drop=1.0))
    assert above is not None
    assert 0.5 < above <= TOP
    broken = world.measure(Design(above, epochs=4))
    between = ratio(judged(half, broken), Asked(max_drop=1.0))
    assert between is not None
    assert 0.5 < between < above


@pytest.mark.parametrize("scheme", ["int8", "int8-narrow"])
@pytest.mark.parametrize("goal", ["latency", "size"])
def test_integers_that_float_beat_on_a_like_network_are_not_tried_again_unless_size_counts(
    goal: Goal, scheme: Scheme
) -> None:
    world = World(Asked(max_drop=1.0, goal=goal), lambda design: 0.9, arms=(Arm("uniform"),))
    half, smaller = (world.measure(Design(r, epochs=4)) for r in (0.5, 0.6))
    integers = replace(world.measure(half.design), design=replace(half.design, scheme=scheme), latency_ms=0.4)
    smaller = replace(smaller, share=0.1, megabytes=0.1)
    whole = (world.measure(Design(scheme="int8-stem")), world.measure(Design(scheme="int8")))
    history = judged(world.measure(Design()), *whole, half, integers, smaller)
    space = replace(world.space(), schemes=("fp32", "int8", "int8-stem", "int8-narrow"))
    proposed = list(propose(history, space, lambda design: 0.01))
    assert (replace(smaller.design, scheme=scheme) in proposed) == (goal == "size")


def test_a_probe_that_was_too_slow_sends_it_upwards_and_a_failure_ends_the_arm() -> None:
    asked = Asked(max_drop=1.0, max_latency_ms=0.9)
    first = ratio(judged(), asked)
    assert first is not None
    after = ratio(judged(Probe(Design(first, epochs=4), 0.95)), asked)
    assert after is not None
    assert after > first
    failed: dict[Design, Outcome] = {
        **judged(),
        Design(first, epochs=4): Failure(Design(first, epochs=4), "no"),
    }
    world = World(Asked(max_drop=1.0, max_latency_ms=0.9), grows, arms=(Arm("uniform"),))
    proposed = [d for d in propose(failed, world.space(), world.predict) if d.trained and d.epochs == 4]
    assert Design(first, epochs=4) not in proposed


@pytest.mark.parametrize("kept", [True, False])
def test_a_size_that_keeps_the_accuracy_as_it_is_is_pruned_first_and_boldly(kept: bool) -> None:
    world = World(Asked(max_drop=1.0), lambda design: 0.5 if kept or design.trained else -1.0)
    first = next(design for design in world.run() if design.ratio)
    assert (first.size, first.ratio) == ((96, 0.5) if kept else (None, 0.5))


def test_a_rival_of_another_backbone_has_to_be_beaten() -> None:
    world = World(Asked(max_drop=1.0), grows)
    world.history = {
        Design(scheme=way): world.measure(Design(scheme=way)) for way in ("fp32", "int8", "int8-stem")
    }  # type: ignore[arg-type]
    usual = {d.ratio for d in propose(world.history, world.space(), world.predict) if d.trained}
    rival = replace(
        world.measure(Design(scheme="int8")), design=Design(scheme="int8", backbone="thin"), share=0.1
    )
    fast = replace(world.space(), rivals=(rival,))
    against = {d.ratio for d in propose(world.history, fast, world.predict) if d.trained}
    assert min(against) > max(usual)


def test_another_backbone_is_quantized_by_the_fastest_way_even_where_it_is_slower_than_fp32() -> None:
    whole = Design(backbone="large")
    history: History = {
        replace(whole, scheme=way): Point(  # type: ignore[arg-type]
            replace(whole, scheme=way), share, share, 99, 0.0, None, None, 5.0, slower=True  # type: ignore[arg-type]
        )
        for way, share in (("fp32", 3.0), ("int8", 1.1))
    }  # fmt: skip
    assert leading(history, whole) == "int8"


@pytest.mark.parametrize(
    ("arms", "asked", "edge"),
    [
        (ARMS, Asked(max_drop=1.0), grows),
        ((*ARMS, Arm("table", relu=True)), Asked(max_drop=1.0), grows),
        (ARMS, Asked(max_drop=1.0), lambda design: grows(design) + (0.5 if design.size else 0.0)),
        (ARMS, Asked(max_drop=1.0, max_latency_ms=0.3), grows),
    ],
    ids=["plain", "relu", "a size that needs no training", "a bound that only float keeps"],
)
def test_where_integers_are_slower_on_small_networks_the_search_goes_on_in_float(
    arms: tuple[Arm, ...], asked: Asked, edge: Callable[[Design], float]
) -> None:
    """As on processors without VNNI: int8 costs a fixed time a layer, which only large networks earn back."""

    class Small(World):
        def latency(self, design: Design) -> float:
            whole = (1 - design.ratio) ** 1.5 * (0.6 if design.size else 1.0)
            return whole if design.scheme == "fp32" else 0.35 * whole + 0.25

        def predict(self, design: Design) -> float:
            """By what was measured on the whole network, as the search does."""
            size = 0.6 if design.size else 1.0
            return {"fp32": 1.0}.get(design.scheme, 0.6) * size * (1 - design.ratio) ** 1.5

    world = Small(asked, edge, arms=arms)
    tried = world.run()
    first = next(design for design in tried if design.trained)
    assert first.scheme == "int8"
    assert first.network in tried
    assert leading(world.history, Design()) == "fp32"
    best = pick(points(world.history), "latency")
    assert best is not None
    assert best.design.scheme == "fp32"
    assert best.design.ratio > 0.5


def test_what_may_yet_be_narrowed_is_held_against_the_best_before_it_was() -> None:
    world = World(Asked(max_drop=1.0), grows)
    whole, plain = (
        world.measure(Design()),
        replace(world.measure(Design(0.5, epochs=4, scheme="int8")), share=0.2),
    )
    narrow = replace(plain, design=replace(plain.design, scheme="int8-narrow"), share=0.16)
    history = judged(whole, plain, narrow)
    assert limit(history, world.space(), world.predict) == pytest.approx(0.97 * 0.16)
    assert limit(history, world.space(), world.predict, unnarrowed=True) == pytest.approx(0.97 * 0.2)
    assert limit(judged(whole, plain), world.space(), world.predict, unnarrowed=True) == pytest.approx(
        0.97 * 0.2
    )


def test_a_network_that_was_better_before_the_best_was_narrowed_is_narrowed_too() -> None:
    world = World(Asked(max_drop=1.0), grows)
    space = replace(world.space(), schemes=("fp32", "int8", "int8-narrow"))
    by_size = replace(space, asked=replace(world.asked, goal="size"))
    best = replace(world.measure(Design(0.5, epochs=4, scheme="int8")), share=0.2)
    narrow = replace(best, design=replace(best.design, scheme="int8-narrow"), share=0.16)
    for share, tried in ((0.17, True), (0.21, False)):
        other = replace(world.measure(Design(0.6, epochs=8, scheme="int8")), share=share, megabytes=9.0)
        history = judged(world.measure(Design()), best, narrow, other)
        sibling = replace(other.design, scheme="int8-narrow")
        assert (sibling in propose(history, space, lambda design: 0.1)) == tried
        assert sibling not in propose(history, by_size, lambda design: 0.1)


def test_where_integers_gain_no_more_smaller_networks_are_tried_in_float_at_once() -> None:
    """As on the quickstart: in int8 half of the network is no slower than a quarter of it, in float it is."""

    class Flat(World):
        def latency(self, design: Design) -> float:
            whole = (1 - design.ratio) ** 1.5
            return whole if design.scheme == "fp32" else max(0.27 + 0.01 * design.ratio, 0.5 * whole)

        def predict(self, design: Design) -> float:
            return self.latency(design) if design.scheme == "fp32" else 0.5 * (1 - design.ratio) ** 1.5

    world = Flat(Asked(max_drop=1.0), lambda design: 0.8, arms=(Arm("table"),))
    tried = world.run()
    quarter = next(design for design in tried if design.ratio >= 0.75)
    assert quarter.scheme == "int8"
    assert world.history[replace(quarter, ratio=0.5)].share < world.history[quarter].share  # type: ignore[union-attr]
    assert tried[tried.index(quarter) + 1] == quarter.network


def test_where_size_counts_float_is_not_tried_again() -> None:
    world = World(Asked(max_drop=1.0, goal="size"), grows)
    tried = world.run()
    assert any(design.trained for design in tried)
    assert not any(design.trained and design.scheme == "fp32" for design in tried)


@pytest.mark.parametrize("top", [0.6, 0.45, 0.4, 0.3, 0.05])
@pytest.mark.parametrize("goal", ["latency", "size"])
def test_no_layer_gives_more_than_the_arm_allows_and_something_is_tried(top: float, goal: Goal) -> None:
    arms = (Arm("table", top=top), Arm("uniform", top=top))
    tried = World(Asked(max_drop=1.0, goal=goal), grows, arms=arms).run()
    ratios = [design.ratio for design in tried if design.ratio]
    assert ratios
    assert max(ratios) == min(top, max(ratios)) > 0
    if top <= 0.45:  # accuracy holds that far, so the last step is tried as well
        assert max(ratios) == top


def test_a_size_is_not_tried_again_when_another_way_to_quantize_leads() -> None:
    world = World(Asked(max_drop=1.0), grows)
    stem = Design(scheme="int8-stem")
    first = {design: world.measure(design) for design in (Design(), Design(scheme="int8"), stem)}
    first[stem] = replace(first[stem], share=0.49)  # leads for now
    sized = next(d for d in propose(first, world.space(), world.predict) if d.size and not d.trained)
    assert sized == Design(size=96, scheme="int8-stem")
    first[sized] = world.measure(sized)
    first[stem] = replace(first[stem], share=0.6)
    assert not any(d.size and not d.trained for d in propose(first, world.space(), world.predict))


@pytest.mark.parametrize(("gained", "tried"), [(1.0, False), (0.9, True)])
def test_a_way_that_gained_nothing_on_a_like_network_is_not_tried_again(gained: float, tried: bool) -> None:
    """Whatever was predicted: times of two networks apart differ by more than two ways do."""
    world = World(Asked(max_drop=1.0), grows)
    small, smaller = (world.measure(Design(r, epochs=4, scheme="int8")) for r in (0.4, 0.5))
    smaller = replace(smaller, latency_ms=1.06 * smaller.latency_ms)  # timed while the machine was slower
    other = replace(small, design=replace(small.design, scheme="int8-stem"), share=gained * small.share)
    history = judged(world.measure(Design()), small, other, smaller)
    sibling = replace(smaller.design, scheme="int8-stem")
    assert (sibling in propose(history, world.space(), lambda design: 0.01)) == tried
