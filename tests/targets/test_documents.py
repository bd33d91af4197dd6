"""How texts are rendered: templates and facts that fit each other, and failures that name the template."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from jinja2 import DictLoader, meta

from exporter.errors import InternalError
from targets import documents
from targets.android import kotlin
from targets.ios import swift, swift_models, swiftpm
from targets.raspberry_pi import target as raspberry_pi

TEMPLATES = {
    documents.Readme: ["bundle_readme.md"],
    kotlin.TypedClass: [
        f"android/{name}.kt" for name in ("OnnxModel", "LiteRtModel", "GoldenTest", "PicturesTest")
    ],
    kotlin.Gradle: ["android/build.gradle.kts"],
    kotlin.Usage: ["android/usage.md"],
    swift.Shared: ["ios/Contract.swift", "ios/Golden.swift"],
    swift.Preparation: ["ios/Preprocessing.swift", "ios/Mistakes.swift"],
    swift.GoldenTests: ["ios/GoldenTests.swift"],
    swift.Usage: ["ios/usage.md"],
    swift_models.ModelFile: ["ios/CoreMLModel.swift", "ios/OnnxModel.swift"],
    swiftpm.Manifest: ["ios/Package.swift"],
    swiftpm.Readme: ["ios/README.md"],
    raspberry_pi.Usage: ["raspberry_pi/usage.md"],
}
NO_TEMPLATES = {".java", ".zip", ".py"}


@dataclass(frozen=True)
class Facts:
    name: str | None = "%%{name} <% name %> {{ name }} $name \\(name)"
    labels: tuple[str, ...] = ("a", "b")


def parts(template: str) -> Iterator[str]:
    """Yield a template and everything that it includes."""
    environment = documents.environment()
    yield template
    tree = environment.parse((documents.TEMPLATES / template).read_text(encoding="utf-8"))
    for other in meta.find_referenced_templates(tree):
        assert other is not None, "the name of a part is no value"
        yield from parts(other)


def reads(template: str) -> set[str]:
    """Return what a template with its parts takes from its facts."""
    environment = documents.environment()
    texts = [(documents.TEMPLATES / part).read_text(encoding="utf-8") for part in set(parts(template))]
    read = {name for text in texts for name in meta.find_undeclared_variables(environment.parse(text))}
    return read - set(environment.globals)


@pytest.fixture
def templates(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Stand templates of a test in place of the package's, by their names."""
    made: dict[str, str] = {}
    monkeypatch.setattr(documents.environment(), "loader", DictLoader(made))
    return made


@pytest.mark.parametrize("facts", TEMPLATES, ids=lambda facts: f"{facts.__module__}.{facts.__name__}")
def test_templates_read_the_facts_that_they_are_given_and_all_of_them(facts: type) -> None:
    assert set().union(*map(reads, TEMPLATES[facts])) == {field.name for field in dataclasses.fields(facts)}


def test_every_template_is_rendered_or_is_a_part_of_one_that_is() -> None:
    files = {
        path.relative_to(documents.TEMPLATES).as_posix()
        for path in documents.TEMPLATES.rglob("*")
        if path.is_file() and path.suffix not in NO_TEMPLATES
    }
    rendered = {template for group in TEMPLATES.values() for template in group}
    used = {part for template in rendered for part in parts(template)}

    assert files == used
    assert {name for name in files if name.rpartition("/")[2].startswith("_")} == used - rendered


def test_values_are_written_as_they_are_and_statements_leave_no_line(templates: dict[str, str]) -> None:
    templates["x.kt"] = (
        "%%{name}\n    <%# why %>\n    <% for label in labels %>\n"
        '    %%{label}%%{"" if loop.last else ","}\n    <% endfor %>\n}\n'
    )

    assert documents.render("x.kt", Facts()) == f"{Facts().name}\n    a,\n    b\n}}\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("%%{nmae}", "'nmae' is undefined"),
        ("%%{labels[2]}", "has no element 2"),
        ("%%{labels.first}", "has no attribute 'first'"),
        ("<% if name %>", "Unexpected end of template"),
        ("%%{name|swfit_string}", "No filter named 'swfit_string'"),
        ('<% include "y.kt" %>', "y.kt"),
        ("%%{name}", "None"),
    ],
)
def test_a_template_that_cannot_be_filled_in_is_named(templates: dict[str, str], text: str, why: str) -> None:
    templates["x.kt"] = text

    with pytest.raises(InternalError, match=f"template x.kt cannot be filled in: .*{why}"):
        documents.render("x.kt", Facts(name=None))
