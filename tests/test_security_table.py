"""Hostile bundles, models and pictures: each is refused with one sentence, writes nothing, stays in its memory.

Hashes and identity are made right for what was changed, as an attacker would, unless the row is about them. Each
row runs the runtime in a process of its own, as a device does.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from runtime_helpers import encoded, fused_model, make_bundle, manifest_of

from toolchain.runtime import manifest

MEGABYTES = 1024  # the limit given
RESIDENT = 600  # what a refusal may really take, libraries included

Row = Callable[[Path], list[str]]


def verify(folder: Path) -> list[str]:
    return ["verify", str(folder / "bundle")]


def sealed(folder: Path) -> list[str]:
    """`verify`, after manifest and identity were made right for the files that lie there now."""
    bundle = folder / "bundle"
    content = manifest_of(bundle)
    content["identity"] = manifest.identity(content, content["files"])
    (bundle / manifest.MANIFEST).write_text(json.dumps(content))
    return verify(folder)


def changed(folder: Path, **fields: object) -> list[str]:
    """`verify` for a manifest with other fields and a right identity."""
    bundle = folder / "bundle"
    content = manifest_of(bundle) | fields
    content["identity"] = manifest.identity(content, content["files"])
    (bundle / manifest.MANIFEST).write_text(json.dumps(content))
    return verify(folder)


def with_model(folder: Path, model: onnx.ModelProto | bytes) -> list[str]:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    (folder / "bundle" / manifest.MODEL).write_bytes(data)
    return sealed(folder)


def external(location: str) -> onnx.ModelProto:
    """The fused model, its weight said to lie at `location`."""
    model = fused_model()
    for weight in model.graph.initializer:
        if weight.name == "weight":
            weight.ClearField("raw_data")
            weight.data_location = TensorProto.EXTERNAL
            weight.external_data.add(key="location", value=location)
            weight.external_data.add(key="length", value="36")
    return model


def nested(location: str) -> onnx.ModelProto:
    """The fused model with an If whose branch keeps a constant at `location`."""
    model = fused_model()
    tensor = TensorProto(name="t", dims=[9], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    inside = helper.make_node("Constant", [], ["o"], value=tensor)
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, [9])
    branch = helper.make_graph([inside], "b", [], [out])
    yes = numpy_helper.from_array(np.array(True), "yes")
    model.graph.initializer.append(yes)
    model.graph.node.append(
        helper.make_node("If", ["yes"], ["unused"], then_branch=branch, else_branch=branch)
    )
    return model


def bomb(operator: str) -> onnx.ModelProto:
    """The fused model, with a tensor of 16 GB made on the way."""
    model = fused_model()
    sizes = numpy_helper.from_array(np.array([1 << 32], np.int64), "sizes")
    one = numpy_helper.from_array(np.array([1], np.float32), "one")
    model.graph.initializer.extend([sizes, one])
    inputs = ["sizes"] if operator == "ConstantOfShape" else ["one", "sizes"]
    axes = numpy_helper.from_array(np.array([0], np.int64), "bomb_axes")
    model.graph.initializer.append(axes)
    nodes = [
        helper.make_node(operator, inputs, ["huge"]),
        helper.make_node("ReduceSum", ["huge", "bomb_axes"], ["sum"], keepdims=1),
        helper.make_node("Add", ["logits", "sum"], ["blown"]),
    ]
    model.graph.node[-1].input[0] = "blown"
    kept = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*kept[:-1], *nodes, kept[-1]])
    return model


def foreign() -> onnx.ModelProto:
    """The fused model with an operator of a library that is to be loaded."""
    model = fused_model()
    model.graph.node[-1].domain = "evil.example"
    model.opset_import.append(helper.make_opsetid("evil.example", 1))
    return model


def other_input() -> onnx.ModelProto:
    model = fused_model()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return model


def linked(folder: Path, link: Callable[[Path, Path], None]) -> list[str]:
    """A weights file inside the bundle which is a link to one outside."""
    secret = folder / "secret.bin"
    secret.write_bytes(bytes(36))
    link(secret, folder / "bundle" / "weights.bin")
    return with_model(folder, external("weights.bin"))


def unlisted(folder: Path) -> list[str]:
    words = with_model(folder, external("weights.bin"))
    (folder / "bundle" / "weights.bin").write_bytes(bytes(36))
    return words


def sparse(folder: Path) -> list[str]:
    path = folder / "bundle" / manifest.MODEL
    digest = hashlib.sha256(b"unknown").hexdigest()
    with path.open("r+b") as file:
        file.truncate(5 << 30)
    content = json.loads((folder / "bundle" / manifest.MANIFEST).read_text())
    content["files"][manifest.MODEL] = digest
    content["identity"] = manifest.identity(content, content["files"])
    (folder / "bundle" / manifest.MANIFEST).write_text(json.dumps(content))
    return verify(folder)


def golden(folder: Path, members: dict[str, bytes]) -> list[str]:
    with zipfile.ZipFile(folder / "bundle" / manifest.GOLDEN, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return sealed(folder)


def npy(shape: tuple[int, ...], kind: str = "|u1", content: bytes = b"") -> bytes:
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + content


def claims_too_much(folder: Path) -> list[str]:
    count = npy((), "<i8", struct.pack("<q", 1))
    return golden(
        folder, {"count.npy": count, "picture_0.npy": npy((1 << 20, 1 << 20, 3)), "probabilities.npy": count}
    )


def unpacks_to_too_much(folder: Path) -> list[str]:
    """A member whose directory entry says 3 GB."""
    words = golden(
        folder, {"count.npy": npy((), "<i8", struct.pack("<q", 1)), "picture_0.npy": bytes(1 << 16)}
    )
    path = folder / "bundle" / manifest.GOLDEN
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", 3 << 30)
    path.write_bytes(data)
    sealed(folder)
    return words


def pickled(folder: Path) -> list[str]:
    buffer = BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return golden(folder, {"count.npy": buffer.getvalue()})


def raw_manifest(folder: Path, content: str) -> list[str]:
    (folder / "bundle" / manifest.MANIFEST).write_text(content)
    return verify(folder)


def edited(folder: Path, old: str, new: str) -> list[str]:
    text = (folder / "bundle" / manifest.MANIFEST).read_text()
    assert old in text
    return raw_manifest(folder, text.replace(old, new))


def leaving(folder: Path, name: str) -> list[str]:
    files = manifest_of(folder / "bundle")["files"] | {name: "0" * 64}
    return changed(folder, files=files)


def replaced(folder: Path, name: str, make: Callable[[Path], object]) -> list[str]:
    path = folder / "bundle" / name
    path.unlink(missing_ok=True)
    make(path)
    return verify(folder)


def appended(folder: Path, name: str) -> list[str]:
    with (folder / "bundle" / name).open("ab") as file:
        file.write(b"\0")
    return verify(folder)


def picture(folder: Path, name: str, content: bytes) -> list[str]:
    (folder / name).write_bytes(content)
    return ["predict", str(folder / "bundle"), str(folder / name)]


def red(folder: Path) -> Path:
    RED.save(folder / "red.png")
    return folder / "red.png"


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def png(width: int, height: int, *more: bytes) -> bytes:
    """A PNG of that size by its header, with a few bytes of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    texts = [chunk(b"zTXt", data) for data in more]
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(texts) + pixels + chunk(b"IEND", b"")


def giant_tiff() -> bytes:
    """A TIFF of 60000 x 60000 pixels by its tags."""
    tags = [(256, 60000), (257, 60000), (258, 8), (259, 1), (262, 1), (273, 8), (278, 60000), (279, 100)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)


RED = Image.new("RGB", (64, 64), "red")
ROWS: dict[str, tuple[Row, str]] = {
    "weights above the folder": (lambda f: with_model(f, external("../secret.bin")), "not listed"),
    "weights at an absolute path": (lambda f: with_model(f, external("/etc/passwd")), "not listed"),
    "weights above, in a branch": (lambda f: with_model(f, nested("../../secret")), "not listed"),
    "weights by a symbolic link": (lambda f: linked(f, lambda a, b: b.symlink_to(a)), "is a link"),
    "weights by a hard link": (lambda f: linked(f, lambda a, b: b.hardlink_to(a)), "is a link"),
    "weights that are not listed": (unlisted, "not listed"),
    "a tensor of 16 GB, folded": (lambda f: with_model(f, bomb("ConstantOfShape")), "cannot"),
    "a tensor of 16 GB, expanded": (lambda f: with_model(f, bomb("Expand")), "cannot"),
    "an operator of its own library": (lambda f: with_model(f, foreign()), "cannot load"),
    "a model for other inputs": (lambda f: with_model(f, other_input()), "takes and gives|cannot load"),
    "a model cut short": (lambda f: with_model(f, fused_model().SerializeToString()[:150]), "cut short"),
    "a model in ORT's own format": (lambda f: with_model(f, b"\x18\0\0\0ORTM" + bytes(64)), "not an ONNX|cannot load"),
    "a model of 5 GB": (sparse, "more than the"),
    "golden answers that run code": (pickled, "not readable golden"),
    "golden answers that claim 3 TB": (claims_too_much, "golden"),
    "golden answers that unpack to 3 GB": (unpacks_to_too_much, "more than the"),
    "a manifest nested 200,000 deep": (lambda f: raw_manifest(f, "[" * 200_000), "not JSON"),
    "a manifest of 17 MB": (lambda f: raw_manifest(f, " " * (17 << 20)), "more than the"),
    "a manifest without an end": (
        lambda f: replaced(f, manifest.MANIFEST, lambda p: p.symlink_to("/dev/zero")), "no plain file"),
    "a manifest that is a pipe": (lambda f: replaced(f, manifest.MANIFEST, os.mkfifo), "no plain file"),
    "a model that is a pipe, unverified": (
        lambda f: ["predict", replaced(f, manifest.MODEL, os.mkfifo)[1], str(red(f))], "no plain file"),
    "a picture that is a pipe": (lambda f: ["predict", str(f / "bundle"), str(pipe(f / "a.png"))], "no plain file"),
    "a tolerance without a bound": (lambda f: raw_manifest(f, '{"tolerances": Infinity}'), "not JSON"),
    "a tolerance of 1e999": (lambda f: edited(f, "0.0001", "1e999"), "tolerances"),
    "a listed file above the folder": (lambda f: leaving(f, "../../etc/shadow"), "plain relative paths"),
    "a listed file on another drive": (lambda f: leaving(f, "C:\\windows"), "plain relative paths"),
    "a listed file with a line break": (lambda f: leaving(f, "a\nb"), "plain relative paths"),
    "a model that is a link": (
        lambda f: replaced(f, manifest.PLAIN_MODEL, lambda p: p.symlink_to("model.onnx")), "is a link"),
    "a model that is a pipe": (lambda f: replaced(f, manifest.PLAIN_MODEL, os.mkfifo), "no plain file"),
    "a file that is not listed": (lambda f: replaced(f, "sitecustomize.py", Path.touch), "not listed"),
    "a changed model": (lambda f: appended(f, manifest.MODEL), "content differs"),
    "swapped labels": (lambda f: edited(f, '["red", "green"', '["green", "red"'), "identity"),
    "a PNG of 100000 x 100000": (lambda f: picture(f, "a.png", png(100_000, 100_000)), "pixels"),
    "a PNG with a text of 200 MB": (
        lambda f: picture(f, "t.png", png(8, 8, b"x\0\0" + zlib.compress(bytes(200 << 20)))), "damaged|decoded"),
    "a TIFF of 3.6 gigapixels": (lambda f: picture(f, "a.tif", giant_tiff()), "pixels|damaged"),
    "a JPEG cut short": (lambda f: picture(f, "a.jpg", encoded(RED, "JPEG")[:300]), "damaged|cut short"),
    "PostScript as a picture": (lambda f: picture(f, "a.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "not a picture"),
}  # fmt: skip


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = {str(p.relative_to(folder)): p.lstat() for p in folder.rglob("*")}
    return {name: (stat.st_size, stat.st_mtime_ns, stat.st_mode) for name, stat in found.items()}


@pytest.mark.parametrize("name", ROWS)
def test_it_is_refused_and_nothing_else_happens(name: str, tmp_path: Path) -> None:
    build, sentence = ROWS[name]
    make_bundle(tmp_path / "bundle")
    words = build(tmp_path)
    (tmp_path / "home").mkdir()
    before = snapshot(tmp_path)
    code, said, resident = run([*words, "--memory-limit", str(MEGABYTES)], tmp_path)
    assert code in (1, 2, 3), said
    errors = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, said
    assert "Traceback" not in said
    assert any(part in errors[0] for part in sentence.split("|")), errors[0]
    assert snapshot(tmp_path) == before
    assert resident < RESIDENT << 20


ASKED = """
import sys
from toolchain.runtime.__main__ import main
from toolchain.runtime.fresh import memory
code = main(sys.argv[1:])
print("resident", memory()["VmHWM"])
sys.exit(code)
"""


def run(words: list[str], folder: Path) -> tuple[int, str, int]:
    """(exit code, what it said, its largest resident memory in bytes) of the runtime in its own process."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder / "home"), "PYTHONPATH": ":".join(sys.path)}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ASKED, *words],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    resident = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("resident")]
    assert resident, done.stderr
    return done.returncode, done.stdout + done.stderr, int(resident[0])


def test_the_untouched_bundle_passes_under_the_same_limit_and_leaves_no_trace(tmp_path: Path) -> None:
    """The table would prove nothing if everything were refused; onnxruntime's telemetry would leave files at home."""
    make_bundle(tmp_path / "bundle")
    (tmp_path / "home").mkdir()
    before = snapshot(tmp_path)
    code, said, resident = run([*verify(tmp_path), "--memory-limit", str(MEGABYTES)], tmp_path)
    assert code == 0, said
    assert resident < RESIDENT << 20
    assert snapshot(tmp_path) == before


def test_the_table_is_as_long_as_promised() -> None:
    assert len(ROWS) >= 25
