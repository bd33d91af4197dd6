"""The index of wheels: its pages, and what pip itself makes of them in a folder and over HTTP."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pip_ground import make_venv, pip, publish, serving, with_manifest, write_index

from exporter.errors import IntegrityError
from targets.packaging.base import Ecosystem, Package, Published
from targets.raspberry_pi.pip_index import view
from targets.raspberry_pi.wheel import pep440, project_name


def published(name: str = "tiny", version: str = "1.0.0", digest: str = "a") -> Published:
    """Return a wheel as a registry describes it; the bytes exist nowhere."""
    project, number = project_name(name), pep440(version)
    path = f"simple/{project}/{project.replace('-', '_')}-{number}-py3-none-any.whl"
    package = Package(
        Ecosystem.PIP,
        project,
        number,
        (),
        (f"{path}.metadata", path),
        MappingProxyType({"project": project, "model": name, "requires_python": ">=3.11"}),
    )
    return Published(
        package, {path: digest * 64, f"{path}.metadata": "f" * 64}, {path: 5, f"{path}.metadata": 2}
    )


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found.append(dict(attrs))


def links(page: bytes) -> list[dict[str, str | None]]:
    parser = _Links()
    parser.feed(page.decode())
    return parser.found


def test_one_page_for_all_and_one_for_each_project() -> None:
    pages = view([published("b"), published("a.c", "2.0.0-rc.1+x.1", "c"), published("b", "1.1.0", "d")])

    assert sorted(pages) == ["simple/a-c-edge/index.html", "simple/b-edge/index.html", "simple/index.html"]
    assert [link["href"] for link in links(pages["simple/index.html"])] == ["a-c-edge/", "b-edge/"]
    assert links(pages["simple/a-c-edge/index.html"]) == [
        {
            "href": f"a_c_edge-2.0.0rc1%2Bx.1-py3-none-any.whl#sha256={'c' * 64}",
            "data-requires-python": ">=3.11",
            "data-core-metadata": f"sha256={'f' * 64}",
        }
    ]
    assert [link["href"] for link in links(pages["simple/b-edge/index.html"])] == [
        f"b_edge-1.0.0-py3-none-any.whl#sha256={'a' * 64}",
        f"b_edge-1.1.0-py3-none-any.whl#sha256={'d' * 64}",
    ]


def test_an_empty_index_is_an_index() -> None:
    assert [sorted(view([])), links(view([])["simple/index.html"])] == [["simple/index.html"], []]


@given(st.permutations([published(name, f"1.{minor}.0") for name in ("a", "b", "c") for minor in range(3)]))
def test_the_order_of_publishing_leaves_no_trace(items: list[Published]) -> None:
    assert view(items) == view(sorted(items, key=lambda item: item.package.files))


def test_two_models_that_pip_cannot_tell_apart_are_refused() -> None:
    with pytest.raises(IntegrityError, match=r"the models a-b and a\.b are both a-b-edge to pip"):
        view([published("a.b"), published("a-b", "2.0.0")])


def test_a_page_cannot_be_broken_out_of() -> None:
    item = published()
    facts = MappingProxyType({**item.package.facts, "requires_python": '">&<script>'})
    item = dataclasses.replace(item, package=dataclasses.replace(item.package, facts=facts))
    page = view([item])["simple/tiny-edge/index.html"]
    assert b"<script>" not in page
    assert links(page)[0]["data-requires-python"] == '">&<script>'


# --- pip -------------------------------------------------------------------------------------------------


@pytest.fixture
def registry(pi_bundle: Path, tmp_path: Path) -> Path:
    """A registry in a folder, with one wheel."""
    publish(with_manifest(pi_bundle), tmp_path / "registry")
    return tmp_path / "registry"


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A fresh environment with what the wheel needs."""
    return make_venv(tmp_path / "venv", "numpy", "pillow")


@pytest.fixture(params=["path", "http"])
def index(request: pytest.FixtureRequest, registry: Path) -> Iterator[str]:
    """The index of the registry as a folder and over loopback; as a file:// URL it is used below."""
    if request.param == "http":
        with serving(registry) as (url, _):
            yield f"{url}/simple/"
    else:
        yield f"{registry}/simple/"


def test_pip_installs_from_it_and_refuses_a_flipped_byte(index: str, registry: Path, python: Path) -> None:
    assert "Successfully installed tiny-edge-1.0.0" in pip(
        python, "install", "--index-url", index, "tiny-edge"
    )
    pip(python, "uninstall", "--yes", "tiny-edge")
    (wheel,) = registry.rglob("*.whl")
    content = bytearray(wheel.read_bytes())
    content[len(content) // 2] ^= 1
    wheel.write_bytes(content)

    said = pip(python, "install", "--index-url", index, "tiny-edge", status=1)

    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in said
    assert "tiny-edge" not in pip(python, "list")


def test_pip_refuses_metadata_of_another_wheel(registry: Path, python: Path) -> None:
    """Otherwise the resolver would believe in dependencies that the wheel does not have."""
    (metadata,) = registry.rglob("*.whl.metadata")
    metadata.write_text(metadata.read_text().replace("numpy", "nunpy"))
    said = pip(python, "install", "--index-url", f"{registry.as_uri()}/simple/", "tiny-edge", status=1)
    assert "HASH" in said.upper()


def test_pip_takes_what_a_version_means(registry: Path, python: Path, tmp_path: Path) -> None:
    bundles = registry.parent / "bundle"
    items = list(publish(bundles, tmp_path / "registry"))
    for version in ("1.0.1", "2.0.0-rc.1", "1.0.0+fix.1"):
        items += publish(with_manifest(bundles, version=version), tmp_path / "registry")
    write_index(items, registry)
    index = ("--index-url", f"{registry.as_uri()}/simple/")
    for wish, version in {
        "tiny-edge": "1.0.1",
        "Tiny.Edge>=2.0.0rc1": "2.0.0rc1",
        "tiny_edge==1.0.0+fix.1": "1.0.0+fix.1",
    }.items():
        report = json.loads(pip(python, "install", "--quiet", "--dry-run", "--report", "-", *index, wish))
        assert [item["metadata"]["version"] for item in report["install"]] == [version]


def test_pip_reads_the_metadata_beside_the_wheel_first(registry: Path, python: Path) -> None:
    """A model may be large: a version that does not fit is known for it without being downloaded."""
    with serving(registry) as (url, asked):
        pip(python, "install", "--quiet", "--index-url", f"{url}/simple/", "tiny-edge")
    wheel = "/simple/tiny-edge/tiny_edge-1.0.0-py3-none-any.whl"
    assert asked == ["/simple/tiny-edge/", f"{wheel}.metadata", wheel]


def test_the_first_line_takes_exactly_this_wheel_and_an_extra_index_might_not(
    registry: Path, python: Path, tmp_path: Path
) -> None:
    """Somebody else has the same name with a higher version on the index where dependencies come from."""
    package = publish(registry.parent / "bundle", registry)[0].package
    publish(with_manifest(registry.parent / "bundle", version="99.0.0"), tmp_path / "foreign")
    foreign = f"{(tmp_path / 'foreign').as_uri()}/simple/"
    first, second = (shlex.split(line.replace("{registry}", registry.as_uri())) for line in package.lines)
    plan = ("install", "--quiet", "--dry-run", "--report", "-", "--index-url", foreign)

    def took(*wish: str) -> list[str]:
        return [item["metadata"]["version"] for item in json.loads(pip(python, *plan, *wish))["install"]]

    wish = first[2].replace("[onnxruntime]", "")
    assert took(wish) == ["1.0.0"]
    assert took("tiny-edge", *second[3:]) == ["99.0.0"]
    assert took(second[2].replace("[onnxruntime]", ""), *second[3:]) == ["1.0.0"]
    said = pip(python, "install", "--index-url", foreign, wish[:-64] + "0" * 64, status=1)
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in said


def test_links_lead_to_files_that_are_there(registry: Path) -> None:
    for page in registry.rglob("index.html"):
        for link in links(page.read_bytes()):
            place = unquote((link["href"] or "").partition("#")[0])
            assert (page.parent / place).exists()
