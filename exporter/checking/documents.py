"""Verdicts for other programs: JUnit XML for a build server, Markdown for a pull request."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from exporter.checking.figures import KINDS
from exporter.checking.verdicts import State, Verdict

_MARKS = {State.PASSED: "✅", State.FAILED: "❌", State.UNMEASURED: "⚪", State.NEW: "🆕"}
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(verdicts: Sequence[Verdict]) -> bytes:
    """Return JUnit XML: one suite a bundle, one case a figure; what was not measured is skipped."""
    root = ElementTree.Element("testsuites", {"name": "edge-export check", **_counts(verdicts)})
    for bundle in dict.fromkeys(item.bundle for item in verdicts):
        mine = [item for item in verdicts if item.bundle == bundle]
        suite = ElementTree.SubElement(root, "testsuite", {"name": _text(bundle), **_counts(mine)})
        for item in mine:
            place = "" if item.device is None else f" on {item.device}"
            name = f"{item.artifact}{place}: {item.kind} ({item.rule})"
            case = ElementTree.SubElement(
                suite, "testcase", classname=_text(f"{bundle}.{item.artifact}"), name=_text(name)
            )
            if item.state is State.FAILED:
                ElementTree.SubElement(case, "failure", message=_text(item.sentence))
            elif item.state is State.UNMEASURED:
                ElementTree.SubElement(case, "skipped", message=_text(item.sentence))
    ElementTree.indent(root)
    content: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def _counts(verdicts: Sequence[Verdict]) -> dict[str, str]:
    failed = sum(item.state is State.FAILED for item in verdicts)
    skipped = sum(item.state is State.UNMEASURED for item in verdicts)
    return {"tests": str(len(verdicts)), "failures": str(failed), "skipped": str(skipped), "errors": "0"}


def _text(value: str) -> str:
    return _NOT_XML.sub("\ufffd", value)


def markdown(verdicts: Sequence[Verdict]) -> str:
    """Return a table for a pull request: what failed first, then the rest folded away."""
    failed = [item for item in verdicts if item.state is State.FAILED]
    rest = [item for item in verdicts if item.state is not State.FAILED]
    head = (
        f"### edge-export check: {len(failed)} of {len(verdicts)} figures broken"
        if failed
        else f"### edge-export check: {len(verdicts)} figures, none broken"
    )
    parts = [head]
    if failed:
        parts.append(_table(failed))
    if rest:
        summary = f"{len(rest)} that hold, are new or were not measured"
        parts.append(f"<details><summary>{summary}</summary>\n\n{_table(rest)}\n\n</details>")
    return "\n\n".join(parts) + "\n"


def _table(verdicts: Sequence[Verdict]) -> str:
    lines = [
        "| | bundle | artifact | on | figure | before | now | limit | rule |",
        "|---|---|---|---|---|---:|---:|---:|---|",
    ]
    for item in verdicts:
        unit = KINDS[item.kind].unit if item.kind in KINDS else ""
        cells = [
            f"{_MARKS[item.state]} {item.state}",
            item.bundle,
            f"`{item.artifact}`",
            item.device or "",
            f"{item.kind.partition('_')[0]} {unit}".strip(),
            *("" if value is None else f"{value:.4g}" for value in (item.before, item.now, item.limit)),
            item.rule,
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
