"""The wheels of a registry → a pip index (PEP 503), with the metadata beside each wheel (PEP 658).

All links are relative, so that one set of pages serves a folder, a bucket and a web server. What lies there and pip
downloads is held to the SHA-256 in its page.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from exporter.errors import IntegrityError
from targets.packaging.base import Package, Published

ROOT = "simple"
METADATA_SUFFIX = ".metadata"
PROJECT, MODEL, REQUIRES_PYTHON = "project", "model", "requires_python"
"""The facts of a package that this index reads."""


def wheel_path(project: str, file: str) -> str:
    """Return where a wheel lies in a registry; its metadata lies there too, with `METADATA_SUFFIX`."""
    return f"{ROOT}/{project}/{file}"


def view(published: Sequence[Published]) -> dict[str, bytes]:
    """Return the pages of the index by path: `simple/index.html` and one for each project.

    Raises `IntegrityError` (19) if two models normalise to one project: pip would take them for versions of one another.
    """
    projects: dict[str, list[Published]] = {}
    for item in published:
        projects.setdefault(item.package.facts[PROJECT], []).append(item)
    pages = {
        f"{ROOT}/index.html": _page(
            "Simple index", [_anchor(f"{name}/", name, {}) for name in sorted(projects)]
        )
    }
    for project, items in sorted(projects.items()):
        _require_one_model(project, items)
        links = sorted(link for item in items for link in _links(item))
        pages[f"{ROOT}/{project}/index.html"] = _page(f"Links for {project}", links)
    return pages


def _require_one_model(project: str, items: Sequence[Published]) -> None:
    models = sorted({item.package.facts[MODEL] for item in items})
    if len(models) > 1:
        raise IntegrityError(
            f"the models {' and '.join(models)} are both {project} to pip",
            fix="give one of them a name that differs in more than dots, dashes and underscores",
        )


def _links(item: Published) -> list[str]:
    package = item.package
    return [_link(package, item, path) for path in package.files if path.endswith(".whl")]


def _link(package: Package, item: Published, path: str) -> str:
    name = path.rpartition("/")[2]
    attributes = {"data-requires-python": package.facts[REQUIRES_PYTHON]}
    if path + METADATA_SUFFIX in item.sha256:
        attributes["data-core-metadata"] = f"sha256={item.sha256[path + METADATA_SUFFIX]}"
    return _anchor(f"{quote(name)}#sha256={item.sha256[path]}", name, attributes)


def _anchor(target: str, text: str, attributes: Mapping[str, str]) -> str:
    told = "".join(f' {name}="{html.escape(value)}"' for name, value in sorted(attributes.items()))
    return f'<a href="{html.escape(target)}"{told}>{html.escape(text)}</a><br>'


def _page(title: str, lines: Sequence[str]) -> bytes:
    head = (
        "<!DOCTYPE html>\n<html>\n<head>\n"
        '<meta charset="utf-8">\n<meta name="pypi:repository-version" content="1.0">\n'
        f"<title>{html.escape(title)}</title>\n</head>\n<body>\n"
    )
    return (head + "".join(f"{line}\n" for line in lines) + "</body>\n</html>\n").encode()
