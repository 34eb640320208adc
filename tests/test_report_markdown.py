"""The Markdown form, and the words that every form shares."""

import pytest
import report_examples as examples

from toolchain.report import parts as p
from toolchain.report import render_markdown, text
from toolchain.report.labels import Box, place, short
from toolchain.report.summary import cautions, headline
from toolchain.report.svg import Scale, element, nice_step
from toolchain.report.text import escape


def tables(markdown):
    """Each table as a list of rows of cells; escaped bars are no borders."""
    found, rows = [], []
    for line in [*markdown.splitlines(), ""]:
        if line.startswith("|"):
            rows.append(line.replace("\\|", "").count("|"))
        elif rows:
            found.append(rows)
            rows = []
    return found


@pytest.mark.parametrize("make", [examples.full, examples.bare, examples.nothing_passes])
def test_tables_are_whole(make):
    markdown = render_markdown(make())
    found = tables(markdown)
    assert found
    assert all(len(set(rows)) == 1 and len(rows) > 2 for rows in found)
    assert "None" not in markdown


def test_names_cannot_leave_their_cell():
    labels = ("a|b", "line\nbreak", "<b>bold</b>", "[x](http://evil.example)", "`code`", "# head")
    markdown = render_markdown(examples.full(labels, 300))
    assert all(len(set(rows)) == 1 for rows in tables(markdown))
    assert "<b>" not in markdown.replace("\\<b\\>", "")
    assert "[x](" not in markdown
    assert "\n# head" not in markdown
    assert escape("a|b\n\nc") == "a\\|b c"


def test_commands_cannot_leave_their_fence():
    report = examples.full().model_copy(update={"reproduce": ("echo ```", "toolchain run x")})
    assert render_markdown(report).rstrip().endswith("````sh\necho ```\ntoolchain run x\n````")


def test_the_outcome_comes_first():
    report = examples.full()
    lines = render_markdown(report).splitlines()
    assert lines[0] == "# surface-inspection"
    assert lines[2].startswith("**pruned-int8 ships: ")
    assert "64x64. Loss" in render_markdown(report)


@pytest.mark.parametrize(
    ("points", "ci95", "words"),
    [
        (0.37, (-0.4, 1.1), "test accuracy 0.4 points lower (95 %: −0.4 to 1.1)"),
        (-0.93, (-2.0, 0.2), "test accuracy 0.9 points higher (95 %: −0.2 to 2.0)"),
        (1.0, (0.2, 2.0), "test accuracy 1.0 point lower (95 %: 0.2 to 2.0)"),
    ],
)
def test_headline_says_the_loss_with_its_interval(points, ci95, words):
    report = examples.full()
    drop = {"test": report.variants[3].drop["test"].model_copy(update={"points": points, "ci95": ci95})}
    variants = (*report.variants[:3], report.variants[3].model_copy(update={"drop": drop}))
    assert headline(report.model_copy(update={"variants": variants})).endswith(words)


def test_headline_when_the_baseline_ships():
    report = examples.full().model_copy(update={"chosen": "fp32"})
    assert headline(report) == "fp32 ships; what else passes is within 5 % of it, and less accurate or larger"
    worse = [v.model_copy(update={"status": "slower"}) for v in report.variants]
    none = report.model_copy(update={"variants": tuple(worse)})
    assert headline(none) == "fp32 ships; no compressed file passes the gates and is faster"
    assert headline(examples.bare()) == "fp32 ships"


def test_headline_when_nothing_ships():
    report = examples.nothing_passes()
    assert headline(report) == "No file passes the gates, so nothing ships"
    slower = report.variants[1].model_copy(update={"status": "slower"})
    told = headline(report.model_copy(update={"variants": (report.variants[0], slower)}))
    assert told == "No file passes the gates and is shown to be faster, so nothing ships"


def test_cautions_warn_of_few_pictures_and_of_bad_data():
    assert any("only 60 pictures: one flip is 1.7 points" in line for line in cautions(examples.bare()))
    report = examples.full()
    problem = p.Check(name="groups across splits", level="problem", summary="3 groups lie in train and test")
    data = report.data.model_copy(update={"checks": (problem,)})
    quiet, busy = (
        report.model_copy(update={"host": {**report.host, "waited": share}}) for share in (0.01, 0.52)
    )
    assert cautions(quiet) == cautions(report)
    assert any("others had the core for 52 % of the time" in line for line in cautions(busy))
    assert "Data: 3 groups lie in train and test" in cautions(report.model_copy(update={"data": data}))


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (text.percent(0.97499), "97.5 %"),
        (text.percent(None), "—"),
        (text.points(-0.004), "0.00"),
        (text.points(0.37, plus="+"), "+0.37"),
        (text.points_range((-0.2, 1.4)), "−0.20 to 1.40"),
        (text.duration(2_140_000), "2.14 ms"),
        (text.duration(999), "999 ns"),
        (text.duration(12_345_000_000), "12.3 s"),
        (text.size(9_130_000), "9.13 MB"),
        (text.size(412), "412 B"),
        (text.amount(312_000_000), "312 M"),
        (text.wall(0.31), "0.3 s"),
        (text.wall(59.7), "1 min 0 s"),
        (text.wall(7500), "2 h 5 min"),
        (text.measured(-0.4, "points"), "−0.40 points"),
        (text.measured(3.14e-6, "1"), "3.1e−06"),
        (text.plural(1, "class"), "1 class"),
        (text.plural(1797, "picture"), "1,797 pictures"),
        (text.plural(2, "class"), "2 classes"),
    ],
)
def test_figures_in_words(shown, words):
    assert shown == words


def test_scales_have_round_ticks_inside():
    assert [nice_step(x) for x in (0.3, 1.0, 1.2, 2.3, 7)] == pytest.approx([0.5, 1.0, 2.0, 2.5, 10.0])
    assert Scale(0, 5.6, 0, 100).ticks(6) == pytest.approx([0, 1, 2, 3, 4, 5])
    ticks = Scale(0.9, 6.5, 0, 100, log=True).ticks(9)
    assert 1 < len(ticks) <= 9
    assert all(0.9 <= tick <= 6.5 for tick in ticks)
    assert Scale(1, 100, 0, 200, log=True)(10) == pytest.approx(100)
    assert Scale(3, 3, 0, 100)(3) == 0  # all values equal: no division by nought


def test_elements_escape_attributes_and_words():
    drawn = element("text", element("title"), data_name='"<&', class_="a")
    assert drawn == '<text data-name="&#34;&lt;&amp;" class="a"><title></title></text>'


def test_words_in_drawings_keep_apart():
    taken = [Box(0, 0, 20, 20)]
    frame = Box(0, 0, 400, 300)
    for x in (10, 30, 34, 60, 390):
        box = place(("pruned-int8", "1 MB"), (x, 150.0, 6.0), taken, frame)
        assert all(box.overlap(other) == 0 for other in taken)
        assert frame.overlap(box) == pytest.approx(box.area)
        taken.append(box)


def test_short_keeps_both_ends():
    assert short("abcdef", 6) == "abcdef"
    assert short("immature granulocyte, bilobed", 15) == "immatur…bilobed"
