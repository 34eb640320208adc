"""`report.json` and the JSON schema (draft 2020-12) that describes it, committed beside this file.

After a change of the model, write it anew:
python -c "from toolchain.report import SCHEMA, schema_text; SCHEMA.write_text(schema_text())"
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from toolchain.errors import BundleError
from toolchain.report.model import RunReport

SCHEMA = Path(__file__).with_name("report.schema.json")
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def render_json(report: RunReport) -> str:
    """The report as JSON, keys in the model's order."""
    return report.model_dump_json(indent=1) + "\n"


def parse(text: str | bytes, source: str = "report.json") -> RunReport:
    """Read a report back; BundleError when it is damaged or of another version."""
    try:
        return RunReport.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BundleError(f"{source}: not a report of this version: {where}: {first['msg']}") from None


def schema_text() -> str:
    """The JSON schema of `report.json`, as it is committed."""
    made = RunReport.model_json_schema(mode="serialization", by_alias=True)
    return json.dumps({"$schema": _DIALECT, **made}, indent=1, ensure_ascii=False) + "\n"
