"""The page: self-contained, safe against names, whole for every kind of run."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import report_examples as examples

from toolchain.report import parse, render_html, render_json, thumbnail
from toolchain.report import parts as p
from toolchain.report.page import page
from toolchain.report.rows import gain

VOID = {"meta", "link", "img", "br"}
EVIL = (
    '<script>alert(1)</script>',
    '"><img src=x onerror=alert(1)>',
    "'; style=background:url(//evil.example)",
    "{{ 7*7 }}{% raw %}",
    "</style></title><svg onload=alert(1)>",
    "javascript:alert(1)",
)  # fmt: skip


class Reader(HTMLParser):
    """Collects tags, attributes, text; tells of tags that are not closed in order."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.words, self.open, self.wrong = [], [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append((self.getpos(), tag))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def report():
    return examples.full()


@pytest.fixture(scope="module")
def long_report():
    return examples.full(examples.LONG, 900)


def evil_report():
    """Every name in the tree says something nasty; figures stay."""
    tree = examples.full(EVIL, 300).model_dump_json()
    for good in ("surface-inspection", "pruned-int8", "near-duplicates across splits", "handwritten digits"):
        tree = tree.replace(good, EVIL[1].replace('"', '\\"'))
    return parse(tree)


CASES = {
    "full": examples.full,
    "twelve long names": lambda: examples.full(examples.LONG, 900),
    "bare": examples.bare,
    "nothing passes": examples.nothing_passes,
    "with CUDA": lambda: examples.full(cuda=True),
    "evil": evil_report,
}


@pytest.mark.parametrize("case", CASES)
def test_page_is_whole_self_contained_and_small(case):
    html = render_html(CASES[case]())
    reader = Reader(html)
    assert reader.wrong == []
    assert reader.open == []
    assert len(html.encode()) < 1_500_000
    assert not {"script", "iframe", "object", "form", "base"} & set(reader.tags)
    for tag, name, value in reader.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:image/png;base64,", "data:,")), value
        if name == "style":
            assert re.fullmatch(r"--v:[\d.]+|max-width:\d+px;min-width:\d+px", value), value
    assert "default-src 'none'" in html
    assert "@import" not in html
    assert "url(//evil.example)" not in html.partition("</style>")[0]
    assert "NaN" not in reader.text
    assert "None" not in reader.text


@pytest.mark.parametrize("case", CASES)
def test_every_link_has_its_section(case):
    reader = Reader(render_html(CASES[case]()))
    anchors = {value for _, name, value in reader.attributes if name == "id"}
    links = {value[1:] for tag, name, value in reader.attributes if (tag, name) == ("a", "href")}
    assert links <= anchors
    assert {"variants", "data", "reproduce"} <= links


def test_names_are_shown_as_they_are():
    reader = Reader(render_html(evil_report()))
    for name in EVIL:
        assert name in reader.text


def test_pictures_and_charts_can_be_read_without_eyes(report):
    reader = Reader(render_html(report))
    images = [a for a in reader.attributes if a[:2] == ("img", "alt")]
    assert len(images) == reader.tags.count("img") > 0
    drawings = [value for tag, name, value in reader.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(drawings) == reader.tags.count("svg") >= 5
    assert all(drawings)
    assert reader.tags.count("caption") >= reader.tags.count("table") - 1
    assert reader.tags.count("h1") == 1


def test_the_outcome_is_on_top(report):
    text = Reader(render_html(report)).text
    speedup = next(s for s in report.speedups if s.of == "pruned-int8")
    assert f"pruned-int8 ships: {speedup.ratio:.2f}× as fast as fp32, test accuracy" in text
    assert "Not measured: provider cuda (no NVIDIA driver on this host)." in text
    assert (
        text.index("pruned-int8 ships") < text.index("Not measured") < text.index("Variants Decided on val")
    )


def test_nothing_passes_is_said_plainly():
    text = Reader(render_html(examples.nothing_passes())).text
    assert "No file passes the gates, so nothing ships" in text
    assert "Training started from random weights (resnet18)" in text
    assert "Top-1, test (fp32)" in text  # whose figure that is


def test_every_figure_of_a_variant_is_there(report):
    found = page(report)
    assert [row.variant.name for row in found.rows] == [v.name for v in report.variants]
    chosen = found.rows[3]
    drop = report.variants[3].drop["test"]
    assert chosen.loss_test == f"{drop.points:.2f}".replace("-", "−")
    assert chosen.accuracy == f"{100 * report.variants[3].accuracy['cpu'].top1:.1f} %"
    assert found.rows[0].speedup == found.rows[0].loss_test == ""
    assert [gate.passed for gate in found.gates] == [gate.passed for gate in report.gates]


def test_balanced_runs_show_balanced_accuracy():
    report = examples.full()
    report = report.model_copy(update={"run": report.run.model_copy(update={"metric": "balanced"})})
    scored = report.variants[0].accuracy["cpu"]
    assert page(report).rows[0].accuracy == f"{100 * scored.balanced:.1f} %"
    assert "Balanced accuracy" in render_html(report)


def test_confusions_are_tables_up_to_forty_classes(long_report):
    html = render_html(long_report)
    assert html.count('class="matrix"') == 4
    many = examples.full(tuple(f"class {k:03d}" for k in range(120)), 600)
    html = render_html(many)
    assert 'class="matrix"' not in html
    assert "the most frequent confusions" in html
    assert "60 more are in report.json" in html
    assert len(html) < 1_500_000


def test_gates_of_many_classes_are_cut_failures_first(report):
    gates = tuple(
        report.gates[0].model_copy(update={"name": f"min_recall.{k}", "passed": k != 499}) for k in range(500)
    )
    found = page(report.model_copy(update={"gates": gates}))
    assert len(found.gates) == 80
    assert not found.gates[0].passed
    assert "420 more" in render_html(report.model_copy(update={"gates": gates}))


def test_large_thumbnails_do_not_burst_the_page(report):
    heavy = p.Picture(name="a.png", label="x", predicted="y", probability=0.9, png="A" * 180_000)
    html = render_html(report.model_copy(update={"mistakes": (heavy,) * 24}))
    assert len(html) < 1_500_000
    assert html.count('<span class="blank">') == 24 - 5


def test_a_thumbnail_is_small_and_keeps_small_pictures():
    photo = np.random.default_rng(0).integers(0, 255, (600, 400, 3)).astype(np.uint8)
    assert len(thumbnail(photo)) < 40_000
    digit = np.zeros((8, 8, 3), dtype=np.uint8)
    shown = page(
        examples.full().model_copy(
            update={
                "mistakes": tuple(
                    p.Picture(name="d", label="1", predicted="7", probability=0.5, png=thumbnail(x))
                    for x in (digit, photo)
                )
            }
        )
    ).mistakes
    assert [shot.small for shot in shown] == [True, False]


@pytest.mark.parametrize("png", ['x" onerror="alert(1)', "https://evil.example/a.png", ""])
def test_only_base64_gets_into_an_image_address(png):
    with pytest.raises(ValueError, match="png"):
        p.Picture(name="a", label="a", predicted="b", probability=0.5, png=png)


def test_transfer_is_not_flattered(report):
    verdicts = [gain(row).verdict for row in report.transfer.rows]
    assert verdicts == ["helps: every seed better", "seeds overlap", "seeds overlap"]
    assert gain(report.transfer.rows[2]).gain.startswith("−")
    text = Reader(render_html(report)).text
    assert "seeds overlap" in text


def test_same_report_same_page(report):
    assert render_html(report) == render_html(parse(render_json(report)))
