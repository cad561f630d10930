"""Checks of the finished file: ONNX's checker, a load without warnings, unchanged inputs and outputs."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime

from oamip_onnx.errors import ModelError, VerificationError, first_line
from oamip_onnx.model import save_model
from oamip_onnx.runtime import RuntimeOptions, create_session


def check_result(pruned: onnx.ModelProto, original: onnx.ModelProto, options: RuntimeOptions) -> None:
    """Raise unless the pruned model is as valid as the original and has the same inputs and outputs.

    Raises
    ------
    VerificationError
        Naming the first finding that the original does not have.
    """
    for kind in ("input", "output"):
        if list(getattr(pruned.graph, kind)) != list(getattr(original.graph, kind)):
            raise VerificationError(f"The {kind}s of the pruned model differ from the original's; nothing was written.")
    with _saved(pruned) as path:
        finding = _checker_finding(path)
        warnings = load_warnings(path, options)
    if not finding and not warnings:
        return
    with _saved(original) as path:
        known = _checker_finding(path)
        known_warnings = load_warnings(path, options)
    _require_known(finding, known)
    new = [w for w in warnings if w not in known_warnings]
    if new and len(warnings) > len(known_warnings):
        raise VerificationError(f"ONNX Runtime warns about the pruned model: {new[0]} Nothing was written.")


def check_validity(pruned: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Raise unless ONNX's checker takes the pruned model, or has refused the original already.

    Raises
    ------
    VerificationError
        With the checker's finding.
    """
    with _saved(pruned) as path:
        finding = _checker_finding(path)
    if finding:
        with _saved(original) as path:
            _require_known(finding, _checker_finding(path))


@contextlib.contextmanager
def _saved(proto: onnx.ModelProto) -> Iterator[Path]:
    """Give a model's path in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="oamip-") as folder:
        path = Path(folder) / "model.onnx"
        save_model(proto, path)
        yield path


def _require_known(finding: str, known: str) -> None:
    if finding and not known:
        raise VerificationError(f"ONNX's checker refuses the pruned model: {finding} Nothing was written.")


def _checker_finding(path: Path) -> str:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return first_line(error)
    return ""


def load_warnings(path: Path, options: RuntimeOptions) -> list[str]:
    """Return what ONNX Runtime warns about while it loads a file, without times and colours.

    Raises
    ------
    ModelError
        If it does not load the file at all.
    """
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 2
    with captured_stderr() as lines:
        try:
            create_session(str(path), settings, options.provider_names())
        except Exception as error:  # ONNX Runtime raises a dozen unrelated classes here
            raise ModelError(f"ONNX Runtime does not accept the model: {first_line(error)}") from error
    cleaned = (re.sub(r"\x1b\[[0-9;]*m|^\S+ \S+ \[", "", line).strip() for line in lines)
    return [line for line in cleaned if line]


@contextlib.contextmanager
def captured_stderr() -> Iterator[list[str]]:
    """Collect what native code writes to standard error; the list is filled when the block ends."""
    lines: list[str] = []
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            lines.extend(file.read().decode(errors="replace").splitlines())
