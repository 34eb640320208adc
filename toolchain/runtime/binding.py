"""One feed bound to a device: how a GPU is timed, with copies in and out or without them.

ONNX Runtime's IO binding: https://onnxruntime.ai/docs/api/python/api_summary.html#iobinding
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray


class Binding:
    """Inputs that lie on the device, outputs that are left there; made by `Session.bind`.

    `call` answers once and returns when the answer is complete: `run_with_iobinding` ends with the stream's
    synchronisation, and outputs are synchronised once more, which costs nothing then. With `copies`, every call
    first copies the feed from (pageable) host memory into the bound inputs, and the outputs back at its end.
    """

    def __init__(
        self, session: Any, feed: Mapping[str, NDArray[Any]], device: tuple[str, int], *, copies: bool
    ) -> None:
        name, number = device
        self._session = session
        self._binding = session.io_binding()
        self._feed = [
            (_allocated(array, device), np.ascontiguousarray(array), given) for given, array in feed.items()
        ]
        for value, array, given in self._feed:
            value.update_inplace(array)
            self._binding.bind_ortvalue_input(given, value)
        for output in session.get_outputs():
            self._binding.bind_output(output.name, name, number)
        self.call = self._with_copies if copies else self._without_copies

    def outputs(self) -> list[NDArray[Any]]:
        """The outputs of the last call, in host memory."""
        found: list[NDArray[Any]] = self._binding.copy_outputs_to_cpu()
        return found

    def _with_copies(self) -> object:
        for value, array, _ in self._feed:
            value.update_inplace(array)
        self._session.run_with_iobinding(self._binding)
        return self.outputs()

    def _without_copies(self) -> object:
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return None


def _allocated(array: NDArray[Any], device: tuple[str, int]) -> Any:
    """Memory of the device's own for an input; on the CPU a plain `ortvalue_from_numpy` would share the array's."""
    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, *device)
