"""The server as its clients see it: Triton's own client, curl, a Prometheus parser, schemathesis, plain HTTP."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runtime_helpers import GOLDEN, LABELS, encoded, make_bundle
from server_helpers import Server, serving

from toolchain.runtime.bundle import Bundle
from toolchain.runtime.pictures import decode

pytest.importorskip("uvicorn", reason="serving needs the extra 'server'")
BATCH = np.stack([GOLDEN[0], GOLDEN[0][::-1]])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = make_bundle(tmp_path_factory.mktemp("served") / "bundle")
    with serving(
        folder, "--limit-body", "200000", "--limit-unpacked", "300000", "--limit-pixels", "50000"
    ) as s:
        yield s


def listed(array: np.ndarray = BATCH, **fields: object) -> dict:
    given = {"name": "pictures", "datatype": "UINT8", "shape": list(array.shape), "data": array.tolist()}
    return {"inputs": [{**given, **fields}]}


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
@pytest.mark.parametrize("packing", [None, "gzip", "deflate"])
def test_tritons_client_gets_the_sessions_very_bits(
    server: Server, binary_in: bool, binary_out: bool, packing: str | None
) -> None:
    triton = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http] (dev)")
    client = triton.InferenceServerClient(server.url.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("colours")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    (version,) = client.get_model_metadata("colours")["versions"]
    given = triton.InferInput("pictures", list(BATCH.shape), "UINT8")
    given.set_data_from_numpy(BATCH, binary_data=binary_in)
    wanted = triton.InferRequestedOutput("probabilities", binary_data=binary_out)
    reply = client.infer(
        "colours", [given], version, [wanted], request_id="7", request_compression_algorithm=packing
    )
    np.testing.assert_array_equal(reply.as_numpy("probabilities"), server.raw(BATCH))
    assert reply.get_response()["id"] == "7"
    assert reply.get_response()["model_version"] == version
    client.close()


def test_json_without_asking_for_outputs(server: Server) -> None:
    reply = server.client.post("/v2/models/colours/infer", json=listed()).json()
    (output,) = reply["outputs"]
    assert (output["datatype"], output["shape"]) == ("FP32", [2, 3])
    np.testing.assert_array_equal(np.float32(output["data"]).reshape(2, 3), server.raw(BATCH))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "other"}, "name must be 'pictures'"),
        ({"datatype": "FP32"}, "datatype must be UINT8"),
        ({"shape": [2, 6, 5, 4]}, "takes [-1, -1, -1, 3]"),
        ({"shape": [2, 6, 5]}, "takes [-1, -1, -1, 3]"),
        ({"shape": [2, -6, 5, 3]}, "above 0"),
        ({"shape": [2, 6, 5.0, 3]}, "above 0"),
        ({"shape": [2, 6, 0, 3]}, "above 0"),
        ({"data": [1, 2]}, "must be 180 numbers"),
        ({"data": [[1], [2, 3]]}, "no array"),
        ({"data": [256] * 180}, "outside 0 to 255"),
        ({"data": [-1] * 180}, "outside 0 to 255"),
        ({"data": [0.5] * 180}, "of the type uint8"),
        ({"data": [10**30] * 180}, "of the type uint8"),
        ({"data": "text"}, "needs 'data'"),
        ({"parameters": {"binary_data_size": 180}}, "0 follow"),
        ({"parameters": {"shared_memory_region": "x"}}, "not supported"),
        ({"parameters": []}, "must be an object"),
    ],
)  # fmt: skip
def test_a_wrong_input_is_refused_with_a_sentence(server: Server, change: dict, sentence: str) -> None:
    reply = server.client.post("/v2/models/colours/infer", json=listed(**change))
    assert reply.status_code == 400
    assert sentence in reply.json()["error"]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"not json", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b"[]", {}, 400),
        (b'{"inputs": 3}', {}, 400),
        (b"{}", {"inference-header-content-length": "99"}, 400),
        (b"{}", {"inference-header-content-length": "-1"}, 400),
        (b"\0" * 200_001, {}, 413),
        (gzip.compress(b" " * 300_001, mtime=0), {"content-encoding": "gzip"}, 413),
        (gzip.compress(b" " * 9_000_000, mtime=0) * 3, {"content-encoding": "gzip"}, 413),
        (gzip.compress(b"{}", mtime=0)[:-3], {"content-encoding": "gzip"}, 400),
        (b"{}", {"content-encoding": "gzip"}, 400),
        (b"{}", {"content-encoding": "br"}, 415),
    ],
)
def test_a_hostile_body_is_refused(server: Server, body: bytes, headers: dict, status: int) -> None:
    reply = server.client.post("/v2/models/colours/infer", content=body, headers=headers)
    assert reply.status_code == status
    assert reply.json()["error"]
    assert server.client.get("/v2/health/ready").status_code == 200


def test_a_body_without_a_length_is_capped_too(server: Server) -> None:
    parts = (b"x" * 1000 for _ in range(400))
    assert server.client.post("/predict", content=parts).status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/colours/versions/9", 404),
        ("GET", "/predict", 405),
        ("DELETE", "/v2/health/live", 405),
        ("POST", "/metrics", 405),
    ],
)
def test_wrong_paths_and_methods(server: Server, method: str, path: str, status: int) -> None:
    reply = server.client.request(method, path)
    assert reply.status_code == status
    assert reply.json()["error"]


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_curl_posts_a_picture(server: Server, tmp_path: Path, form: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed (apt-get install curl)")
    file = tmp_path / "picture"
    file.write_bytes(encoded(Image.fromarray(GOLDEN[1]), form))
    asked = ["curl", "-sS", "--fail-with-body", "--data-binary", f"@{file}", f"{server.url}/predict"]
    reply = json.loads(subprocess.run(asked, check=True, capture_output=True).stdout)
    (found,) = Bundle.load(server.folder).predict([decode(file)])
    assert (reply["label"], reply["probability"]) == (found.label, found.probability)
    assert reply["probabilities"] == found.probabilities
    assert reply["certain"] is found.certain
    assert list(reply["probabilities"]) == list(LABELS)


def test_pictures_that_are_none_or_bombs(server: Server) -> None:
    bomb = encoded(Image.new("L", (2000, 2000)), "PNG")
    for content, word in ((b"", "picture"), (b"GIF89a", "picture"), (bomb, "50000")):
        reply = server.client.post("/predict", content=content)
        assert reply.status_code == 400
        assert word in reply.json()["error"]
    assert server.client.post("/predict", files={"file": b"x"}).status_code == 415


def test_a_prometheus_parser_reads_the_metrics(server: Server) -> None:
    parser = pytest.importorskip("prometheus_client.parser", reason="needs prometheus-client (dev)")
    before = _requests(parser, server)
    for _ in range(3):
        server.client.get("/v2")
    server.client.post("/predict", content=b"no picture")
    after = _requests(parser, server)
    assert after["server", "200"] - before.get(("server", "200"), 0) == 3
    assert after["predict", "400"] - before.get(("predict", "400"), 0) == 1


def _requests(parser, server: Server) -> dict[tuple[str, str], float]:
    families = {f.name: f for f in parser.text_string_to_metric_families(server.client.get("/metrics").text)}
    histogram = families["toolchain_request_seconds"]
    for sample in histogram.samples:
        if sample.name.endswith("_count"):
            last = [
                s
                for s in histogram.samples
                if s.labels.get("le") == "+Inf" and s.labels["route"] == sample.labels["route"]
            ]
            assert last[0].value == sample.value
    assert families["toolchain_model_info"].samples[0].labels["name"] == "colours"
    return {(s.labels["route"], s.labels["status"]): s.value for s in families["toolchain_requests"].samples}


def test_schemathesis_finds_no_server_error(server: Server) -> None:
    pytest.importorskip("schemathesis", reason="needs schemathesis (dev)")
    asked = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--url", server.url,
        "--checks", "not_a_server_error", "--max-examples", "15", "--seed", "1", "--phases", "examples,coverage,fuzzing",
    ]  # fmt: skip
    done = subprocess.run(asked, capture_output=True, text=True, timeout=300, cwd=server.folder.parent)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "Traceback" not in server.log.read_text()
