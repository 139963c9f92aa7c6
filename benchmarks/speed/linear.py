"""Whether ablation costs what its rows and tokens say: three row counts, three lengths, on the random BERT."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from benchmarks.speed.cases import Case, open_case
from benchmarks.speed.compare import Tell, spread
from benchmarks.speed.methods import ours_with, replay, whole
from benchmarks.speed.settings import Effort, Sizes

_SITES = 6
_HEADS_PER_SITE = 2


@dataclass(frozen=True)
class Point:
    """Seconds of ablation on so many rows of so many tokens, without what is done once a run, and that."""

    rows: int
    length: int
    seconds: float
    once: float

    @property
    def per_token(self) -> float:
        """Seconds per row and token."""
        return self.seconds / (self.rows * self.length)


def measure_linear(sizes: Sizes, effort: Effort, device: str, *, notify: Tell) -> list[Point]:
    """Ablate a few heads of up to six layers on ``n``, ``2n`` and ``4n`` rows, and on ``2n`` rows of three lengths."""
    n = effort.linear_rows * (32 if device.startswith("cuda") else 1)
    short, middle, long = effort.linear_lengths
    wanted = [(n, middle), (2 * n, middle), (4 * n, middle), (2 * n, short), (2 * n, long)]
    cases = {key: _open(key, n, sizes, device) for key in wanted}
    found: dict[tuple[int, int], list[tuple[float, float]]] = {key: [] for key in wanted}
    for turn in range(effort.repeats):
        notify(f"linear cost: turn {turn + 1} of {effort.repeats}")
        for key, case in cases.items():
            masks = _masks(case)
            if turn == 0:
                replay(case, [whole(case.batches[0])], masks[:2])
            run = ours_with(case, masks)
            found[key].append((run.seconds - run.once, run.once))
    return [Point(*key, *min(samples)) for key, samples in found.items()]


def _open(key: tuple[int, int], batch: int, sizes: Sizes, device: str) -> Case:
    rows, length = key
    wanted = replace(
        sizes,
        rows={"bert-base": rows},
        bert_batch=batch,
        bert_length=length,
        reference_rows=1,
    )
    return open_case("bert-base", wanted, device)


def _masks(case: Case) -> torch.Tensor:
    sites: Sequence[int] = spread(len(case.anatomy.sites), _SITES)
    columns = [
        case.anatomy.columns[case.anatomy.sites[site].id].start + head
        for site in sites
        for head in range(_HEADS_PER_SITE)
    ]
    return 1 - torch.eye(case.num_heads)[columns]
