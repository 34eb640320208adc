"""What becomes of a package on the device: maintainer scripts, health checks, and what goes along when it is wanted."""

from __future__ import annotations

import io
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from package_helpers import wheel, wish
from runtime_helpers import make_bundle
from server_helpers import ROOT, serving

from toolchain.package import deb, package, payload
from toolchain.package.oci import HEALTH


@pytest.mark.parametrize(
    ("action", "restarted"),
    [
        ("configure", True),
        ("abort-upgrade", True),
        ("abort-remove", True),
        ("abort-deconfigure", True),
        ("triggered", False),
    ],
)
def test_the_service_runs_again_after_what_stopped_it(action: str, restarted: bool, tmp_path: Path) -> None:
    """prerm stops the service before an upgrade, also before one that the full disk ends (Debian policy, 6.6)."""
    package(wish(tmp_path), "deb", tmp_path / "c.deb")
    script = tmp_path / "postinst"
    text = control(tmp_path / "c.deb")["./postinst"].decode()
    script.write_text(text.replace("[ -d /run/systemd/system ]", "true"))
    (tmp_path / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n')
    (tmp_path / "systemctl").chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["sh", script, action, "1.0"], check=True, env=path)
    called = tmp_path / "called"
    assert (
        "restart toolchain-colours-red.service" in (called.read_text() if called.exists() else "")
    ) is restarted


def control(path: Path) -> dict[str, bytes]:
    """The files of a .deb's control archive."""
    data = path.read_bytes()
    at = 8
    while data[at : at + 16].strip() != b"control.tar.xz":
        size = int(data[at + 48 : at + 58])
        at += 60 + size + size % 2
    content = data[at + 60 : at + 60 + int(data[at + 48 : at + 58])]
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(content))) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]


def healthy(port: int, **environment: str) -> bool:
    """What the container's health check says of a port."""
    words = [sys.executable, *HEALTH[1:-1], str(port)]
    return subprocess.run(words, env={"PYTHONPATH": str(ROOT), **environment}, timeout=60).returncode == 0


def test_the_health_check_asks_no_proxy(tmp_path: Path) -> None:
    """Docker hands a site's proxy into every container; 127.0.0.1 is not to be asked for there."""
    pytest.importorskip("uvicorn", reason="serving needs the extra 'server'")
    with serving(make_bundle(tmp_path / "bundle")) as server:
        assert healthy(server.port, http_proxy="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9")
    assert not healthy(server.port)


def test_the_health_check_knows_tls(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="serving needs the extra 'server'")
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed (apt-get install openssl)")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=device"
    subprocess.run([*made.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    options = ("--tls-certificate", str(certificate), "--tls-key", str(key))
    with serving(make_bundle(tmp_path / "bundle"), *options) as server:
        assert healthy(server.port)


@pytest.mark.parametrize("accelerator", ["cpu", "cuda", "jetson"])
def test_dockerfiles_check_health_as_the_image_does(accelerator: str) -> None:
    text = (ROOT / "docker" / f"{accelerator}.Dockerfile").read_text().replace("\\\n", "")
    line = next(line for line in text.splitlines() if line.startswith("HEALTHCHECK"))
    assert tuple(json.loads(line.partition("CMD ")[2])) == HEALTH


def test_grpc_goes_along_when_its_wheels_are_there(tmp_path: Path) -> None:
    given = wish(tmp_path)
    assert not any("grpcio" in name for name in payload.load(given).tree())
    wheel(tmp_path / "wheels", "grpcio")
    wheel(tmp_path / "wheels", "typing_extensions")
    loaded = payload.load(given)
    assert {"lib/grpcio/__init__.py", "lib/typing_extensions/__init__.py"} <= set(loaded.tree())
    parts = {part["name"] for part in json.loads(loaded.tree()["sbom.cdx.json"])["components"]}
    assert {"grpcio", "typing_extensions"} <= parts


def test_the_unit_leaves_room_for_the_connections_it_may_have(tmp_path: Path) -> None:
    """It may not raise its own limit (its system call filter), so the unit gives what --limit-connections needs."""
    assert "\nLimitNOFILE=4096\n" in deb.unit(payload.load(wish(tmp_path)))
