"""A bundle answers as it was measured, and anything else about it is told by name."""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from runtime_helpers import (
    GOLDEN,
    LABELS,
    edit_manifest,
    fused_model,
    make_bundle,
    manifest_of,
    picture,
    write_golden,
    write_manifest,
)

from toolchain.runtime import host, manifest
from toolchain.runtime.bundle import Bundle, identity, temper
from toolchain.runtime.errors import BundleError, ModelError, PictureError, VerificationError
from toolchain.runtime.session import Session


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def reseal(folder: Path, **fields: Any) -> None:
    """Make the manifest fit the folder again, as one would who tampers with care."""
    content = manifest_of(folder) | fields
    content["identity"] = identity(content, content["files"])
    write_manifest(folder, content)


# ---- verifying


def test_an_untouched_bundle_is_verified(folder: Path) -> None:
    found = Bundle.load(folder).verify()
    assert (found.files, found.golden, found.agreeing) == (6, len(GOLDEN), len(GOLDEN))
    assert found.worst == 0
    assert found.tolerance == 1e-4
    assert found.isa == found.made_on == host.isa()
    assert found.identity == json.loads((folder / "manifest.json").read_text())["identity"]


@pytest.mark.parametrize("name", ["model.onnx", "model.plain.onnx", "golden.npz", "measured.json", "NOTICE"])
def test_a_changed_file_is_named(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(VerificationError, match=f"{name}: its content differs") as caught:
        Bundle.load(folder).verify()
    assert caught.value.exit_code == 3


def test_all_problems_are_told_at_once(folder: Path) -> None:
    (folder / "NOTICE").unlink()
    (folder / "extra.txt").write_text("not listed")
    (folder / "sub").mkdir()
    (folder / "sub" / "hidden.so").write_text("not listed either")
    target = folder.parent / "card.md"
    (folder / "MODEL_CARD.md").rename(target)
    (folder / "MODEL_CARD.md").symlink_to(target)
    os.mkfifo(folder / "pipe")
    with pytest.raises(VerificationError) as caught:
        Bundle.load(folder).verify()
    told = str(caught.value)
    assert "NOTICE: is missing" in told
    assert "extra.txt: not listed" in told
    assert "sub/hidden.so: not listed" in told
    assert "MODEL_CARD.md: is a link" in told
    assert "pipe: not listed" in told
    assert "model.onnx" not in told


def test_linked_folders_and_manifests_are_refused(folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "a.txt").write_text("a")
    (folder / "sub").symlink_to(outside)
    moved = folder.parent / "elsewhere.json"
    (folder / "manifest.json").rename(moved)
    (folder / "manifest.json").symlink_to(moved)
    with pytest.raises(VerificationError, match=r"manifest\.json: is a link; sub: not listed"):
        Bundle.load(folder).verify()


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", 1.0), ("labels", ["green", "red", "blue"]), ("tolerances", {host.isa(): 0.5})],
)
def test_a_changed_meaning_breaks_the_identity(folder: Path, field: str, value: object) -> None:
    edit_manifest(folder, lambda content: content.update({field: value}))
    with pytest.raises(VerificationError, match="identity is not that of its fields"):
        Bundle.load(folder).verify()


def test_golden_answers_that_differ_are_named(folder: Path) -> None:
    answers = np.concatenate([Session(folder / "model.onnx").run({"pictures": p[None]})[0] for p in GOLDEN])
    answers[1] += np.float32([0.01, -0.01, 0])
    answers[2] = np.nan
    write_golden(folder, answers)
    reseal(folder)
    with pytest.raises(
        VerificationError, match=r"picture_1 by 0\.01, picture_2 by nan \(allowed on"
    ) as caught:
        Bundle.load(folder).verify()
    assert "picture_0" not in str(caught.value)


def test_golden_answers_asked_at_once_are_asked_beside_each_other_and_told_in_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_there = threading.Barrier(len(GOLDEN), timeout=20)
    plain = Session.run

    def run(self: Session, feed: Any) -> Any:
        all_there.wait()  # broken, and an error, where one call waits for another
        return plain(self, feed)

    monkeypatch.setattr(Session, "run", run)
    assert Bundle.load(folder).prove(at_once=len(GOLDEN))[0].worst == 0
    with np.load(folder / "golden.npz") as golden:
        write_golden(folder, golden["probabilities"] + np.float32([[0, 0, 0], [0.01, 0, 0], [0, 0, 0]]))
    reseal(folder)
    with pytest.raises(VerificationError, match=r"differ: picture_1 by 0\.01 \("):
        Bundle.load(folder).prove(at_once=len(GOLDEN))


def test_another_model_under_the_same_name_differs(folder: Path) -> None:
    onnx.save(fused_model(scale=0.02), folder / "model.onnx")
    reseal(folder)
    with pytest.raises(VerificationError, match="picture_0"):
        Bundle.load(folder).verify()


def test_the_tolerance_is_that_of_this_isa(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = np.concatenate([Session(folder / "model.onnx").run({"pictures": p[None]})[0] for p in GOLDEN])
    write_golden(folder, answers + np.float32([0.02, 0, 0]))
    reseal(folder, tolerances={"arm64": 0.05, "x86-vnni": 1e-3})
    monkeypatch.setattr(host, "isa", lambda: "arm64")
    assert Bundle.load(folder).verify().worst == pytest.approx(0.02, abs=1e-6)
    monkeypatch.setattr(host, "isa", lambda: "x86-vnni")
    with pytest.raises(VerificationError, match=r"allowed on x86-vnni: 0\.001"):
        Bundle.load(folder).verify()
    monkeypatch.setattr(host, "isa", lambda: "riscv64")
    with pytest.raises(
        VerificationError, match=r"no tolerance for this machine's ISA 'riscv64' \(only arm64, x86"
    ):
        Bundle.load(folder).verify()


@pytest.mark.parametrize("broken", [b"", b"no zip", None])
def test_golden_answers_that_cannot_be_read(folder: Path, broken: bytes | None) -> None:
    if broken is None:
        np.savez(folder / "golden.npz", count=np.int64(1), probabilities=np.zeros((1, 3), np.float32))
    else:
        (folder / "golden.npz").write_bytes(broken)
    reseal(folder)
    with pytest.raises(BundleError, match=r"golden\.npz: not readable golden answers"):
        Bundle.load(folder).verify()


@pytest.mark.parametrize("kind", ["lzma", "encrypted", "endless"])
def test_golden_answers_packed_otherwise_are_one_sentence(folder: Path, kind: str) -> None:
    content = io.BytesIO()
    np.save(content, np.float64(np.inf) if kind == "endless" else np.int64(1))
    with zipfile.ZipFile(
        folder / "golden.npz", "w", zipfile.ZIP_LZMA if kind == "lzma" else zipfile.ZIP_STORED
    ) as file:
        file.writestr("count.npy", content.getvalue())
    packed = bytearray((folder / "golden.npz").read_bytes())
    if kind == "encrypted":
        packed[packed.rindex(b"PK\x01\x02") + 8] |= 1  # the flags, in the list at the end
    (folder / "golden.npz").write_bytes(packed)
    reseal(folder)
    with pytest.raises(BundleError, match=r"golden\.npz: (is packed in a way|not readable)"):
        Bundle.load(folder).verify()


def test_sides_too_unlike_for_padding_are_refused(folder: Path) -> None:
    sizes = {"crop_mode": "border", "height": 32, "width": 64}
    edit_manifest(folder, lambda content: content["preprocessing"].update(sizes))
    bundle = Bundle.load(folder)
    bundle.require_shape(2000, 4000)
    with pytest.raises(PictureError, match=r"1 x 20000 pixels, padded to the model's aspect, are 800000000"):
        bundle.predict([np.zeros((20000, 1, 3), np.uint8)])
    edit_manifest(folder, lambda content: content["preprocessing"].update(crop_mode="center"))
    Bundle.load(folder).require_shape(20000, 1)


def test_pickled_golden_answers_are_not_unpickled(folder: Path) -> None:
    ran = folder.parent / "ran"

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (ran,))

    np.savez(folder / "golden.npz", count=np.int64(1), probabilities=np.array([Bomb()], object))
    reseal(folder)
    with pytest.raises(BundleError, match="not readable"):
        Bundle.load(folder).verify()
    assert not ran.exists()


# ---- identity


def test_identity_covers_what_is_answered_and_not_what_is_told_beside() -> None:
    files = {"model.onnx": "0" * 64, "model.plain.onnx": "1" * 64, "golden.npz": "2" * 64, "NOTICE": "3" * 64}
    fields = ("task", "labels", "input", "output", "preprocessing", "temperature", "thresholds")
    base: dict[str, Any] = dict.fromkeys((*fields, "tolerances", "golden"), "x") | {
        "name": "a",
        "lineage": {},
    }
    first = identity(base, files)
    assert first == identity(dict(reversed(base.items())), dict(reversed(files.items())))
    assert first == identity(
        base | {"name": "b", "lineage": {"x": 1}}, files | {"NOTICE": "4" * 64, "measured.json": ""}
    )
    for field in (*fields, "tolerances", "golden"):
        assert identity(base | {field: "y"}, files) != first, field
    for name in ("model.onnx", "model.plain.onnx", "golden.npz", "model.onnx.data"):
        assert identity(base, files | {name: "5" * 64}) != first, name
    text = '{"a":[1,2.5],"b":"\\u00fc"}'
    assert json.dumps({"b": "ü", "a": (1, 2.5)}, sort_keys=True, separators=(",", ":")) == text
    only = dict.fromkeys((*fields, "tolerances", "golden"))
    canonical = json.dumps(only | {"files": {}}, sort_keys=True, separators=(",", ":"))
    assert identity(only, {"NOTICE": "6" * 64}) == hashlib.sha256(canonical.encode()).hexdigest()


# ---- loading


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema_version", 2, "field 'schema_version' is 2; this runtime reads 1"),
        ("schema_version", None, "field 'schema_version' must be a whole number"),
        ("task", "detection", "'detection'; this runtime knows 'image-classification'"),
        ("labels", [], "field 'labels' must be"),
        ("labels", ["a", "a"], "field 'labels' must be"),
        ("temperature", 0, "field 'temperature' must be a number above 0"),
        ("temperature", float("nan"), "NaN is no number of JSON"),
        ("temperature", 10**400, "field 'temperature' must be"),
        ("thresholds", {"red": 0.5}, "field 'thresholds' lacks green, blue"),
        ("tolerances", {"arm64": -1}, "field 'tolerances' must be"),
        ("golden", {"file": "golden.npz"}, "golden: field 'made_on' is missing"),
        ("input", {"name": "pictures", "dtype": "uint8"}, "input: field 'shape' is missing"),
        ("files", {"model.onnx": "0" * 64}, r"field 'files' lacks model\.plain\.onnx, golden\.npz"),
        ("identity", "abc", "field 'identity' must be a sha256"),
        ("minimum_onnxruntime", "99.1", r"needs onnxruntime 99\.1 or newer, but \d+\.\d+"),
    ],
)
def test_a_manifest_that_is_not_right(folder: Path, field: str, value: object, message: str) -> None:
    edit_manifest(folder, lambda content: content.update({field: value}))
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.load(folder)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "name",
    ["../outside", "/etc/passwd", "a/../../b", "a//b", "./a", "a\\b", "c:a", "", "a\0b", "manifest.json"],
)
def test_file_names_that_leave_the_folder(folder: Path, name: str) -> None:
    edit_manifest(folder, lambda content: content["files"].update({name: "0" * 64}))
    with pytest.raises(BundleError, match="field 'files' must be an object of plain relative paths"):
        Bundle.load(folder)


def test_every_field_that_is_needed_is_missed_by_name(folder: Path) -> None:
    whole = json.loads((folder / "manifest.json").read_text())
    told_beside = {"lineage", "licences", "plain_input"}
    for field in set(whole) - told_beside:
        write_manifest(folder, {k: v for k, v in whole.items() if k != field})
        with pytest.raises(BundleError, match=f"field '{field}' is missing"):
            Bundle.load(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, "\ud800"])
def test_no_manifest_at_all(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(BundleError, match=r"manifest\.json: (not JSON|must be a JSON object)"):
        Bundle.load(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.load(folder)
    with pytest.raises(BundleError, match="no such folder"):
        Bundle.load(folder / "absent")


def test_versions_are_compared_as_numbers() -> None:
    assert manifest.numbers_of("1.9.0") < manifest.numbers_of("1.24.4") < manifest.numbers_of("1.31.1.dev20")
    assert manifest.numbers_of("odd") == ()


# ---- answering


def test_predictions_are_tempered_and_judged(folder: Path) -> None:
    bundle = Bundle.load(folder)
    sure, unsure = bundle.predict([picture((250, 10, 10)), picture((120, 110, 100), (3, 7))])
    raw = bundle.session().run({"pictures": picture((250, 10, 10))[None]})[0][0].astype(np.float64)
    wanted = np.sqrt(raw) / np.sqrt(raw).sum()  # temperature 2
    assert list(sure.probabilities) == list(LABELS)
    np.testing.assert_allclose(list(sure.probabilities.values()), wanted, rtol=1e-6)
    assert (sure.label, sure.certain) == ("red", True)
    assert sure.probability == pytest.approx(wanted[0])
    assert (unsure.label, unsure.certain) == ("red", False)


def test_the_threshold_is_the_labels_own_and_inclusive(folder: Path) -> None:
    (found,) = Bundle.load(folder).predict([GOLDEN[1]])
    for threshold, certain in ((found.probability, True), (np.nextafter(found.probability, 2), False)):
        edit_manifest(
            folder, lambda c, t=threshold: c.update(thresholds={"red": 0, "green": float(t), "blue": 0})
        )
        assert Bundle.load(folder).predict([GOLDEN[1]])[0].certain is certain


def test_no_answer_of_a_class_that_earned_no_trust_is_certain(folder: Path) -> None:
    edit_manifest(folder, lambda c: c.update(thresholds=dict.fromkeys(LABELS, 1.0), temperature=0.001))
    (found,) = Bundle.load(folder).predict([picture((250, 10, 10))])
    assert (found.probability, found.certain) == (1.0, False)


def test_pictures_of_another_form_are_refused(folder: Path) -> None:
    bundle = Bundle.load(folder)
    grey = np.zeros((4, 4), np.uint8)
    for wrong in (
        grey,
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ):
        with pytest.raises(PictureError, match="picture 1 is"):
            bundle.predict([GOLDEN[0], wrong])
    assert bundle.predict([]) == []
    turned = np.ascontiguousarray(GOLDEN[0][:, ::-1])[:, ::-1]  # not contiguous
    assert bundle.predict([turned]) == bundle.predict([GOLDEN[0]])


def test_a_session_loads_only_what_the_manifest_lists(folder: Path) -> None:
    whole = (folder / "model.onnx").read_bytes()
    onnx.save(fused_model(scale=9), folder / "model.onnx")
    with pytest.raises(VerificationError, match=r"model\.onnx: its content differs"):
        Bundle.load(folder).session()
    (folder / "model.onnx").unlink()
    with pytest.raises((VerificationError, ModelError), match=r"model\.onnx"):
        Bundle.load(folder).session()
    (folder / "model.onnx").write_bytes(whole)
    edit_manifest(folder, lambda content: content["input"].update(name="images"))
    with pytest.raises(BundleError, match=r"takes and gives .*pictures.* says .*images"):
        Bundle.load(folder).session()


def test_external_weights_must_be_listed_and_unchanged(folder: Path) -> None:
    weights = folder / "model.onnx.data"
    onnx.save(
        fused_model(),
        folder / "model.onnx",
        save_as_external_data=True,
        location=weights.name,
        size_threshold=60,
    )
    reseal(folder, files={k: v for k, v in manifest_of(folder)["files"].items() if k != weights.name})
    with pytest.raises(VerificationError, match=r"model\.onnx\.data: not listed"):
        Bundle.load(folder).session()
    reseal(folder)
    assert Bundle.load(folder).verify().agreeing == len(GOLDEN)
    weights.write_bytes(bytes(weights.stat().st_size))
    with pytest.raises(VerificationError, match=r"model\.onnx\.data: its content differs"):
        Bundle.load(folder).session()


def test_tempering() -> None:
    p = np.array([[0.9, 0.1, 0.0], [1e-38, 1.0, 0.0]], np.float32)
    np.testing.assert_allclose(temper(p, 1.0), p / p.sum(axis=1, keepdims=True), rtol=1e-6)
    logits = np.array([2.0, 0.5, -1.0])
    softmax = np.exp(logits) / np.exp(logits).sum()
    wanted = np.exp(logits / 3) / np.exp(logits / 3).sum()
    np.testing.assert_allclose(temper(softmax, 3.0), wanted, rtol=1e-12)
    sharp = temper(p, 0.01)
    assert np.isfinite(sharp).all()
    np.testing.assert_allclose(sharp.sum(axis=1), 1)
