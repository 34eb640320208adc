"""Reports as a run would fill them: a whole one, and its awkward cousins."""

from functools import cache

import numpy as np

from toolchain import stats
from toolchain.measure.calibration import calibration, fit_temperature, fit_thresholds, heat
from toolchain.measure.metrics import accuracy, worst_mistakes
from toolchain.report import RunReport, thumbnail
from toolchain.report import model as m
from toolchain.report import parts as p

TILES = ("blowhole", "break", "crack", "fray", "free", "uneven")
LONG = tuple(
    f"{head}, {tail}"
    for head in ("immature granulocyte", "platelet clump")
    for tail in (
        "segmented, doubtful staining", "bilobed", "with toxic granulation", "band form",
        "seen at the slide's feathered edge only", "unknown",
    )
)  # fmt: skip


class Example:
    """Invents probabilities and times, then fills a RunReport through the real statistics."""

    def __init__(self, labels=TILES, n=540, seed=0, groups=90):
        self.generator = np.random.default_rng(seed)
        self.labels = labels
        self.sizes = {"val": n // 2, "test": n}
        self.truth = {s: np.sort(self.generator.integers(0, len(labels), k)) for s, k in self.sizes.items()}
        self.groups = {
            s: [f"tile{i % groups}" for i in range(k)] if groups else None for s, k in self.sizes.items()
        }
        self.base = {s: self.logits(self.truth[s]) for s in self.sizes}
        self.times = {}

    def logits(self, truth):
        logits = self.generator.normal(0, 1.6, (len(truth), len(self.labels)))
        logits[np.arange(len(truth)), truth] += 6.5
        return logits

    def answers(self, split, blur):
        logits = (
            self.base[split] + self.generator.normal(0, blur, self.base[split].shape)
            if blur
            else self.base[split]
        )
        return heat(np.exp(logits - logits.max(axis=1, keepdims=True)), 0.7)

    def latency(self, name, milliseconds):
        load = self.generator.lognormal(0, 0.04, (40, 1))
        times = milliseconds * 1e6 * load * self.generator.lognormal(0, 0.03, (40, 25))
        spikes = self.generator.random((40, 25)) < 0.01
        self.times[name] = (times * np.where(spikes, self.generator.uniform(1.5, 6, (40, 25)), 1)).astype(
            np.int64
        )
        rows = []
        for file, extra, size in (("plain", 0, "64x64"), ("fused", 300_000, "480x640")):
            samples = self.times[name] + extra
            p50, p90, p99 = (stats.percentile(samples, q) for q in (0.5, 0.9, 0.99))
            rows.append(
                m.Latency(
                    file=file, threads=1, batch=1, input=size, n=samples.size, p50_ns=round(p50),
                    p90_ns=round(p90), p99_ns=round(p99), alternating_p50_ns=round(p50 * 1.13),
                    samples_ns=tuple(stats.thin(samples)),
                )
            )  # fmt: skip
        return tuple(rows)

    def variant(self, name, cost, blur, status, reason, made_by):
        milliseconds, size, params, macs = cost
        answers = {split: self.answers(split, blur) for split in self.sizes}
        scored = {s: accuracy(answers[s], self.truth[s], self.labels, self.groups[s], s) for s in self.sizes}
        drop, agreement = {}, {}
        if name != "fp32":
            for split in self.sizes:
                base = self.answers(split, 0)
                lost = stats.accuracy_difference(base, answers[split], self.truth[split], self.groups[split])
                same = stats.agreement(base, answers[split])
                drop[split] = m.Drop(points=lost.value, ci95=lost.ci95)
                agreement[split] = m.Agreement(share=same.value, ci95=same.ci95)
        self.kept = answers
        return m.Variant(
            name=name, path=f"store/{name}/model.onnx", bytes=size, params=params, macs=macs, status=status,
            reason=reason, made_by=made_by, accuracy={"cpu": scored["test"]}, validation={"cpu": scored["val"]},
            latency={"cpu": self.latency(name, milliseconds)}, drop=drop, agreement=agreement,
            parity={"plain against torch": p.Parity(max_difference=3.1e-6, n=64, bound=1e-3, agreement=1.0)},
            placement={"cpu": {"CPU": 84}},
        )  # fmt: skip

    def speedup(self, name):
        ratio = stats.ratio_of_medians(self.times["fp32"], self.times[name])
        return m.Speedup(
            of=name, over="fp32", provider="cpu", ratio=ratio.value, ci95=ratio.ci95,
            block_p10=ratio.block_p10, block_p90=ratio.block_p90, alternating=ratio.value * 0.93,
        )  # fmt: skip

    def mistakes(self, split="test", size=(160, 120)):
        for wrong in worst_mistakes(self.kept[split], self.truth[split]):
            picture = self.generator.integers(60, 120, (*size, 3)).astype(np.uint8)
            picture[size[0] // 3 : size[0] // 2, :, wrong.label % 3] += 100
            yield p.Picture(
                name=f"test/{self.labels[wrong.label]}/exp1_num_{wrong.index:05d}.jpg",
                label=self.labels[wrong.label], predicted=self.labels[wrong.predicted],
                probability=wrong.probability, png=thumbnail(picture),
            )  # fmt: skip

    def data(self):
        counts = {
            s: {name: int((self.truth[t] == k).sum()) * f for k, name in enumerate(self.labels)}
            for s, t, f in (("train", "test", 3), ("val", "val", 1), ("test", "test", 1))
        }
        checks = (
            p.Check(name="unreadable pictures", level="ok", summary="none found"),
            p.Check(
                name="near-duplicates across splits", level="warning", summary="2 found",
                items=("test/a.jpg ~ train/b.jpg (0.993)", "val/c.jpg ~ train/d.jpg (0.985)"),
            ),
        )  # fmt: skip
        return p.DataSection(
            name="tiles", labels=self.labels, counts=counts, groups={"train": 210, "val": 45, "test": 90},
            checks=checks, facts={"picture sizes": "412 sizes; height 103 to 618 (median 248)"},
        )  # fmt: skip


@cache
def full(labels=TILES, n=540, cuda=False, size=(160, 120)):
    """A report with every section filled; made once, as it is frozen."""
    example = Example(labels, n)
    trunk = ("tune", "export")
    variants = [
        example.variant("fp32", (4.61, 9_130_000, 2_240_000, 312_000_000), 0, "passed", "passes every gate", trunk),
        example.variant("int8", (2.16, 2_410_000, 2_240_000, 312_000_000), 0.3, "passed", "passes every gate",
                        (*trunk, "quantize")),
        example.variant("pruned", (2.02, 4_020_000, 980_000, 84_000_000), 1.6, "failed",
                        "fails max_drop", ("tune", "prune", "recover", "export")),
        example.variant("pruned-int8", (1.21, 1_120_000, 980_000, 84_000_000), 0.25, "chosen",
                        "fastest file that passes every gate", ("tune", "prune", "recover", "export", "quantize")),
    ]  # fmt: skip
    kept, truth = example.kept, example.truth
    temperature = fit_temperature(kept["val"], truth["val"])
    epochs = tuple(range(1, 21))
    fall = [1.6 * 0.82**e + 0.08 for e in epochs]
    curve = p.Curve(
        artifact="tuned", epochs=epochs, kept=17, seconds=211.0,
        series={
            "train_loss": tuple(v * 0.8 for v in fall),
            "val_loss": tuple(v + 0.05 + 0.004 * e for e, v in zip(epochs, fall, strict=True)),
            "train_top1": tuple(1 - v / 2.2 for v in fall), "val_top1": tuple(1 - v / 1.9 for v in fall),
            "val_balanced": tuple(0.96 - v / 1.8 for v in fall), "lr": (1e-3,) * 20,
        },
    )  # fmt: skip
    spread = lambda *seeds: p.Spread(mean=sum(seeds) / len(seeds), seeds=seeds)  # noqa: E731
    filled = {
        "run": p.RunInfo(
            name="surface-inspection", description="Defects on magnetic tiles, told apart by type.",
            started="2026-11-23T20:15:04+01:00", seconds=1262.4, toolchain="0.1.0", seed=0, device="cpu", threads=2,
            weights=p.Weights(
                architecture="mobilenetv2_100", source="file", weights="mobilenetv2.safetensors", licence="Apache-2.0"
            ),
            recipe="name: surface-inspection\ndata:\n  folder: ./tiles\n",
        ),
        "variants": tuple(variants),
        "speedups": tuple(example.speedup(v.name) for v in variants[1:]),
        "chosen": "pruned-int8",
        "gates": tuple(
            m.Gate(name=name, bound=bound, value=value, passed=value <= bound, variant=v.name, unit=unit, note=note)
            for v in variants[1:]
            for name, bound, value, unit, note in (
                ("max_drop", 1.0, v.drop["val"].points, "points", "top1, paired"),
                ("max_drop_worst", 3.0, v.drop["val"].ci95[1], "points", "bad end of the 95 % interval"),
                ("parity", 1e-3, 3.1e-6, "1", "largest difference of probabilities"),
            )
        ),
        "data": example.data(),
        "host": {"cpu": "Intel(R) Xeon(R) Gold 6430", "isa": "x86-vnni", "cores": 2, "load": [0.31, 0.2, 0.11],
                 "memory": 25_000_000_000, "kernel": "6.12.0", "python": "3.11.9",
                 "libraries": {"onnxruntime": "1.31.1", "numpy": "2.4.6"}},
        "bundle": p.BundleInfo(path="runs/surface-inspection/bundle", identity="9f2c" * 16),
        "curves": (curve,),
        "calibration": tuple(calibration(kept[s], truth[s], temperature, s) for s in ("val", "test")),
        "thresholds": fit_thresholds(heat(kept["val"], temperature), truth["val"], labels),
        "mistakes": tuple(example.mistakes(size=size)),
        "transfer": p.Transfer(
            task="handwritten digits", weights="bundled nano (fractals)", n=540,
            rows=(
                p.TransferRow(per_class=5, pretrained=spread(0.71, 0.74, 0.76), random=spread(0.62, 0.66, 0.69)),
                p.TransferRow(per_class=20, pretrained=spread(0.90, 0.912, 0.92), random=spread(0.88, 0.905, 0.91)),
                p.TransferRow(per_class=100, pretrained=spread(0.97, 0.975, 0.98), random=spread(0.975, 0.977, 0.981)),
            ),
            note="Measured when the weights were made.",
        ),
        "not_measured": () if cuda else (p.NotMeasured(what="provider cuda", why="no NVIDIA driver on this host"),),
        "steps": (
            p.StepTime(artifact="tuned", step="tune", seconds=211.0, key="a1" * 32),
            p.StepTime(artifact="fp32", step="export", seconds=6.2, reused=True, key="b2" * 32),
        ),
        "reproduce": ("pip install toolchain==0.1.0 -c constraints.txt", "toolchain run recipe.yaml"),
    }  # fmt: skip
    return RunReport(**filled)


@cache
def bare():
    """The least a run can report: one variant, scored, nothing else."""
    example = Example(("no", "yes"), 60, groups=0)
    only = example.variant("fp32", (0.42, 310_000, None, None), 0, "chosen", "passes every gate", ())
    only = only.model_copy(update={"latency": {}, "parity": {}, "placement": {}})
    return RunReport(run=full().run, variants=(only,), chosen="fp32", data=example.data(), host={})


def nothing_passes():
    """Every gate failed, random weights, problems in the data."""
    report = full()
    failed = tuple(
        v.model_copy(update={"status": "failed", "reason": "fails max_drop"}) for v in report.variants
    )
    weights = p.Weights(architecture="resnet18", source="random")
    return report.model_copy(
        update={
            "chosen": None, "bundle": None, "variants": failed, "calibration": (), "thresholds": {},
            "run": report.run.model_copy(update={"weights": weights}),
        }
    )  # fmt: skip
