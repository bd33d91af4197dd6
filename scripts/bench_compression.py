"""What each way to make a model smaller costs and gains, measured on the files that ship.

    python scripts/bench_compression.py                          # every row on the digits models; resumable
    python scripts/bench_compression.py --full-size              # ResNet-50 and BERT-base too
    python scripts/bench_compression.py --only 'digits-cnn/*'    # some rows; --again measures them anew
    python scripts/bench_compression.py --table docs/compression.md

A row of ours is a recipe, built as `edge-export build` builds it; the others do what their documentation
says. Each runs in a process of its own with one thread. Its latencies are taken in turns with those of the
uncompressed float file, in one process, so ratios do not depend on what else the host did. Results are kept
in `.cache/compression/<row>.json`.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench_compression_rows import DIGITS, FLOAT, FULL_SIZE, FULL_SIZE_SAMPLES, ROOT, Row, recipe_of
from bench_compression_tables import document, one_line

from exporter.artifacts import ArtifactSpec, to_plain
from exporter.errors import EdgeError
from exporter.system.files import write_json
from exporter.system.isolation import call_isolated

ROW_LIMIT_S = 3600
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=["*"], metavar="GLOB", help="rows, as model/name")
    parser.add_argument("--full-size", action="store_true", help="measure ResNet-50 and BERT-base as well")
    parser.add_argument("--again", action="store_true", help="measure also what is in the cache")
    parser.add_argument("--list", action="store_true", help="print the rows and do nothing else")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "compression")
    parser.add_argument("--table", type=Path, help="write the document from the cache and do nothing else")
    given = parser.parse_args()
    rows = (*DIGITS, *(FULL_SIZE if given.full_size or given.table else ()))
    rows = tuple(row for row in rows if any(fnmatch.fnmatchcase(row.key, glob) for glob in given.only))
    if given.list:
        print("\n".join(f"{row.key:32} {row.title}" for row in rows))
        return 0
    if not given.table:
        for row in rows:
            if given.again or not _kept(row, given.cache).exists():
                outcome = measured(row, given.cache)
                write_json(_kept(row, given.cache), outcome)
                print(f"{row.key:32} {one_line(outcome)}", flush=True)
        return 0
    outcomes = {row.key: _read(row, given.cache) for row in rows if _kept(row, given.cache).exists()}
    given.table.write_text(document(outcomes), encoding="utf-8")
    return 0


def _kept(row: Row, cache: Path) -> Path:
    return cache / f"{row.key.replace('/', '-')}.json"


def _read(row: Row, cache: Path) -> dict[str, Any]:
    outcome: dict[str, Any] = json.loads(_kept(row, cache).read_text(encoding="utf-8"))
    return outcome


def measured(row: Row, cache: Path) -> dict[str, Any]:
    """Return what came of `row`, or the error it ended with: both are results."""
    work = cache / "work" / row.key.replace("/", "-")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    request = {"key": row.key, "cache": str(cache), "work": str(work)}
    try:
        original = _original(row, cache)
        result = call_isolated(
            f"bench_compression:run_{row.kind}",
            {**request, "original": str(original)},
            stage="measuring",
            subject=row.key,
            log=cache / "logs" / f"{work.name}.log",
            timeout_s=ROW_LIMIT_S,
            environment=ONE_THREAD,
        )
    except EdgeError as error:
        return {"error": error.cause, "code": error.code}
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return {**result.value, "wall_seconds": result.seconds, "process_peak_mb": result.peak_rss_mb}


def _original(row: Row, cache: Path) -> Path:
    """Return the float file of the uncompressed model, which every row of it is raced against."""
    path = cache / f"{row.model}-original.onnx"
    if not path.exists():
        request = {"key": row.key, "cache": str(cache), "to": str(path)}
        log = cache / "logs" / f"{row.model}.log"
        call_isolated(
            "bench_compression:export_original", request, stage="exporting", subject=row.model, log=log
        )
    return path


# --- in the child ----------------------------------------------------------------------------------------


def _row(key: str) -> Row:
    return next(row for row in (*DIGITS, *FULL_SIZE) if row.key == key)


def _plan(row: Row, cache: Path) -> Any:
    from exporter.recipe.planning import make_plan
    from targets.discovery import get_target

    recipe = recipe_of(row, cache)
    return make_plan(recipe, {name: get_target(name) for name in recipe.targets})


def export_original(request: dict[str, Any]) -> dict[str, Any]:
    """Write the float file of a model, and the inputs of a full-size one."""
    import numpy as np

    from exporter.stages.load import load
    from exporter.stages.measure import export

    cache, path, row = Path(request["cache"]), Path(request["to"]), _row(request["key"])
    if row in FULL_SIZE:
        from zoo_models import MODELS

        samples = list(MODELS[row.model]().samples(FULL_SIZE_SAMPLES))
        stacked: dict[str, Any] = {
            name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]
        }
        np.savez(cache / f"{row.model}.npz", **stacked)
    export(load(_plan(row, cache), log=cache / "logs" / "load.log"), path)
    return {}


def run_recipe(request: dict[str, Any]) -> dict[str, Any]:
    """Build the row's recipe and return what its report says, with latencies raced against the original."""
    from exporter.jobs.build import build
    from exporter.progress import Silence

    work, row = Path(request["work"]), _row(request["key"])
    plan = _plan(row, Path(request["cache"]))
    started = time.monotonic()
    result = build(plan, out=work / "out", progress=Silence(), log=work / "build.log")
    seconds = time.monotonic() - started
    report = result.report.document()
    files = {entry["artifact"]: next(result.path.rglob(entry["file"])) for entry in report["artifacts"]}
    return {
        "compression": report.get("compression"),
        "model": {key: report["model"][key] for key in ("parameters", "macs", "float_bytes")},
        "artifacts": {entry["artifact"]: _artifact(entry) for entry in report["artifacts"]},
        "refused": report["refused"],
        "p50_ms": raced(Path(request["original"]), files, plan, work),
        "build_seconds": seconds,
    }


def _artifact(entry: Mapping[str, Any]) -> dict[str, Any]:
    evidence = entry["evidence"]
    task, fidelity = evidence["task"], evidence["fidelity"]
    return {
        "size_bytes": entry["size_bytes"],
        "score": None if task is None else task["value"],
        "sqnr_db": None if fidelity is None else fidelity["sqnr_db"],
        "not_run": evidence["not_run"],
        "structure": evidence["structure"],
        "notes": entry["notes"],
    }


def raced(original: Path, files: Mapping[str, Path], plan: Any, work: Path) -> dict[str, float]:
    """Return medians in milliseconds of the original float file and of each file that runs here, in turns."""
    from exporter.artifacts import Format
    from exporter.runtimes.race import race
    from exporter.stages.load import load

    source = load(plan, log=work / "load.log")
    runners = {"original": (original, Format.ONNX)}
    for text, path in files.items():
        spec = ArtifactSpec.parse(text)
        if spec.format is not Format.MLPACKAGE:
            runners[text] = (path, spec.format)
    feeds = [_fed(path, kind, source.example) for path, kind in runners.values()]
    return dict(zip(runners, race(list(runners.values()), feeds, work), strict=True))


def _fed(path: Path, kind: Any, example: Mapping[str, Any]) -> dict[str, Any]:
    """Return the example in the dtypes that the file takes: `.tflite` reads int32 tokens where torch reads int64."""
    from exporter.runtimes.worker import open_model

    model = open_model(path, kind)
    return {spec.name: example[spec.name].astype(spec.dtype) for spec in model.inputs}


def run_tutorial(request: dict[str, Any]) -> dict[str, Any]:
    """Do what a tutorial does."""
    from bench_compression_others import tutorial

    return _others(tutorial, request)


def run_torch_pruning(request: dict[str, Any]) -> dict[str, Any]:
    """Do what Torch-Pruning's readme does."""
    from bench_compression_others import torch_pruning

    return _others(torch_pruning, request)


def run_torch_pruning_rounded(request: dict[str, Any]) -> dict[str, Any]:
    """Do the same with channel counts in multiples of eight."""
    from bench_compression_others import torch_pruning

    return _others(functools.partial(torch_pruning, round_to=8), request)


def _others(method: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Run `method` on the row's model with the recovery that ours get, and judge the files it leaves alike."""
    import dataclasses

    from exporter.compress.memory import peak_rss_mb, restart_peak
    from exporter.stages.data import read_data
    from exporter.stages.load import load
    from exporter.stages.measure import measure_file

    work, row = Path(request["work"]), _row(request["key"])
    # Training data are read for recipes that compress.
    asking = dataclasses.replace(row, compress=({"method": "sparsify", "sparsity": 0.5},))
    plan = _plan(asking, Path(request["cache"]))
    source = load(plan, log=work / "load.log")
    data = read_data(plan, source)
    restart_peak()
    started = time.monotonic()
    made = method(source, data, plan.recipe, work)
    seconds = time.monotonic() - started
    judging = data.judging
    figures = {
        name: None if path is None else to_plain(measure_file(path, source, work / name, judging))
        for name, path in made["onnx"].items()
    }
    return {
        "other": {**made, "onnx": None, "figures": figures, "seconds": seconds, "peak_rss_mb": peak_rss_mb()},
        "p50_ms": raced(Path(request["original"]), {FLOAT: made["onnx"]["after"]}, plan, work),
    }


if __name__ == "__main__":
    sys.exit(main())
