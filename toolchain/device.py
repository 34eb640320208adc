"""torch's side of CPU and GPU: which device, which AMP type, how to wait for it, how it is called in a key.

With `toolchain/runtime/providers.py` the only place where the two differ.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch
from torch import dtype

from toolchain.errors import DeviceError

DeviceName = Literal["auto", "cpu", "cuda"]
AmpName = Literal["auto", "off", "bf16", "fp16"]
# oneDNN's AMX kernels let what lies in memory into bf16 gradients where sizes do not fill a tile: of 30 short trainings of a
# network of 16 channels 15 became nan, without AMX none (torch 2.15, Xeon; oneDNN's issue 5717). Read at its first kernel.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
_NO_MEMORY = ("can't allocate memory", "bad_alloc", "Failed to allocate memory")


@dataclass(frozen=True)
class Device:
    """A device that is really there. `threads` is torch's intra-op thread count on the CPU."""

    kind: Literal["cpu", "cuda"]
    name: str
    threads: int

    @property
    def torch(self) -> torch.device:
        """The torch device to move tensors to."""
        return torch.device(self.kind)

    @property
    def fingerprint(self) -> str:
        """What makes two devices give the same training result, for content addresses.

        Training on one host is bit-equal on a rerun, but differs between thread counts and ISAs.
        """
        if self.kind == "cuda":
            return f"cuda:{self.name}"
        return f"cpu:{torch.backends.cpu.get_cpu_capability()}:threads={self.threads}"

    def amp_type(self, wanted: AmpName) -> dtype | None:
        """The autocast type for `wanted`, or None for full precision.

        "auto" is bf16 on GPUs that have it, else fp16; on CPUs it is off, because without AVX-512 BF16
        bf16 is slower there than float32.
        """
        if wanted == "off" or (wanted == "auto" and self.kind == "cpu"):
            return None
        if wanted == "fp16":
            if self.kind == "cpu":
                raise DeviceError("amp 'fp16' needs a GPU: take 'bf16' or 'off' on the CPU")
            return torch.float16
        if wanted == "bf16" or self.kind == "cpu":
            return torch.bfloat16
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16  # noqa: TID251

    def synchronize(self) -> None:
        """Wait until everything queued on the device is done."""
        if self.kind == "cuda":
            torch.cuda.synchronize()  # noqa: TID251


def select(wanted: DeviceName = "auto", threads: int | None = None) -> Device:
    """Return the device asked for, and set torch's thread count.

    Raises DeviceError when "cuda" is asked for and not usable; "auto" takes a GPU where there is one.
    """
    available = torch.cuda.is_available()  # noqa: TID251
    if wanted == "cuda" and not available:
        raise DeviceError(
            "device 'cuda' was asked for, but torch finds no usable GPU: "
            "run 'toolchain doctor', or take --device cpu"
        )
    count = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(count)
    if available and wanted != "cpu":
        return Device("cuda", torch.cuda.get_device_name(), count)  # noqa: TID251
    return Device("cpu", "cpu", count)


def memory_ran_out(error: BaseException) -> bool:
    """Whether an error, or what it came from, says that there was no memory left; on the CPU torch and ONNX Runtime have
    no type of their own for that."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, MemoryError | torch.OutOfMemoryError) or any(
            w in str(found) for w in _NO_MEMORY
        ):
            return True
        found = found.__cause__
    return False
