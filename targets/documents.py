"""The documents that every bundle carries: README.md, models.json and preprocess.json.

Everything in them comes from the request, so two builds of the same bytes write the same bytes: the build
machine's latency, which changes from run to run, is never among it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from exporter.artifacts import Artifact, Evidence, TensorSpec, to_plain
from exporter.bundle.contract import contract_document
from exporter.errors import InternalError
from exporter.system.files import write_bytes, write_json
from targets.base import BundleRequest, Delivery

DOCUMENT_FORMAT = 1
ONNXRUNTIME_LAG = (
    "onnxruntime's packages for phones (Maven, SwiftPM) lag PyPI by several releases. These files declare "
    "opset 21 or older and IR version 10 or older, so they load there; a file re-exported by hand may not."
)
TEMPLATES = Path(__file__).parent / "templates"


class SourceTemplate(Template):
    """A template whose placeholders, `%%{name}`, cannot be mistaken for Kotlin's `$name` or Swift's `$0`."""

    delimiter = "%%"


def render(template: str, values: Mapping[str, str]) -> str:
    """Return the text of `templates/<template>` with every `%%{name}` replaced.

    Raises `InternalError` if the template wants a value that nobody gave.
    """
    text = (TEMPLATES / template).read_text(encoding="utf-8")
    try:
        return SourceTemplate(text).substitute(values)
    except (KeyError, ValueError) as error:
        raise InternalError(
            f"template {template} cannot be filled in: {error}", fix="report this as a bug"
        ) from error


def write_texts(destination: Path, texts: Mapping[str, str]) -> None:
    """Write each text to its path relative to `destination`, making folders as needed."""
    for name, text in sorted(texts.items()):
        path = destination / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, text.encode("utf-8"))


def write_common(request: BundleRequest, *, platform: str, facts: Sequence[str], usage: str) -> None:
    """Write README.md, models.json and preprocess.json into the bundle.

    `platform` completes "NAME VERSION for …", `facts` are sentences about shipping there and `usage` is
    the Markdown that says how to run the models.
    """
    write_json(request.destination / "models.json", models_document(request))
    write_json(request.destination / "preprocess.json", preprocess_document(request))
    write_bytes(
        request.destination / "README.md",
        readme(request, platform=platform, facts=facts, usage=usage).encode("utf-8"),
    )


def models_document(request: BundleRequest) -> dict[str, object]:
    """Return what `models.json` holds: the artifacts, preferred first, with runtimes and tensors.

    `inputs` and `outputs` are in the order of the file's own signature.
    """
    return {
        "format": DOCUMENT_FORMAT,
        "model": {"name": request.card.name, "version": request.card.version},
        "models": [
            {
                "file": delivery.artifact.path.name,
                "artifact": str(delivery.artifact.spec),
                "runtimes": [runtime.runtime for runtime in delivery.runtimes],
                "size_bytes": delivery.artifact.size_bytes,
                "sha256": delivery.artifact.sha256,
                "inputs": to_plain(delivery.artifact.inputs),
                "outputs": to_plain(delivery.artifact.outputs),
                "companions": [path.name for path in delivery.artifact.companions],
            }
            for delivery in request.deliveries
        ],
    }


def preprocess_document(request: BundleRequest) -> dict[str, object]:
    """Return what `preprocess.json` holds: the contract from picture to tensor, and the class labels."""
    return contract_document(request.card.preprocess, request.card.labels)


def readme(request: BundleRequest, *, platform: str, facts: Sequence[str], usage: str) -> str:
    """Return the bundle's README as Markdown."""
    card = request.card
    made_by = f" It was made by edge-exporter {card.tool_version}." if card.tool_version else ""
    sections = [
        f"# {card.name} {card.version} for {platform}",
        "One model in the forms that this platform runs, with what each form costs and what it lost."
        f"{made_by} Every figure was measured in that build on the bytes in this folder.",
        "## The files, preferred first\n\n" + _file_table(request.deliveries),
        *(_file_section(delivery) for delivery in request.deliveries),
        "## How to run it\n\n" + usage.strip(),
        "## Before the model: preprocessing\n\n" + _preprocess_text(request),
        "## Before you ship\n\n" + "\n".join(f"- {fact}" for fact in facts),
        "## Proving it on the device\n\n" + _GOLDEN_TEXT,
        "## Also here\n\n" + _OTHER_FILES_TEXT,
    ]
    return "\n\n".join(sections) + "\n"


_GOLDEN_TEXT = """\
`golden/golden.json` lists samples: for each input tensor a `.npy` file, for each output the float model's
answer (`reference`), and for each file of `models/` that ran during the build its own answer (`outputs`).
A device passes when its answer differs from the file's own by at most `tolerance.<file>.max_abs`, and
from the reference by at most `max_abs_reference`. A failure means other bytes, another runtime version or
other preprocessing than the build's. Where a sample has a picture (`raw`), start from that: it must become the
input tensor, and the integration code says by name which mistake it is if it does not."""

_OTHER_FILES_TEXT = """\
- `models.json`: the table above for programs: files, runtimes, tensors in signature order, digests.
- `preprocess.json`: the preprocessing contract and the labels.
- `evidence.json`: everything that was measured about each file, apart from times.
- `manifest.json`: a SHA-256 for every file."""


def _file_table(deliveries: Sequence[Delivery]) -> str:
    rows = [
        "| file | runs on | size | fidelity | same answer | metric | drop |",
        "|---|---|---|---|---|---|---|",
    ]
    for delivery in deliveries:
        artifact, evidence = delivery.artifact, delivery.evidence
        runs_on = ", ".join(runtime.runtime for runtime in delivery.runtimes)
        cells = (f"`models/{artifact.path.name}`", runs_on, _size(artifact), *_figures(evidence))
        rows.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(rows)


def _figures(evidence: Evidence) -> tuple[str, str, str, str]:
    """Return fidelity, agreement, metric and drop as text; a dash for what was not measured."""
    fidelity, task = evidence.fidelity, evidence.task
    agreement = fidelity.agreement if fidelity else None
    return (
        f"{fidelity.sqnr_db:.1f} dB" if fidelity else "–",
        f"{100 * agreement:.1f} %" if agreement is not None else "–",
        f"{task.metric} {task.value:.4f} (float {task.reference:.4f})" if task else "–",
        f"{task.drop:+.2f} points" if task else "–",
    )


def _file_section(delivery: Delivery) -> str:
    artifact, evidence = delivery.artifact, delivery.evidence
    lines = [f"### `{artifact.path.name}`", ""]
    lines.append(f"- what: `{artifact.spec}`, {_coverage(artifact)}")
    for runtime in delivery.runtimes:
        lines.append(f"- runs on **{runtime.runtime}**" + (f": {runtime.note}" if runtime.note else ""))
    lines.append(f"- inputs: {_tensors(artifact.inputs)}")
    lines.append(f"- outputs: {_tensors(artifact.outputs)}")
    lines.append(f"- measured: {_measured(evidence)}")
    if artifact.companions:
        lines.append(
            "- belongs with it: " + ", ".join(f"`models/{path.name}`" for path in artifact.companions)
        )
    lines.extend(f"- note: {note}" for note in artifact.notes)
    lines.append(f"- sha256: `{artifact.sha256}`")
    return "\n".join(lines)


def _coverage(artifact: Artifact) -> str:
    coverage = artifact.coverage
    if artifact.spec.scheme.is_float:
        return "nothing quantised"
    if not coverage.layers:
        return "coverage not recorded"
    return (
        f"{coverage.quantized_count} of {len(coverage.layers)} operators quantised, "
        f"{100 * coverage.mac_share:.0f} % of the multiply-accumulates"
    )


def _measured(evidence: Evidence) -> str:
    if evidence.not_run:
        return f"not run in the build: {evidence.not_run}"
    if evidence.runtime is None:
        return "nothing was measured in the build"
    version = f" {evidence.runtime_version}" if evidence.runtime_version else ""
    samples = f" over {evidence.fidelity.samples} samples" if evidence.fidelity else ""
    return f"by running these bytes in {evidence.runtime}{version} on the build machine{samples}"


def _tensors(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"`{spec.name}` {spec.dtype} [{', '.join(map(str, spec.shape))}]" for spec in specs)


def _size(artifact: Artifact) -> str:
    return f"{artifact.size_bytes / 1e6:.3f} MB"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _preprocess_text(request: BundleRequest) -> str:
    contract = request.card.preprocess
    labels = (
        f" `preprocess.json` also holds the {len(request.card.labels)} labels." if request.card.labels else ""
    )
    if contract.get("kind") != "image":
        return f"The model takes tensors as they are; the recipe describes no preprocessing.{labels}"
    height, width = contract["size"]
    return (
        f"A picture becomes {contract['color']} pixels, {width} wide and {height} high ({contract['fit']}, "
        f"{contract['resize']}), then `(pixel * {contract['scale']} - mean) / std` with mean "
        f"{contract['mean']} and "
        f"std {contract['std']} per channel, as {contract['dtype']} in {contract['layout']} "
        f"order.{labels}\n\n"
        "Resampling is Pillow's, which averages over the area when it shrinks. A platform's own scaler "
        "(Android's "
        "`createScaledBitmap`, Core Graphics) gives other pixels and costs accuracy; the code in this "
        "bundle does "
        "what the calibration did. Turn pictures upright by their EXIF tag first."
    )
