"""Peak memory of a plain evaluation and of ablation, each in a process of its own.

The process that starts them must be small: Linux counts what the parent holds at the fork as the child's peak. So nothing large
is imported here before a child's work begins.

glibc keeps some of what was freed, in pieces, and how much is luck: the same work peaks up to a tenth apart. So everything is run
three times, and the middle one counts.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.speed.settings import Request, Sizes

_ROOT = Path(__file__).parent.parent.parent
_HEADS = 6
_WORK = ("evaluate", "ablate", "ablate twice the rows")


@dataclass(frozen=True)
class Child:
    """Bytes that a process held at most.

    Args:
        imports: Until all libraries were imported (0 on a GPU, whose memory holds none).
        loaded: Until the model and the rows were there.
        peak: Until the end.
    """

    imports: int
    loaded: int
    peak: int

    @property
    def own(self) -> int:
        """What model and work took together, without the libraries."""
        return self.peak - self.imports


@dataclass(frozen=True)
class Memory:
    """What was found.

    Args:
        subject: The subject.
        rows: Rows of ``evaluation`` and ``ablation``.
        evaluation: A plain evaluation.
        ablation: Ablation of six heads of the first and of the last layer each, on the same batches.
        doubled: The same, on twice the rows: every batch comes twice, so that nothing else differs.
    """

    subject: str
    rows: int
    evaluation: Child
    ablation: Child
    doubled: Child

    @property
    def ratio(self) -> float:
        """Ablation to evaluation, libraries left out (of a process that held more before, nothing is seen)."""
        return self.ablation.own / max(1, self.evaluation.own)

    @property
    def process_ratio(self) -> float:
        """Ablation to evaluation, whole processes."""
        return self.ablation.peak / self.evaluation.peak

    @property
    def growth(self) -> float:
        """Twice the rows to the rows, libraries left out."""
        return self.doubled.own / max(1, self.ablation.own)

    def as_json(self) -> dict[str, Any]:
        """Return the numbers, derived ones too."""
        derived = {
            "ratio": self.ratio,
            "process_ratio": self.process_ratio,
            "growth": self.growth,
        }
        return {**asdict(self), **derived}


def measure_memory(request: Request) -> Memory:
    """Run the processes, one after the other."""
    name = request.memory_subject
    rows = request.effort.memory_rows * (8 if request.device.startswith("cuda") else 1)
    sizes = replace(request.sizes, rows={name: rows}, bert_batch=128, reference_rows=1)
    parts = [[work] for work in _WORK] if request.effort.memory_apart else [list(_WORK)]
    found = [
        [child for part in parts for child in _in_a_process(part, name, sizes, request.device)]
        for _ in range(request.effort.memory_turns)
    ]
    evaluation, ablation, doubled = map(_median, zip(*found, strict=True))
    return Memory(name, rows, evaluation, ablation, doubled)


def _median(children: Sequence[Child]) -> Child:
    return sorted(children, key=lambda child: child.own)[len(children) // 2]


def _in_a_process(part: Sequence[str], name: str, sizes: Sizes, device: str) -> list[Child]:
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    order = {"part": part, "name": name, "sizes": asdict(sizes), "device": device}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.memory", json.dumps(order)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"speed: a process that measures memory failed\n{done.stderr}")
    return [Child(**found) for found in json.loads(done.stdout.strip().splitlines()[-1])]


def _work(order: Mapping[str, Any]) -> list[Child]:
    """Do a child's work, in that child; return what it had held at most after each piece of it."""
    import datasets  # noqa: F401 - is imported when rows are read
    from transformers.models.bert import modeling_bert  # noqa: F401 - when a model is loaded

    from benchmarks.speed.cases import open_case
    from headprune.evaluation import predict

    device = order["device"]
    imports = _peak(device)
    case = open_case(order["name"], Sizes(**order["sizes"]), device)
    loaded = _peak(device)
    found = []
    for work in order["part"]:
        if work == "evaluate":
            predict(case.model, case.task, batches=case.batches)
        else:
            _ablate(case, 2 if work == "ablate twice the rows" else 1)
        found.append(Child(imports, loaded, _peak(device)))
    return found


def _ablate(case: Any, times: int) -> None:
    import torch

    from benchmarks.speed.methods import replay

    batches = [
        replace(batch, indices=batch.indices + time * case.num_examples)
        for time in range(times)
        for batch in case.batches
    ]
    columns = case.anatomy.columns
    wanted = [
        column
        for site in (case.anatomy.sites[0], case.anatomy.sites[-1])
        for column in range(case.num_heads)[columns[site.id]][:_HEADS]
    ]
    masks = 1 - torch.eye(case.num_heads)[wanted]
    replay(case, batches, masks)


def _peak(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    print(json.dumps([asdict(child) for child in _work(json.loads(sys.argv[1]))]))
