"""Reading back what a command has written, with a sentence for each way in which a file may be unusable."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from oamip_onnx.errors import DataError
from oamip_onnx.report.schema import SCHEMA_VERSION, Record, Result

if TYPE_CHECKING:
    from oamip_onnx.report.scores import FrontReport

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Wording:
    """How errors speak of a file that should hold a report.

    Attributes
    ----------
    noun
        What the file should hold, such as ``result``.
    invalid
        The sentence about a file that holds something else, with ``{file}`` and ``{problem}`` in it.
    outdated
        The sentence about another schema version, with ``{file}``, ``{found}`` and ``{known}`` in it; not needed where
        any version will do.
    """

    noun: str
    invalid: str
    outdated: str = ""

    def refused(self, path: Path, problem: str) -> DataError:
        """Return the error of a file that holds something else."""
        return DataError(self.invalid.format(file=repr(str(path)), problem=problem))


_RESULT = Wording(
    noun="result",
    invalid="{file} is no result of oamip prune --json, nor a front of oamip score --path: {problem}.",
    outdated="{file} has the schema version {found}; this version of oamip reads {known}. Make the result again, or "
    "use the oamip that wrote it.",
)


def read_result(path: Path) -> Result:
    """Return the result that ``oamip prune --json`` has written.

    Raises
    ------
    DataError
        If the file is missing, is no JSON, holds another schema version, or is not such a result.

    Examples
    --------
    >>> from pathlib import Path
    >>> import oamip_onnx
    >>> from oamip_onnx.report import read_result
    >>> result = oamip_onnx.prune("model.onnx", "calibration.npz", importance="magnitude", bench=False)
    >>> written = Path("result.json").write_text(result.report.model_dump_json())
    >>> read_result(Path("result.json")) == result.report
    True
    """
    found = read_report(path)
    if not isinstance(found, Result):
        raise DataError(
            f"{str(path)!r} holds a front of oamip score --path; the first file of a report must be the result of "
            "oamip prune --json."
        )
    return found


def read_report(path: Path) -> "Result | FrontReport":
    """Return the result of ``oamip prune --json``, or the front of ``oamip score --path``.

    Raises
    ------
    DataError
        If the file is missing, is no JSON, holds another schema version, or is neither.
    """
    from oamip_onnx.report.scores import FrontReport  # noqa: PLC0415 - scores are read back by functions of this module

    data = load_report(path, _RESULT)
    if "points" in data:
        return validated(FrontReport, data, path, _RESULT)
    return validated(Result, data, path, _RESULT)


def load_json(path: Path, wording: Wording) -> object:
    """Return the JSON in a file.

    Raises
    ------
    DataError
        If the file is missing or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"The {wording.noun} {str(path)!r} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise wording.refused(path, "it is no JSON") from error


def load_report(path: Path, wording: Wording) -> dict[str, object]:
    """Return the JSON of a report of this schema version.

    Raises
    ------
    DataError
        If the file is missing, is no JSON, or holds no or another schema version.
    """
    data = load_json(path, wording)
    found = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(data, dict) or found is None:
        raise wording.refused(path, "it has no schema version")
    if found != SCHEMA_VERSION:
        raise DataError(wording.outdated.format(file=repr(str(path)), found=found, known=SCHEMA_VERSION))
    return data


def validated(kind: type[R], data: dict[str, object], path: Path, wording: Wording) -> R:
    """Return the record that the JSON of a file holds.

    Raises
    ------
    DataError
        If a field is missing, unknown or of another type; the message names the first.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise wording.refused(path, f"{where}: {first['msg']}") from error
