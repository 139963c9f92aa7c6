"""Measure batched evaluation of masked heads on a device, within some minutes; exit 1 where something failed."""

import argparse
import gc
import sys
from collections.abc import Iterator, Mapping, Sequence

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks import command
from benchmarks.gpu import page
from benchmarks.gpu.cases import FULL, QUICK, Size, fewest_flops, open_case
from benchmarks.gpu.measure import (
    COMPILED,
    NO_TIME,
    TURNS,
    Clock,
    Measured,
    in_a_line,
    measure,
    with_compiled,
)
from benchmarks.gpu.page import Results
from benchmarks.speed.cases import Case
from benchmarks.speed.flops import Peak
from benchmarks.speed.machine import describe
from headprune.placement import choose_device, release_memory

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main(words: Sequence[str] | None = None) -> int:
    """Measure, and write after every case, so that whatever ends this early loses one case at the most."""
    asked = command.read(_parser(), words)
    device = choose_device(asked.device)
    disable_progress_bar()
    torch.set_float32_matmul_precision("highest")
    clock = Clock(60 * asked.minutes)
    peaks = {name: _peak(device, dtype) for name, dtype in _DTYPES.items()}
    machine = describe(device)
    sizes = QUICK if asked.quick else FULL
    results: Results = {}
    for results in _measured(sizes, device, clock=clock, quick=asked.quick):
        if asked.json:
            command.write_json(asked.json, page.as_json(results, peaks=peaks, machine=machine))
        if asked.page:
            text = page.page(results, peaks=peaks, machine=machine)
            asked.page.write_text(text, encoding="utf-8")
    print("\n".join(page.table(results, peaks=peaks)))
    failed, no_time = page.problems(results)
    print("\n".join([f"failed: {line}" for line in failed] + [f"{line}" for line in no_time]))
    return 1 if failed else 0


def _peak(device: torch.device, dtype: torch.dtype) -> float:
    side = 8192 if device.type == "cuda" else 256
    peak = Peak(device, ((side, side, side),), dtype)
    peak.sample(times=10)
    return peak.best


def _measured(
    sizes: Mapping[str, Size], device: torch.device, *, clock: Clock, quick: bool
) -> Iterator[Results]:
    """Yield what was found so far, by data type and case. What is compiled comes last, for compiling takes long."""
    results: dict[str, dict[str, Measured]] = {name: {} for name in _DTYPES}
    turns = 1 if quick else TURNS
    each = [(dtype, name) for dtype in _DTYPES for name in sizes]

    def opened(dtype: str, name: str) -> Case:
        print(f"gpu: {clock.left:4.0f} s left  {dtype} {name}", file=sys.stderr, flush=True)
        return open_case(name, sizes[name], device=device, dtype=_DTYPES[dtype])

    def measured(dtype: str, name: str) -> Measured:
        case = opened(dtype, name)
        return measure(case, fewest_flops(case, sizes[name]), clock=clock, turns=turns)

    def compiled(dtype: str, name: str) -> Measured:
        return with_compiled(results[dtype][name], opened(dtype, name), clock=clock, turns=turns)

    steps = [(measured, one) for one in each]
    steps += [(compiled, one) for one in (each[:1] if quick else each)]
    for step, (dtype, name) in steps:
        known = results[dtype].get(name) or Measured.nothing()
        way = COMPILED if step is compiled else "all"
        try:
            if clock.left <= 0:
                results[dtype][name] = known.without(way, NO_TIME)
            elif "all" not in known.problems:
                results[dtype][name] = step(dtype, name)
        except Exception as error:  # noqa: BLE001 - the other cases are still to be measured
            results[dtype][name] = known.without(way, in_a_line(error))
        gc.collect()
        release_memory()
        yield results


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("gpu", __doc__, quick="three random models of two layers, one turn")
    command.add_files(parser, page="docs/gpu.md")
    parser.add_argument("--device", default="auto", help="auto (default), cuda, cuda:1, cpu")
    parser.add_argument(
        "--minutes", type=float, default=7, help="what is not begun by then is left out"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
