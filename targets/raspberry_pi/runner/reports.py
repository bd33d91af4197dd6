"""A report, for people."""

from __future__ import annotations

from targets.raspberry_pi.runner.bundle import Json


def as_text(report: Json) -> str:
    """Return a report as lines for people."""
    if "top" in report:
        lines = [f"{report['model']} in {report['runtime']}"]
        lines += [f"  {item['score']:12.5f}  {item['label']}" for item in report["top"]]
        return "\n".join(lines)
    if "sample" in report:
        return f"sample {report['sample']}: {report['cause'] or 'ok'}: {report['says']}"
    pictures = report["preprocessing"]
    lines = [f"{pictures['cause']}: {pictures['says']}" if pictures["cause"] else pictures["says"]]
    for item in report["models"]:
        if "skipped" in item:
            lines.append(f"{item['model']}: skipped, {item['skipped']}")
            continue
        parity, latency = item["parity"], item["latency"]
        own = "" if parity["max_abs"] is None else f"{parity['max_abs']:.6g} from the build, "
        verdict = "ok" if parity["passed"] else "OUT OF TOLERANCE"
        lines.append(f"{item['model']} in {item['runtime']}")
        lines.append(
            f"  parity   {verdict}: {parity['samples']} samples, largest difference "
            f"{own}{parity['max_abs_reference']:.6g} from float"
        )
        lines.append(
            f"  latency  p50 {latency['p50_ms']:.3f} ms, p90 {latency['p90_ms']:.3f} ms "
            f"({latency['runs']} runs, {latency['threads']} threads)"
        )
    return "\n".join(lines)
