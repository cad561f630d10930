"""Reading result files back, with a sentence for each way in which they may be unusable."""

import json
from pathlib import Path

from pydantic import ValidationError

from oamip_onnx.errors import DataError
from oamip_onnx.report.schema import SCHEMA_VERSION, Result
from oamip_onnx.report.scores import FrontReport


def read_result(path: Path) -> Result:
    """Return the result that ``oamip prune --json`` has written.

    Raises
    ------
    DataError
        If the file is missing, is no JSON, holds another schema version, or is not such a result.
    """
    found = read_report(path)
    if isinstance(found, FrontReport):
        raise DataError(
            f"{str(path)!r} holds a front of oamip score --path; the first file of a report must be the result of "
            "oamip prune --json."
        )
    return found


def read_report(path: Path) -> Result | FrontReport:
    """Return the result of ``oamip prune --json``, or the front of ``oamip score --path``.

    Raises
    ------
    DataError
        If the file is missing, is no JSON, holds another schema version, or is neither.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
    except OSError as error:
        raise DataError(f"The result {str(path)!r} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise DataError(f"{str(path)!r} is no JSON; give the file that oamip prune --json has written.") from error
    found = data.get("schema_version") if isinstance(data, dict) else None
    if found is None:
        raise DataError(f"{str(path)!r} has no schema version; give the file that oamip prune --json has written.")
    if found != SCHEMA_VERSION:
        raise DataError(
            f"{str(path)!r} has the schema version {found}; this version of oamip reads {SCHEMA_VERSION}. Make the "
            "result again, or use the oamip that wrote it."
        )
    kind = FrontReport if "points" in data else Result
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{str(path)!r} is no result of oamip prune --json, nor a front of oamip score --path: {where}: "
            f"{first['msg']}."
        ) from error
