"""Why a model is as slow as it is: the graph that ONNX Runtime runs and its profile, read for known pitfalls.

view.py lays the profile's times onto the graph; islands.py finds float nodes between int8 ones; rules.py judges;
file.py traces a file on this machine. All but file.py are pure.
"""

from __future__ import annotations

from toolchain.explain.findings import Explanation, Finding, Machine
from toolchain.explain.rules import explain

__all__ = ["Explanation", "Finding", "Machine", "explain"]
