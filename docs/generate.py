"""Writes the generated files of the documentation; with --check, fails if one of them is out of date."""

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from oamip_onnx.channels.rules import Family, all_rules
from oamip_onnx.config import PruneConfig
from oamip_onnx.formulation import BUILDERS
from oamip_onnx.report import (
    BenchReport,
    DoctorReport,
    Explanation,
    ExportReport,
    FinetuneReport,
    FrontReport,
    ImportReport,
    Inspection,
    Result,
    RunReport,
    ScoreReport,
    SubnetworksReport,
    TransferReport,
)

FOLDER = Path(__file__).parent

sys.path.insert(0, str(FOLDER))

from diagram import architecture  # noqa: E402 - found through the path above
from parts import attribute_descriptions, fill  # noqa: E402 - as above

DIALECT = "https://json-schema.org/draft/2020-12/schema"

REPORTS: dict[str, tuple[type[BaseModel], str]] = {
    "result": (Result, "oamip prune --json"),
    "finetune": (FinetuneReport, "oamip finetune --json"),
    "transfer": (TransferReport, "oamip transfer --json"),
    "run": (RunReport, "oamip run --json"),
    "score": (ScoreReport, "oamip score --out"),
    "front": (FrontReport, "oamip score --path --out"),
    "subnetworks": (SubnetworksReport, "oamip score --subnetworks --out"),
    "bench": (BenchReport, "oamip bench --json"),
    "import": (ImportReport, "oamip import --json"),
    "export": (ExportReport, "oamip export --json"),
    "inspect": (Inspection, "oamip inspect --json"),
    "explain": (Explanation, "oamip explain --json"),
    "doctor": (DoctorReport, "oamip doctor --json"),
}
"""What each command writes as JSON, by the name of its schema, with the command."""

INTRODUCTION = """# Operators

What happens to channels at each operator, generated from the rule table. Every operator of the ONNX standard domain is
listed. One of another domain that is not has no rule: the channels that enter or leave it stay, with the reason
`unknown-operator`.

* **contraction**: the contracted axis of the data is joined with the weight's and ends; the output axis starts there.
* **broadcast**: axes are aligned and joined index by index.
* **movement**: the node is run on labels; cells go where their labels go.
* **reduction**: channels beside the reduced axes pass. Sums and norms over channels read zeros like a contraction.
  Under any other statistic whole rows go (heads, groups), and plain channels only with `--allow-inexact`.
* **pinned**: channels that enter or leave stay, for the reason given.

*Encodable* says whether the program in shift form can express the operator; the response form and the layer-wise form
need only that ONNX Runtime can run it.

| operator | opsets | family | encodable | why channels stay |
|---|---|---|---|---|
"""


class AsWritten(GenerateJsonSchema):
    """The schema of what is written: every field is there, and a number that is not finite is a string."""

    def field_is_required(self, field: Any, total: bool) -> bool:  # noqa: FBT001, ARG002
        """Return that a field is there, whether it has a default or not."""
        return True

    def float_schema(self, schema: Any) -> dict[str, Any]:
        """Return the schema of a number; the pattern holds for strings only."""
        return {**super().float_schema(schema), "type": ["number", "string"], "pattern": "^(-?Infinity|NaN)$"}


def operators_page() -> str:
    """Return the operator page as Markdown."""
    encodable = set(BUILDERS)
    lines = []
    for row in all_rules():
        opsets = f"{row.since}–{row.until}" if row.until else f"{row.since}+"
        name = f"{row.domain}.{row.op_type}" if row.domain else row.op_type
        can = "yes" if row.op_type in encodable and not row.domain else ""
        lines.append(f"| {name} | {opsets} | {row.family} | {can} | {row.reason} |")
    counts = ", ".join(f"{sum(r.family is f for r in all_rules())} {f}" for f in Family)
    return INTRODUCTION + "\n".join(lines) + f"\n\n{len(lines)} rules: {counts}.\n"


def config_schema() -> str:
    """Return the JSON schema of the settings, each with what the docstring says about it."""
    schema = PruneConfig.model_json_schema(mode="validation")
    _describe_fields(schema)
    for name, field in schema["properties"].items():
        if "description" not in field:
            sys.exit(f"The docstring of PruneConfig does not say what {name!r} is; add it to its attributes.")
    return _schema_text(schema, "Settings of oamip prune --config, as a TOML or JSON document")


def report_schema(name: str) -> str:
    """Return the JSON schema of what a command writes."""
    model, command = REPORTS[name]
    schema = model.model_json_schema(mode="serialization", schema_generator=AsWritten)
    for part in [schema, *schema.get("$defs", {}).values()]:
        _describe_fields(part)
    return _schema_text(schema, f"What {command} writes")


def generated() -> dict[Path, str]:
    """Return the text of every generated file by its path: whole files, and pages with parts that are generated."""
    schemas = {"config": config_schema()} | {name: report_schema(name) for name in REPORTS}
    written = {page: page.read_text(encoding="utf-8") for page in sorted(FOLDER.rglob("*.md"))}
    return {
        **{page: fill(text) for page, text in written.items() if "<!-- generated:" in text},
        FOLDER / "operators.md": operators_page(),
        FOLDER / "architecture.svg": architecture(),
        **{FOLDER / "schemas" / f"{name}.schema.json": text for name, text in schemas.items()},
    }


def _describe_fields(schema: dict[str, Any]) -> None:
    """Hand what a docstring says about attributes over to the fields of its schema."""
    schema["description"], described = attribute_descriptions(schema.get("description", ""))
    for name, field in schema.get("properties", {}).items():
        if name in described:
            field["description"] = described[name]


def _schema_text(schema: dict[str, Any], title: str) -> str:
    description, kept = schema["description"], schema.items()
    rest = {key: value for key, value in kept if key not in {"title", "description"}}
    ordered = {"$schema": DIALECT, "title": title, "description": description, **rest}
    return json.dumps(ordered, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write or check the files."""
    for path, text in generated().items():
        if "--check" not in sys.argv[1:]:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path} is out of date; run `make fix`.")


if __name__ == "__main__":
    main()
