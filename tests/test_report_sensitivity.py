"""The picture of what int8 costs, from the step's measurements."""

from __future__ import annotations

from toolchain.record import Measurement
from toolchain.report.sensitivity import SHOWN, drawing, sensitivity


def measurements(count: int) -> list[Measurement]:
    found = [Measurement(name="agreement", value=0.9, where={"layer": ""})]
    found += [
        Measurement(name="sensitivity", value=3.0 - i, where={"layer": f"part{i}"}) for i in range(count)
    ]
    return [
        *found,
        Measurement(name="agreement", value=0.99, where={"layer": "part0"}),
        Measurement(name="price", value=1.25, where={"layer": "part0"}),
        Measurement(name="agreement_plain", value=1.0),
    ]


def test_what_was_given_back_is_told_with_its_price() -> None:
    found = sensitivity("int8", measurements(3))
    assert found is not None
    assert (found.agreement, [part.gain for part in found.parts]) == (0.9, [3.0, 2.0, 1.0])
    assert (found.parts[0].agreement, found.parts[0].price) == (0.99, 1.25)
    assert found.parts[1].agreement is None
    picture = str(drawing(found))
    assert picture.count("in float:") == 1
    assert "× 1.25" in picture
    assert "part2" in picture


def test_long_networks_are_cut() -> None:
    found = sensitivity("int8", measurements(SHOWN + 9))
    assert found is not None
    assert str(drawing(found)).count("<circle") == SHOWN


def test_other_steps_have_none() -> None:
    measured = [
        Measurement(name="layers_int8", value=3),
        Measurement(name="price", value=0.8),  # of narrow
        Measurement(name="agreement", value=0.98, where={"when": "after"}),  # of qat
    ]
    assert sensitivity("int8", measured) is None
