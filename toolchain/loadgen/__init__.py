"""MLPerf's own load generator over this toolchain's sessions (extra `loadgen`).

LoadGen sends the queries and judges the times; it knows nothing of models. settings.py says what is asked for,
samples.py keeps the inputs, system.py answers, summary.py and accuracy.py read what LoadGen wrote, run.py puts them
together. Rules: https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc
"""

from __future__ import annotations

from toolchain.loadgen.record import LoadgenRecord
from toolchain.loadgen.run import run_loadgen
from toolchain.loadgen.settings import Load

__all__ = ["Load", "LoadgenRecord", "run_loadgen"]
