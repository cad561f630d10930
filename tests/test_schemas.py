"""JSON schemas, the page of environment variables, and shell completion: they say what the code does."""

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import FAST, oamip

from oamip_onnx.config import PruneConfig
from oamip_onnx.report import Result
from oamip_onnx.tasks import default_cache

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "generate.py"))


def schema(name: str) -> dict[str, Any]:
    return json.loads((DOCS / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8"))


def keys_fit(value: dict[str, Any], described: dict[str, Any]) -> None:
    """Assert that an object has exactly the keys that the schema requires, and no other is known."""
    assert set(value) == set(described["required"]) == set(described["properties"])


def test_generated_files_are_current(generator: dict[str, Any]) -> None:
    expected = generator["generated"]()
    assert {path.name for path in (DOCS / "schemas").iterdir()} == {p.name for p in expected if p.suffix == ".json"}
    for path, text in expected.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is out of date; run python docs/generate.py"


def test_check_fails_on_an_old_file(generator: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = generator["main"]
    monkeypatch.setitem(main.__globals__, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    main()
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    main()
    (tmp_path / "schemas" / "config.schema.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"config\.schema\.json is out of date"):
        main()


def test_every_schema_says_what_it_is(generator: dict[str, Any]) -> None:
    for name in ["config", *generator["REPORTS"]]:
        found = schema(name)
        assert found["$schema"].startswith("https://json-schema.org/")
        assert found["title"]
        assert found["description"]
        assert found["additionalProperties"] is False


def test_every_setting_is_described() -> None:
    properties = schema("config")["properties"]
    assert set(properties) == set(PruneConfig.model_fields)
    for name, field in properties.items():
        assert len(field["description"]) > 10, name
    assert properties["exchanges"]["description"].startswith("Rounds of the response form")
    assert "default" in properties["target"]


def test_a_run_fits_its_schema(work: Path) -> None:
    ran = oamip("prune", "model.onnx", "out.onnx", "--data", "data.npz", "--json", "r.json", *FAST, cwd=work)
    assert ran.code == 0, ran.err
    text = (work / "r.json").read_text()
    Result.model_validate_json(text)
    result, described = json.loads(text), schema("result")
    keys_fit(result, described)
    for name in ("original", "pruned", "verification", "drift"):
        reference = described["properties"][name]["$ref"].rpartition("/")[2]
        keys_fit(result[name], described["$defs"][reference])
    for group in result["groups"]:
        keys_fit(group, described["$defs"]["GroupRecord"])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("inspect", ["inspect", "model.onnx"]),
        ("explain", ["explain", "model.onnx", "Conv_0[1]"]),
        ("doctor", ["doctor", "--no-measure"]),
        ("score", ["score", "model.onnx", "--data", "data.npz", "--importance", "magnitude"]),
        ("bench", ["bench", "model.onnx", "--seconds", "0.1", "--runs", "5", "--threads", "1"]),
    ],
)
def test_what_a_command_writes_has_the_keys_of_its_schema(work: Path, name: str, arguments: list[str]) -> None:
    ran = oamip(*arguments, "--json", "-", cwd=work)
    assert ran.code == 0, ran.err
    keys_fit(json.loads(ran.out), schema(name))


def test_numbers_that_are_not_finite_are_strings() -> None:
    field = schema("result")["$defs"]["DriftRecord"]["properties"]["sqnr_db"]
    assert field["type"] == ["number", "string"]
    assert re.search(field["pattern"], "Infinity")


def test_page_names_every_environment_variable() -> None:
    page = (DOCS / "environment.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(_?[A-Z][A-Z0-9_]+)`", page))
    found: dict[str, str] = {}
    for path in (ROOT / "oamip_onnx").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "os.environ" in text or "os.getenv" in text or "envvar=" in text:
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Constant) and re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+", str(node.value)):
                    found[node.value] = path.name
    assert {"OAMIP_CACHE_DIR", "XDG_CACHE_HOME", "OMP_NUM_THREADS"} <= set(found)
    assert set(found) <= named, {name: where for name, where in found.items() if name not in named}


def test_colour_and_log_format_come_from_the_environment(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" not in oamip("inspect", "model.onnx", cwd=work).out
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[1m" in oamip("inspect", "model.onnx", cwd=work).out
    monkeypatch.delenv("FORCE_COLOR")
    monkeypatch.setenv("OAMIP_LOG_FORMAT", "json")
    told = json.loads(oamip("inspect", "none.onnx", cwd=work).err)
    assert (told["event"], told["code"]) == ("error", "model")


def test_cache_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OAMIP_CACHE_DIR", str(tmp_path / "own"))
    assert default_cache() == tmp_path / "own"
    monkeypatch.delenv("OAMIP_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "oamip_onnx"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "oamip_onnx"


def test_shell_completion_offers_the_commands() -> None:
    command = Path(sys.executable).with_name("oamip")
    asked = {"_OAMIP_COMPLETE": "complete_bash", "COMP_WORDS": "oamip ", "COMP_CWORD": "1"}
    ran = subprocess.run([command], env=os.environ | asked, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert {"prune", "inspect", "score", "bench", "explain", "doctor"} <= set(ran.stdout.split())
