"""The page that a person sees who opens a registry in a browser: what there is, and what to paste.

A listing like the others: written from the releases alone, the same bytes each time. It loads nothing from anywhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from html import escape

from exporter.registry.documents import Release
from exporter.registry.versions import newest_first

PAGE = "index.html"
_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } h3 { font-size: 1rem; margin-bottom: .3rem; }
pre { background: #8881; border-radius: .4rem; padding: .7rem .9rem; overflow-x: auto; font-size: .85rem; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .15rem 1.2rem .15rem 0; }
td.number { text-align: right; font-variant-numeric: tabular-nums; } .quiet { opacity: .7; }
"""
# Where the page lies is where the registry is; without scripts the lines keep the word REGISTRY.
_SCRIPT = """
const here = location.href.replace(/[#?].*$/, "").replace(/\\/(index\\.html)?$/, "");
for (const block of document.querySelectorAll("pre")) block.textContent = block.textContent.replaceAll("REGISTRY", here);
"""


def page_of(releases: Iterable[Release]) -> dict[str, bytes]:
    """Return the page that lists `releases`, by its path."""
    models: dict[str, dict[str, list[Release]]] = defaultdict(lambda: defaultdict(list))
    for release in releases:
        models[release.name][release.version].append(release)
    sections = "\n".join(_model(name, versions) for name, versions in sorted(models.items()))
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Model registry</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>Model registry</h1>\n"
        "<p>Models that Gradle, SwiftPM and pip install from here; every file was validated before it was published. "
        "Whole bundles, with signatures checked: <code>edge-export pull NAME --target T --from …</code></p>\n"
        f"{sections}\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )
    return {PAGE: text.encode()}


def _model(name: str, versions: dict[str, list[Release]]) -> str:
    order = newest_first(versions)
    newest = sorted(versions[order[0]], key=lambda release: release.target)
    parts = [f"<h2>{escape(name)} {escape(order[0])}</h2>"]
    for release in newest:
        lines = [
            line.replace("{registry}", "REGISTRY") for package in release.packages for line in package.lines
        ]
        parts.append(f"<h3>{escape(release.target)}</h3>")
        if lines:
            parts.append(f"<pre>{escape(chr(10).join(lines))}</pre>")
    rows = [
        f"<tr><td>{escape(version)}</td><td>{escape(release.target)}</td>"
        f'<td class="number">{_size(release)}</td>'
        f'<td><a href="{escape(release.path)}">every file and its SHA-256</a></td></tr>'
        for version in order
        for release in sorted(versions[version], key=lambda item: item.target)
    ]
    parts.append(
        "<table><tr><th>version</th><th>target</th><th>bundle</th><th></th></tr>" + "".join(rows) + "</table>"
    )
    return "\n".join(parts)


def _size(release: Release) -> str:
    return f"{sum(entry.size for entry in release.bundle.values()) / 1e6:.2f} MB"
