"""What a recipe asks to be measured."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Measure(BaseModel):
    """Providers, threads and batch sizes to time the final files on; see docs/measuring.md.

    providers: ONNX Runtime providers, "cpu", "cuda" or "auto" (what is there; the rest is told as
    not measured). A provider that is named and cannot be used is an error.
    blocks, calls, drop: randomised blocks a side, calls a block, first calls dropped of each block.
    seconds: what the blocks of a case take at least, in up to ten times as many; short models are noisy otherwise.
    take: files that were timed under another number are timed anew; the store keeps both.
    spinning: whether idle threads of ONNX Runtime spin; slower on a busy machine, faster on a quiet one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    providers: tuple[Literal["auto", "cpu", "cuda"], ...] = Field(default=("auto",), min_length=1)
    threads: tuple[Annotated[int, Field(ge=1, le=256)], ...] = Field(default=(1,), min_length=1)
    batch: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(default=(1,), min_length=1)
    blocks: int = Field(default=40, ge=20, le=1000)
    calls: int = Field(default=30, ge=10, le=1000)
    drop: int = Field(default=5, ge=0, le=100)
    seconds: float = Field(default=2.0, ge=0, le=600)
    take: int = Field(default=0, ge=0)
    spinning: bool = False

    @model_validator(mode="after")
    def _some_left(self) -> Self:
        if self.drop >= self.calls:
            raise ValueError(f"drop {self.drop} of {self.calls} calls a block leaves none: take fewer")
        return self
