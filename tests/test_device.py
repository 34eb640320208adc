"""torch's device: what is set before its first kernel."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CAP = "ONEDNN_MAX_CPU_ISA"


@pytest.mark.parametrize(("given", "expected"), [({}, "AVX512_CORE_BF16"), ({CAP: "AVX2"}, "AVX2")])
def test_torch_keeps_off_amx_unless_the_user_says_otherwise(given: dict[str, str], expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != CAP} | given
    code = f"import os, toolchain.learn.loop; print(os.environ[{CAP!r}])"
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == [expected]
