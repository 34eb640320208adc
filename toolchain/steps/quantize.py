"""Quantize: an ONNX network with 8-bit integers where they pay, through onnxruntime's and optimum's quantizers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData, save_tensors_data
from pydantic import Field, model_validator

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.calibration import (
    chains,
    dynamic,
    padding,
    pictures,
    products,
    ranges,
    refit,
    rounding,
    selection,
    sensitivity,
    streams,
    weights,
)
from toolchain.calibration.price import latency_ratio
from toolchain.errors import DataError, ModelError
from toolchain.lineage import hand_on
from toolchain.progress import Progress
from toolchain.record import JSON, Measurement
from toolchain.runtime import host
from toolchain.step import Context, Step
from toolchain.steps.simplify import require_folded

Bits = Literal["auto", 8, 7, "pairwise"]
Target = Literal["x86-vnni", "x86-avx2", "arm64"]
_SATURATES = frozenset({"x86-avx2", "x86-other"})
_FEW = 8  # pictures that calibrate files which are only timed: latency doesn't depend on ranges
_COMPARED = 512  # training pictures on which the cost of targets is measured
_TYPES = {"u8": QuantType.QUInt8, "s8": QuantType.QInt8}
PERCENTILE = 99.99
_TRANSFORMER_OPERATORS = ("Conv", "Gemm", "MatMul")
# What only static quantization reads.
_STATIC = (
    "calibration", "percentile", "pictures", "rounding", "correct_bias", "float_stem", "float_sums", "float_products",
)  # fmt: skip


class Quantize(Step):
    """Post-training quantization to 8 bits.

    scheme: "static" with ranges from calibration pictures, "dynamic" with ranges found while running; "auto" is
    dynamic for networks with attention, else static.
    activation, weight: u8 and s8 suit x86, s8 and s8 Arm. per_channel: of weights.
    weight_bits: how signed weights keep clear of the 16-bit saturation of x86 processors without VNNI (see
    calibration/weights.py): 8 ignores it, "pairwise" and 7 cannot saturate. "auto" is 8 where this host has
    VNNI or is no x86, else "pairwise" (7 with "dynamic").
    targets: the processors that the file must be right on; "auto" then looks at these and at this host. What that
    costs where 8 bits would do is measured against them: `agreement` with float and `sqnr` of both forms on training
    pictures (no label is looked at), and `price`, how many times the latency of the unrestricted file.
    calibration, percentile: how ranges are cut, see calibration/ranges.py. pictures: of the training split.
    float_stem: leave the first, shallow convolutions in float. exclude: patterns of further node names.
    operators: the operators to quantize; None is all that onnxruntime can, for attention only convolutions and
    products with weights. correct_bias: move biases by the mean error of rounded weights.
    rounding: "nearest", or "adaptive" (calibration/rounding.py): for signed weights with few bits or a step a tensor.
    float_sums: additions, and pooling whose result is not rounded, read sums unrounded; layers go on reading 8 bits
    (calibration/streams.py). float_products: what these read of pointwise convolutions is the integer sum in float as
    well (calibration/products.py): true, of all, or patterns of names: on large tensors that costs time, on small none.
    refit_head: fit the last layer, which `exclude` must leave in float, to the float network's logits
    (calibration/refit.py).
    """

    step: Literal["quantize"] = "quantize"
    version: ClassVar[int] = 2
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.ONNX}
    gives: ClassVar[Form] = Form.ONNX
    uses: ClassVar[frozenset[str]] = frozenset({"train"})
    libraries: ClassVar[tuple[str, ...]] = (
        "onnx", "optimum", "optimum-onnx",
        *host.onnxruntimes(),
    )  # fmt: skip
    scheme: Literal["auto", "static", "dynamic"] = "auto"
    activation: Literal["u8", "s8"] = "u8"
    weight: Literal["s8", "u8"] = "s8"
    per_channel: bool = True
    weight_bits: Bits = "auto"
    targets: tuple[Target, ...] = ()
    calibration: ranges.Method = "minmax"
    percentile: Annotated[float, Field(gt=50, le=100)] = PERCENTILE
    pictures: Annotated[int, Field(ge=1)] = 256
    float_stem: bool = True
    exclude: tuple[str, ...] = ()
    operators: tuple[str, ...] | None = None
    correct_bias: bool = True
    rounding: Literal["nearest", "adaptive"] = "nearest"
    float_sums: bool = False
    float_products: bool | Annotated[tuple[str, ...], Field(min_length=1)] = False
    refit_head: bool = False

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.activation == "s8" and self.weight == "u8":
            raise ValueError("activation s8 needs weight s8: onnxruntime has no kernel for s8 times u8")
        if self.scheme == "dynamic" and self.activation == "s8":
            raise ValueError("scheme 'dynamic' needs activation u8")
        if self.scheme == "dynamic" and self.refit_head:
            raise ValueError("refit_head needs scheme 'static' or 'auto'")
        if self.scheme == "dynamic" and (unread := self._unread):
            raise ValueError(f"scheme 'dynamic' knows no {', '.join(unread)}: take it out")
        if self.percentile != PERCENTILE and self.calibration != "percentile":
            raise ValueError("percentile counts with calibration 'percentile' only")
        if self.weight == "u8" and (self.rounding == "adaptive" or self.weight_bits in (7, "pairwise")):
            raise ValueError("rounding 'adaptive' and weight_bits 7 or 'pairwise' need weight s8")
        if "x86-avx2" in self.targets and self.weight == "s8" and self.weight_bits == 8:
            raise ValueError("weight_bits 8 saturates on target x86-avx2: use 'auto', 'pairwise' or 7")
        return self

    def resolved(self) -> Self:
        """Fix weight_bits "auto" for the targets and for this host's processor, on which accuracy is measured."""
        if self.weight_bits != "auto":
            return self
        if self.weight == "u8":
            return self.model_copy(update={"weight_bits": 8})
        saturates = not _SATURATES.isdisjoint((*self.targets, host.isa()))
        return self.model_copy(update={"weight_bits": "pairwise" if saturates else 8})

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Quantize inputs["model"]'s plain network; the preprocessing stays in float.

        Raises DataError without calibration pictures, ModelError when the network cannot be quantized.
        """
        source = inputs["model"].folder
        model = graph.read(source / graph.PLAIN)
        settings = self.resolved()._told(model, context)
        layers = len(list(weights.layers(model)))
        original = ModelProto()
        original.CopyFrom(model)
        quantized = settings.integers(model, source / graph.PREPROCESS, context)
        products.lower(quantized)
        if not integer_weights(quantized):
            raise ModelError(
                "quantize: nothing was quantized: exclude or operators leave every layer in float"
            )
        hand_on(settings, source, quantized, context.out)
        return (
            Measurement(name="layers", value=layers),
            Measurement(name="layers_int8", value=integer_weights(quantized)),
            *graph.sizes(context.out),
            *settings._cost_of_targets(original, quantized, source / graph.PREPROCESS, context),
        )

    @classmethod
    def _static_defaults(cls) -> dict[str, JSON]:
        return {name: cls.model_fields[name].default for name in _STATIC}

    @property
    def _unread(self) -> list[str]:
        """What was set to something else than its default and dynamic int8 does not read."""
        return [name for name, usual in self._static_defaults().items() if getattr(self, name) != usual]

    def _told(self, model: ModelProto, context: Context) -> Self:
        """The settings that count for this network; says which do not."""
        if self.scheme != "auto" or not selection.attention(model):
            return self
        if unread := self._unread:
            context.progress.say(
                f"quantize: the network has attention and becomes dynamic int8, which knows no {', '.join(unread)}"
            )
        return self.model_copy(update=self._static_defaults())

    def _cost_of_targets(
        self, original: ModelProto, restricted: ModelProto, preprocess: Path, context: Context
    ) -> Iterator[Measurement]:  # fmt: skip
        """The file against the one with 8 bits in full, where this host is a target that could have had it."""
        if self._bits == 8 or host.isa() not in self.targets or host.isa() in _SATURATES:
            if self._bits != 8 and self.targets and not _SATURATES.issuperset(self.targets):
                context.progress.say(
                    "quantize: what targets cost where 8 bits would do is not measured on this host"
                )
            return
        copied = ModelProto()
        copied.CopyFrom(original)
        free = self.model_copy(update={"weight_bits": 8, "targets": ()})
        files = {"portable": restricted, "8 bits": free.integers(copied, preprocess, context)}
        products.lower(files["8 bits"])
        inputs = pictures.some(preprocess, context.data.train, _COMPARED)
        reference = sensitivity.answers(original, inputs)
        for name, file in files.items():
            found = sensitivity.fidelity(reference, sensitivity.answers(file, inputs))
            where = {"weights": name}
            yield Measurement(name="agreement", value=found.agreement, where=where)
            yield Measurement(name="sqnr", value=round(found.sqnr, 2), unit="dB", where=where)
        price = latency_ratio(files["8 bits"], files["portable"], inputs[0])
        yield Measurement(name="price", value=round(price, 3), where={"weights": "portable"})

    def integers(self, model: ModelProto, preprocess: Path, context: Context) -> ModelProto:
        """The plain float network with integers; `model` itself may be changed on the way. `products.lower` is still to do.

        Raises DataError without calibration pictures, ModelError when the network cannot be quantized.
        """
        graph.require_float(model)
        require_folded(model)
        kept = selection.matching(model, self.exclude)
        selection.require_operators(model, self.operators or ())
        if self.scheme == "dynamic" or (self.scheme == "auto" and selection.attention(model)):
            if self.activation == "s8" or self.refit_head:  # with "dynamic" told when the recipe is read
                raise ModelError(
                    "quantize: this network has attention, for which scheme 'auto' is 'dynamic', which knows no "
                    "activation s8 and no refit_head: leave them out, or ask for scheme 'static'"
                )
            return dynamic.integers(
                model, kept, self.operators, weights=_TYPES[self.weight], per_channel=self.per_channel,
                reduce_range=self.weight == "s8" and self._bits != 8,
            )  # fmt: skip
        reference = ModelProto()
        reference.CopyFrom(model)
        quantized = self._static(model, kept, preprocess, context)
        if self.refit_head:
            train = context.data.train
            chosen = pictures.choose(train, self.pictures)
            with context.progress.task("refit", len(chosen)) as task:
                seen = pictures.prepared(preprocess, train, chosen, task.advance)
                refit.refit(quantized, reference, seen)
        return quantized

    def _static(self, model: ModelProto, kept: list[str], preprocess: Path, context: Context) -> ModelProto:
        """Calibrate, choose the weights' steps, correct biases, and let onnxruntime insert the integers."""
        train = context.data.train
        chosen = pictures.choose(train, self.pictures)
        if not chosen:
            raise DataError("static quantization calibrates on training pictures, and there are none")
        operators = self.operators
        if selection.attention(model):
            kept = [*kept, *graph.products_of_activations(model)]
            operators = operators or _TRANSFORMER_OPERATORS
        if self.float_stem:
            kept = [*kept, *selection.stem(model)]
        layers = [
            layer for layer in weights.layers(model)
            if layer.node.name not in kept and (not operators or layer.node.op_type in operators)
        ] if self.weight == "s8" else []  # fmt: skip
        corrected = [layer.node.input[0] for layer in layers if layer.node.op_type != "MatMul"]
        passes = 1 if self.calibration == "minmax" else 2
        with context.progress.task("calibrate", passes * len(chosen)) as task:
            statistics = ranges.observe(
                model, lambda: pictures.prepared(preprocess, train, chosen, task.advance),
                self.calibration, percentile=self.percentile, means_of=sorted(set(corrected)),
            )  # fmt: skip
        steps = {layer.weight: weights.scales(layer, self._bits, self.per_channel) for layer in layers}
        overrides = {layer.weight: _override(layer, steps[layer.weight]) for layer in layers}
        integers: dict[str, weights.Floats] = {}
        if self.rounding == "adaptive":
            integers = self._rounded(model, layers, steps, preprocess, context)
        if self.correct_bias:
            weights.correct_biases(model, steps, statistics.means, integers)
        exact = {
            layer.weight: rounding.onto_grid(integers, layer, steps[layer.weight])
            for layer in layers if layer.weight in integers
        }  # fmt: skip
        chains.put(model, exact)
        return self._insert(model, statistics.ranges, overrides, kept, operators, context)

    def _rounded(
        self, model: ModelProto, layers: Sequence[weights.Layer], steps: Mapping[str, weights.Floats],
        preprocess: Path, context: Context,
    ) -> dict[str, weights.Floats]:  # fmt: skip
        """Each layer's integers by adaptive rounding, on the calibration pictures."""
        train = context.data.train
        chosen = pictures.choose(train, self.pictures)
        with context.progress.task("look at the layers' inputs", len(chosen)) as task:
            seen = pictures.prepared(preprocess, train, chosen, task.advance)
            covariances = rounding.covariances(model, layers, seen)
        if left := sum(layer.weight not in covariances for layer in layers):
            context.progress.say(
                f"quantize: {left} of {len(layers)} layers are rounded to nearest: their rows are too long, or pad by name"
            )
        with context.progress.task("rounding", len(covariances)) as task:
            return rounding.choose(layers, steps, covariances, self._bits, task.advance)

    def _insert(
        self, model: ModelProto, found: Mapping[str, ranges.Range], overrides: Mapping[str, JSON],
        kept: Sequence[str], operators: Sequence[str] | None, context: Context,
    ) -> ModelProto:  # fmt: skip
        """onnxruntime's QDQ quantizer, fed through its cache of ranges instead of its own calibrators."""
        tensors = {
            name: TensorData(lowest=np.float32(r[0]), highest=np.float32(r[1])) for name, r in found.items()
        }
        with TemporaryDirectory() as folder:
            before, after, cache = (Path(folder, name) for name in ("float.onnx", "int8.onnx", "ranges.json"))
            save_tensors_data(TensorsData(CalibrationMethod.MinMax, tensors), cache)
            # Its advice to preprocess the network first does not apply: that was done at export.
            onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
            onnx.save(model, before)
            quantize_static(
                before, after, None,
                calibration_cache_path=cache, quant_format=QuantFormat.QDQ,
                activation_type=_TYPES[self.activation], weight_type=_TYPES[self.weight],
                per_channel=self.per_channel, nodes_to_exclude=list(kept),
                op_types_to_quantize=list(operators or ()),
                extra_options={"TensorQuantOverrides": dict(overrides), "ActivationSymmetric": self.activation == "s8"},
            )  # fmt: skip
            quantized = onnx.load(after)
        graph.float_logits(quantized)
        padding.round_first(quantized)
        if self.float_sums and not streams.float_sums(quantized, model):
            context.progress.say(
                "quantize: float_sums has nothing to do: neither an addition nor pooling in float reads a rounded sum"
            )
        if self.float_products:
            self._leave_products(quantized, model, context.progress)
        return quantized

    def _leave_products(self, quantized: ModelProto, model: ModelProto, progress: Progress) -> None:
        """`float_products` in place, and what of it has nothing to do. Raises ModelError for a pattern without a match."""
        patterns = self.float_products if isinstance(self.float_products, tuple) else ("*",)
        left = products.unrounded(quantized, model, selection.matching(model, patterns, "float_products"))
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in left):
                which = "" if pattern == "*" else f" {pattern!r}"
                progress.say(
                    f"quantize: float_products{which} has nothing to do: neither an addition nor pooling in float reads "
                    "such a pointwise convolution"
                )

    @property
    def _bits(self) -> weights.Bits:
        return 8 if self.weight_bits == "auto" or self.weight == "u8" else self.weight_bits


def _override(layer: weights.Layer, steps: NDArray[np.float32]) -> list[dict[str, JSON]]:
    """The steps of a weight in onnxruntime's form: an entry a channel, the first of which names the axis."""
    entries: list[dict[str, JSON]] = [{"scale": step, "zero_point": np.int8(0)} for step in steps]
    if len(steps) > 1:
        entries[0]["axis"] = layer.axis
    return entries


def integer_weights(model: ModelProto) -> int:
    """How many weights of at least two axes are stored in 8 bits."""
    eight = (TensorProto.INT8, TensorProto.UINT8)
    return sum(tensor.data_type in eight and len(tensor.dims) > 1 for tensor in model.graph.initializer)


def int8_price(
    before: ModelProto, after: ModelProto, preprocess: Path, context: Context, *, float_stem: bool = True
) -> tuple[Measurement, ...]:
    """`price`, how many times the latency of static int8 grew, for a first impression; the networks may be changed.

    Nothing, but a word of why, without training pictures or where one of the networks cannot be quantized.
    """
    static = Quantize(scheme="static", pictures=_FEW, correct_bias=False, float_stem=float_stem)
    train = context.data.train
    try:
        integers = [static.integers(file, preprocess, context) for file in (before, after)]
        one = next(pictures.prepared(preprocess, train, pictures.choose(train, 1)))
        ratio = latency_ratio(integers[0], integers[1], one)
    except (DataError, ModelError) as error:
        context.progress.say(f"not timed in int8: {error}")
        return ()
    form = "int8" if float_stem else "int8 with the first layer in integers"
    return (Measurement(name="price", value=round(ratio, 3), where={"form": form}),)
