"""report.json: the form that was promised, its committed schema, and reading it back."""

import json

import jsonschema
import pytest
import report_examples as examples

from toolchain.errors import ToolchainError
from toolchain.report import SCHEMA, RunReport, parse, render_json, schema_text
from toolchain.report import parts as p
from toolchain.report.card import render_card
from toolchain.report.saved import render


@pytest.fixture(scope="module")
def tree():
    return json.loads(render_json(examples.full()))


def test_committed_schema_is_the_models():
    command = 'python -c "from toolchain.report import SCHEMA, schema_text; SCHEMA.write_text(schema_text())"'
    assert SCHEMA.read_text() == schema_text(), f"run: {command}"
    jsonschema.Draft202012Validator.check_schema(json.loads(schema_text()))


@pytest.mark.parametrize("make", [examples.full, examples.bare, examples.nothing_passes])
def test_reports_fit_the_schema(make):
    jsonschema.validate(json.loads(render_json(make())), json.loads(SCHEMA.read_text()))


def test_the_promised_form(tree):
    assert {"run", "variants", "speedups", "chosen", "gates", "data", "host"} <= tree.keys()
    variant = tree["variants"][1]
    assert {"name", "path", "bytes", "params", "macs", "accuracy", "latency", "parity"} <= variant.keys()
    accuracy = variant["accuracy"]["cpu"]
    assert accuracy["split"] == "test"
    assert {"top1", "balanced", "per_class", "n", "ci95"} <= accuracy.keys()
    assert len(accuracy["ci95"]) == 2
    assert all(0 <= share <= 1 for share in accuracy["per_class"].values())
    latency = variant["latency"]["cpu"][0]
    assert {"file", "threads", "batch", "input", "p50_ns", "p90_ns", "p99_ns", "n"} <= latency.keys()
    assert latency["file"] == "plain"
    assert isinstance(latency["p50_ns"], int)
    assert {"of", "over", "provider", "ratio", "ci95"} <= tree["speedups"][0].keys()
    assert {"name", "bound", "value", "pass"} <= tree["gates"][0].keys()
    assert "passed" not in tree["gates"][0]


def test_a_report_is_read_back_equal():
    report = examples.full()
    assert parse(render_json(report)) == report


def test_no_figure_is_null_not_nan():
    report = examples.bare()
    assert "NaN" not in render_json(report)
    with pytest.raises(ValueError):
        p.Parity(max_difference=float("nan"), n=3)


def test_a_damaged_report_is_told_in_one_sentence(tree):
    with pytest.raises(ToolchainError, match=r"^report\.json: not a report of this version: "):
        parse("{")
    with pytest.raises(ToolchainError, match=r"variants\.0\.bytes") as caught:
        parse(
            json.dumps({**tree, "variants": [{**tree["variants"][0], "bytes": "many"}]}), "runs/x/report.json"
        )
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_report_that_is_no_text_is_told_in_one_sentence(tmp_path):
    (tmp_path / "report.json").write_bytes(b'{"schema": "\xff"}')
    with pytest.raises(ToolchainError, match=r"report\.json: not a report"):
        render(tmp_path, "md")


def test_names_in_a_card_are_shown_as_they_are():
    report = examples.full(labels=("<img src=x>", "[safe](http://x)", "a\n# b", "d", "e", "f"))
    card = render_card(report)
    for shown in (r"\<img src=x\>", r"\[safe\](http://x)", r"a \# b"):
        assert shown in card
    assert "\n# b" not in card


def test_file_names_that_are_not_text_become_text():
    broken = b"test/caf\xe9/\x1b[31mred\xe2\x80\xaegnp.jpg".decode("utf-8", "surrogateescape")
    picture = p.Picture(name=broken, label="a\x00b", predicted="é 图 \U0001f9b7", probability=0.5)
    assert picture.name == "test/caf\\xe9/\\x1b[31mred\\u202egnp.jpg"
    assert picture.label == "a\\x00b"
    assert picture.predicted == "é 图 \U0001f9b7"
    picture.model_dump_json().encode()


def test_unknown_fields_are_refused():
    with pytest.raises(ValueError, match="extra"):
        RunReport.model_validate({**examples.full().model_dump(), "colour": "blue"})
