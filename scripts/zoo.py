"""Every full-size architecture in every format and scheme: made, run and judged, or refused with a reason.

    python scripts/zoo.py                        # the whole matrix (about an hour on two cores); resumable
    python scripts/zoo.py resnet-50 gpt2         # some models
    python scripts/zoo.py --table docs/zoo.md    # write the table from the results so far

Weights are random, so SQNR speaks of arithmetic and not of accuracy. Each cell is produced in a process of
its own, whose peak memory is the figure shown, and executed in the format's own runtime. Results are kept
in `.cache/zoo/results.json`, one entry per cell; delete it to start again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(__file__).resolve().parent
sys.path.insert(0, str(SCRIPTS))

from exporter.artifacts import Artifact, ArtifactSpec, Format, TensorSpec, to_plain  # noqa: E402
from exporter.errors import EdgeError  # noqa: E402
from exporter.runtimes.worker import read_samples, write_sample  # noqa: E402
from exporter.system.files import size_bytes, write_json  # noqa: E402
from exporter.system.isolation import call_isolated  # noqa: E402

CELLS = (
    "onnx:float32", "onnx:static_wi8_ai8", "onnx:static_wi8_ai8_u", "onnx:dynamic_wi8_ai8", "onnx:weight_only_wi8",
    "onnx:weight_only_wi4_b32", "onnx:weight_only_wi4_b128", "ort:static_wi8_ai8@fixed",
    "tflite:float32", "tflite:float16", "tflite:static_wi8_ai8", "tflite:dynamic_wi8_ai8", "tflite:weight_only_wi8",
    "tflite:weight_only_wi4_b32",
    "mlpackage:float16", "mlpackage:weight_only_wi8", "mlpackage:weight_only_wi4_b32",
)  # fmt: skip
CALIBRATION_SAMPLES = 4
EVALUATION_SAMPLES = 2
CELL_LIMIT_S = 1500


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="names as in zoo_models.py; all by default")
    parser.add_argument("--cells", nargs="*", default=CELLS, help="artifact spellings; all by default")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "zoo")
    parser.add_argument("--table", type=Path, help="write the Markdown table there and do nothing else")
    given = parser.parse_args()
    results_path = given.cache / "results.json"
    results: dict[str, Any] = json.loads(results_path.read_text()) if results_path.exists() else {}
    if given.table:
        given.table.write_text(table(results), encoding="utf-8")
        return 0
    given.cache.mkdir(parents=True, exist_ok=True)
    for name in given.models or _names(given.cache):
        wanted = [cell for cell in given.cells if f"{name} {cell}" not in results]
        if not wanted:
            continue
        work = Path(tempfile.mkdtemp(prefix=f"zoo-{name}-", dir=given.cache))
        try:
            results[f"{name} source"] = prepare_apart(name, work)
            for cell in wanted:
                results[f"{name} {cell}"] = outcome = fill(name, cell, work, results[f"{name} source"])
                write_json(results_path, results)
                print(f"{name:24} {cell:28} {one_line(outcome)}", flush=True)
        finally:
            shutil.rmtree(work)
    print(table(results))
    return 0


def _names(cache: Path) -> list[str]:
    listing = call_isolated("zoo:names", {}, stage="listing", subject="the zoo", log=cache / "names.log")
    return list(listing.value["names"])


def names(_: dict[str, Any]) -> dict[str, Any]:
    from zoo_models import MODELS

    return {"names": list(MODELS)}


def prepare_apart(name: str, work: Path) -> dict[str, Any]:
    """Export `name` and compute its reference answers in a child, so that torch's memory goes with it."""
    result = call_isolated(
        "zoo:prepare",
        {"name": name, "work": str(work)},
        stage="exporting",
        subject=name,
        log=work / "prepare.log",
    )
    return {**result.value, "seconds": result.seconds, "peak_rss_mb": result.peak_rss_mb}


def prepare(request: dict[str, Any]) -> dict[str, Any]:
    import onnx_ir as ir
    from zoo_models import MODELS

    from calibration.collect import collect
    from calibration.dataset import ListDataset
    from exporter.model.capture import save_program
    from exporter.model.graph import node_macs, parameter_count
    from exporter.model.onnx_write import save_onnx
    from exporter.model.source import SourceModel
    from exporter.model.tidy import tidy
    from exporter.model.to_onnx import check_parity, to_onnx
    from exporter.quantize.regions import activation_values
    from exporter.runtimes.onnxruntime_cpu import OnnxModel

    work, zoo = Path(request["work"]), MODELS[request["name"]]()
    samples = list(zoo.samples(CALIBRATION_SAMPLES + EVALUATION_SAMPLES))
    calibration, evaluation = samples[:CALIBRATION_SAMPLES], samples[CALIBRATION_SAMPLES:]
    source = SourceModel(zoo.name, zoo.module, None, zoo.inputs, (), dict(zoo.axes), samples[0])
    onnx = work / "float32.onnx"
    save_onnx(tidy(to_onnx(source), source.inputs), onnx)
    parity = check_parity(source, onnx, evaluation)
    save_program(source, work / "program.pt2")
    graph = ir.load(onnx)
    collect(onnx, activation_values(graph, ()), ListDataset(calibration)).save(work / "statistics")
    for folder, part in (("samples", calibration), ("inputs", evaluation)):
        (work / folder).mkdir()
        for number, sample in enumerate(part):
            write_sample(work / folder, number, sample)
    return {
        "inputs": to_plain(source.inputs),
        "outputs": to_plain(OnnxModel(onnx).outputs),
        "axes": dict(source.axes),
        "float_bytes": size_bytes(onnx),
        "parameters": parameter_count(graph),
        "macs": sum(node_macs(graph, source.axes).values()),
        "parity_db": parity.sqnr_db,
    }


def fill(name: str, cell: str, work: Path, source: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of one cell, or the reason for its refusal; raises nothing that the tool promises."""
    request = {"name": name, "cell": cell, "work": str(work), "source": source}
    log = work / "cells" / f"{cell.replace(':', '-')}.log"
    try:
        made = call_isolated(
            "zoo:make", request, stage="making", subject=cell, log=log, timeout_s=CELL_LIMIT_S
        )
        judged = call_isolated(
            "zoo:judge", {**request, "made": made.value}, stage="judging", subject=cell, log=log
        )
    except EdgeError as error:
        return {"refused": error.cause, "code": error.code}
    finally:
        shutil.rmtree(work / "out", ignore_errors=True)
    return {**made.value, **judged.value, "seconds": made.seconds, "peak_rss_mb": made.peak_rss_mb}


def _request(request: dict[str, Any]) -> Any:
    import onnx_ir as ir

    from calibration.statistics import Statistics
    from exporter.formats.base import ProduceRequest
    from exporter.quantize.integers.encodings import PLAIN, Encodings
    from exporter.quantize.ranges import choose_ranges

    work, source = Path(request["work"]), request["source"]
    spec = ArtifactSpec.parse(request["cell"])
    destination = work / "out"
    destination.mkdir(exist_ok=True)
    encodings = PLAIN
    if spec.scheme.needs_calibration:
        statistics = Statistics.load(work / "statistics")
        encodings = Encodings(choose_ranges(ir.load(work / "float32.onnx"), statistics, "auto", (), {}))
    return ProduceRequest(
        spec=spec,
        model_name=request["name"],
        onnx=work / "float32.onnx",
        program=work / "program.pt2",
        inputs=_specs(source["inputs"]),
        outputs=_specs(source["outputs"]),
        axes=source["axes"],
        samples=work / "samples" if spec.scheme.needs_calibration else None,
        rule="auto",
        encodings=encodings,
        destination=destination,
        workdir=work,
    )


def _specs(plain: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(item["name"], item["dtype"], tuple(item["shape"])) for item in plain)


def make(request: dict[str, Any]) -> dict[str, Any]:
    from exporter.formats.producers import produce

    artifact: Artifact = produce(_request(request))
    coverage = artifact.coverage
    return {
        "size_bytes": artifact.size_bytes,
        "mac_share": coverage.mac_share,
        "weight_share": coverage.weight_share,
        "quantized": coverage.quantized_count,
        "operators": len(coverage.layers),
        "left_float": coverage.reasons(),
        "notes": list(artifact.notes),
        "path": str(artifact.path),
    }


def judge(request: dict[str, Any]) -> dict[str, Any]:
    from exporter.judging.metrics import compare_outputs
    from exporter.judging.reference import latency_of
    from exporter.runtimes.worker import run_artifact

    work, path = Path(request["work"]), Path(request["made"]["path"])
    spec = ArtifactSpec.parse(request["cell"])
    log = work / "cells" / "judge.log"
    if spec.format is Format.MLPACKAGE:
        from exporter.formats.mlpackage.producer import inspect_structure

        structure = inspect_structure(path, work / "program.pt2", log=log)
        return {"weight_sqnr_db": structure["weights"]["sqnr_db"]}
    reference = work / "reference"
    if not reference.exists():
        record = run_artifact(work / "float32.onnx", Format.ONNX, work / "inputs", reference, log=log)
        (work / "reference.json").write_text(json.dumps(to_plain(latency_of(record))))
    record = run_artifact(path, spec.format, work / "inputs", work / "answers", log=log)
    wanted, answered = list(read_samples(reference)), list(read_samples(work / "answers"))
    shutil.rmtree(work / "answers")
    named = [
        dict(
            zip(
                want,
                (value.reshape(want[key].shape) for key, value in zip(want, have.values(), strict=True)),
                strict=True,
            )
        )
        for want, have in zip(wanted, answered, strict=True)
    ]
    fidelity, latency = compare_outputs(wanted, named), latency_of(record)
    return {
        "sqnr_db": fidelity.sqnr_db,
        "p50_ms": latency.p50_ms if latency else None,
        "float_p50_ms": json.loads((work / "reference.json").read_text())["p50_ms"],
        "run_peak_rss_mb": record.peak_rss_mb,
    }


def one_line(outcome: dict[str, Any]) -> str:
    if "refused" in outcome:
        return f"refused ({outcome['code']}): {outcome['refused'][:120]}"
    fidelity = (
        f"{outcome['sqnr_db']:6.1f} dB" if "sqnr_db" in outcome else f"{outcome['weight_sqnr_db']:5.1f} dBw"
    )
    return (
        f"{outcome['size_bytes'] / 1e6:7.1f} MB  {100 * outcome['mac_share']:4.0f} % MACs  {fidelity}  "
        f"{outcome['seconds']:6.1f} s  {outcome['peak_rss_mb']:7.0f} MB peak"
    )


def table(results: dict[str, Any]) -> str:
    lines = [
        "# The zoo: full-size architectures in every format and scheme",
        "",
        "Made by `python scripts/zoo.py`; random weights, so SQNR speaks of arithmetic and not of accuracy.",
        f"{CALIBRATION_SAMPLES} calibration samples, {EVALUATION_SAMPLES} evaluation samples, batch 1 (text: 128 tokens).",
        "*Speed* is float32 `.onnx` time ÷ this artifact's time, one thread, on the x86-64 host that ran the script,",
        "measured in one run: it is not a device's, and indicative only on a machine that does other work. *Seconds* and",
        "*peak* are of the process that makes the artifact (exporting, calibrating and judging not included). dBw: SQNR of",
        "de-quantised weights, where nothing on Linux can execute the file. MB is 10⁶ bytes. `.ort` files are optimised for",
        "ARM: signed int8 kernels are slow on x86.",
        "",
    ]
    for name in dict.fromkeys(key.rpartition(" ")[0] for key in results):
        lines += _model_table(name, results)
    return "\n".join(lines) + "\n"


def _model_table(name: str, results: dict[str, Any]) -> list[str]:
    source = results[f"{name} source"]
    head = (
        f"{source['parameters'] / 1e6:.1f} M parameters, {source['macs'] / 1e9:.2f} G MACs, float32 `.onnx` "
        f"{source['float_bytes'] / 1e6:.1f} MB, {source['parity_db']:.0f} dB against torch; export and calibration "
        f"{source['seconds']:.0f} s, {source['peak_rss_mb']:.0f} MB peak"
    )
    lines = [
        f"## {name}",
        "",
        head,
        "",
        "| artifact | MB | × smaller | MACs quantised | fidelity | speed | seconds | peak MB |",
    ]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|")
    for cell in CELLS:
        outcome = results.get(f"{name} {cell}")
        if outcome is None:
            continue
        if "refused" in outcome:
            reason = " ".join(outcome["refused"].split())[:200].replace("|", "\\|")
            lines.append(f"| `{cell}` | refused: {reason} | | | | | | |")
            continue
        fidelity = (
            f"{outcome['sqnr_db']:.1f} dB" if "sqnr_db" in outcome else f"{outcome['weight_sqnr_db']:.1f} dBw"
        )
        fidelity = "exact" if fidelity.startswith("200.0") else fidelity
        speed = f"{outcome['float_p50_ms'] / outcome['p50_ms']:.2f}×" if outcome.get("p50_ms") else "–"
        share = f"{100 * outcome['mac_share']:.0f} %" if outcome["quantized"] else "–"
        lines.append(
            f"| `{cell}` | {outcome['size_bytes'] / 1e6:.1f} | {source['float_bytes'] / outcome['size_bytes']:.2f} | "
            f"{share} | {fidelity} | {speed} | {outcome['seconds']:.0f} | {outcome['peak_rss_mb']:.0f} |"
        )
    notes = {note for cell in CELLS for note in results.get(f"{name} {cell}", {}).get("notes", [])}
    lines += ["", *(f"- {note}" for note in sorted(notes)), ""]
    return lines


if __name__ == "__main__":
    sys.exit(main())
