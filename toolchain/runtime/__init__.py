"""What goes onto the device, and what measures: numpy, pillow and onnxruntime, and nothing else of toolchain.

`python -m toolchain.runtime verify|predict|bench` works with this folder and those three libraries alone;
`serve` needs uvicorn, httptools and uvloop as well (toolchain/runtime/server/).
"""

from __future__ import annotations

import os

# ONNX Runtime's wheels write a device id and a database under the home folder unless this is set before
# their first import. Whoever wants telemetry can set it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
