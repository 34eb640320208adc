"""Opening a bundle: it is verified, and the session that proved it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toolchain.runtime.bundle import Bundle
from toolchain.runtime.session import Session


@dataclass(frozen=True)
class Opened:
    """A verified bundle. proof: the session that answered its golden pictures, on the CPU with one thread."""

    bundle: Bundle
    proof: Session

    def session(self, provider: str, threads: int) -> Session:
        """The proof where it is what was asked for, else another session. Raises what Bundle.session raises."""
        if (provider, threads) == (self.proof.provider, self.proof.threads):
            return self.proof
        return self.bundle.session(provider, threads)


def opened(path: Path) -> Opened:
    """Load and verify what lies at `path`. Raises what Bundle.load and Bundle.verify raise."""
    bundle = Bundle.load(path.resolve())  # resolved, so that a link that is turned later changes nothing
    return Opened(bundle, bundle.prove()[1])
