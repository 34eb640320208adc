"""A history's folder: written once, by many at a time, read in spite of damage."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from toolchain import history
from toolchain.errors import HostError, RecordError
from toolchain.runtime import host

RECORD = {"schema": 1, "kind": "bench", "value": 3}


def test_a_record_is_named_by_its_content_and_written_once(tmp_path: Path) -> None:
    first = history.add(tmp_path / "new", RECORD)
    again = history.add(tmp_path / "new", dict(reversed(RECORD.items())))
    assert first == again
    assert json.loads(first.read_text()) == RECORD
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    assert len(first.stem) == 64


def test_parallel_writers_lose_nothing(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: history.add(tmp_path, RECORD | {"value": k % 20}), range(80)))
    found = history.read(tmp_path)
    assert sorted(kept.raw["value"] for kept in found.records) == list(range(20))
    assert not found.damaged
    assert len(list(tmp_path.iterdir())) == 20


def test_damaged_files_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    good = history.add(tmp_path, RECORD)
    cut = history.add(tmp_path, RECORD | {"value": 4})
    cut.write_text(cut.read_text()[:-5])
    changed = history.add(tmp_path, RECORD | {"value": 5})
    changed.write_text(changed.read_text().replace("5", "6"))
    (tmp_path / "note.json").write_text("[1]")
    (tmp_path / "by-hand.json").write_text(json.dumps(RECORD | {"value": 7}))
    (tmp_path / "README.md").write_text("not a record")
    found = history.read(tmp_path)
    assert {kept.path.name for kept in found.records} == {good.name, "by-hand.json"}
    assert len(found.damaged) == 3
    assert any(cut.name in line and "cut short" in line for line in found.damaged)
    assert any(changed.name in line and "was changed" in line for line in found.damaged)
    assert any("note.json" in line and "no record" in line for line in found.damaged)


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="needs a `kind`"):
        history.add(tmp_path, {"value": 1})
    with pytest.raises(RecordError, match="no such folder"):
        history.read(tmp_path / "missing")


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "records").write_text("")
    with pytest.raises(HostError, match="records"):
        history.add(tmp_path / "records", RECORD)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(HostError, match="Permission denied"):
        history.add(tmp_path, RECORD)


def test_a_fingerprint_is_of_the_machine_and_not_of_its_software() -> None:
    facts = {"cpu": "A", "isa": "x86-avx2", "features": ["avx", "avx2"], "cores": 2, "gpus": []}
    here = host.fingerprint(facts | {"memory_bytes": 8 * 2**30, "kernel": "6.1", "load": [0.1]})
    assert host.fingerprint(facts | {"memory_bytes": 8 * 2**30 + 4096, "kernel": "6.2"}) == here
    assert host.fingerprint(facts | {"memory_bytes": 8 * 2**30, "cores": 4}) != here
    assert host.fingerprint(facts | {"memory_bytes": 8 * 2**30, "features": ["avx"]}) != here
    assert host.fingerprint({}) == host.fingerprint({})
    for damaged in (
        [],
        {"memory_bytes": 10**400},
        {"memory_bytes": "16 GiB"},
        {"features": 5},
        {"gpus": "one"},
    ):
        with pytest.raises(RecordError, match=r"^host.* must be a"):
            host.fingerprint(damaged)
