"""What a recipe says about its pictures: where they lie, how they are split, what to do about bad ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0.01, le=0.8)]


class Split(BaseModel):
    """The shares of pictures given to val and test where the source does not say; train gets the rest."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    val: Share = 0.15
    test: Share = 0.15
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _leave_train_something(self) -> Self:
        if self.val + self.test > 0.9:
            raise ValueError(
                f"val and test take {self.val + self.test:.0%} of the pictures: leave train 10 %"
            )
        return self


class Columns(BaseModel):
    """What the columns of a CSV are called, where they are not called path, label, group and split."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str = "path"
    label: str = "label"
    group: str = "group"
    split: str = "split"


class DataSettings(BaseModel):
    """Exactly one of `folder`, `csv` and `source` says where the pictures are.

    folder: class folders below train/, val/ and test/, or class folders that we split.
    csv: columns path, label[, group][, split]; paths below `root`, which is the CSV's folder if not given.
    source: "digits" is scikit-learn's set of handwritten digits, whose test is the ordered last 540.
    groups: a CSV of path and group for `folder`; a group (a patient, a tile, a day) stays in one split.
    duplicates: exact copies, inside a split or across splits; "drop" keeps the copy in test before val
    before train. near_duplicates: pictures of val and test that resemble one of another split; "drop"
    drops the one in the split that is earlier in train, val, test.
    limit_per_class: keep only so many train pictures a class, picked by the split's seed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    folder: Path | None = None
    csv: Path | None = None
    source: Literal["digits"] | None = None
    root: Path | None = None
    groups: Path | None = None
    columns: Columns = Columns()
    split: Split = Split()
    unreadable: Literal["error", "drop"] = "error"
    duplicates: Literal["warn", "error", "drop"] = "warn"
    near_duplicates: Literal["warn", "error", "drop"] = "warn"
    limit_per_class: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("folder", "csv", "source") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of folder, csv and source, not {' and '.join(given) or 'none of them'}"
            )
        if self.root is not None and self.csv is None:
            raise ValueError("root belongs to csv: it is the folder that the CSV's paths start from")
        if self.groups is not None and self.folder is None:
            raise ValueError("groups belongs to folder; a csv has its groups in a column")
        return self
