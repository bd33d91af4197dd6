"""What people expect of a project that lives is there, is well formed, and names what exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter import __version__

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"


def read(path: Path) -> Any:
    """Return a YAML document."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_contributing_names_functions_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z_/]+\.py):(\w+)`", text)
    assert len(named) > 15
    missing = [
        f"{path}:{name}"
        for path, name in named
        if not re.search(rf"^(?:def|class) {name}\b", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert missing == []
    folders = set(re.findall(r"`((?:exporter|targets|calibration|tests|scripts|docs)/[\w/.]*)`", text))
    assert [path for path in sorted(folders) if not (ROOT / path).exists()] == []


def test_contributing_shows_every_room() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = [path.parent.name for path in (ROOT / "exporter").glob("*/__init__.py")]
    assert [room for room in sorted(rooms) if f" {room}/" not in text] == []


@pytest.mark.parametrize("form", ["bug", "accuracy", "wish"])
def test_issue_forms_ask_for_version_recipe_and_log(form: str) -> None:
    body = read(GITHUB / "ISSUE_TEMPLATE" / f"{form}.yml")["body"]
    assert "edge-export --version" in str(body)
    assert {"version", "recipe"} <= {field["id"] for field in body}
    assert "log" in str(body)


def test_workflows_run_what_is_run_by_hand() -> None:
    ci, nightly = (read(GITHUB / "workflows" / f"{name}.yml") for name in ("ci", "nightly"))
    commands = [
        step["run"]
        for flow in (ci, nightly)
        for job in flow["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    assert commands == [
        "bash .ci/run",
        "scripts/delivery_tools",
        "scripts/test --all",
        "scripts/check_wheel --converters",
    ]
    for command in commands:
        program = next(word for word in command.split() if "/" in word)
        assert (ROOT / program).is_file()


def test_pre_commit_runs_the_programs_of_the_development_environment() -> None:
    hooks = [hook for source in read(ROOT / ".pre-commit-config.yaml")["repos"] for hook in source["hooks"]]
    assert [hook["id"] for hook in hooks] == ["ruff-format", "ruff-check", "mypy", "layers", "house"]
    assert all(hook["entry"].startswith(".venvs/dev/bin/") for hook in hooks)


def test_the_citation_and_the_project_speak_of_the_same_release() -> None:
    citation = read(ROOT / "CITATION.cff")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (__version__, project["license"])
    assert citation["repository-code"] == project["urls"]["Homepage"]
    assert citation["abstract"] == project["description"]
