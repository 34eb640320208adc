"""Opening a bundle: it is verified, and the session that proved it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toolchain.runtime.bundle import Bundle
from toolchain.runtime.session import Session


@dataclass
class Opened:
    """A verified bundle. proof: the session that answered its golden pictures, on the CPU with one thread."""

    bundle: Bundle
    proof: Session | None

    def session(self, provider: str, threads: int) -> Session:
        """The proof, given away once, where it is what was asked for, else a new one. Raises what Bundle.session raises."""
        proof, self.proof = self.proof, None
        if proof is not None and (provider, threads) == (proof.provider, proof.threads):
            return proof
        proof = None  # its memory is free before another takes some
        return self.bundle.session(provider, threads)


def opened(path: Path, at_once: int = 1) -> Opened:
    """Load and verify what lies at `path`, golden calls `at_once`. Raises what Bundle.load and Bundle.verify raise."""
    bundle = Bundle.load(path.resolve())  # resolved, so that a link that is turned later changes nothing
    return Opened(bundle, bundle.prove(at_once=at_once)[1])
