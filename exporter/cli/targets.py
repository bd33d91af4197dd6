"""`edge-export targets`: what each target runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from exporter.cli.terminal.console import Column, Console, pass_console, speaking

if TYPE_CHECKING:
    from targets.base import RuntimeCapability, Target


@click.command("targets", short_help="List targets, their runtimes and schemes.")
@speaking
@pass_console
def command(console: Console) -> None:
    """List each target, its runtimes and the schemes they take, and what it gets by default."""
    from targets.discovery import list_targets

    listings = list_targets()
    targets = [listing.target for listing in listings if listing.target is not None]
    unavailable = [
        {"name": listing.name, "origin": listing.origin, "reason": listing.reason}
        for listing in listings
        if listing.target is None
    ]
    if console.json:
        described = [_describe(target) for target in targets]
        console.answer_json({"targets": described, "unavailable": unavailable})
        return
    for target in targets:
        _show(console, target)
    console.answer("An artifact is spelled FORMAT:SCHEME; add @fixed where a runtime needs fixed shapes.")
    for entry in unavailable:
        console.tell(f"target {entry['name']} of {entry['origin']} cannot be used: {entry['reason']}")


def _describe(target: Target) -> dict[str, Any]:
    """Return what `target` says of itself, as plain data, under its default options."""
    options = target.options_model.model_validate({})
    capabilities = target.capabilities(options)
    return {
        "name": target.name,
        "summary": target.summary,
        "data_version": capabilities.version,
        "default_artifacts": [str(spec) for spec in target.default_artifacts(options)],
        "options": sorted(target.options_model.model_fields),
        "runtimes": [_describe_runtime(runtime) for runtime in capabilities.runtimes],
        "exclusions": [
            {
                "format": exclusion.format.value,
                "schemes": sorted(exclusion.schemes),
                "reason": exclusion.reason,
                "verdict": "never" if exclusion.is_permanent else "not yet",
            }
            for exclusion in capabilities.exclusions
        ],
    }


def _describe_runtime(runtime: RuntimeCapability) -> dict[str, Any]:
    from exporter.schemes import KNOWN_SCHEMES

    return {
        "runtime": runtime.runtime,
        "format": runtime.format.value,
        "schemes": [scheme for scheme in KNOWN_SCHEMES if scheme in runtime.schemes],
        "needs_fixed_shapes": runtime.needs_fixed_shapes,
        "max_opset": runtime.max_opset,
        "max_ir_version": runtime.max_ir_version,
        "note": runtime.note,
    }


def _show(console: Console, target: Target) -> None:
    facts = _describe(target)
    console.heading(facts["name"], f"{facts['summary']} (data version {facts['data_version']})")
    rows = [
        [
            runtime["runtime"],
            runtime["format"] + (" @fixed" if runtime["needs_fixed_shapes"] else ""),
            ", ".join(runtime["schemes"]),
        ]
        for runtime in facts["runtimes"]
    ]
    console.answer_table(
        (Column("runtime", fold=False), Column("format", fold=False), Column("schemes")), rows
    )
    console.answer(f"default: {', '.join(facts['default_artifacts'])}")
    console.answer()
