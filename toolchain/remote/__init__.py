"""Benching on another machine: the runtime and the model go there over ssh, the record comes home.

driver.py is what runs there; ship.py sends it, listens, and says what is missing.
"""

from __future__ import annotations

from toolchain.remote.ship import Remote, bench_on

__all__ = ["Remote", "bench_on"]
