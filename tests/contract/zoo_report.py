"""Say of every model type of transformers whether the zoo builds it, and whether it runs.

python tests/contract/zoo_report.py report.json [--shard 0/4] [model types ...]
"""

import argparse
import collections
import gc
import json
import logging
import re
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
import transformers
import zoo
from transformers.modeling_utils import AttentionInterface

SECONDS_A_TYPE = 40


class TooSlowError(Exception):
    """A model type took longer than it may."""


def report(model_type):
    """Return what becomes of a model type: built, runs, has attention, and the reason why not."""
    row = {"built": False, "runs": False, "interface": 0, "named": 0, "reason": ""}
    started = time.perf_counter()
    try:
        signal.alarm(SECONDS_A_TYPE)
        model = zoo.build(model_type)
        row |= {"built": True, "class": type(model).__name__}
        row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        row["named"] = sum(
            bool(re.search(r"Attention|Attn", type(module).__name__)) for module in model.modules()
        )
        made = zoo.inputs(model)
        row["inputs"] = {name: list(getattr(x, "shape", ())) for name, x in made.items()}
        calls = _attention_calls(model, made)
        row |= {"runs": True, "interface": calls}
    except zoo.NotBuilt as error:
        row["reason"] = str(error)
    except Exception as error:  # noqa: BLE001 - the report is about failures
        row["reason"] = zoo._short(error)
        row["where"] = _where(error)
    finally:
        signal.alarm(0)
    row["seconds"] = round(time.perf_counter() - started, 2)
    return row


def _where(error):
    """Return the last lines of code on an error's way, innermost first."""
    steps, trace = [], error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        steps.append(f"{Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return steps[:-5:-1]


def _attention_calls(model, made):
    """Run a model and count its calls of the attention interface."""
    calls = []
    original = AttentionInterface.get_interface

    def counting(self, *args):
        calls.append(args)
        return original(self, *args)

    AttentionInterface.get_interface = counting
    try:
        with torch.no_grad():
            outputs = model(**made)
    finally:
        AttentionInterface.get_interface = original
    if _has_nan(outputs):
        raise ValueError("an output is not a number")
    return len(calls)


def _has_nan(value):
    """Say whether a nest of tensors has values that are no numbers."""
    if isinstance(value, torch.Tensor):
        return value.is_floating_point() and bool(value.isnan().any())
    if isinstance(value, dict):
        return any(_has_nan(item) for item in value.values())
    return isinstance(value, (list, tuple)) and any(_has_nan(item) for item in value)


def _stop(signum, frame):
    raise TooSlowError(f"more than {SECONDS_A_TYPE} s")


def main():
    """Write the report, and print its counts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("model_types", nargs="*")
    asked = parser.parse_args()
    shard, shards = (int(number) for number in asked.shard.split("/"))
    signal.signal(signal.SIGALRM, _stop)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(logging.CRITICAL)
    rows = {}
    started = time.perf_counter()
    for model_type in (asked.model_types or zoo.model_types())[shard::shards]:
        rows[model_type] = report(model_type)
        gc.collect()
    asked.out.write_text(json.dumps(rows, indent=1))
    counts = collections.Counter()
    for row in rows.values():
        counts["types"] += 1
        counts["built"] += row["built"]
        counts["run"] += row["runs"]
        counts["attention"] += row["runs"] and bool(row["interface"] or row["named"])
    sys.stdout.write(f"{dict(counts)} in {time.perf_counter() - started:.0f} s\n")


if __name__ == "__main__":
    main()
