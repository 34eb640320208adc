"""The store: a record exists if and only if the work finished."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import onnx
import pytest
from onnx_helpers import mobile

from toolchain import store as stores
from toolchain.errors import HostError, ToolchainError
from toolchain.record import Measurement
from toolchain.runtime.whole import write_whole
from toolchain.store import Job, Store, alone, clean_store, hash_path, host_faults


def job(**changes: object) -> Job:
    fields = {
        "name": "double",
        "version": 1,
        "settings": {"by": 2},
        "parents": {"model": "aa"},
        "given": {"seed": 0},
    }
    return Job(**(fields | changes))  # type: ignore[arg-type]


def finish(store: Store, work: Job, text: str = "done") -> None:
    with store.begin(work) as open_work:
        (open_work.out / "result.txt").write_text(text)
        open_work.commit((Measurement(name="macs", value=7),))


def test_finished_work_is_found_again_with_its_measurements(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find(job().key) is None
    finish(store, job())
    entry = store.find(job().key)
    assert entry is not None
    assert (entry.folder / "result.txt").read_text() == "done"
    assert entry.record.measurements[0].value == 7
    assert entry.record.files == {"result.txt": hash_path(entry.folder / "result.txt")}


@pytest.mark.parametrize(
    "changes",
    [{"name": "triple"}, {"version": 2}, {"settings": {"by": 3}}, {"parents": {"model": "bb"}},
     {"given": {"seed": 1}}, {"libraries": ("numpy",)}],
)  # fmt: skip
def test_every_field_changes_the_key(changes: dict[str, object]) -> None:
    assert job(**changes).key != job().key


def test_the_order_of_settings_does_not_change_the_key() -> None:
    assert job(settings={"a": 1, "b": 2}).key == job(settings={"b": 2, "a": 1}).key


def test_work_that_is_not_committed_leaves_nothing_believed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ZeroDivisionError), store.begin(job()) as work:
        (work.out / "half").write_text("half")
        (work.scratch / "checkpoint").write_text("kept")
        _ = 1 / 0
    assert store.find(job().key) is None
    assert list((tmp_path / "work").iterdir()) == []
    with store.begin(job()) as work:
        assert (work.scratch / "checkpoint").read_text() == "kept"
        assert list(work.out.iterdir()) == []


def test_scratch_is_gone_after_success(tmp_path: Path) -> None:
    store = Store(tmp_path)
    finish(store, job())
    assert not (tmp_path / "scratch" / job().key).exists()


def test_a_damaged_result_counts_as_absent_and_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    finish(store, job())
    folder = tmp_path / "objects" / job().key
    (folder / "result.txt").unlink()
    assert store.find(job().key) is None
    finish(store, job(), "again")
    assert (folder / "result.txt").read_text() == "again"
    (folder / "record.json").write_text("{half a reco")
    assert store.find(job().key) is None


def test_a_result_whose_content_changed_is_made_again(tmp_path: Path) -> None:
    finish(Store(tmp_path), job())
    file = tmp_path / "objects" / job().key / "result.txt"
    whole = file.read_bytes()
    file.write_bytes(bytes([whole[0] ^ 1, *whole[1:]]))  # one bit, as a disk loses it
    store = Store(tmp_path)
    assert store.find(job().key) is None
    finish(store, job())
    assert file.read_bytes() == whole
    assert Store(tmp_path).find(job().key) is not None


def test_fresh_forgets_the_earlier_result(tmp_path: Path) -> None:
    store = Store(tmp_path)
    finish(store, job())
    with store.begin(job(), fresh=True) as work:
        assert work.entry is None


def _add_one(root: Path, queue: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    with Store(root).begin(job()) as work:
        did = work.entry is None
        if did:
            time.sleep(0.3)
            (work.out / "result.txt").write_text(str(os.getpid()))
            work.commit()
    queue.put(did)


def test_two_processes_do_the_same_work_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    runs = [context.Process(target=_add_one, args=(tmp_path, queue)) for _ in range(2)]
    for run in runs:
        run.start()
    did = sorted(queue.get(timeout=30) for _ in runs)
    for run in runs:
        run.join()
    assert did == [False, True]


def test_a_killed_process_leaves_no_record_and_no_lock(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        from toolchain.store import Job, Store
        job = Job("double", 1, {{"by": 2}}, {{"model": "aa"}}, {{"seed": 0}})
        with Store(Path({str(tmp_path)!r})).begin(job) as work:
            (work.out / "result.txt").write_text("half")
            print("ready", flush=True)
            time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    store = Store(tmp_path)
    assert store.find(job().key) is None
    finish(store, job(), "whole")
    assert (tmp_path / "objects" / job().key / "result.txt").read_text() == "whole"
    assert store.clean(keep=()) > 0
    assert list((tmp_path / "work").iterdir()) == []


def test_clean_keeps_what_named_runs_need(tmp_path: Path) -> None:
    store = Store(tmp_path)
    needed, other = job(), job(version=2)
    finish(store, needed)
    finish(store, other)
    store.register("quickstart", [needed.key])
    store.register("old", [other.key])
    freed = store.clean(keep={"quickstart"})
    assert freed > 0
    assert store.find(needed.key) is not None
    assert store.find(other.key) is None
    assert list(store.runs()) == ["quickstart"]


def test_clean_takes_nothing_that_is_no_store_s(tmp_path: Path) -> None:
    for name in ("work", "scratch", "objects"):
        (tmp_path / "own" / name / "thesis").mkdir(parents=True)
    with pytest.raises(ToolchainError, match="is no store of finished steps"):
        clean_store(tmp_path / "own")
    (tmp_path / "own" / "locks").mkdir()
    clean_store(tmp_path / "own")
    assert len(list((tmp_path / "own").glob("*/thesis"))) == 3


def test_clean_spares_what_a_run_needs_that_began_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Store(tmp_path)
    finish(made, job())

    def begin(root: Path) -> int:  # while the store is measured
        if "new" not in made.runs():
            made.claim("new", job().key)
        return 0

    monkeypatch.setattr(stores, "size_of", begin)
    made.clean(keep=())
    assert made.find(job().key) is not None
    assert list(made.runs()) == ["new"]


def test_clean_takes_away_what_a_kill_left_of_work_that_was_finished_later(tmp_path: Path) -> None:
    store = Store(tmp_path)
    left = tmp_path / "work" / f"{job().key}.killed"
    left.mkdir(parents=True)
    (left / "half.bin").write_bytes(b"x" * 1000)
    finish(store, job())
    store.register("quickstart", [job().key])
    assert store.clean(keep={"quickstart"}) >= 1000
    assert not left.exists()
    assert store.find(job().key) is not None


def test_a_damaged_list_of_a_run_is_one_sentence(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.claim("tiles", "k1")
    (tmp_path / "runs" / "tiles.json").write_text('{"name": "til')
    for ask in (store.runs, lambda: store.claim("tiles", "k2")):
        with pytest.raises(ToolchainError, match=r"tiles\.json: damaged; delete it"):
            ask()


def test_the_disk_is_looked_at_while_what_filled_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    store = Store(tmp_path)

    def free(_: object) -> object:
        full = any(tmp_path.glob("work/*/half.bin"))
        return usage._replace(free=0 if full else 1 << 30)

    monkeypatch.setattr(shutil, "disk_usage", free)
    with pytest.raises(HostError, match="the disk is full"), store.begin(job()) as work:
        (work.out / "half.bin").write_bytes(b"x")
        raise RuntimeError("SafetensorError: no space left")


def test_clean_leaves_work_in_progress_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.begin(job()) as work:
        (work.out / "result.txt").write_text("x")
        store.clean(keep=())
        work.commit()
    assert store.find(job().key) is not None


def test_a_full_disk_is_told_as_such_whatever_the_library_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    store = Store(tmp_path)
    with pytest.raises(HostError, match="the disk is full"), store.begin(job()):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
        raise RuntimeError("PytorchStreamWriter failed writing file")
    assert store.find(job().key) is None


def test_operating_system_refusals_become_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="No space left on device"), host_faults(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x"))


def test_write_whole_replaces_and_leaves_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, b"1")
    write_whole(path, b"22")
    assert path.read_bytes() == b"22"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_is_hashed_by_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    first = hash_path(tmp_path / "a")
    (tmp_path / "a" / "y").write_text("1")
    assert hash_path(tmp_path / "a") != first


def test_an_onnx_file_is_hashed_with_the_files_its_weights_lie_in(tmp_path: Path) -> None:
    """A network trained anew, of which only the weights' file changed, was taken for the old one."""
    model = mobile()
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    before, graph = hash_path(tmp_path / "m.onnx"), (tmp_path / "m.onnx").read_bytes()
    weights = bytearray((tmp_path / "m.data").read_bytes())
    weights[5] ^= 1
    (tmp_path / "m.data").write_bytes(weights)
    assert (tmp_path / "m.onnx").read_bytes() == graph
    assert hash_path(tmp_path / "m.onnx") != before
    whole = mobile().SerializeToString()
    (tmp_path / "alone.onnx").write_bytes(whole)
    assert hash_path(tmp_path / "alone.onnx") == hashlib.sha256(whole).hexdigest()


def _write_alone(folder: Path, name: str, began: Event) -> None:
    with alone(folder):
        began.set()
        (folder / "log").open("a").write(f"{name} in\n")
        time.sleep(0.2)
        (folder / "log").open("a").write(f"{name} out\n")


def test_only_one_process_is_alone_with_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    began = context.Event()
    first = context.Process(target=_write_alone, args=(tmp_path, "first", began))
    first.start()
    assert began.wait(10)
    _write_alone(tmp_path, "second", began)
    first.join()
    assert (tmp_path / "log").read_text().split("\n")[:4] == [
        "first in",
        "first out",
        "second in",
        "second out",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
