"""The page at `/`, as a person sees it in a real Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Page, chromium
from PIL import Image
from runtime_helpers import GOLDEN, LABELS, encoded, make_bundle
from server_helpers import Server, serving

from toolchain.runtime.bundle import Bundle

pytest.importorskip("uvicorn", reason="serving needs the extra 'server'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)"),
]
TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(str(CHROMIUM), tmp_path_factory.mktemp("browser") / "profile") as found:
        yield found


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(Image.fromarray(GOLDEN[1]), "PNG"))
    return path


def shown(page: Page, server: Server) -> None:
    """The answer is the bundle's own, with its bars in order and the latency."""
    page.wait("document.querySelectorAll('#classes tr').length > 0")
    (found,) = Bundle.load(server.folder).predict([GOLDEN[1]])
    said = page.evaluate("document.getElementById('answer').textContent")
    assert said.startswith(f"{found.label}, {100 * found.probability:.1f} %")
    assert ("uncertain" in said) is not found.certain
    assert " ms" in said
    rows = page.evaluate(
        "[...document.querySelectorAll('#classes tr')].map(r => r.innerText.trim().split(/\\s+/))"
    )
    assert {row[0] for row in rows} == set(LABELS)
    shares = [float(row[-2]) for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert page.evaluate("document.getElementById('picture').naturalWidth") == GOLDEN[1].shape[1]
    assert page.evaluate("document.getElementById('error').textContent") == ""


@pytest.mark.parametrize("way", ["choose", "drop"])
def test_a_picture_is_answered(way: str, page: Page, picture: Path, tmp_path: Path) -> None:
    with serving(make_bundle(tmp_path / "bundle")) as server:
        page.open(server.url)
        if way == "choose":
            page.choose("#file", picture)
        else:
            page.drop("#drop", picture)
        shown(page, server)
        assert page.errors == []


def test_what_is_refused_is_said(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(b"no picture")
    with serving(make_bundle(tmp_path / "bundle")) as server:
        page.open(server.url)
        page.choose("#file", file)
        page.wait("document.getElementById('error').textContent.includes('picture')")
        assert page.evaluate("document.getElementById('answer').textContent") == ""


def test_a_token_is_asked_for_and_used(page: Page, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    with serving(make_bundle(tmp_path / "bundle"), "--token-file", str(tmp_path / "token")) as server:
        page.open(server.url)
        visible = "getComputedStyle(document.getElementById('token')).display !== 'none'"
        assert not page.evaluate(visible)
        page.choose("#file", picture)
        page.wait(visible)
        page.evaluate("document.getElementById('bearer').focus()")
        page.call("Input.insertText", text=TOKEN)
        page.evaluate("document.getElementById('bearer').blur()")  # the picture is asked about again
        shown(page, server)
        page.evaluate("document.getElementById('classes').replaceChildren()")
        page.choose("#file", picture)  # the same file once more
        shown(page, server)
