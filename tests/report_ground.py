"""What tests hold every report to that they have a build of: the JSON Schema of `report.json`."""

from __future__ import annotations

import functools
from typing import Any

from jsonschema import Draft202012Validator

from exporter.bundle.report import json_schema


@functools.cache
def validator() -> Draft202012Validator:
    """Return what says where a document is no report."""
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def reported(answer: Any) -> dict[str, Any]:
    """Return the report in what a command answered, every key of which its schema knows."""
    report: dict[str, Any] = answer["report"]
    wrong = [f"{error.json_path}: {error.message}" for error in validator().iter_errors(report)]
    assert wrong == []
    return report
