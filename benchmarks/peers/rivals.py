"""Who is compared, with which settings, and where each setting is documented."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from toolchain.runtime import host


@dataclass(frozen=True)
class Setting:
    """One way to use a rival. `documented`: where its makers describe it; `what`: what it is, in words.

    foreign: the file runs in another runtime than ONNX Runtime (OpenVINO's), and is a reference only. found: which layers
    it names is in no documentation of theirs; it was found here. isa: the processors that it is meant for (host.isa()), or
    all.
    """

    name: str
    what: str
    documented: str
    foreign: bool = False
    found: bool = False
    isa: str = ""

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

    def only(self, settings: Collection[str]) -> Rival:
        """The rival with no other settings than these."""
        return replace(self, settings=tuple(each for each in self.settings if each.name in settings))


AVX2 = "x86-avx2"
ORT_PAGE = "onnxruntime docs, Quantize ONNX models"
OLIVE_PAGE = "Olive docs, ONNX quantization"
NNCF_PAGE = "NNCF docs, Post-training quantization"
INC_PAGE = "Intel Neural Compressor 2.6 docs"
MODELOPT_PAGE = "ModelOpt docs, ONNX quantization (Linux)"
OPTIMUM_PAGE = "Optimum docs, ONNX Runtime, Quantization"
OPENVINO_PAGE = "OpenVINO docs, Model optimization"

RIVALS = (
    Rival("onnxruntime", "onnxruntime", "onnxruntime_driver.py", (
        Setting("static", "quantize_static, defaults", f"{ORT_PAGE}: Static quantization"),
        Setting("static-u8s8", "pre-processed, u8s8, per channel",
                f"{ORT_PAGE}: Pre-processing; Data type selection; When to use reduce-range and per-channel"),
        Setting("static-u8s8-entropy", "the same, entropy calibration", f"{ORT_PAGE}: Static quantization"),
        Setting("static-reduced", "u8s8, per channel, reduce_range",
                f"{ORT_PAGE}: When to use reduce-range and per-channel quantization", isa=AVX2),
        Setting("static-u8u8", "pre-processed, u8u8, per channel", f"{ORT_PAGE}: Data type selection", isa=AVX2),
        Setting("dynamic", "quantize_dynamic, defaults", f"{ORT_PAGE}: Dynamic quantization"),
        Setting("dynamic-u8", "quantize_dynamic, u8 weights, per channel", f"{ORT_PAGE}: Data type selection"),
    )),
    Rival("onnxruntime, nodes_to_exclude", "onnxruntime", "onnxruntime_exclude_driver.py", (
        Setting("first-float", "u8s8 per channel, first convolution in float",
                f"{ORT_PAGE}: nodes_to_exclude, Debugging", found=True),
        Setting("first-two-float", "u8s8 per channel, first two convolutions in float",
                f"{ORT_PAGE}: nodes_to_exclude, Debugging", found=True),
        Setting("first-float-reduced", "the first convolution in float, reduce_range",
                f"{ORT_PAGE}: nodes_to_exclude, reduce-range", found=True, isa=AVX2),
        Setting("first-two-float-reduced", "the first two convolutions in float, reduce_range",
                f"{ORT_PAGE}: nodes_to_exclude, reduce-range", found=True, isa=AVX2),
    )),
    Rival("Olive", "olive", "olive_driver.py", (
        Setting("static", "OnnxStaticQuantization, defaults", OLIVE_PAGE),
        Setting("static-u8s8", "OnnxQuantizationPreprocess; u8s8, per channel", f"{OLIVE_PAGE}; pass options"),
        Setting("static-u8s8-operators", "the same, QOperator format", f"{OLIVE_PAGE}; pass options"),
        Setting("static-reduced", "the same, QOperator format, reduce_range", f"{OLIVE_PAGE}; pass options", isa=AVX2),
        Setting("dynamic", "OnnxDynamicQuantization, defaults", OLIVE_PAGE),
    )),
    Rival("NNCF", "nncf", "nncf_driver.py", (
        Setting("defaults", "nncf.quantize on ONNX, defaults", NNCF_PAGE),
        Setting("mixed", "preset MIXED", f"{NNCF_PAGE}: preset"),
        Setting("accurate", "preset MIXED, fast_bias_correction=False", f"{NNCF_PAGE}: fast_bias_correction"),
    )),
    Rival("Neural Compressor 2.6", "inc", "inc_driver.py", (
        Setting("defaults", "quantization.fit, defaults", f"{INC_PAGE}: Quantization, get started"),
        Setting("all-pictures", "calibration_sampling_size: all pictures", f"{INC_PAGE}: PostTrainingQuantConfig"),
        Setting("first-float", "the same, first_conv_or_matmul_quantization: False", f"{INC_PAGE}: Quantization, recipes"),
        Setting("tuned", "accuracy-aware tuning against agreement with fp32", f"{INC_PAGE}: Tuning strategies"),
        Setting("tuned-int8", "the same, quant_level 1", f"{INC_PAGE}: Tuning strategies, quant_level"),
    )),
    Rival("optimum-onnx", "optimum", "optimum_driver.py", (
        Setting("dynamic", "avx512_vnni, dynamic: what its command line does", f"{OPTIMUM_PAGE}: CLI"),
        Setting("static", "avx512_vnni, static (per channel), MinMax", f"{OPTIMUM_PAGE}: Static quantization example"),
        Setting("static-percentile", "the same, 99.999th percentile", f"{OPTIMUM_PAGE}: AutoCalibrationConfig.percentiles"),
        Setting("static-avx2", "avx2, static, MinMax", f"{OPTIMUM_PAGE}: AutoQuantizationConfig.avx2", isa=AVX2),
        Setting("static-avx2-reduced", "avx2, static, reduce_range=True", f"{OPTIMUM_PAGE}: AutoQuantizationConfig.avx2",
                isa=AVX2),
    )),
    Rival("ModelOpt", "modelopt", "modelopt_driver.py", (
        Setting("defaults", "modelopt.onnx.quantization.quantize int8, defaults", MODELOPT_PAGE),
        Setting("max-fp32", "max calibration, the rest in fp32 instead of fp16",
                f"{MODELOPT_PAGE}: calibration_method, high_precision_dtype"),
    )),
    Rival("OpenVINO", "openvino", "openvino_driver.py", (
        Setting("float", "OpenVINO runtime, float file (its default precision)", OPENVINO_PAGE, foreign=True),
        Setting("nncf", "OpenVINO runtime, nncf.quantize, defaults", f"{OPENVINO_PAGE}: Basic quantization", foreign=True),
        Setting("nncf-mixed", "OpenVINO runtime, preset MIXED, CPU, fast_bias_correction=False",
                f"{OPENVINO_PAGE}: Basic quantization, tuning options", foreign=True),
    )),
)  # fmt: skip

_STATIC: Mapping[str, Collection[str]] = {
    "onnxruntime": ("static-u8s8", "static-u8s8-entropy", "static-reduced", "static-u8u8"),
    "Olive": ("static-u8s8", "static-u8s8-operators", "static-reduced"),
    "Neural Compressor 2.6": ("defaults", "all-pictures", "first-float", "tuned", "tuned-int8"),
    "optimum-onnx": ("static", "static-percentile", "static-avx2", "static-avx2-reduced"),
}
# Cases on which not every setting is run, but those that came near with the first seed: on blood cells within a point of
# fp32 and at most 5 % slower than the fastest such file; on magnetic tile less than 10 points lost (others: 30 to 78).
# That was with VNNI; without, the same and what they have in its place for such processors.
SOME: Mapping[str, Mapping[str, Collection[str]]] = {
    "blood_cells_seeds": {
        **_STATIC, "onnxruntime, nodes_to_exclude": (
            "first-float", "first-two-float", "first-float-reduced", "first-two-float-reduced",
        ),
    },
    "blood_cells_small_seeds": {
        **_STATIC, "onnxruntime, nodes_to_exclude": ("first-float", "first-float-reduced"), "NNCF": ("defaults", "mixed"),
    },
    "magnetic_tile_seeds": {
        "NNCF": ("accurate",), "Neural Compressor 2.6": ("tuned",), "OpenVINO": ("float", "nncf-mixed"),
    },
}  # fmt: skip


def rivals(part: str, isa: str | None = None) -> tuple[Rival, ...]:
    """Those that are run on a case or a part of it, with the settings that are; isa: of the processor, else this one's."""
    here = isa or host.isa()
    meant = [
        rival.only([one.name for one in rival.settings if one.isa in ("", here)]) for rival in RIVALS
    ]  # fmt: skip
    for case, kept in SOME.items():
        if part.startswith(case):
            return tuple(rival.only(kept[rival.name]) for rival in meant if rival.name in kept)
    return tuple(meant)
