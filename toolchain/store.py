"""The store: finished work by content address. A record exists if and only if the work finished.

Layout below the root:
    objects/KEY/      a finished job: its files and `record.json`; never edited
    scratch/KEY/      what an unfinished job keeps across a kill (training checkpoints)
    work/KEY.XXXX/    a job being done; without meaning once its process is gone
    locks/KEY.lock    held (flock) while a job is done, so that two runs never do it twice
    runs/NAME.json    which keys a named run needs; `clean` keeps those
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

from pydantic import ValidationError

from toolchain.errors import HostError, ToolchainError
from toolchain.record import JSON, Measurement, Record
from toolchain.runtime import external
from toolchain.runtime.whole import sync_folder, write_whole

_KEY = re.compile(r"[0-9a-f]{64}")
_HOST_FAULTS = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE,
    errno.ENOTDIR, errno.ENAMETOOLONG,
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """Everything that decides a result; its hash is the key.

    settings: plain values, with file paths already replaced by content hashes.
    parents: keys of the inputs by role. given: the rest (data fingerprint, seed, device, host).
    libraries: distributions whose versions count.
    """

    name: str
    version: int
    settings: Mapping[str, JSON]
    parents: Mapping[str, str]
    given: Mapping[str, JSON]
    libraries: tuple[str, ...] = ()

    @property
    def versions(self) -> dict[str, str]:
        """The installed version of each library named."""
        return {name: version(name) for name in self.libraries}

    @property
    def key(self) -> str:
        """sha256 (hex) of the canonical JSON of all fields."""
        fields = [self.name, self.version, self.settings, self.parents, self.given, self.versions]
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), default=dict)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A finished job: its folder and record."""

    folder: Path
    record: Record


class Store:
    """Finished jobs below `root`; safe for several processes of one host."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._whole: set[str] = set()

    def find(self, key: str) -> Entry | None:
        """Return the finished job of this key, or None. A damaged one counts as absent.

        Its files are held against the hashes in its record, once in this store's life.
        """
        entry = self._listed(key)
        if entry is None or key in self._whole:
            return entry
        try:
            if any(_content(entry.folder / name) != digest for name, digest in entry.record.files.items()):
                return None
        except FileNotFoundError:  # another process cleans
            return None
        self._whole.add(key)
        return entry

    def _listed(self, key: str) -> Entry | None:
        """As find, without reading the files."""
        folder = self.root / "objects" / key
        try:
            record = Record.model_validate_json((folder / "record.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        if record.key != key or not all((folder / name).is_file() for name in record.files):
            return None
        return Entry(folder, record)

    def begin(self, job: Job, *, fresh: bool = False) -> Work:
        """Lock the job's key and lend folders for it; see Work. `fresh` forgets an earlier result."""
        return Work(self, job, fresh)

    def register(self, name: str, keys: Collection[str]) -> None:
        """Remember that the run `name` needs these keys."""
        text = json.dumps({"name": name, "keys": sorted(keys)})
        with host_faults(self.root):
            write_whole(self.root / "runs" / f"{name}.json", text.encode())

    def claim(self, name: str, key: str) -> None:
        """Remember, before the work is begun, that the run `name` will need its result."""
        with host_faults(self.root), self._lock(f"run-{name}", wait=True):
            path = self.root / "runs" / f"{name}.json"
            keys = _named(path)[1] if path.exists() else []
            if key not in keys:
                write_whole(path, json.dumps({"name": name, "keys": [*keys, key]}).encode())

    def runs(self) -> dict[str, list[str]]:
        """The keys each named run needs."""
        found = {}
        for path in sorted((self.root / "runs").glob("*.json")):
            name, keys = _named(path)
            found[name] = keys
        return found

    def entries(self) -> list[Entry]:
        """Every finished job whose files are there."""
        keys = sorted(path.name for path in (self.root / "objects").glob("*"))
        return [entry for entry in map(self._listed, keys) if entry is not None]

    def clean(self, keep: Collection[str]) -> int:
        """Delete what no run in `keep` (names) needs, and the rests of killed work; return bytes freed.

        Work that another process is doing right now is left alone, and so is what a run needs that began meanwhile.
        """
        known = set(self.runs())

        def needed() -> set[str]:
            return {
                key for name, keys in self.runs().items() if name in keep or name not in known for key in keys
            }

        before = size_of(self.root)
        for folder in ("objects", "scratch", "work"):
            for path in sorted((self.root / folder).glob("*")):
                key = path.name.partition(".")[0]
                if not _KEY.fullmatch(key):
                    continue  # not ours
                with self._lock(key, wait=False) as held:
                    kept = folder == "scratch" or (folder == "objects" and self._listed(key))
                    if held and not (kept and key in needed()):
                        shutil.rmtree(path, ignore_errors=True)
        for path in sorted((self.root / "runs").glob("*.json")):
            if path.stem in known - set(keep):
                path.unlink()
        return before - size_of(self.root)

    @contextmanager
    def _lock(self, key: str, *, wait: bool) -> Iterator[bool]:
        path = self.root / "locks" / f"{key}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True


class Work:
    """A job while it is done: `with store.begin(job) as work: ...; entry = work.commit(...)`.

    entry: the result, when another process (or an earlier run) has already finished it.
    out: an empty folder for the result. scratch: a folder that survives a kill.
    Leaving without `commit` throws `out` away. A full disk, whatever error it surfaced as, becomes HostError.
    """

    def __init__(self, store: Store, job: Job, fresh: bool) -> None:
        self.store, self.job, self.fresh = store, job, fresh
        self.key = job.key
        self.entry: Entry | None = None
        self.scratch = store.root / "scratch" / self.key
        self.out = store.root / "work" / self.key

    def __enter__(self) -> Work:
        with host_faults(self.store.root):
            self._held = self.store._lock(self.key, wait=True)
            self._held.__enter__()
            if self.fresh:  # an older result stays until the new one takes its place
                shutil.rmtree(self.scratch, ignore_errors=True)
            self.entry = None if self.fresh else self.store.find(self.key)
            if self.entry is None:
                self.scratch.mkdir(parents=True, exist_ok=True)
                (self.store.root / "work").mkdir(exist_ok=True)
                self.out = Path(tempfile.mkdtemp(prefix=f"{self.key}.", dir=self.store.root / "work"))
        self.started = time.monotonic()
        return self

    def commit(self, measurements: tuple[Measurement, ...] = (), device: str | None = None) -> Entry:
        """Make the result final: hash and fsync every file, write the record last, rename into place."""
        job, out = self.job, self.out
        with host_faults(self.store.root):
            files = {str(p.relative_to(out)): sync_and_hash(p) for p in sorted(out.rglob("*")) if p.is_file()}
            record = Record(
                key=self.key, step=job.name, version=job.version, settings=job.settings, parents=job.parents,
                libraries=job.versions, device=device, seconds=round(time.monotonic() - self.started, 3),
                measurements=measurements, files=files,
            )  # fmt: skip
            write_whole(out / "record.json", record.model_dump_json(indent=1).encode())
            final = self.store.root / "objects" / self.key
            final.parent.mkdir(exist_ok=True)
            self._forget_object(final)
            out.chmod(0o755)
            out.rename(final)
            sync_folder(final.parent)
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.entry = Entry(final, record)
        return self.entry

    @staticmethod
    def _forget_object(folder: Path) -> None:
        """Remove a result (an outdated or damaged one) so that it is never half there: record first."""
        (folder / "record.json").unlink(missing_ok=True)
        if folder.exists():
            shutil.rmtree(folder)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        free = shutil.disk_usage(self.store.root).free if self.store.root.exists() else 0
        # Only then: what was half written may be what filled the disk.
        shutil.rmtree(self.out, ignore_errors=True)
        self._held.__exit__(None, None, None)
        if isinstance(error, Exception) and not isinstance(error, ToolchainError) and free < 1 << 20:
            raise HostError(
                f"{self.store.root}: the disk is full; free some space and start again, finished work is kept"
            ) from error
        if isinstance(error, OSError) and error.errno in _HOST_FAULTS:
            raise _told(error, self.store.root) from error


@contextmanager
def host_faults(where: Path) -> Iterator[None]:
    """Turn the operating system's refusals (full disk, no permission) into HostError naming `where`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _HOST_FAULTS:
            raise
        raise _told(error, where) from error


def _told(error: OSError, where: Path) -> HostError:
    reason = os.strerror(error.errno or 0)
    return HostError(f"{error.filename or where}: {reason}; mend that and start again")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only process in here for this folder (flock on the folder itself); others wait."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def sync_and_hash(path: Path) -> str:
    """fsync a file and return the sha256 of its content."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest


def _named(path: Path) -> tuple[str, list[str]]:
    """A run's name and the keys that it needs."""
    try:
        content = json.loads(path.read_text())
        return str(content["name"]), [str(key) for key in content["keys"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ToolchainError(f"{path}: damaged; delete it, and start that run again") from error


def hash_path(path: Path) -> str:
    """sha256 of a file's content, or of the names and contents of all files in a folder, or of an ONNX file and those that
    its weights lie in. Raises ModelError for an ONNX file that names others which it must not."""
    if path.is_file():
        if path.suffix == ".onnx":
            external.check(path)
            if places := sorted(set(external.locations(path))):
                return _hash_all(path.parent, [path, *(path.parent / place for place in places)])
        return _content(path)
    return _hash_all(path, sorted(p for p in path.rglob("*") if p.is_file()))


def _hash_all(root: Path, files: Iterable[Path]) -> str:
    lines = (f"{path.relative_to(root)}\0{_content(path)}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; files that vanish meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def store_table(root: Path) -> str:
    """What a store holds, in lines: finished work by step, and the named runs."""
    store = Store(root)
    entries = store.entries()
    lines = [f"{root}: {size_of(root) / 1e6:.1f} MB, {len(entries)} finished jobs"]
    for step in sorted({entry.record.step for entry in entries}):
        some = [entry for entry in entries if entry.record.step == step]
        megabytes = sum(size_of(entry.folder) for entry in some) / 1e6
        lines.append(f"  {step:12} {len(some):4} jobs {megabytes:10.1f} MB")
    lines += [f"  run {name}: needs {len(keys)} jobs" for name, keys in store.runs().items()]
    return "\n".join(lines)


def clean_store(root: Path, keep: Collection[str] = ()) -> int:
    """Delete what no run in `keep` (all named runs when empty) needs; returns bytes freed.

    Raises HostError when the store cannot be written, ToolchainError for a run the store does not know.
    """
    store = Store(root)
    if root.is_dir() and any(root.iterdir()) and not (root / "locks").is_dir():
        raise ToolchainError(f"{root}: is no store of finished steps; name one with --store")
    unknown = sorted(set(keep) - set(store.runs()))
    if unknown:
        known = ", ".join(store.runs()) or "none"
        raise ToolchainError(f"{root}: there is no run named {', '.join(unknown)}; known: {known}")
    with host_faults(root):
        return store.clean(set(keep) or set(store.runs()))
