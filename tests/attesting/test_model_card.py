"""The model card: read back by Hugging Face's own reader, filled from evidence, silent about the rest."""

from __future__ import annotations

import re
from typing import Any

import pytest
from attesting_ground import Built
from hypothesis import given
from hypothesis import strategies as st

from exporter.attesting.model_card import _text, _yaml

huggingface_hub = pytest.importorskip("huggingface_hub")
yaml = pytest.importorskip("yaml")


def text_of(built: Built, target: str) -> str:
    return (built.path / target / "MODEL_CARD.md").read_text(encoding="utf-8")


def card_of(built: Built, target: str) -> Any:
    return huggingface_hub.ModelCard(text_of(built, target))


@pytest.mark.parametrize("target", ["raspberry-pi", "ios"])
def test_results_are_read_back_as_the_evidence_has_them(told: Built, target: str) -> None:
    results = card_of(told, target).data.eval_results
    evidence = told.evidence(target)
    assert {result.metric_name: result.metric_value for result in results} == {
        f"top1 of {name}": found["task"]["value"] for name, found in evidence.items()
    }
    for result in results:
        assert (result.metric_type, result.task_type) == ("accuracy", "image-classification")
        assert (result.dataset_type, result.dataset_name) == ("npz", "data/evaluation.npz")
        assert result.dataset_split == "evaluation"


def test_metadata_is_read_back(told: Built) -> None:
    data = card_of(told, "raspberry-pi").data
    assert data.library_name == "onnx"
    assert data.license == "apache-2.0"
    assert data.pipeline_tag == "image-classification"
    assert data.tags == ["edge-exporter", "raspberry-pi", "onnx", "ort", "static_wi8_ai8", "float32"]
    assert data.model_name == "tiny"
    assert data.base_model is None
    assert data.to_dict().keys() == {
        "library_name", "tags", "license", "pipeline_tag", "metrics", "model-index",
    }  # fmt: skip


def test_nothing_is_invented_for_a_recipe_that_says_little(bare: Built) -> None:
    card = card_of(bare, "raspberry-pi")
    assert card.data.to_dict() == {
        "library_name": "onnx",
        "tags": ["edge-exporter", "raspberry-pi", "onnx", "weight_only_wi8"],
    }
    sections = dict(re.findall(r"^## (.+)\n\n((?:(?!^## ).*\n?)+)", card.text, re.MULTILINE))
    assert sections["Licence"].strip() == "Not stated in the recipe."
    assert sections["Intended use and limits"].strip() == "Not stated in the recipe."
    assert sections["Data"].strip() == "What the model itself was trained on: not stated in the recipe."
    assert "Measured on random inputs, 8 samples" in sections["Results"]
    assert re.search(
        r"^# bare 0\.1\.0 for raspberry-pi\n\nNot stated in the recipe\.\n", card.text, re.MULTILINE
    )


@pytest.mark.parametrize("target", ["raspberry-pi", "ios"])
def test_every_digest_and_figure_in_it_is_one_of_the_build(told: Built, target: str) -> None:
    text, report = text_of(told, target), told.report
    known = {item["sha256"] for item in report["artifacts"]} | {
        report["model"]["float_sha256"],
        report["data"]["calibration_fingerprint"],
    }
    digests = set(re.findall(r"\b[0-9a-f]{64}\b", text))
    assert len(digests - known) == 1, (
        "the evaluation data's fingerprint is in no other document of the bundle"
    )
    for name, found in told.evidence(target).items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` | top1"))
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert cells[2:4] == [f"{found['task']['reference']:.4f}", f"{found['task']['value']:.4f}"]
        assert cells[4].startswith(f"{found['task']['drop_points']:+.2f} (")
        exact = found["fidelity"]["max_abs_error"] == 0
        assert cells[5] == ("exact" if exact else f"{found['fidelity']['sqnr_db']:.1f}")


def test_a_description_is_text_and_never_markup(told: Built) -> None:
    markdown = pytest.importorskip("markdown_it")
    text = card_of(told, "ios").text
    shown = markdown.MarkdownIt().render(text.split("\n## ")[0])
    assert "<b>" not in shown and "<em>" not in shown and "<a " not in shown
    assert "Tells *five* things apart, &lt;b&gt;badly&lt;/b&gt;: see [the paper](#)." in shown


@given(
    st.text(st.characters(categories=["L", "N", "P", "S"], include_characters=" "), min_size=1).filter(
        str.strip
    )
)
def test_any_description_is_one_paragraph_of_itself(description: str) -> None:
    markdown = pytest.importorskip("markdown_it")
    import html

    shown = markdown.MarkdownIt("commonmark").render(_text(description)).strip()
    found = re.fullmatch(r"<p>(.*)</p>", shown, re.DOTALL)
    assert found is not None, shown
    assert html.unescape(found[1]) == description.strip()


SCALARS = (
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.integers()
    | st.booleans()
    | st.none()
    | st.floats(allow_nan=False, allow_infinity=False)
)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,8}", fullmatch=True),
        SCALARS
        | st.lists(SCALARS, min_size=1, max_size=3)
        | st.lists(
            st.dictionaries(st.sampled_from(["task", "value", "name"]), SCALARS, min_size=1),
            min_size=1,
            max_size=3,
        ),
        max_size=4,
    )
)
def test_yaml_is_read_back_as_it_was_meant(value: dict[str, Any]) -> None:
    text = "".join(f"{line}\n" for line in _yaml(value))
    assert (yaml.safe_load(text) or {}) == value
    assert all(line.isprintable() or not line.isascii() for line in text.splitlines())
