"""Measure batched evaluation of masked heads on a device, within some minutes; exit 1 where something failed."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.gpu import page
from benchmarks.gpu.cases import FULL, QUICK, Size, fewest_flops, open_case
from benchmarks.gpu.measure import NO_TIME, Clock, Measured, in_a_line, measure, with_compiled
from benchmarks.speed.cases import Case
from benchmarks.speed.flops import Peak
from benchmarks.speed.machine import describe
from headprune.models import choose_device

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main() -> None:
    """Measure, print, write."""
    asked = _parser().parse_args()
    device = choose_device(asked.device)
    disable_progress_bar()
    clock = Clock(60 * asked.minutes)
    peaks = {name: _peak(device, dtype) for name, dtype in _DTYPES.items()}
    results = _measured(QUICK if asked.quick else FULL, device, clock=clock, quick=asked.quick)
    machine = describe(device)
    if asked.json:
        document = page.as_json(results, peaks=peaks, machine=machine)
        Path(asked.json).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if asked.page:
        text = page.page(results, peaks=peaks, machine=machine)
        Path(asked.page).write_text(text, encoding="utf-8")
    print("\n".join(page.table(results, peaks=peaks)))
    missing = page.problems(results)
    print("\n".join(f"NOT MEASURED {line}" for line in missing))
    sys.exit(1 if any(NO_TIME not in line for line in missing) else 0)


def _peak(device: torch.device, dtype: torch.dtype) -> float:
    side = 8192 if device.type == "cuda" else 256
    peak = Peak(device, dtype, ((side, side, side),))
    peak.sample(times=10)
    return peak.best


def _measured(
    sizes: Mapping[str, Size], device: torch.device, *, clock: Clock, quick: bool
) -> dict[str, dict[str, Measured]]:
    """Return what was found by data type and case: what is compiled comes last, for compiling takes long."""
    results: dict[str, dict[str, Measured]] = {name: {} for name in _DTYPES}
    each = [(dtype, name) for dtype in _DTYPES for name in sizes]
    compiled = each[:1] if quick else each

    def opened(dtype: str, name: str) -> Case:
        print(f"gpu: {clock.left:4.0f} s left  {dtype} {name}", file=sys.stderr, flush=True)
        return open_case(name, sizes[name], device=device, dtype=_DTYPES[dtype])

    for dtype, name in each:
        try:
            case = opened(dtype, name)
            found = measure(case, fewest_flops(case, sizes[name]), clock=clock)
            del case
        except Exception as error:  # noqa: BLE001 - the other cases are still to be measured
            found = Measured(float("nan"), {}, {"all": in_a_line(error)}, None, float("nan"), None)
        results[dtype][name] = found
    for dtype, name in compiled:
        if "all" not in results[dtype][name].problems:
            known = results[dtype][name]
            results[dtype][name] = with_compiled(known, opened(dtype, name), clock=clock)
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="auto", help="auto (default), cuda, cuda:1, cpu")
    parser.add_argument(
        "--minutes", type=float, default=7, help="what is not begun by then is left out"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny sizes: shows that it runs, says nothing about speed",
    )
    parser.add_argument("--json", metavar="FILE", help="write all numbers")
    parser.add_argument("--page", metavar="FILE", help="write the page, docs/gpu.md")
    return parser  # fmt: skip


if __name__ == "__main__":
    main()
