"""From a trained model of any framework to an ONNX model that can be pruned."""

import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from oamip_onnx.calibration import Samples, Source, load_samples
from oamip_onnx.channels import analyse
from oamip_onnx.converters.base import DEFAULT_OPSET, FrameworkModel, ImportOptions  # type: ignore[import-not-found,unused-ignore]
from oamip_onnx.converters.cleaning import clean  # type: ignore[import-not-found,unused-ignore]
from oamip_onnx.errors import ModelError, OutputError, UsageError, VerificationError
from oamip_onnx.importing.comparison import Comparison, compare, default_tolerance
from oamip_onnx.importing.inputs import InputDescription, describe_inputs, inputs_of_data
from oamip_onnx.importing.sources import Found, find_source, load_source, own_failures
from oamip_onnx.model import (
    bind_inputs,
    check_writable,
    file_digest,
    history_entry,
    infer_shapes,
    load_model,
    save_model,
    with_metadata,
)
from oamip_onnx.progress import Progress, StageClock
from oamip_onnx.report.importing import ImportReport, OutputRecord
from oamip_onnx.runtime import RuntimeOptions, Session
from oamip_onnx.runtime.session import TensorInfo
from oamip_onnx.verify import check_validity

_OLDEST_OPSET = 13

KEY = "oamip.import"


@dataclass(frozen=True)
class _Candidate:
    """A converted and cleaned model, with what can be pruned in it."""

    way: str
    model: onnx.ModelProto
    samples: Samples | None
    opset_before: int
    nodes_before: int
    groups: int
    channels: int
    notes: tuple[str, ...]

    def rank(self) -> tuple[int, int]:
        """Return what is least for the best: most channels that can go, then fewest nodes."""
        return -self.channels, len(self.model.graph.node)


def import_model(
    source: object,
    out: str | Path,
    *,
    converter: str | None = None,
    inputs: Mapping[str, InputDescription] | None = None,
    state: str | Path | None = None,
    data: Source | None = None,
    opset: int | None = None,
    fixed_batch: bool = False,
    tolerance: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ImportReport:
    """Write a trained model of a framework as an ONNX model that can be pruned.

    What ONNX Runtime computes is compared with what the framework computes; a model that differs is not written.

    Parameters
    ----------
    source
        A file or folder of the framework, ``file.py:factory`` whose function returns the model, or the model itself.
        A factory may return a pair: the model, and a dictionary of example inputs.
    out
        The file to write.
    converter
        The name of the converter; by default the first that reads the source.
    inputs
        What the inputs take, by name and in the order of the model's arguments: a shape, a text such as
        ``1,16:int64``, or an example array. Frameworks that know the inputs of their models need none; there, sizes
        that are free are fixed by it.
    state
        A file of weights to load into a model that came from code.
    data
        Samples to compare on (see `oamip_onnx.calibration.load_samples`); random ones by default.
    opset
        The opset of the result, from 13 on; by default that of the framework's exporter, at least 18.
    fixed_batch
        Whether the first dimension is fixed, at the size in `inputs` or at 1.
    tolerance
        How far an output may be from the framework's, in units of its largest value: 1e-4 by default, 5e-3 in float16.
    seed
        Seed of the random samples.
    progress
        Called with the stage and the share of it that is done.

    Returns
    -------
    ImportReport
        What was written, and how it compares.

    Raises
    ------
    OamipError
        One sentence that says what is wrong, where, and what to do; nothing is written.

    Examples
    --------
    >>> from oamip_onnx import import_model
    >>> report = import_model("model.onnx", "ready.onnx")
    >>> report.converter, report.opset_after
    ('onnx', 18)
    """
    target = Path(out)
    _check(source, target, opset, tolerance)
    described = describe_inputs(inputs or {})
    clock = StageClock(progress, ["load", "convert", "verify"])
    with clock.stage("load"):
        found = find_source(source, converter)
        options = ImportOptions(
            inputs=described,
            examples={**inputs_of_data(data), **describe_inputs(found.examples)},
            state=None if state is None else Path(state),
            opset=DEFAULT_OPSET if opset is None else opset,
            dynamic_batch=not fixed_batch,
        )
        model = load_source(found, options)
    with clock.stage("convert"):
        candidates, failures = _candidates(model, opset, data)
    with clock.stage("verify"):
        best, compared, passed_over = _verified(model, candidates, tolerance, seed)
        result = _with_story(best.model, found, model.framework, opset, fixed_batch=fixed_batch)
        check_validity(result, result)
        session = Session(result, RuntimeOptions())
    size_bytes = save_model(result, target)
    notes = [*model.notes, *best.notes, *_choice_notes(best, candidates, failures), *passed_over]
    return ImportReport(
        path=str(target),
        converter=found.converter.name,
        framework=model.framework,
        way=best.way,
        inputs=_ends(session.inputs),
        outputs=_ends(session.outputs),
        opset_before=best.opset_before,
        opset_after=_opset(result),
        nodes_before=best.nodes_before,
        nodes_after=len(result.graph.node),
        parameters=sum(math.prod(tensor.dims) for tensor in result.graph.initializer),
        size_bytes=size_bytes,
        groups=best.groups,
        prunable_channels=best.channels,
        differences=[
            OutputRecord(name=one.name, exact=one.exact, max_abs_error=one.absolute, max_rel_error=one.relative)
            for one in compared.outputs
        ],
        tolerance=compared.tolerance,
        samples=compared.samples,
        batch_sizes=compared.batches,
        notes=list(dict.fromkeys(notes)),
        seconds=dict(clock.seconds),
    )


def _check(source: object, target: Path, opset: int | None, tolerance: float | None) -> None:
    """Raise before the work starts if the import cannot succeed."""
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not _OLDEST_OPSET <= opset <= newest:
        raise UsageError(f"The opset {opset} is not between {_OLDEST_OPSET} and {newest}, which this onnx knows.")
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance > 0):
        raise UsageError(f"The tolerance cannot be {tolerance}; give a positive number such as 1e-4.")
    check_writable(target)
    if isinstance(source, str | Path) and Path(source).resolve() == target.resolve():
        raise OutputError(f"The result would overwrite {str(target)!r}, which is read; choose another name.")


def _candidates(model: FrameworkModel, opset: int | None, data: Source | None) -> tuple[list[_Candidate], list[str]]:
    """Convert by every way that the framework has; return what came out, the best first, and why the others failed.

    Raises
    ------
    ModelError
        If none came out.
    """
    found: list[_Candidate] = []
    failures: list[str] = []
    for way in model.ways:
        try:
            found.append(_converted(model, way, opset, data))
        except ModelError as error:
            failures.append(str(error))
    if not found:
        raise ModelError(failures[0])
    return sorted(found, key=_Candidate.rank), failures


def _converted(model: FrameworkModel, way: str, opset: int | None, data: Source | None) -> _Candidate:
    what = f"The {way} of {model.framework}" if way else model.framework
    with tempfile.TemporaryDirectory(prefix="oamip-") as folder:
        path = Path(folder) / "model.onnx"
        with own_failures(f"{what} cannot convert the model"):
            model.convert(path, way)
            written = onnx.load(path)
    opset_before, nodes_before = _opset(written), len(written.graph.node)
    cleaned = clean(written, opset, model.inputs)
    loaded = load_model(cleaned.model)
    samples = None if data is None else load_samples(data, loaded)
    feeds = model.sample_inputs(1, np.random.default_rng(0)) if samples is None else samples.one_run()
    groups = analyse(loaded, infer_shapes(loaded, bind_inputs(loaded, feeds), feeds)).groups
    return _Candidate(
        way=way,
        model=cleaned.model,
        samples=samples,
        opset_before=opset_before,
        nodes_before=nodes_before,
        groups=len(groups),
        channels=sum(group.width for group in groups),
        notes=(*cleaned.notes, *(() if samples is None else samples.notes)),
    )


def _verified(
    model: FrameworkModel, candidates: list[_Candidate], tolerance: float | None, seed: int
) -> tuple[_Candidate, Comparison, list[str]]:
    """Return the first candidate that computes what the framework computes, and why others before it were not taken.

    Raises
    ------
    VerificationError
        If none does; the sentence is on the best.
    """
    failures: list[VerificationError] = []
    for candidate in candidates:
        bound = default_tolerance(candidate.model) if tolerance is None else tolerance
        try:
            compared = compare(model, candidate.model, candidate.samples, bound, seed)
        except VerificationError as error:
            failures.append(error)
        else:
            return candidate, compared, [f"The graph of another exporter was not taken: {error}" for error in failures]
    raise failures[0]


def _choice_notes(best: _Candidate, candidates: list[_Candidate], failures: list[str]) -> list[str]:
    """Return why one exporter's graph was taken, where there were several."""
    others = [one for one in candidates if one is not best]
    notes = [f"Another exporter was tried: {failure}" for failure in failures]
    notes += [
        f"The graph of the {best.way} was taken: {best.channels} channels that can be pruned and "
        f"{len(best.model.graph.node)} nodes, against {one.channels} and {len(one.model.graph.node)} of the {one.way}."
        for one in others
    ]
    return notes


def _with_story(
    proto: onnx.ModelProto, found: Found, framework: str, opset: int | None, *, fixed_batch: bool
) -> onnx.ModelProto:
    """Return the model, which nobody else holds, with metadata that say where it came from."""
    told = ["--from", found.converter.name]
    told += [] if opset is None else ["--opset", str(opset)]
    told += ["--fixed-batch"] if fixed_batch else []
    digest = "" if found.path is None or not found.path.is_file() else file_digest(found.path)
    step = history_entry(proto, "import", told, digest)
    entries = with_metadata(proto.metadata_props, {KEY: f"{found.converter.name}: {framework}", **step})
    del proto.metadata_props[:]
    proto.metadata_props.extend(entries)
    return proto


def _opset(proto: onnx.ModelProto) -> int:
    return next((one.version for one in proto.opset_import if one.domain in {"", "ai.onnx"}), 0)


def _ends(values: Iterable[TensorInfo]) -> dict[str, list[int | str]]:
    return {value.name: ["?" if size is None else size for size in value.shape] for value in values}
