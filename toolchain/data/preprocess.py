"""The one transform from decoded pictures to the network's input: training's evaluation runs this very module,
and the same module is exported into the ONNX graph, so that parity holds by construction.

Geometry is integer arithmetic on the picture's size, resizing is `F.interpolate(antialias=True)` (ONNX:
Resize with antialias, opset 18), normalisation is one subtraction and one multiplication.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

Interpolation = Literal["bilinear", "bicubic"]
CropMode = Literal["center", "squash", "border"]
Positive = Annotated[float, Field(gt=0)]


class Preprocess(BaseModel):
    """How a picture becomes the network's input of `height` x `width` pixels.

    crop_mode: "center" takes the middle box of the target's aspect, of which `crop_pct` of each side;
    "squash" resizes the whole picture; "border" first pads it with black to the target's aspect.
    crop_pct: used with "center" only, in steps of 0.001.
    mean, std: of RGB values in [0, 1], as timm's pretrained configurations state them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    height: Annotated[int, Field(ge=1, le=8192)]
    width: Annotated[int, Field(ge=1, le=8192)]
    interpolation: Interpolation = "bilinear"
    crop_pct: Annotated[float, Field(ge=0.001, le=1)] = 1.0
    crop_mode: CropMode = "center"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)


class Preprocessing(nn.Module):
    """uint8 [N, H, W, 3] RGB pictures of one size -> float32 [N, 3, height, width], normalised.

    Exports with torch.onnx (dynamo) with N, H and W dynamic. Against Pillow's resize it differs by at most
    about 1/255 where it shrinks; bicubic enlarging differs more, because Pillow's kernel has another slope.
    """

    mean: Tensor  # [1, 3, 1, 1], in 0..255
    scale: Tensor  # [1, 3, 1, 1], 1 / (255 std)

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.settings = preprocess
        mean = torch.tensor(preprocess.mean, dtype=torch.float64) * 255
        scale = 1 / (torch.tensor(preprocess.std, dtype=torch.float64) * 255)
        self.register_buffer("mean", mean.float().view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", scale.float().view(1, 3, 1, 1), persistent=False)
        self._shifts, self._scales = bool(self.mean.any()), bool((self.scale != 1).any())

    def forward(self, pictures: Tensor) -> Tensor:
        """Resize and normalise."""
        return self.normalize(self.resize(pictures))

    def normalize(self, pictures: Tensor) -> Tensor:
        """float [N, 3, h, w] in 0..255 -> (x / 255 - mean) / std, in place; passes that change nothing are left out."""
        if self._shifts:
            pictures = pictures.sub_(self.mean)
        return pictures.mul_(self.scale) if self._scales else pictures

    def resize(self, pictures: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] -> float32 [N, 3, height, width] in 0..255."""
        settings = self.settings
        if settings.crop_mode == "center":
            pictures = self._center(pictures)
        planes = pictures.permute(0, 3, 1, 2).float()
        if settings.crop_mode == "border":
            planes = self.pad(planes)
        size = [settings.height, settings.width]
        resized = F.interpolate(
            planes, size, mode=settings.interpolation, align_corners=False, antialias=True
        )
        # Bicubic overshoots at edges; the pictures a network was pretrained on were clipped to 0..255.
        return resized.clamp(0, 255) if settings.interpolation == "bicubic" else resized

    def pad(self, planes: Tensor) -> Tensor:
        """Pad [N, C, H, W] with zeros, centred, to the target's aspect (rounded up to whole pixels)."""
        target_h, target_w = self.settings.height, self.settings.width
        height, width = planes.shape[2], planes.shape[3]
        full_h = torch.sym_max(height, (width * target_h + target_w - 1) // target_w)
        full_w = torch.sym_max(width, (height * target_w + target_h - 1) // target_h)
        top, left = (full_h - height) // 2, (full_w - width) // 2
        return F.pad(planes, [left, full_w - width - left, top, full_h - height - top])  # type: ignore[list-item]

    def _center(self, pictures: Tensor) -> Tensor:
        target_h, target_w = self.settings.height, self.settings.width
        permille = round(self.settings.crop_pct * 1000)
        height, width = pictures.shape[1], pictures.shape[2]
        box_h = torch.sym_max(torch.sym_min(height, width * target_h // target_w) * permille // 1000, 1)
        box_w = torch.sym_max(torch.sym_min(width, height * target_w // target_h) * permille // 1000, 1)
        top, left = (height - box_h) // 2, (width - box_w) // 2
        box = pictures[:, top : top + box_h, left : left + box_w]
        # The exporter can't prove from the arithmetic above that the box is not empty.
        torch._check(box.shape[1] > 0)
        torch._check(box.shape[2] > 0)
        return box
