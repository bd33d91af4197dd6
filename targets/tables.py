"""The table target × artifact (runs, not yet, never), made from the capabilities that the targets declare.

`python -m targets.tables docs/targets.md` rewrites the tables between the markers of that file.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from exporter.artifacts import ArtifactSpec, Format, Shapes
from exporter.errors import InputError
from exporter.schemes import KNOWN_SCHEMES
from exporter.system.files import write_bytes
from targets.base import Capabilities, Target, Verdict

BEGIN, END = "<!-- capabilities: begin -->", "<!-- capabilities: end -->"

# Options under which a built-in target runs more than by default get a column of their own.
_VARIANTS: tuple[tuple[str, Mapping[str, str]], ...] = (("ios", {"minimum": "18"}),)


def every_artifact() -> tuple[ArtifactSpec, ...]:
    """Return one spec of fixed shape for every format × scheme that can be spelled."""
    return tuple(
        ArtifactSpec.parse(f"{file_format}:{scheme}" + ("" if file_format.needs_torch else "@fixed"))
        for file_format in Format
        for scheme in KNOWN_SCHEMES
    )


def columns(targets: Mapping[str, Target]) -> dict[str, Capabilities]:
    """Return the capabilities of `targets` by column title, with default options and with the variants."""
    found = {}
    for name, target in targets.items():
        found[f"`{name}`"] = target.capabilities(target.options_model())
        for variant, options in _VARIANTS:
            if variant == name:
                spelled = ", ".join(f'{key} = "{value}"' for key, value in options.items())
                found[f"`{name}`, `{spelled}`"] = target.capabilities(
                    target.options_model.model_validate(dict(options))
                )
    return found


def capability_table(capabilities: Mapping[str, Capabilities]) -> str:
    """Return a Markdown table: a row for each artifact, a column for each target, a verdict in each cell."""
    lines = [
        "| artifact | " + " | ".join(capabilities) + " |",
        "|---" * (len(capabilities) + 1) + "|",
    ]
    for spec in every_artifact():
        cells = [_cell(item, spec) for item in capabilities.values()]
        lines.append(f"| `{spec.format}:{spec.scheme}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(capabilities: Capabilities, spec: ArtifactSpec) -> str:
    verdict = capabilities.verdict(spec)
    if verdict is not Verdict.RUNS:
        return verdict.value
    needs_suffix = not spec.format.needs_torch
    names = [
        runtime.runtime + (" (`@fixed`)" if runtime.needs_fixed_shapes and needs_suffix else "")
        for runtime in capabilities.runtimes_for(spec)
    ]
    return f"**runs**: {', '.join(names)}"


def default_table(targets: Mapping[str, Target]) -> str:
    """Return a Markdown table of what each target makes when the recipe names no artifacts."""
    lines = ["| target | default artifacts |", "|---|---|"]
    for name, target in targets.items():
        defaults = target.default_artifacts(target.options_model())
        lines.append(f"| `{name}` | " + ", ".join(f"`{spec}`" for spec in defaults) + " |")
    return "\n".join(lines)


def reason_table(capabilities: Mapping[str, Capabilities]) -> str:
    """Return a Markdown table of the reasons behind every "never" and "not yet"."""
    lines = ["| target | artifacts | verdict | why |", "|---|---|---|---|"]
    for title, item in capabilities.items():
        for exclusion in item.exclusions:
            spelled = ", ".join(
                f"`{exclusion.format}:{scheme}`" for scheme in KNOWN_SCHEMES if scheme in exclusion.schemes
            )
            if exclusion.schemes >= set(KNOWN_SCHEMES):
                spelled = f"every `.{exclusion.format}`"
            verdict = Verdict.NEVER if exclusion.is_permanent else Verdict.NOT_YET
            lines.append(f"| {title} | {spelled} | {verdict.value} | {exclusion.reason} |")
    return "\n".join(lines)


def runtime_table(capabilities: Mapping[str, Capabilities]) -> str:
    """Return a Markdown table of each target's runtimes: format, shapes, ONNX limits, what to know."""
    lines = ["| target | runtime | reads | shapes | newest ONNX | note |", "|---|---|---|---|---|---|"]
    for title, item in capabilities.items():
        for runtime in item.runtimes:
            shapes = Shapes.FIXED if runtime.needs_fixed_shapes else "any"
            limit = f"opset {runtime.max_opset}, IR {runtime.max_ir_version}" if runtime.max_opset else "–"
            row = (title, runtime.runtime, f"`.{runtime.format}`", str(shapes), limit, runtime.note)
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def capability_document(targets: Mapping[str, Target]) -> str:
    """Return everything that stands between the markers of `docs/targets.md`."""
    capabilities = columns(targets)
    return "\n\n".join(
        (
            "## What each target runs",
            capability_table(capabilities),
            "## What it makes by default",
            default_table(targets),
            "## Why not",
            reason_table(capabilities),
            "## Runtimes",
            runtime_table(capabilities),
        )
    )


def replace_document(text: str, document: str) -> str:
    """Return `text` with what stands between the markers replaced; `InputError` if it has no markers."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise InputError(f"the text lacks {BEGIN} … {END}", fix="put both markers on lines of their own")
    return f"{head}{BEGIN}\n{document}\n{END}{tail}"


def main(paths: list[str]) -> int:
    """Rewrite the tables in each of `paths`, or print them if there is none."""
    from targets.discovery import BUILT_IN, get_target

    document = capability_document({name: get_target(name) for name in sorted(BUILT_IN)})
    for path in map(Path, paths):
        text = replace_document(path.read_text(encoding="utf-8"), document)
        write_bytes(path, text.encode("utf-8"))
    if not paths:
        sys.stdout.write(f"{document}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
