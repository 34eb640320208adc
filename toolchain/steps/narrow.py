"""Narrow: an ONNX network without the hidden channels that its next layer can make up for. No training, no labels."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper
from pydantic import Field, model_validator

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.calibration import costs, elimination, pictures, selection, sensitivity
from toolchain.calibration.chains import Chain, chains, pointwise, put
from toolchain.calibration.price import latency_ratio
from toolchain.calibration.weights import Floats
from toolchain.errors import DataError, ModelError
from toolchain.lineage import hand_on
from toolchain.record import Measurement
from toolchain.runtime import host
from toolchain.step import Context, Step

# Products that a depthwise output value is worth in time, and how much more a product costs where int8 never comes
# (selection.stem): measured in MobileNetV2 in int8 on x86 with VNNI.
_DEPTHWISE, _FLOAT = 50, 4
_LONGEST = 2400  # inputs of a reader: their moments take 46 MB, and choosing among 256 channels of nine pixels half a minute
_PROBED = 0.02  # share of the reader's variance that a chain loses where its influence is measured


class TooNarrowError(ModelError):
    """max_products is less than what can be left."""


@dataclass(frozen=True)
class Candidate:
    """A chain with what is known of its channels; cost: products that one of them takes."""

    chain: Chain
    moments: elimination.Moments
    cost: float
    _refits: dict[int, tuple[elimination.Doubles, elimination.Doubles]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    @cached_property
    def weight(self) -> elimination.Doubles:
        """The reader's weights, [out, channels * window]."""
        return self.chain.reader.rows.reshape(len(self.chain.reader.rows), -1).astype(np.float64)

    @cached_property
    def order(self) -> elimination.Order:
        """The channels, the first to go first."""
        return elimination.order(self.moments, self.weight)

    def kept(self, count: int) -> list[int]:
        """The channels that stay when there are `count`."""
        return sorted(self.order.order[self.chain.channels - count :])

    def refit(self, count: int) -> tuple[elimination.Doubles, elimination.Doubles]:
        """The reader's weights for them, [out, count * window], and what its bias gains [out]."""
        if count not in self._refits:
            self._refits[count] = elimination.refit(self.moments, self.weight, self.kept(count))
        return self._refits[count]


class Narrow(Step):
    """Takes out hidden channels, which one convolution makes and one other reads, and refits the reader by least squares.

    Channels go first where they cost the logits least for the time they take: each layer's influence on them is measured.
    min_sqnr: how far below their signal the logits' noise must stay (dB), on `probe` pictures of val; no label
    is looked at. max_products: instead of that, the share that may be left of the products that these channels take,
    whatever noise that makes (a layer between two of them counts with both); for what is trained on. multiple: counts
    that channels go down to, as kernels like them (16: blocks of AVX-512 and of int8 depthwise kernels on x86; fewer
    than 4 onnxruntime refuses). layers: patterns of the names of convolutions whose channels may go; all, when empty.
    pictures: of train, for the least squares.
    Measures `channels` of each layer that lost some, `sqnr`, `products` (share left), `price`, how many times the
    latency of the file before, and what is left of `macs` and `parameters`.
    """

    step: Literal["narrow"] = "narrow"
    version: ClassVar[int] = 4
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.ONNX}
    gives: ClassVar[Form] = Form.ONNX
    uses: ClassVar[frozenset[str]] = frozenset({"train", "val"})
    libraries: ClassVar[tuple[str, ...]] = (
        "onnx", "numpy", *host.onnxruntimes(),
    )  # fmt: skip
    min_sqnr: Annotated[float, Field(gt=0)] = 20.0
    max_products: Annotated[float, Field(gt=0, lt=1)] | None = None
    multiple: Annotated[int, Field(ge=4, multiple_of=4)] = 16
    layers: tuple[str, ...] = ()
    pictures: Annotated[int, Field(ge=1)] = 256
    probe: Annotated[int, Field(ge=1)] = 64

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if self.max_products is not None and "min_sqnr" in self.model_fields_set:
            raise ValueError("min_sqnr does nothing beside max_products: give one of them")
        return self

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Narrow inputs["model"]'s plain network; the preprocessing stays as it is.

        Raises DataError without training or validation pictures, ModelError for a network that is quantized, or cannot
        be made as small as max_products.
        """
        source = inputs["model"].folder
        original = graph.read(source / graph.PLAIN)
        graph.require_float(original)
        probe = self._probe(source / graph.PREPROCESS, context)
        candidates = self._candidates(original, inputs["model"], context)
        counts, reached = self._choose(original, candidates, probe, context)
        narrowed = narrower(original, candidates, counts)
        measured = [_left(c.chain, counts[c.chain.hidden]) for c in candidates if c.chain.hidden in counts]
        price = round(latency_ratio(original, narrowed, probe[0]), 3) if counts else 1.0
        hand_on(self, source, narrowed, context.out)
        return (
            *measured,
            Measurement(name="sqnr", value=round(reached.sqnr, 2), unit="dB"),
            Measurement(name="agreement", value=reached.agreement),
            Measurement(name="products", value=round(_products(candidates, counts), 4)),
            Measurement(name="price", value=price),
            *costs.measured(narrowed),
            *graph.sizes(context.out),
        )

    def _probe(self, preprocess: Path, context: Context) -> list[sensitivity.Floats]:
        probe = pictures.some(preprocess, context.data.val, self.probe)
        if not probe:
            raise DataError("narrow compares answers on validation pictures, and there are none")
        return probe

    def _candidates(self, model: ModelProto, source: Artifact, context: Context) -> list[Candidate]:
        """The chains with their moments; chains without a channel to spare are left out."""
        train = context.data.train
        chosen = pictures.choose(train, self.pictures)
        if not chosen:
            raise DataError("narrow fits on training pictures, and there are none")
        named = selection.matching(model, self.layers, "layers") if self.layers else None
        found = [
            chain
            for chain in narrowable(model, self.multiple)
            if named is None or chain.writer.node.name in named
        ]
        for pattern in self.layers:
            if not any(fnmatchcase(chain.writer.node.name, pattern) for chain in found):
                raise ModelError(
                    f"narrow: layers {pattern!r} names nothing that can be narrowed: it takes a convolution of more than "
                    f"{self.multiple} channels (multiple) that one other alone reads, of at most {_LONGEST} inputs"
                )
        written = {chain.hidden: chain.writer.node.output[0] for chain in found}
        with context.progress.task("moments", len(chosen)) as task:
            prepared = pictures.prepared(source.folder / graph.PREPROCESS, train, chosen, task.advance)
            wide = {chain.hidden: chain.reader for chain in found if not pointwise(chain.reader)}
            seen = elimination.moments(model, [*written, *written.values()], prepared, readers=wide)
        stem = set(selection.stem(model))
        found_costs = (
            _cost(chain, seen[written[chain.hidden]].positions, seen[chain.hidden].positions, stem)
            for chain in found
        )
        return [
            Candidate(chain, seen[chain.hidden], cost) for chain, cost in zip(found, found_costs, strict=True)
        ]

    def _choose(
        self, model: ModelProto, candidates: Sequence[Candidate], probe: Sequence[sensitivity.Floats],
        context: Context,
    ) -> tuple[dict[str, int], sensitivity.Fidelity]:  # fmt: skip
        """Counts by hidden tensor: as many of the cheapest reductions as keep min_sqnr, or as max_products asks for.

        A chain whose next reduction would not keep it is left as it is, and the others go on.
        """
        if self.max_products is not None:
            _require_reach(candidates, self.multiple, self.max_products)
        reference = sensitivity.answers(model, probe)

        def fidelity(counts: Mapping[str, int]) -> sensitivity.Fidelity:
            return sensitivity.fidelity(
                reference, sensitivity.answers(narrower(model, candidates, counts), probe)
            )

        with context.progress.task("narrow", 2 * len(candidates)) as task:
            influences = [_influence(one, self.multiple, fidelity, task.advance) for one in candidates]
            waiting = list(_cheapest_first(candidates, influences, self.multiple))
            if self.max_products is not None:
                best = _fewest(candidates, waiting, self.max_products)
                return best, fidelity(best)
            best = {}
            while waiting:
                # A later count of a chain is the lower one.
                tried = [best | dict(waiting[:taken]) for taken in range(len(waiting) + 1)]
                kept = _longest(tried, lambda counts: fidelity(counts).sqnr >= self.min_sqnr)
                best = tried[kept]
                full = waiting[kept][0] if kept < len(waiting) else None
                waiting = [one for one in waiting[kept:] if one[0] != full]
                task.advance()
        return best, fidelity(best)


def narrowable(model: ModelProto, multiple: int) -> Iterator[Chain]:
    """The chains that have more channels than `multiple`, and a reader whose moments are not too many."""
    for chain in chains(model, wide=True):
        if chain.channels > multiple and chain.reader.rows[0].size <= _LONGEST:
            yield chain


def narrower(model: ModelProto, candidates: Sequence[Candidate], counts: Mapping[str, int]) -> ModelProto:
    """A copy of the network with `counts` channels left in each chain named (by its hidden tensor)."""
    changed = ModelProto()
    changed.CopyFrom(model)
    known = graph.weights(model)
    values: dict[str, Floats] = {}
    groups: dict[str, int] = {}
    for candidate in candidates:
        chain, count = candidate.chain, counts.get(candidate.chain.hidden)
        if count is None:
            continue
        kept = candidate.kept(count)
        for layer in (chain.writer, *chain.depthwise):
            # What another chain's reader is may be this one's writer: its weights are new already, and its bias.
            for name in [
                *filter(None, layer.node.input[1:]),
                *({_refitted_bias(layer.node)} & values.keys()),
            ]:
                values[name] = np.ascontiguousarray((values[name] if name in values else known[name])[kept])
        groups |= {layer.node.name: count for layer in chain.depthwise}
        _refitted(changed, chain, *candidate.refit(count), values)
    put(changed, values, groups)
    return changed


def _refitted(
    model: ModelProto, chain: Chain, weight: elimination.Doubles, shift: elimination.Doubles,
    values: dict[str, Floats],
) -> None:  # fmt: skip
    """Add the reader's new weight and bias to `values`; a reader without a bias gets one."""
    node = chain.reader.node
    shape = (len(weight), -1, *chain.reader.rows.shape[2:])
    values[node.input[1]] = weight.reshape(shape).astype(np.float32)
    if len(node.input) > 2 and node.input[2]:
        known = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[2])
        values[node.input[2]] = (numpy_helper.to_array(known) + shift).astype(np.float32)
        return
    name = _refitted_bias(node)
    values[name] = shift.astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(values[name], name))
    reader = next(other for other in model.graph.node if other.name == node.name)
    reader.input[:] = [*node.input[:2], name]


def _refitted_bias(node: NodeProto) -> str:
    """The bias of a reader that had none."""
    return f"{node.name}.bias_refitted"


def _left(chain: Chain, count: int) -> Measurement:
    where: dict[str, str | int | float] = {"layer": chain.writer.node.name, "before": chain.channels}
    return Measurement(name="channels", value=count, where=where)


def _cost(chain: Chain, written: int, read: int, stem: set[str]) -> float:
    """The products that one channel takes in a picture, its conversions counted."""
    before = written * (chain.writer.rows[0].size + costs.CONVERTED)
    rows, strides = chain.reader.rows, graph.attribute(chain.reader.node, "strides", [1])
    after = read * (_DEPTHWISE * len(chain.depthwise) + len(rows) * rows[0, 0].size / np.prod(strides))
    return float(before + after) * (_FLOAT if chain.writer.node.name in stem else 1)


def _products(candidates: Sequence[Candidate], counts: Mapping[str, int]) -> float:
    """The share of the products left where `counts` channels are."""
    whole = sum(c.cost * c.chain.channels for c in candidates)
    left = sum(c.cost * counts.get(c.chain.hidden, c.chain.channels) for c in candidates)
    return left / whole if whole else 1.0


def _fewest(
    candidates: Sequence[Candidate], cheapest: Sequence[tuple[str, int]], share: float
) -> dict[str, int]:
    """The cheapest reductions that leave no more than a share of the products."""
    counts: dict[str, int] = {}
    for hidden, left in cheapest:
        if _products(candidates, counts) <= share:
            return counts
        counts[hidden] = left
    return counts


def _require_reach(candidates: Sequence[Candidate], multiple: int, share: float) -> None:
    """Raise TooNarrowError where so small a share of the products cannot be reached."""
    least = _products(candidates, {c.chain.hidden: min(multiple, c.chain.channels) for c in candidates})
    if least > share:
        raise TooNarrowError(
            f"narrow: no less than {least:.2f} of the products can be left, and max_products is {share:g}"
        )


def _influence(
    candidate: Candidate, multiple: int, fidelity: Callable[[Mapping[str, int]], sensitivity.Fidelity],
    advance: Callable[[], None],
) -> float:  # fmt: skip
    """How much noise of the logits comes of noise in what the chain's reader makes, measured with this chain cut alone."""
    noise, total = candidate.order.noise, candidate.chain.channels
    local = {count: float(noise[total - count - 1]) for count in _counts(total, multiple)}
    count = min(local, key=lambda one: abs(local[one] - _PROBED))
    reached = fidelity({candidate.chain.hidden: count})
    advance()
    return float(10 ** (-reached.sqnr / 10) / max(local[count], 1e-9))


def _counts(total: int, multiple: int) -> range:
    """The counts below `total` that channels can go down to, the greatest first."""
    return range((total - 1) // multiple * multiple, 0, -multiple)


def _longest(tried: Sequence[dict[str, int]], passes: Callable[[dict[str, int]], bool]) -> int:
    """The last place before which all pass, by doubling and bisection; the first one passes."""
    low, high = 0, 1
    while high < len(tried) and passes(tried[high]):
        low, high = high, 2 * high
    high = min(high, len(tried))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if passes(tried[middle]) else (low, middle)
    return low


def _cheapest_first(
    candidates: Sequence[Candidate], influences: Sequence[float], multiple: int
) -> Iterator[tuple[str, int]]:
    """(hidden tensor, channels left), by noise of the logits over products saved, to the next multiple each time."""
    waiting: list[tuple[float, int, int, int]] = []

    def wait(index: int, left: int) -> None:
        candidate = candidates[index]
        fewer = next(iter(_counts(left, multiple)), 0)
        if fewer:
            noise, total = candidate.order.noise, candidate.chain.channels
            added = noise[total - fewer - 1] - (noise[total - left - 1] if left < total else 0.0)
            price = influences[index] * added / (candidate.cost * (left - fewer))
            heapq.heappush(waiting, (price, index, left, fewer))

    for index, candidate in enumerate(candidates):
        wait(index, candidate.chain.channels)
    while waiting:
        _, index, _, fewer = heapq.heappop(waiting)
        yield candidates[index].chain.hidden, fewer
        wait(index, fewer)
