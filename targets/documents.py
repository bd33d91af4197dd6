"""The documents that every bundle carries: README.md, models.json and preprocess.json; and how all texts are rendered.

Everything in them comes from the request, so two builds of the same bytes write the same bytes: the build
machine's latency, which changes from run to run, is never among it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifacts import to_plain
from exporter.bundle.contract import contract_document
from exporter.errors import InternalError
from exporter.system.files import write_bytes, write_json
from targets import naming
from targets.base import BundleRequest, Delivery, ModelCard

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from jinja2 import Environment

DOCUMENT_FORMAT = 1
ONNXRUNTIME_LAG = (
    "onnxruntime's packages for phones (Maven, SwiftPM) lag PyPI by several releases. These files declare "
    "opset 21 or older and IR version 10 or older, so they load there; a file re-exported by hand may not."
)
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Readme:
    """What `bundle_readme.md` reads: see `write_common`."""

    card: ModelCard
    deliveries: tuple[Delivery, ...]
    platform: str
    facts: tuple[str, ...]
    usage: str


def render(template: str, facts: DataclassInstance) -> str:
    """Return the text of `templates/<template>`, a Jinja template that reads the fields of `facts` by their names.

    Nothing is escaped on its own, for what is written is source code: the templates name the filter that fits the place
    (`kotlin_string`, `swift_string`, `comment`, `cell`). Raises `InternalError` if the template is none, or wants what
    `facts` do not say.
    """
    from jinja2 import TemplateError

    try:
        return (
            environment()
            .get_template(template)
            .render({field.name: getattr(facts, field.name) for field in fields(facts)})
        )
    except TemplateError as error:
        raise InternalError(
            f"template {template} cannot be filled in: {error}", fix="report this as a bug"
        ) from error


@cache
def environment() -> Environment:
    """Return how templates are read: `%%{value}`, `<% statement %>` and `<%# comment %>`, which are no Kotlin and no Swift.

    A statement alone on its line leaves no line behind. jinja2 is imported here, so that targets are listed without it.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="%%{",
        variable_end_string="}",
        comment_start_string="<%#",
        comment_end_string="%>",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        finalize=_required,
        autoescape=False,
        loader=FileSystemLoader(TEMPLATES),
    )
    made.filters |= {
        "kotlin_string": naming.kotlin_string,
        "swift_string": naming.swift_string,
        "comment": naming.comment,
        "cell": naming.cell,
    }
    return made


def _required(value: object) -> object:
    """Return `value`; `TemplateRuntimeError` where nothing was measured or given and a template would say "None"."""
    from jinja2 import TemplateRuntimeError

    if value is None:
        raise TemplateRuntimeError("a value is None")
    return value


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
    return render(
        "bundle_readme.md", Readme(request.card, request.deliveries, platform, tuple(facts), usage.strip())
    )
