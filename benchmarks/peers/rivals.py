"""Who is compared, with which settings, and where each setting is documented."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """One way to use a rival. `documented`: where its makers describe it; `what`: what it is, in words.

    foreign: the file runs in another runtime than ONNX Runtime (OpenVINO's), and is a reference only.
    """

    name: str
    what: str
    documented: str
    foreign: bool = False

    @property
    def file(self) -> str:
        """The name of the file that the driver writes."""
        return "out.xml" if self.foreign else "out.onnx"


@dataclass(frozen=True)
class Rival:
    """A tool: `environment` is a file of requirements/ and a folder of build/peers/envs, `driver` a file of drivers/."""

    name: str
    environment: str
    driver: str
    settings: tuple[Setting, ...]

    def cell(self, setting: Setting) -> str:
        """The name of a setting's folder."""
        return f"{self.name}.{setting.name}"


ORT_PAGE = "onnxruntime docs, Quantize ONNX models"

RIVALS = (
    Rival("onnxruntime", "onnxruntime", "onnxruntime_driver.py", (
        Setting("static", "quantize_static, defaults", f"{ORT_PAGE}, Static quantization"),
        Setting("static-u8s8", "pre-processed, u8s8, per channel",
                f"{ORT_PAGE}, Pre-processing; Method selection (U8S8 on x86-64); Reduce-range and per-channel"),
        Setting("static-u8s8-entropy", "the same, entropy calibration", f"{ORT_PAGE}, Static quantization (Entropy)"),
        Setting("dynamic", "quantize_dynamic, defaults", f"{ORT_PAGE}, Dynamic quantization"),
        Setting("dynamic-u8", "quantize_dynamic, u8 weights, per channel", f"{ORT_PAGE}, FAQ on ConvInteger"),
    )),
)  # fmt: skip
