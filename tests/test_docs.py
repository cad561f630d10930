"""The documentation says what the code does: commands, outputs, codes, links, the picture; and needs no network."""

import ast
import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import typer
from command import oamip

from oamip_onnx import PruneConfig
from oamip_onnx.channels import PinCode
from oamip_onnx.channels.remedies import Constraint
from oamip_onnx.cli import COMMANDS
from oamip_onnx.cli.app import app
from oamip_onnx.config import make_config
from oamip_onnx.pipeline import _stages

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", *sorted((ROOT / "examples").rglob("*.md"))]

# The commands on these pages are quick, and what they print does not differ between machines.
EXACT = ("commands/inspect.md", "commands/explain.md", "errors.md")


def titled(page: Path) -> str:
    return str(page.relative_to(ROOT))


def module(name: str) -> Any:
    """Return a script of the documentation as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def parts() -> Any:
    return module("parts")


@pytest.fixture(scope="module")
def commands() -> dict[str, Any]:
    for name in COMMANDS:
        importlib.import_module(f"oamip_onnx.cli.{name}")
    group: Any = typer.main.get_command(app)
    return {**group.commands, "": group}


def blocks(page: Path, kind: str) -> list[str]:
    """Return the fenced blocks of a kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def sessions(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the commands of a page's console blocks, each with what it printed."""
    for block in blocks(page, "console"):
        for one in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, printed = one.partition("\n")
            yield line, printed


def test_every_error_code_has_a_section(parts: Any) -> None:
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    rows = parts.errors()
    assert {"worker", "usage", "verification", "regression"} <= {row["code"] for row in rows}
    for row in rows:
        section = re.search(rf"^### {row['code']}\n(.*?)(?=^##)", text, flags=re.MULTILINE | re.DOTALL)
        assert section, f"errors.md has no section on {row['code']}"
        assert f"error[{row['code']}]: " in section[1], row["code"]
        assert "*What to do:*" in section[1], row["code"]
        assert f"| [`{row['code']}`](#{row['code']}) | {row['exit_code']} |" in text
        assert re.search(rf"^\| {row['exit_code']} \|", text, flags=re.MULTILINE)
    assert len(re.findall(r"^### ", text, flags=re.MULTILINE)) == len(rows)


def test_every_pin_code_and_constraint_has_a_row() -> None:
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    for code in [*PinCode, *Constraint]:
        assert f"\n| `{code}` | " in text


def test_every_command_has_a_page_with_its_options(commands: dict[str, Any]) -> None:
    for name in COMMANDS:
        text = (DOCS / "commands" / f"{name}.md").read_text(encoding="utf-8")
        assert "## Example" in text
        assert "## Pitfalls" in text
        for parameter in commands[name].params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert f"`{parameter.opts[0]}" in text, (name, parameter.opts)


def test_every_setting_has_a_row() -> None:
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    for name in PruneConfig.model_fields:
        assert f"\n| `{name}` | " in text


def test_the_example_of_a_configuration_is_one() -> None:
    found = [tomllib.loads(block) for block in blocks(DOCS / "configuration.md", "toml")]
    assert found
    for values in found:
        assert make_config(values).target == values["target"]


def test_a_part_of_an_unknown_name_is_refused(parts: Any) -> None:
    with pytest.raises(KeyError, match="weather"):
        parts.fill("<!-- generated: weather -->\n<!-- end -->")


@pytest.mark.parametrize("page", PAGES, ids=titled)
def test_commands_of_a_page_are_understood(page: Path, commands: dict[str, Any]) -> None:
    lines = [line for line, _ in sessions(page)]
    lines += [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    for line in lines:
        if not line.startswith("oamip ") or "…" in line:
            continue
        words = shlex.split(line.partition(" | ")[0], comments=True)
        at = next((number for number, word in enumerate(words) if word in COMMANDS), None)
        if at is not None:
            commands[words[at]].make_context(words[at], list(words[at + 1 :]))
        known = {option for parameter in commands[""].params for option in parameter.opts}
        assert {word for word in words[1:at] if word.startswith("-")} <= known, line


@pytest.mark.parametrize("page", PAGES, ids=titled)
def test_options_in_the_text_of_a_page_exist(page: Path, commands: dict[str, Any]) -> None:
    for code in re.findall(r"`(oamip [^`]+)`", prose(page)):
        words = code.split()
        name = next((word for word in words[1:] if word in COMMANDS), "")
        known = {option for key in {name, ""} for parameter in commands[key].params for option in parameter.opts}
        for word in words[1:]:
            option = re.match(r"--[\w-]+", word)
            assert option is None or option[0] in known | {"--help"}, code


@pytest.mark.parametrize("name", EXACT)
def test_commands_print_what_the_page_shows(name: str, fashion: Path, tmp_path: Path) -> None:
    for file in (*fashion.glob("*.onnx"), *fashion.glob("*.npz")):
        shutil.copy(file, tmp_path)
    found = list(sessions(DOCS / name))
    assert found
    for line, shown in found:
        words = shlex.split(line)
        ran = oamip(*words[1:], cwd=tmp_path)
        printed = [re.sub(r"\d+\.\d+\.\d+", "VERSION", said.rstrip()) for said in (ran.out + ran.err).splitlines()]
        assert printed == [re.sub(r"\d+\.\d+\.\d+", "VERSION", said) for said in shown.splitlines()], line
        assert (ran.code == 0) == (not shown.startswith("error["))


@pytest.mark.parametrize("page", PAGES, ids=titled)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = prose(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"<(https?://[^>]+)>", text):
        parsed = urlparse(target)
        if parsed.scheme:
            assert parsed.scheme == "https", target
            assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", parsed.netloc), target
        elif parsed.path:
            assert (page.parent / parsed.path).exists(), target


def test_pages_name_nothing_of_the_writers_machine() -> None:
    for page in [*PAGES, *sorted(DOCS.rglob("*.svg"))]:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"/(work|tmp|root|home)/", text), page


def test_the_picture_shows_the_imports() -> None:
    bands = module("diagram").BANDS
    band_of = {name: number for number, band in enumerate(bands) for name, _ in band}
    folder = ROOT / "oamip_onnx"
    files = [(path, path.relative_to(folder).parts[0].removesuffix(".py")) for path in folder.rglob("*.py")]
    files += [(path, "converters") for path in (ROOT / "converters").glob("*.py")]
    owners = {owner for _, owner in files} - {"__init__"}
    assert owners == set(band_of), "the picture of the architecture misses modules, or shows some that are gone"
    for path, owner in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("oamip_onnx.") and owner in owners:
                other = str(node.module).split(".")[1]
                assert other == owner or band_of[other] > band_of[owner], f"{owner} imports {other}"


def test_the_picture_shows_the_stages() -> None:
    assert tuple(_stages(PruneConfig())) == module("diagram").STAGES


def test_the_site_is_made_without_other_sites() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert re.search(r"^  font: false\b", site, flags=re.MULTILINE)
    assert not re.search(r"extra_javascript|extra_css|https?://", site)
    for page in DOCS.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        # The theme draws such blocks with a script of another site.
        assert "```mermaid" not in text
        assert not re.search(r"<(script|iframe|img|link)\b", text)


class Requests(HTMLParser):
    """Collects what a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        loads = tag == "link" and given.get("rel") not in {"canonical", "next", "prev"}
        if loads or tag in {"script", "img", "iframe", "source", "video", "object"}:
            self.found += [value for name in ("src", "href", "data", "srcset") if (value := given.get(name))]
        assert "mermaid" not in (given.get("class") or "").split()


def test_the_site_builds_and_asks_nothing_of_the_network(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        reader = Requests()
        reader.feed(page.read_text(encoding="utf-8"))
        assert reader.found
        for target in reader.found:
            assert not urlparse(target).netloc or target.startswith("data:"), (page.name, target)
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name
    assert not list(tmp_path.rglob("*.py"))
