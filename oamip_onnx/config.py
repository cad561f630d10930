"""What a user may set, validated; TOML in and out."""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from oamip_onnx.channels import Heads
from oamip_onnx.choices import (
    PAPER_LOSS_WEIGHT,
    SIZES,
    Decoupling,
    Deployment,
    Form,
    Head,
    Importance,
    Preset,
    RepairName,
    Widths,
)
from oamip_onnx.errors import UsageError, closest
from oamip_onnx.model import write_text


class PruneConfig(BaseModel):
    """Settings of `prune`; every option of the command line that shapes the result.

    Attributes
    ----------
    target
        What to shrink to: ``ratio=0.5`` removes half of the units of every group; ``macs=0.5``, ``params=0.5``,
        ``latency=0.5`` and ``size=0.5`` leave at most half of the costs, ``macs=250M``, ``params=1.5M``,
        ``latency=8ms`` and ``size=4MB`` at most so much, and several of these behind commas must all hold;
        ``max-drop=0.01`` goes as far as the metric drops by no more; ``threshold=0.2`` keeps what OAMIP scores above
        0.2.
    importance
        How units are ranked; ``auto`` takes the reconstruction where the repair refits weights, and OAMIP elsewhere.
    preset
        ``paper`` sets what the other settings leave open to the authors' program.
    form
        For ``oamip``, the form of the program; ``auto`` chooses by size and measured quality.
    rounds
        Rounds of the response form.
    exchanges
        Rounds of the response form's exchanges, at most; 0 for none.
    by_class
        Decoupling by class: one program a class, a unit's score being the ``mean`` or the ``max`` of those.
    head
        Auxiliary network of the layer-wise form: ``linear``, ``hidden`` or the paper's ``pooled`` one.
    loss_weight
        λ of the joint forms, and wherever a threshold stands in for planned widths.
    reweightings
        Further solves of the joint forms, with weights 1/(s + ε).
    anchor
        Joint forms: bound on how far their logits may move; free by default.
    binary_scores
        Joint forms: whether the last hidden group's scores must be 0 or 1.
    tighten_seconds
        Seconds for tightening the gate form's bounds.
    certificates
        Whether groups of up to 64 units get a quadratic certificate.
    lossless
        Remove only what is proven to change nothing while inputs stay in `input_range`.
    input_range
        Range of every input (``0,1``), or of one (``name=0,1``), for `lossless`.
    lossless_seconds
        Wall-clock seconds for the proofs of `lossless`.
    solver
        Engine by name: ``scip``, or any that cvxpy finds; chosen by the program by default.
    solver_nodes
        Most nodes of SCIP's search in one program.
    solver_seconds
        Most seconds of SCIP's search in one program.
    widths
        How widths are found for limits of costs: ``uniform``, the same share of every group; ``program``, with the
        least damage by a mathematical program; ``auto`` takes what loses less after the repair.
    metric
        ``file.py:function``, the figure that ``max-drop`` is about: the function gets the outputs by name over all
        samples and the labels or None, and returns a number, the larger the better. By default top-1 agreement with
        the original.
    repair
        How the layers behind make up for what went: ``least-squares`` refits weights and biases, ``bias`` shifts
        biases, ``batch-norm`` takes the statistics of batch norms anew, ``none`` leaves all as it is.
    memory_limit
        Bytes that the rows of one refit may take, as many again for the original's responses, and the moments that are
        kept between uses; also as text with a unit, such as ``512MiB``.
    round_to
        Widths are rounded to multiples of this; 1 leaves them free, and ``auto`` takes the multiple that pays where
        the model is deployed. By default 8, or ``auto`` with a `deployment`.
    deployment
        Where the model will run, for ``round_to=auto``: ``here``, on the provider, the CPU being timed; or
        ``cpu-avx2``, ``cpu-avx512``, ``arm``, ``openvino``, ``cuda`` or ``tensorrt``, by the blocks of their kernels.
    min_width, max_ratio
        By glob, or regular expression behind ``re:``, on nodes and tensors: the fewest units of a group that must
        stay, and the largest share of them that may go.
    samples
        Use at most this many calibration samples.
    images
        Samples that enter a program; by default 10 in the joint forms and 200 elsewhere.
    ignore
        Nodes and tensors whose channels stay: globs, or regular expressions behind ``re:``, on their names.
    only
        Nodes and tensors whose channels may go, in the same form; all by default.
    allow_inexact
        Whether channels under a normalisation over them may go; the narrower model normalises over those it keeps.
    heads
        Whether attention loses ``whole`` heads or a ``dimension`` of every head.
    provider
        ONNX Runtime's execution provider by its short name, such as ``cpu`` or ``cuda``.
    threads
        Threads of ONNX Runtime; 0 for its own choice.
    seed
        Seed of every draw.
    bench
        Whether latency is measured.
    input_shapes
        Shapes of inputs whose dimensions the model leaves open and no data bind.
    workers
        Processes that solve programs; 0 for one a core.
    scheduler
        Address of a Dask scheduler that solves them instead, such as ``tcp://host:8786``.
    cache
        Whether solved programs are kept, so that an interrupted run goes on where it was.

    Examples
    --------
    >>> from oamip_onnx import PruneConfig
    >>> PruneConfig(target="macs=0.5").round_to
    8
    >>> PruneConfig(preset="paper").target
    'threshold=auto'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str = "ratio=0.5"
    importance: Importance = "auto"
    preset: Preset = "default"
    form: Form = "auto"
    rounds: int = Field(default=4, ge=1)
    exchanges: int = Field(default=6, ge=0)
    by_class: Decoupling = "none"
    head: Head = "linear"
    loss_weight: float = Field(default=PAPER_LOSS_WEIGHT, gt=0)
    reweightings: int = Field(default=0, ge=0)
    anchor: float | None = Field(default=None, gt=0)
    binary_scores: bool = False
    tighten_seconds: float = Field(default=0.0, ge=0)
    certificates: bool = False
    lossless: bool = False
    input_range: tuple[str, ...] = ()
    lossless_seconds: float = Field(default=60.0, ge=0)
    solver: str | None = None
    solver_nodes: int = Field(default=10_000, ge=1)
    solver_seconds: float = Field(default=300.0, gt=0)
    widths: Widths = "auto"
    metric: str | None = None
    repair: RepairName = "least-squares"
    memory_limit: int = Field(default=1 << 30, ge=1)
    round_to: int | Literal["auto"] = 8
    deployment: Deployment = "here"
    min_width: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    max_ratio: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    samples: int | None = Field(default=None, ge=1)
    images: int | None = Field(default=None, ge=1)
    ignore: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    allow_inexact: bool = False
    heads: Heads = "whole"
    provider: str = "cpu"
    threads: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)
    bench: bool = True
    input_shapes: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    workers: int = Field(default=0, ge=0)
    scheduler: str | None = None
    cache: bool = True

    @field_validator("round_to", mode="before")
    @classmethod
    def _multiple(cls, value: object) -> object:
        """Return the multiple of widths, which the command line gives as text."""
        if value == "auto":
            return value
        multiple = int(value) if isinstance(value, str) and value.isdecimal() else value
        if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
            raise ValueError("it must be a whole number from 1 on, or auto")
        return multiple

    @field_validator("memory_limit", mode="before")
    @classmethod
    def _bytes(cls, value: object) -> object:
        """Return the bytes of a size such as ``512MiB``."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", value) if isinstance(value, str) else None
        if found is None:
            return value
        unit = found[2] or "B"
        if unit not in SIZES:
            raise ValueError(f"its unit must be one of {', '.join(SIZES)}")
        return int(float(found[1]) * SIZES[unit])

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, values: Any) -> Any:
        """Set what the preset and the deployment set and the caller does not."""
        if not isinstance(values, dict):
            return values
        aligned = {"round_to": "auto"} if values.get("deployment", "here") != "here" else {}
        return {**_preset_values(values.get("preset")), **aligned, **values}


# What a preset sets where the user does not.
PRESETS: dict[str, dict[str, object]] = {
    "default": {},
    "paper": {
        "target": "threshold=auto",
        "importance": "oamip",
        "form": "shift",
        "images": 10,
        "loss_weight": PAPER_LOSS_WEIGHT,
        "head": "pooled",
        "round_to": 1,
    },
}


def _preset_values(preset: object) -> Mapping[str, object]:
    return PRESETS[preset] if isinstance(preset, str) and preset in PRESETS else {}


def make_config(*layers: Mapping[str, Any]) -> PruneConfig:
    """Return the configuration of several layers of settings, later ones first in rank.

    Raises
    ------
    UsageError
        On an unknown name, with the closest known one, or a value that is not allowed.

    Examples
    --------
    >>> from oamip_onnx.config import make_config
    >>> config = make_config({"target": "ratio=0.5", "seed": 1}, {"target": "macs=0.7"})
    >>> config.target, config.seed
    ('macs=0.7', 1)
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        # A preset ranks as the layer that names it: over earlier layers, under the settings beside it.
        merged.update(_preset_values(layer.get("preset")))
        for key, value in layer.items():
            name = key.replace("-", "_")
            if name not in PruneConfig.model_fields:
                raise UsageError(f"There is no setting {key!r}{closest(name, PruneConfig.model_fields)}.")
            merged[name] = value
    try:
        return PruneConfig(**merged)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"The setting {name!r} does not take {first['input']!r}: {reason}.") from error


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings of a TOML file.

    Raises
    ------
    UsageError
        If the file is missing or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"The configuration {str(path)!r} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The configuration {str(path)!r} is no TOML: {error}.") from error


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Return settings written as ``name=value``; a value is TOML, or text where it is none.

    Raises
    ------
    UsageError
        If a text has no equals sign.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise UsageError(f"The setting {text!r} has no value; write for example form=layerwise.")
        try:
            settings[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[name.strip()] = value.strip()
    return settings


def command_options(config: PruneConfig) -> list[str]:
    """Return the settings as options of ``oamip prune``: those that differ from the defaults of their preset."""
    usual = PruneConfig(preset=config.preset)
    words: list[str] = []
    for name, value in config.model_dump(mode="json").items():
        if value is None or (value == usual.model_dump(mode="json")[name] and (name, value) != ("preset", "paper")):
            continue
        option = "--" + name.replace("_", "-")
        if name == "bench":
            words.append("--no-bench")
        elif name not in _OPTIONS:
            words += ["--set", f"{name}={value if isinstance(value, str) else _toml(value)}"]
        elif isinstance(value, bool):
            words.append(option)
        else:
            for one in value if isinstance(value, list) else [value]:
                words += [option, str(one)]
    return words


def shaping_options(config: PruneConfig) -> list[str]:
    """Return the settings that shape the result, as `command_options` does."""
    usual = {name: PruneConfig.model_fields[name].default for name in ("bench", "cache", "scheduler", "workers")}
    return command_options(config.model_copy(update=usual))


# Settings that `oamip prune` has an option of its own for.
_OPTIONS = frozenset(
    "target importance preset lossless input_range metric memory_limit repair round_to ignore allow_inexact "
    "provider".split()
)


def save_config(config: PruneConfig, path: Path) -> None:
    """Write the settings as TOML, so that `--config` reads them back.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    lines = [f"{name} = {_toml(value)}" for name, value in config.model_dump().items() if value is not None]
    write_text("\n".join(lines) + "\n", path)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        # TOML's basic strings escape as JSON's do.
        return json.dumps(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, dict):
        inside = ", ".join(f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    raise TypeError(f"A {type(value).__name__} has no form in TOML.")
