"""The numbers as a table of at most 130 columns, as JSON, and as docs/gpu.md."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.gpu.measure import ABLATION, COMPILED, NAIVE, NO_TIME, UNIQUE, Measured

Results = Mapping[str, Mapping[str, Measured]]
"""By data type and case."""

WAYS = (NAIVE, ABLATION, COMPILED, UNIQUE)
_HEAD = "| type | case | forward ms | way | seconds | forwards | x naive | TFLOP/s | of peak | peak GB |"


def table(results: Results, *, peaks: Mapping[str, float]) -> list[str]:
    """Return the table's lines, in Markdown."""
    lines = [_HEAD, "|---|---|---|---|---|---|---|---|---|---|"]
    for dtype, cases in results.items():
        for name, found in cases.items():
            for way in WAYS:
                cells = _cells(found, way, peak=peaks[dtype])
                forward = "" if found.forward is None else f"{found.forward * 1000:.2f}"
                lines.append(f"| {dtype} | {name} | {forward} | {way} | {' | '.join(cells)} |")
    return lines


def _cells(found: Measured, way: str, *, peak: float) -> list[str]:
    timing = found.timings.get(way)
    if timing is None or found.forward is None or found.flops is None:
        why = found.problems.get(way) or found.problems.get("all") or "not run"
        return [why[:60], *[""] * 5]
    naive = found.timings.get(NAIVE)
    rate = found.flops / timing.seconds
    # Operations are counted for ablation: `unique` does another thing.
    counted = way != UNIQUE
    return [
        f"{timing.seconds:.3f}",
        f"{timing.seconds / found.forward:.1f}",
        f"{naive.seconds / timing.seconds:.2f}" if naive and counted else "",
        f"{rate / 1e12:.2f}" if counted else "",
        f"{rate / peak:.0%}" if counted else "",
        "" if timing.peak_bytes is None else f"{timing.peak_bytes / 1e9:.2f}",
    ]


def kernels(results: Results) -> list[str]:
    """Return for every case how long the device was idle, and its most expensive kernels."""
    lines: list[str] = []
    for dtype, cases in results.items():
        for name, found in cases.items():
            if found.profile is None:
                continue
            idle = found.profile.idle
            said = "operators on the CPU" if idle is None else f"idle {idle:.0%} of the time"
            lines += ["", f"**{name}, {dtype}**: {said}", "", "| share | calls | kernel |"]
            lines.append("|---|---|---|")
            for kernel, calls, share in found.profile.kernels:
                lines.append(f"| {share:.1%} | {calls} | `{kernel[:90]}` |")
    return lines


def problems(results: Results) -> tuple[list[str], list[str]]:
    """Return a line for everything that failed, and one for everything that found no time."""
    failed: list[str] = []
    no_time: list[str] = []
    for dtype, cases in results.items():
        for name, found in cases.items():
            for way, what in found.problems.items():
                kind = no_time if what == NO_TIME else failed
                kind.append(f"{dtype}, {name}, {way}: {what}")
    return failed, no_time


def as_json(
    results: Results, *, peaks: Mapping[str, float], machine: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything that was measured."""
    failed, no_time = problems(results)
    return {
        "format": 1,
        "failed": failed,
        "no_time": no_time,
        "machine": dict(machine),
        "peak_flops_per_second": dict(peaks),
        "results": {
            dtype: {name: asdict(found) for name, found in cases.items()}
            for dtype, cases in results.items()
        },
    }


def page(results: Results, *, peaks: Mapping[str, float], machine: Mapping[str, Any]) -> str:
    """Return docs/gpu.md."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    peak = ", ".join(f"{rate / 1e12:.1f} TFLOP/s in {dtype}" for dtype, rate in peaks.items())
    differences = ", ".join(
        f"{name} {dtype} {found.difference:.1e}"
        for dtype, cases in results.items()
        for name, found in cases.items()
        if found.difference is not None
    )
    missing = [line for kind in problems(results) for line in kind]
    return "\n".join(
        [
            "# On a GPU",
            "",
            "Written by `scripts/gpu-check`, which first runs `tests/gpu`. Random weights: this is about speed alone.",
            "",
            f"- Device: {machine.get('gpu', machine['cpu'])}; {versions}; {machine['date']}.",
            f"- Matrix-product peak in the same run: {peak}.",
            "- `naive`: the whole model once for every head, on the same batches (6 heads ran, the rest is extrapolated).",
            "  `ablation`: what `headprune score --method ablation` runs. Seconds are medians, by the device's own clock.",
            "- `forwards`: seconds in forwards of the same rows. `TFLOP/s`: the fewest operations that exact ablation can do,",
            "  whatever was really done, over the seconds (benchmarks/speed/flops.py); `of peak`: over the matrix-product peak.",
            f"- Products in single precision: {machine['matrix_precision']}.",
            f"- Largest difference of a loss, ablation to naive, relative: {differences or 'not measured'}.",
            *(f"- {line}" for line in _said(results)),
            "",
            *table(results, peaks=peaks),
            "",
            "## Kernels",
            "",
            "Ablation of about 48 heads on one batch, from torch's profiler.",
            *kernels(results),
            *(["", "## Not measured", "", *(f"- {line}" for line in missing)] if missing else []),
            "",
        ]
    )  # fmt: skip


def _said(results: Results) -> list[str]:
    return [
        f"{name}, {dtype}: {text}"
        for dtype, cases in results.items()
        for name, found in cases.items()
        for text in found.said
    ]
