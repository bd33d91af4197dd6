"""The model card of a bundle: `MODEL_CARD.md`, Markdown with the metadata that Hugging Face reads.

Filled from the recipe and from what the build measured. What neither of them says is called not stated, never guessed: no
licence, no intended use, no training data. Format: https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from exporter import __version__
from exporter.artifacts import Evidence, Format
from exporter.attesting.bill_of_materials import spelled_tensor
from exporter.attesting.facts import BuildFacts

if TYPE_CHECKING:
    from targets.base import Delivery

CARD_NAME = "MODEL_CARD.md"
NOT_STATED = "Not stated in the recipe."
_LIBRARY_OF_FORMAT = {
    Format.ONNX: "onnx",
    Format.ORT: "onnx",
    Format.TFLITE: "tflite",
    Format.MLPACKAGE: "coreml",
}
# How Hugging Face calls the metrics that this tool knows; a metric of the user's own keeps its name.
_METRIC_TYPES = {"top1": "accuracy"}
# What YAML takes for the end of a line, or for no text at all, and JSON does not.
_BREAKS = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def model_card(facts: BuildFacts, target: str, deliveries: Sequence[Delivery]) -> str:
    """Return the card of `target`'s bundle: YAML between two lines `---`, then Markdown."""
    metadata = _metadata(facts, target, deliveries)
    sections = [
        [f"# {facts.name} {facts.version} for {target}", "", _text(facts.description) or NOT_STATED],
        ["## Files", "", *_files(deliveries)],
        ["## Results", "", *_results(facts, deliveries)],
        ["## Inputs and outputs", "", *_tensors(facts, deliveries)],
        ["## Data", "", *_data(facts)],
        ["## How it was made", "", *_making(facts, deliveries)],
        ["## Intended use and limits", "", NOT_STATED, *_limits(deliveries)],
        ["## Licence", "", facts.license or NOT_STATED],
    ]
    body = "\n\n".join("\n".join(lines) for lines in sections)
    return "---\n" + "".join(f"{line}\n" for line in _yaml(metadata)) + f"---\n\n{body}\n"


# --- what Hugging Face reads -------------------------------------------------------------------------------


def _metadata(facts: BuildFacts, target: str, deliveries: Sequence[Delivery]) -> dict[str, Any]:
    formats = [item.artifact.spec.format for item in deliveries]
    schemes = [str(item.artifact.spec.scheme) for item in deliveries]
    metadata: dict[str, Any] = {
        "library_name": _LIBRARY_OF_FORMAT[formats[0]],
        "tags": list(dict.fromkeys(["edge-exporter", target, *map(str, formats), *schemes])),
    }
    if facts.license is not None:
        metadata |= _license(facts.license)
    task = _task(facts, deliveries)
    if task != "other":
        metadata["pipeline_tag"] = task
    metrics = {item.evidence.task.metric for item in deliveries if item.evidence.task is not None}
    if metrics:
        metadata["metrics"] = sorted(_METRIC_TYPES.get(name, name) for name in metrics)
        metadata["model-index"] = [{"name": facts.name, "results": _index(facts, deliveries, task)}]
    return metadata


def _license(expression: str) -> dict[str, str]:
    """Return a single licence as Hugging Face spells it; others under their own name."""
    if re.search(r"\s", expression) or expression.startswith("LicenseRef-"):
        return {"license": "other", "license_name": expression}
    return {"license": expression.lower()}


def _task(facts: BuildFacts, deliveries: Sequence[Delivery]) -> str:
    """Return Hugging Face's name of the task where metric and preprocessing contract say it, else "other"."""
    tasks = {facts.task(item.evidence.task.metric) for item in deliveries if item.evidence.task is not None}
    is_image = facts.contract.get("kind") == "image"
    return "image-classification" if is_image and tasks == {"classification"} else "other"


def _index(facts: BuildFacts, deliveries: Sequence[Delivery], task: str) -> list[dict[str, Any]]:
    judged = facts.judged_on()
    if judged is None:
        raise TypeError("a metric was measured, so there is data with labels")
    return [
        {
            "task": {"type": task},
            "dataset": {"type": judged.source, "name": judged.name, "split": judged.role},
            "metrics": [
                {
                    "type": _METRIC_TYPES.get(measured.metric, measured.metric),
                    "value": measured.value,
                    "name": f"{measured.metric} of {item.artifact.path.name}",
                }
                for item in deliveries
                if (measured := item.evidence.task) is not None
            ],
        }
    ]


def _yaml(value: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Yield the lines of `value` in YAML: strings always quoted, as in JSON, so that none is taken for something else."""
    for key, item in value.items():
        match item:
            case Mapping():
                yield f"{indent}{_key(key)}:"
                yield from _yaml(item, f"{indent}  ")
            case list():
                yield f"{indent}{_key(key)}:"
                for element in item:
                    yield from _yaml_element(element, indent)
            case _:
                yield f"{indent}{_key(key)}: {_scalar(item)}"


def _yaml_element(element: Any, indent: str) -> Iterator[str]:
    if not isinstance(element, Mapping):
        yield f"{indent}- {_scalar(element)}"
        return
    lines = list(_yaml(element, f"{indent}  "))
    yield f"{indent}- {lines[0].removeprefix(f'{indent}  ')}"
    yield from lines[1:]


def _key(name: str) -> str:
    # YAML 1.1 takes these words for something else.
    return json.dumps(name) if name in {"y", "n", "yes", "no", "on", "off", "true", "false", "null"} else name


def _scalar(value: object) -> str:
    text = _BREAKS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
    # YAML 1.1 takes 1e-05 for a string: its floats have a point.
    return re.sub(r"^(-?\d+)(e)", r"\1.0\2", text) if isinstance(value, float) else text


# --- what people read --------------------------------------------------------------------------------------


def _files(deliveries: Sequence[Delivery]) -> list[str]:
    rows = [
        (
            f"`models/{item.artifact.path.name}`",
            str(item.artifact.spec),
            str(item.artifact.size_bytes),
            ", ".join(runtime.runtime for runtime in item.runtimes),
            f"`{item.artifact.sha256}`",
        )
        for item in deliveries
    ]
    return _table(("file", "format and scheme", "bytes", "meant for", "SHA-256"), rows)


def _results(facts: BuildFacts, deliveries: Sequence[Delivery]) -> list[str]:
    judged = facts.judged_on()
    counts = sorted({item.evidence.fidelity.samples for item in deliveries if item.evidence.fidelity})
    shown = "random inputs" if judged is None else f"the {judged.role} data"
    told = (
        f"Measured on {shown}"
        + (f", {counts[-1]} samples" if counts else "")
        + ", by running the files themselves."
    )
    if facts.compressed_by:
        told += " The metric's float model is the one before compression; SQNR and answers are held against the one after."
    rows = [(f"`{item.artifact.path.name}`", *_figures(item.evidence)) for item in deliveries]
    heading = ("file", "metric", "float model", "this file", "points lost (95 %)", "SQNR dB", "same answer")
    return [told, "", *_table(heading, rows)]


def _figures(evidence: Evidence) -> tuple[str, ...]:
    task, fidelity = evidence.task, evidence.fidelity
    scored = ("–", "–", "–", "–")
    if task is not None:
        interval = task.interval
        sure = "" if interval is None else f" ({interval.low:+.2f} to {interval.high:+.2f})"
        scored = (task.metric, f"{task.reference:.4f}", f"{task.value:.4f}", f"{task.drop:+.2f}{sure}")
    if fidelity is None:
        return (*scored, "–", "–")
    same = "–" if fidelity.agreement is None else f"{100 * fidelity.agreement:.2f} %"
    sqnr = "exact" if fidelity.max_abs_error == 0 else f"{fidelity.sqnr_db:.1f}"
    return (*scored, sqnr, same)


def _tensors(facts: BuildFacts, deliveries: Sequence[Delivery]) -> list[str]:
    first = deliveries[0].artifact
    contract = json.dumps(facts.contract, sort_keys=True, ensure_ascii=False)
    lines = [
        f"- in: `{', '.join(map(spelled_tensor, first.inputs))}`",
        f"- out: `{', '.join(map(spelled_tensor, first.outputs))}`",
        f"- preprocessing (`preprocess.json`): `{contract}`",
    ]
    if facts.labels:
        lines.append(f"- classes: {len(facts.labels)}, named in `preprocess.json`")
    return lines


def _data(facts: BuildFacts) -> list[str]:
    rows = [
        (
            "training while compressing" if fact.role == "training" else fact.role,
            f"`{fact.name}` ({fact.source})",
            "–" if fact.samples is None else str(fact.samples),
            "–" if fact.fingerprint is None else f"`{fact.fingerprint}`",
        )
        for fact in facts.datasets
    ]
    told = f"What the model itself was trained on: {NOT_STATED[0].lower()}{NOT_STATED[1:]}"
    if not rows:
        return [told]
    return [*_table(("used for", "name in the recipe", "samples", "fingerprint (SHA-256)"), rows), "", told]


def _making(facts: BuildFacts, deliveries: Sequence[Delivery]) -> list[str]:
    figures = facts.float_figures
    schemes = {str(item.artifact.spec.scheme) for item in deliveries}
    lines = [
        f"- tool: edge-exporter {__version__}; the libraries that made the files are in `bom.cdx.json`",
        f"- float model: {figures.parameters} parameters, {figures.macs} multiply-accumulates, "
        f"SHA-256 of its ONNX graph `{figures.sha256}`",
        f"- architecture: {facts.architecture or 'not stated in the recipe'}",
        f"- compression: {', '.join(facts.compressed_by) or 'none'}",
        f"- rule for activation ranges: {facts.rule}",
    ]
    for scheme in sorted(schemes & set(facts.recovered_by)):
        rungs = facts.recovered_by[scheme]
        lines.append(f"- accuracy recovery of {scheme}: {', '.join(rungs) or 'none needed'}")
    return lines


def _limits(deliveries: Sequence[Delivery]) -> list[str]:
    """Return what the build itself found out about limits: files that nothing here could run."""
    untried = [
        (item.artifact.path.name, item.evidence.not_run) for item in deliveries if item.evidence.not_run
    ]
    return ["", *(f"- `{name}` was not run: {reason}." for name, reason in untried)] if untried else []


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heading, ["---"] * len(heading), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _text(description: str | None) -> str:
    """Return a description as plain text in Markdown: no heading, no list, no markup, no HTML."""
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", description or "")
    return re.sub(r"^(\s*\d*)([-+=.)])", r"\1\\\2", escaped)
