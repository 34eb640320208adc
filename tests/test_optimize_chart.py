"""The picture of a search: what matters is drawn to scale, and names stand at their points."""

from __future__ import annotations

import re

from toolchain.optimize.asked import Asked
from toolchain.optimize.chart import drawing
from toolchain.optimize.design import Design
from toolchain.optimize.outcome import Found
from toolchain.optimize.points import Point, front

_DISC = re.compile(
    r'<circle cx="([\d.]+)" cy="([\d.]+)" r="5\.?0?" class="disc( beyond)? (c\d)"><title>([^:]+):'
)


def point(design: Design, share: float, drop: float) -> Point:
    return Point(design, share, share, 99 - drop, drop, None, None, 1.0)


FP32 = point(Design(), 1.0, 0.0)
GOOD = point(Design(ratio=0.8, epochs=4, scheme="int8"), 0.1, 0.5)
POOR = point(Design(ratio=0.9, epochs=4, scheme="int8"), 0.07, 4.0)
BROKEN = point(Design(ratio=0.9, scheme="int8"), 0.2, 60.0)


def found(*points: Point, chosen: Point | None = GOOD, **asked: float) -> Found:
    best = tuple(p.name for p in front(p for p in points if p.drop < 1))
    return Found(
        "x", "top1", Asked(**asked), points, best, chosen and chosen.name, (), (), (), "", (), 1.0, None, {}, {}, None,
        {}, None,
    )  # fmt: skip


def discs(search: Found) -> dict[str, tuple[float, float, bool]]:
    """By name: place, and whether it is hollow."""
    drawn = drawing(search)
    assert drawn is not None
    return {name: (float(x), float(y), bool(hollow)) for x, y, hollow, _, name in _DISC.findall(str(drawn))}


def test_what_lost_far_more_than_counts_is_hollow_on_the_lower_edge() -> None:
    at = discs(found(FP32, GOOD, POOR, BROKEN, max_drop=1.0))
    assert len(at) == 4
    assert [at[p.name][2] for p in (FP32, GOOD, POOR, BROKEN)] == [False, False, True, True]
    assert at[POOR.name][1] == at[BROKEN.name][1] > at[GOOD.name][1] > at[FP32.name][1]
    assert at[GOOD.name][1] - at[FP32.name][1] > 30  # half a point can be seen


def test_latencies_are_drawn_by_their_ratios() -> None:
    at = discs(found(FP32, GOOD, BROKEN))
    assert abs((at[FP32.name][0] - at[BROKEN.name][0]) / (at[FP32.name][0] - at[GOOD.name][0]) - 0.699) < 0.01


def test_the_chosen_point_has_a_ring_and_its_name_beside_it() -> None:
    crowd = [
        point(Design(ratio=0.5 + 0.01 * k, epochs=4), 0.03 + 0.002 * k, 0.9 - 0.02 * k) for k in range(14)
    ]
    drawn = str(drawing(found(FP32, GOOD, *crowd, max_drop=1.0)))
    ring = re.search(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="9', drawn)
    name = re.search(rf'<text x="([\d.]+)" y="([\d.]+)"[^>]*>{GOOD.name}<', drawn)
    assert ring is not None
    assert name is not None
    assert 0 < float(name[1]) - float(ring[1]) < 14
    assert abs(float(ring[2]) - float(name[2])) < 8


def test_a_name_that_found_no_place_beside_its_point_is_joined_to_it() -> None:
    crowd = [
        point(Design(ratio=0.5 + 0.01 * k, epochs=4), 0.1 + 0.001 * k, 0.5 - 0.04 * k) for k in range(12)
    ]
    assert "leader" in str(drawing(found(FP32, *crowd, chosen=None)))
    assert "leader" not in str(drawing(found(FP32, GOOD)))


def test_without_points_there_is_no_picture() -> None:
    assert drawing(found()) is None
    assert drawing(found(FP32)) is not None
