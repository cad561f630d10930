"""The parts of pages that the code says: each stands between `<!-- generated: NAME -->` and `<!-- end -->`."""

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, TypedDict, Union, get_args, get_origin

import typer
from pydantic import BaseModel

from oamip_onnx.channels.remedies import CONSTRAINTS, REMEDIES, Remedy
from oamip_onnx.cli import COMMANDS
from oamip_onnx.cli.app import app
from oamip_onnx.config import PRESETS, PruneConfig
from oamip_onnx.errors import OamipError
from oamip_onnx.report import Result
from oamip_onnx.tasks import errors as _task_errors  # its classes join the tree of errors

assert _task_errors  # noqa: S101 - imported for that alone

MARKED = re.compile(r"<!-- generated: (?P<name>[^>]+?) -->\n.*?<!-- end -->", re.DOTALL)

_NUMBERS = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`", object: "any value"}


def fill(page: str) -> str:
    """Return a page with its marked parts written anew.

    Raises
    ------
    KeyError
        If a part has a name that is not known.
    """
    known = parts()

    def replaced(found: re.Match[str]) -> str:
        name = found["name"]
        return f"<!-- generated: {name} -->\n\n{known[name]()}\n\n<!-- end -->"

    return MARKED.sub(replaced, page)


def parts() -> Mapping[str, Callable[[], str]]:
    """Return what makes each part, by its name."""
    commands = {f"options of {name}": lambda name=name: options(name) for name in COMMANDS}
    return {
        **commands,
        "common options": common_options,
        "settings": settings,
        "preset paper": preset,
        "fields of a result": result_fields,
        "error codes": error_codes,
        "pin codes": lambda: _remedies(REMEDIES),
        "constraints": lambda: _remedies(CONSTRAINTS),
    }


def options(name: str) -> str:
    """Return the synopsis of a command, and what its arguments and options do."""
    for command in COMMANDS:
        importlib.import_module(f"oamip_onnx.cli.{command}")
    command: Any = typer.main.get_command(app)
    found = command.commands[name]
    arguments = [p for p in found.params if p.param_type_name == "argument"]
    # The help leaves some options out to stay short; a page has room for them.
    rest = [p for p in found.params if p.param_type_name == "option" and p.name != "help"]
    words = " ".join(_argument(p) for p in arguments)
    synopsis = f"```text\noamip {name} [OPTIONS]{f' {words}' if words else ''}\n```"
    return "\n\n".join(
        [
            synopsis,
            *(
                [_table(["argument", "meaning"], [[f"`{_argument(p)}`", p.help] for p in arguments])]
                if arguments
                else []
            ),
            _table(["option", "meaning"], [[_option(p), _meaning(p)] for p in rest]),
        ]
    )


def common_options() -> str:
    """Return the options that stand before the command."""
    command: Any = typer.main.get_command(app)
    return _table(["option", "meaning"], [[_option(p), _meaning(p)] for p in command.params if p.name != "help"])


def _argument(found: Any) -> str:
    return str(found.metavar or found.name.upper()).replace("...", "…")


def _option(found: Any) -> str:
    value = "" if found.is_flag else f" {found.metavar or 'N'}"
    return ", ".join(f"`{name}{value}`" for name in sorted(found.opts, key=len))


def _meaning(found: Any) -> str:
    said = [found.help if found.help.endswith("…") else found.help.rstrip(".") + "."]
    if found.envvar:
        said.append(f"Environment variable: `{found.envvar}`.")
    if not found.is_flag and found.default not in {None, ""}:
        said.append(
            f"Default: `{found.default:g}`." if isinstance(found.default, float) else f"Default: `{found.default}`."
        )
    if found.multiple:
        said.append("May be given more than once.")
    return " ".join(said)


def settings() -> str:
    """Return every setting with what it takes, its default and its meaning."""
    schema = PruneConfig.model_json_schema(mode="validation")["properties"]
    _, described = attribute_descriptions(PruneConfig.__doc__ or "")
    own = _options_of_prune()
    lines = []
    for name, field in schema.items():
        default = field.get("default")
        shown = "" if default in (None, [], {}, "") else f"`{_toml(default)}`"
        lines.append([f"`{name}`", own.get(name, ""), _accepts(field), shown, described[name]])
    return _table(["setting", "option", "takes", "default", "meaning"], lines)


def _options_of_prune() -> dict[str, str]:
    """Return the option of `oamip prune` for each setting that has one."""
    importlib.import_module("oamip_onnx.cli.prune")
    command: Any = typer.main.get_command(app)
    found = {p.name: f"`{p.opts[0]}`" for p in command.commands["prune"].params if p.param_type_name == "option"}
    return {name: option for name, option in {**found, "bench": found["no_bench"]}.items() if name != "scores"}


def _accepts(field: Mapping[str, Any]) -> str:
    """Return in words what a field of a JSON schema accepts."""
    if "anyOf" in field:
        return " or ".join(_accepts(one) for one in field["anyOf"] if one.get("type") != "null")
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    kind = field["type"]
    least, above = field.get("minimum"), field.get("exclusiveMinimum")
    limit = f" ≥ {least:g}" if least is not None else f" > {above:g}" if above is not None else ""
    plain = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true`, `false`"}
    return (
        f"{plain[kind]}{limit}"
        if kind in plain
        else {"array": "list of texts", "object": "list of sizes by input"}[kind]
    )


def preset() -> str:
    """Return what the paper's preset sets."""
    return _table(
        ["setting", "value"], [[f"`{name}`", f"`{_toml(value)}`"] for name, value in PRESETS["paper"].items()]
    )


def result_fields() -> str:
    """Return the fields of a result and of the records in it, each record under its own heading."""
    return "\n\n".join(_record(record, number) for number, record in enumerate(_records(Result)))


def _records(record: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield a record and those that it holds, each once, in the order of the fields."""
    waiting, seen = [record], [record]
    while waiting:
        current = waiting.pop(0)
        yield current
        for field in current.model_fields.values():
            for inner in _inner(field.annotation):
                if inner not in seen:
                    seen.append(inner)
                    waiting.append(inner)


def _inner(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _inner(argument)


def _record(record: type[BaseModel], number: int) -> str:
    summary, described = attribute_descriptions(record.__doc__ or "")
    missing = set(record.model_fields) - set(described)
    if missing:
        sys.exit(f"The docstring of {record.__name__} does not say what {min(missing)!r} is; add it to its attributes.")
    lines: dict[tuple[str, str], list[str]] = {}
    for name, field in record.model_fields.items():
        # Names that share their text stand in one row.
        lines.setdefault((_kind(field.annotation), described[name]), []).append(f"`{name}`")
    rows = [[", ".join(names), kind, text] for (kind, text), names in lines.items()]
    table = _table(["field", "type", "meaning"], rows)
    return table if not number else f"### {record.__name__}\n\n{_markdown(summary)}\n\n{table}"


def _kind(annotation: Any) -> str:
    """Return the type of a field in words, with a link to the record that it holds."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in {Union, UnionType}:
        return " or ".join(_kind(one) if one is not NoneType else "`null`" for one in arguments)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in {list, tuple}:
        return f"list of {_plural(_kind(arguments[0]))}"
    if origin is dict:
        return "object" if arguments[1] is object else f"object of {_plural(_kind(arguments[1]))}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return _NUMBERS[annotation]


def _plural(kind: str) -> str:
    if " or " in kind:
        return "numbers and texts"
    return {"text": "texts", "number": "numbers", "whole number": "whole numbers"}.get(kind, kind)


class _Row(TypedDict):
    """One error class."""

    code: str
    exit_code: int
    name: str
    meaning: str


def errors() -> list[_Row]:
    """Return every class of the tree of errors, those that end with the same exit code side by side."""
    found: list[_Row] = []
    waiting: list[type[OamipError]] = OamipError.__subclasses__()
    while waiting:
        one = waiting.pop(0)
        waiting += one.__subclasses__()
        meaning, _ = attribute_descriptions(one.__doc__ or "")
        found.append({"code": one.code, "exit_code": one.exit_code, "name": one.__name__, "meaning": meaning})
    return sorted(found, key=lambda row: row["exit_code"])


def error_codes() -> str:
    """Return every error code with its exit code and class."""
    lines = [[f"[`{r['code']}`](#{r['code']})", str(r["exit_code"]), f"`{r['name']}`", r["meaning"]] for r in errors()]
    return _table(["code", "exit code", "class in Python", "meaning"], lines)


def _remedies(table: Mapping[Any, Remedy]) -> str:
    lines = [[f"`{code}`", remedy.meaning, remedy.change] for code, remedy in table.items()]
    return _table(["code", "meaning", "what would help"], lines)


def attribute_descriptions(docstring: str) -> tuple[str, dict[str, str]]:
    """Return the summary and the attributes of a docstring in numpy's style; names before one text share it."""
    summary, _, section = inspect.cleandoc(docstring).partition("\nAttributes\n----------\n")
    found: dict[str, str] = {}
    for names, body in re.findall(r"^(\w[\w, ]*)\n((?:[ ]+.*\n?)+)", section, flags=re.MULTILINE):
        sentence = " ".join(line.strip() for line in body.splitlines()).strip()
        found.update(dict.fromkeys(re.split(r",\s*", names), sentence))
    return " ".join(summary.split()), found


def _toml(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else f"{value}"


def _markdown(text: str) -> str:
    return text.replace("``", "`")


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *([_markdown(cell).replace("|", "\\|") for cell in row] for row in body)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
