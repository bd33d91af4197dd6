"""Ours against what a user would quantise an ONNX file with instead, on the same float files and the same data.

    python scripts/bench_quantization.py --setup-nncf            # once: NNCF in an environment of its own
    python scripts/bench_quantization.py                         # the trained cases; resumable
    python scripts/bench_quantization.py --full-size             # BERT-base, ResNet-50 and GPT-2 too
    python scripts/bench_quantization.py --only 'words/*'        # some rows; --again measures them anew
    python scripts/bench_quantization.py --table docs/quantization.md

Every row quantises in a process of its own, whose seconds and peak memory are the figures shown. All files of a
case are then timed in turns in one process with one thread, so ratios do not depend on what else the host did.
Results are kept in `.cache/quantization/`.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench_quantization_rows import (
    CALIBRATION_SAMPLES,
    CASES,
    FLOAT,
    FULL_SIZE,
    FULL_SIZE_SAMPLES,
    JUDGED_SAMPLES,
    NNCF,
    OURS,
    ROOT,
    SCRIPTS,
    Case,
    Row,
    rows,
)
from bench_quantization_tables import document, one_line

from exporter.errors import EdgeError
from exporter.system.files import write_json
from exporter.system.isolation import call_isolated

CACHE = ROOT / ".cache" / "quantization"
NNCF_PACKAGES = ("nncf==3.4.0", "onnx", "onnxruntime")
ONE_TOKEN = "race-one-token"
"""A language model that generates reads one token at a time: another regime than a whole text at once."""
ROW_LIMIT_S = 900
OTHERS_LIMIT_S = 300
"""For a full-size graph: what has not ended by then is said not to have."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=["*"], metavar="GLOB", help="rows, as case/way")
    parser.add_argument("--full-size", action="store_true", help="measure the full-size graphs as well")
    parser.add_argument("--again", action="store_true", help="measure also what is in the cache")
    parser.add_argument("--list", action="store_true", help="print the rows and do nothing else")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument(
        "--setup-nncf", action="store_true", help="install NNCF into the cache and do nothing else"
    )
    parser.add_argument("--table", type=Path, help="write the document from the cache and do nothing else")
    given = parser.parse_args()
    if given.setup_nncf:
        return set_up_nncf(given.cache)
    if given.table:
        outcomes = {row.key: read(row, given.cache) for row in rows() if kept(row, given.cache).exists()}
        sources = {
            case.name: facts for case in (*CASES, *FULL_SIZE) if (facts := source_of(case, given.cache))
        }
        given.table.write_text(document(outcomes, sources), encoding="utf-8")
        return 0
    chosen = select(rows(), given.only, full_size=given.full_size)
    if given.list:
        print("\n".join(f"{row.key:36} {row.way.tool}: {row.way.title}" for row in chosen))
        return 0
    for case in dict.fromkeys(row.case for row in chosen):
        of_case = [row for row in chosen if row.case is case]
        missing = [row for row in of_case if given.again or not kept(row, given.cache).exists()]
        for row in missing:
            outcome = measured(row, given.cache)
            kept(row, given.cache).parent.mkdir(parents=True, exist_ok=True)
            write_json(kept(row, given.cache), outcome)
            print(f"{row.key:36} {one_line(outcome)}", flush=True)
        if missing:
            race_case(case, given.cache)
    return 0


def select(every: Sequence[Row], globs: Sequence[str], *, full_size: bool) -> list[Row]:
    """Return the rows that `globs` mean; full-size ones only where they are asked for."""
    return [
        row
        for row in every
        if (full_size or not row.case.is_full_size)
        and any(fnmatch.fnmatchcase(row.key, glob) for glob in globs)
    ]


def kept(row: Row, cache: Path) -> Path:
    """Return where the outcome of `row` is kept."""
    return cache / row.case.name / f"{row.way.name}.json"


def read(row: Row, cache: Path) -> dict[str, Any]:
    outcome: dict[str, Any] = json.loads(kept(row, cache).read_text(encoding="utf-8"))
    return outcome


def source_of(case: Case, cache: Path) -> dict[str, Any] | None:
    """Return what is known of the float file and of the latencies of a case; `None` before it is measured."""
    path = cache / case.name / "source.json"
    if not path.exists():
        return None
    found = {}
    for key, name in (("p50_ms", "race"), ("one_token_ms", ONE_TOKEN)):
        race = cache / case.name / f"{name}.json"
        found[key] = json.loads(race.read_text(encoding="utf-8")) if race.exists() else {}
    return {**json.loads(path.read_text(encoding="utf-8")), **found}


def set_up_nncf(cache: Path) -> int:
    """Install NNCF where it disturbs nothing."""
    folder = cache / "nncf-venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(folder / "bin" / "pip"), "install", "-q", *NNCF_PACKAGES], check=True)
    return 0


# --- one row ---------------------------------------------------------------------------------------------


def measured(row: Row, cache: Path) -> dict[str, Any]:
    """Return what came of `row`, or how it failed: both are results."""
    folder = cache / row.case.name
    prepare_case(row.case, cache)
    out = folder / f"{row.way.name}.onnx"
    out.unlink(missing_ok=True)
    limit = OTHERS_LIMIT_S if row.case.is_full_size and row.way.tool != OURS else ROW_LIMIT_S
    try:
        ran = run_program(command_of(row, cache, out), limit)
    except FileNotFoundError:
        return {"error": "not installed: run --setup-nncf"}
    if ran["rc"] != 0 or not out.exists():
        return {"error": failure_of(ran, limit), "seconds": ran["seconds"], "peak_mb": ran["peak_mb"]}
    answer = json.loads(ran["stdout"].strip().splitlines()[-1] if row.way.tool != OURS else ran["stdout"])
    made = ours_of(answer) if row.way.tool == OURS else {"seconds": answer["seconds"]}
    request = {"case": row.case.name, "cache": str(cache), "out": str(out)}
    try:
        judged = call_isolated(
            "bench_quantization:judge", request, stage="judging", subject=row.key, log=folder / "judge.log"
        )
    except EdgeError as error:
        return {"error": f"its file does not run: {error.cause}", **made, "peak_mb": ran["peak_mb"]}
    return {**made, "wall_seconds": ran["seconds"], "peak_mb": ran["peak_mb"], **judged.value}


def command_of(row: Row, cache: Path, out: Path) -> list[str]:
    """Return the command line of `row`: ours is what a user would type."""
    folder = cache / row.case.name
    model, data = str(folder / "float.onnx"), str(folder / "calibration.npz")
    if row.way.tool == OURS:
        command = [
            sys.executable,
            "-m",
            "exporter",
            "quantize",
            model,
            "--evaluation",
            str(folder / "evaluation.npz"),
        ]
        if "static_wi8_ai8" in row.way.told or "--recover" in row.way.told:
            command += ["--data", data]
        if not row.case.is_full_size:
            command += ["--labels", "label"]
        # A benchmark reports what comes out; a build would refuse to ship it.
        return [*command, *row.way.told, "--min-sqnr-db", "-1000", "--json", "-o", str(out)]
    python = cache / "nncf-venv" / "bin" / "python" if row.way.tool == NNCF else sys.executable
    command = [
        str(python),
        str(SCRIPTS / "bench_quantization_others.py"),
        *row.way.told,
        model,
        data,
        str(out),
    ]
    return [*command, "--transformer"] if row.case.is_transformer else command


_WATCH = """
import json, resource, subprocess, sys
child = subprocess.Popen(sys.argv[3:])
try:
    status = child.wait(float(sys.argv[2]))
except subprocess.TimeoutExpired:
    child.kill()
    status = child.wait()
with open(sys.argv[1], "w") as file:
    json.dump([status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss], file)
"""
"""A process's peak begins with that of the one that started it: only below a small process is it its own."""


def run_program(command: Sequence[str], limit_s: float) -> dict[str, Any]:
    """Run `command` and return its exit status, output, seconds and peak resident MB (of its children too)."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    with tempfile.NamedTemporaryFile("r") as told:
        watch = [sys.executable, "-I", "-c", _WATCH, told.name, str(limit_s), *command]
        started = time.monotonic()
        ran = subprocess.run(
            watch, capture_output=True, text=True, env=environment, start_new_session=True, check=False
        )
        seconds = time.monotonic() - started
        status, kilobytes = json.load(told)
    return {
        "rc": status,
        "stdout": ran.stdout,
        "stderr": ran.stderr,
        "seconds": seconds,
        "peak_mb": kilobytes * 1024 / 1e6,
    }


def failure_of(ran: Mapping[str, Any], limit_s: float) -> str:
    """Return the last thing a program said, or that it was stopped."""
    if ran["seconds"] >= limit_s:
        return f"did not end within {limit_s:.0f} s"
    if ran["rc"] == -9:
        return f"killed by the system at {ran['peak_mb']:.0f} MB"
    lines = [line.strip() for line in (ran["stderr"] or ran["stdout"]).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("error[")] or lines[-1:]
    return f"{told[0][:300]} (exit {ran['rc']})" if told else f"exit {ran['rc']}"


def ours_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return what our report says beside the file: seconds that quantising took, and the ladder."""
    report = answer["report"]
    seconds = report["seconds"]
    recovery = (report.get("recovery") or [None])[0]
    found: dict[str, Any] = {"seconds": sum(seconds[name] for name in ("loading", "calibrating", "making"))}
    if recovery is not None:
        found["left_float"] = recovery["left_float"]
        found["rungs"] = [
            {"name": rung["name"], "kept": rung["kept"], "holds": rung["holds"], "value": rung["value"]}
            for rung in recovery["rungs"]
        ]
    return found


# --- one case --------------------------------------------------------------------------------------------


def prepare_case(case: Case, cache: Path) -> None:
    """Write the float file and the data of a case, once."""
    folder = cache / case.name
    if (folder / "source.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    request = {"case": case.name, "folder": str(folder)}
    exported = call_isolated(
        "bench_quantization:export", request, stage="exporting", subject=case.name, log=folder / "export.log"
    )
    request = {"case": case.name, "cache": str(cache), "out": str(folder / "float.onnx")}
    judged = call_isolated(
        "bench_quantization:judge", request, stage="judging", subject=case.name, log=folder / "judge.log"
    )
    write_json(folder / "source.json", {**exported.value, **judged.value})


def race_case(case: Case, cache: Path) -> None:
    """Time the float file and every file there is, in turns."""
    from exporter.artifacts import Format
    from exporter.runtimes.race import race

    folder = cache / case.name
    files = {FLOAT: folder / "float.onnx"}
    for row in rows():
        path = folder / f"{row.way.name}.onnx"
        if (
            row.case is case
            and path.exists()
            and kept(row, cache).exists()
            and "error" not in read(row, cache)
        ):
            files[row.way.name] = path
    sample = next(samples_of(folder / "evaluation.npz"))
    feeds = {"race": sample}
    if case.is_full_size and case.is_transformer:
        feeds[ONE_TOKEN] = {name: array[:, :1] for name, array in sample.items()}
    for name, feed in feeds.items():
        work = folder / f"{name}-scratch"
        try:
            times = race([(path, Format.ONNX) for path in files.values()], [feed] * len(files), work)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        write_json(folder / f"{name}.json", dict(zip(files, times, strict=True)))


# --- in the child ----------------------------------------------------------------------------------------


def case_called(name: str) -> Case:
    return next(case for case in (*CASES, *FULL_SIZE) if case.name == name)


def samples_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what `path` holds sample by sample, labels left out."""
    import numpy as np

    with np.load(path, allow_pickle=False) as found:
        arrays = {name: found[name] for name in found.files if name != "label"}
    for index in range(len(next(iter(arrays.values())))):
        yield {name: array[index : index + 1] for name, array in arrays.items()}


def export(request: dict[str, Any]) -> dict[str, Any]:
    """Write `float.onnx`, `calibration.npz` and `evaluation.npz` of a case."""
    import numpy as np

    from exporter.stages.measure import export as export_source

    case, folder = case_called(request["case"]), Path(request["folder"])
    if case.recipe is None:
        from zoo_models import MODELS

        from exporter.model.source import SourceModel

        zoo = MODELS[case.name]()
        drawn = list(zoo.samples(FULL_SIZE_SAMPLES + JUDGED_SAMPLES))
        for name, part in (
            ("calibration", drawn[:FULL_SIZE_SAMPLES]),
            ("evaluation", drawn[FULL_SIZE_SAMPLES:]),
        ):
            stacked: dict[str, Any] = {key: np.concatenate([one[key] for one in part]) for key in part[0]}
            np.savez(folder / f"{name}.npz", **stacked)
        source = SourceModel(zoo.name, zoo.module, None, zoo.inputs, (), dict(zoo.axes), drawn[0])
        export_source(source, folder / "float.onnx")
        return {"samples": JUDGED_SAMPLES, "calibration_samples": FULL_SIZE_SAMPLES}
    from exporter.recipe.planning import make_plan
    from exporter.recipe.recipe import read_recipe
    from exporter.stages.load import load
    from targets.discovery import get_target

    recipe = read_recipe(case.recipe)
    plan = make_plan(recipe, {name: get_target(name) for name in recipe.targets})
    export_source(load(plan, log=folder / "load.log"), folder / "float.onnx")
    shutil.copyfile(case.recipe.parent / _data_path(recipe, "evaluation"), folder / "evaluation.npz")
    with np.load(case.recipe.parent / _data_path(recipe, "calibration"), allow_pickle=False) as arrays:
        inputs = {name: arrays[name] for name in arrays.files if name != "label"}
    count = len(next(iter(inputs.values())))
    chosen = np.linspace(0, count - 1, min(count, CALIBRATION_SAMPLES)).round().astype(int)
    calibration: dict[str, Any] = {name: array[chosen] for name, array in inputs.items()}
    np.savez(folder / "calibration.npz", **calibration)
    return {"calibration_samples": len(chosen)}


def _data_path(recipe: Any, role: str) -> str:
    table = getattr(recipe.data, role)
    return str(table["path"] if isinstance(table, Mapping) else table.path)


def judge(request: dict[str, Any]) -> dict[str, Any]:
    """Return size, stored shares, top-1 and SQNR against the float file, one sample at a time.

    `right` has a 1 for every sample that was answered rightly, so that two files can be compared in pairs.
    """
    import numpy as np
    import onnxruntime

    case, out = case_called(request["case"]), Path(request["out"])
    folder = Path(request["cache"]) / case.name
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1 if not case.is_full_size else 2
    options.log_severity_level = 3

    def answers(path: Path) -> Any:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = {item.name for item in session.get_inputs()}
        samples = samples_of(folder / "evaluation.npz")
        return np.concatenate(
            [session.run(None, {name: one[name] for name in names})[0] for one in samples]
        ).astype(np.float64)

    reference = folder / "reference.npy"
    if not reference.exists():
        np.save(reference, answers(folder / "float.onnx"))
    wanted, given = np.load(reference), answers(out)
    noise = float(np.square(given - wanted).sum())
    found = {
        "size_bytes": out.stat().st_size,
        "integer_share": integer_share(out),
        "sqnr_db": min(200.0, 10 * float(np.log10(np.square(wanted).sum() / max(noise, 1e-30)))),
        "top1": None,
        "samples": len(wanted),
    }
    if not case.is_full_size:
        with np.load(folder / "evaluation.npz", allow_pickle=False) as arrays:
            right = given.argmax(1) == arrays["label"]
        found["top1"] = float(right.mean())
        found["right"] = "".join("01"[int(answer)] for answer in right)
    return found


def integer_share(path: Path) -> float:
    """Return the share of weights (constants of 256 elements and more) that a file stores as integers."""
    import numpy as np
    import onnx

    graph = onnx.load(path).graph
    halves = {
        node.input[index]
        for node in graph.node
        if node.op_type in {"MatMulNBits", "GatherBlockQuantized"}
        and any(item.name == "bits" and item.i == 4 for item in node.attribute)
        for index in ((0, 1) if node.op_type == "GatherBlockQuantized" else (1,))
    }
    for node in graph.node:  # a tied table is stored once and reshaped for one of its readers
        if node.op_type == "Reshape" and node.output[0] in halves:
            halves.add(node.input[0])
    floats = integers = 0
    for tensor in graph.initializer:
        size = int(np.prod(tensor.dims))
        if size < 256:
            continue
        if tensor.data_type in {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}:
            floats += size
        elif tensor.data_type in {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}:
            integers += size * 2 if tensor.name in halves else size
        elif tensor.data_type in {onnx.TensorProto.INT4, onnx.TensorProto.UINT4}:
            integers += size
    return integers / (integers + floats) if integers + floats else 0.0


if __name__ == "__main__":
    sys.exit(main())
