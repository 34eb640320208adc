"""Grey stem: the first convolution reads one channel of pictures whose three channels say the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from onnx import ModelProto
from pydantic import Field

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.backbones.network import Network, read
from toolchain.calibration import costs, greyness, pictures
from toolchain.calibration.price import latency_ratio
from toolchain.calibration.weights import Floats
from toolchain.errors import DataError, RecipeError
from toolchain.lineage import hand_on
from toolchain.record import Measurement
from toolchain.runtime import host
from toolchain.step import Context, Step


class GreyStem(Step):
    """For grey pictures (X-rays, industrial cameras): a third of the first convolution's products, the same answers.

    Its weights are summed over the channels, so `preprocess` must give all three one mean and std. Of a picture with
    colours the green channel is read from then on, where the network before saw all three. Right before `quantize` or
    `qat`, behind what looks for the stem (`narrow`, `fold_normalization`); it and `pad_stem` exclude each other.
    pictures: of train and of val, looked at: all must be grey behind the preprocessing.
    Measures `channels` that are no longer read, none where something else than one dense convolution reads the input;
    `price`, how many times the latency of the file before; and the new `macs` and `parameters`.
    """

    step: Literal["grey_stem"] = "grey_stem"
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.ONNX}
    gives: ClassVar[Form] = Form.ONNX
    uses: ClassVar[frozenset[str]] = frozenset({"train", "val"})
    libraries: ClassVar[tuple[str, ...]] = ("onnx", "numpy", *host.onnxruntimes())
    pictures: Annotated[int, Field(ge=1)] = 1024

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Change inputs["model"]'s plain network; the preprocessing stays as it is.

        Raises DataError for a picture with colours, or without pictures; RecipeError as `check_network`; ModelError for a
        network that is quantized.
        """
        source = inputs["model"].folder
        original = graph.read(source / graph.PLAIN)
        graph.require_float(original)
        model = ModelProto()
        model.CopyFrom(original)
        dropped, price = greyness.read_one(model), 1.0
        if not dropped:
            context.progress.say(
                "grey_stem has nothing to do: no dense convolution of several channels alone reads the input"
            )
        else:
            self.check_network(read(source))
            one = self._grey(source / graph.PREPROCESS, context)
            price = round(latency_ratio(original, model, one), 3)
        hand_on(self, source, model, context.out)
        return (
            Measurement(name="channels", value=dropped), Measurement(name="price", value=price),
            *costs.measured(model), *graph.sizes(context.out),
        )  # fmt: skip

    def check_network(self, network: Network) -> None:
        """Raise RecipeError where the preprocessing makes the channels of grey pictures differ."""
        given = network.preprocess
        for name, values in (("mean", given.mean), ("std", given.std)):
            if len(set(values)) > 1:
                raise RecipeError(
                    f"grey_stem: preprocess.{name} is {', '.join(f'{value:g}' for value in values)}, so that the channels "
                    "of grey pictures differ: set it to three equal values before the training, or leave the step out"
                )

    def _grey(self, preprocess: Path, context: Context) -> Floats:
        """A prepared picture, after all were looked at."""
        one: Floats | None = None
        for name, part in (("train", context.data.train), ("val", context.data.val)):
            chosen = pictures.choose(part, self.pictures)
            with context.progress.task(f"greyness of {name}", len(chosen)) as task:
                shown = pictures.prepared(preprocess, part, chosen, task.advance)
                for index, one in zip(chosen, shown, strict=True):
                    if not greyness.is_grey(one):
                        raise DataError(
                            f"grey_stem: {part.samples[index].name} has colours: leave the step out, or the picture"
                        )
        if one is None:
            raise DataError("grey_stem looks at training and validation pictures, and there are none")
        return one
