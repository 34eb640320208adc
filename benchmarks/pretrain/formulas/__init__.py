"""Pictures made by formulas, rendered in batches on the device: textures as grounds, figures drawn on them.

Each class is a set of parameters drawn once from a seed; each picture of it jitters them a little.
Fractals: Kataoka et al., Pre-training without Natural Images (2101.08515); radial contours: Takashima et al.,
Visual Atoms (2303.01112) after Kataoka et al. (2206.09132); the rest is our own composition.
"""

from benchmarks.pretrain.formulas.generator import NONE, Batch, Formulas, Sizes

__all__ = ["NONE", "Batch", "Formulas", "Sizes"]
