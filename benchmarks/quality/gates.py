"""How many heads of each kind stay at which price: see docs/gates.md."""

import argparse
import itertools
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel, T5ForConditionalGeneration

from benchmarks.real_models import t5
from benchmarks.real_models.losses import token_cross_entropy
from headprune.anatomy.sites import Anatomy
from headprune.batch import Batch, as_batches
from headprune.heads import HeadId
from headprune.inspection import inspect
from headprune.replay.losses import losses
from headprune.scoring.gates import average_worth, settled, trained_gates
from headprune.scoring.request import ScoreRequest

_KINDS = ("encoder self", "decoder self", "cross")
_WANTED = (
    "The user asked for a search box on the start page",
    "The user reported that uploads of large files time out",
    "The tests of the billing module failed after the upgrade",
    "The user wanted the nightly job to send an e-mail when it fails",
    "The documentation of the client library was out of date",
    "The user complained that the mobile menu covers the logo",
)
_DONE = (
    "the agent found the cause in server.py, changed four lines and added a test",
    "the agent rewrote the component, moved its settings to config.yaml and ran the linter",
    "the agent read the logs, raised the limit in the reverse proxy and described it in the README",
    "the agent asked two questions, then edited three files and ran the whole test suite",
)
_ROWS_PER_BATCH = 4


def main(words: Sequence[str] | None = None) -> int:
    """Train gates at each price, and print which heads stay."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.gates", description=__doc__)
    parser.add_argument("--prices", default="0.25,0.5,1", help="of a head's average worth")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    asked = parser.parse_args(words)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    subject = t5.subject()
    model = T5ForConditionalGeneration.from_pretrained(subject.directory).eval()
    texts = [f"summarize: {wanted}; {done}." for wanted, done in itertools.product(_WANTED, _DONE)]
    batches = as_batches(
        t5.titled(texts[start :: len(texts) // _ROWS_PER_BATCH], model, subject.tokenizer)
        for start in range(len(texts) // _ROWS_PER_BATCH)
    )
    anatomy = inspect(model)
    request = ScoreRequest(model, anatomy, batches, token_cross_entropy)
    worth = average_worth(request)
    measured = []
    for price in map(float, asked.prices.split(",")):
        print(f"training gates at {price:g} of {worth:.4f} nats", file=sys.stderr)
        log_alpha = trained_gates(request, price=price * worth)
        measured.append({"price": price, **_outcome(model, anatomy, batches, log_alpha)})
    found = {"n": len(texts), "average_worth": worth, "measured": measured}
    _show(found, anatomy)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


def _kind(head: HeadId) -> str:
    return "cross" if head.site.kind == "cross" else f"{head.site.stack} self"


def _outcome(
    model: PreTrainedModel, anatomy: Anatomy, batches: Sequence[Batch], log_alpha: Tensor
) -> dict[str, Any]:
    """Return how many heads of each kind stay, the mean rank of each kind, and the loss with the others silent."""
    stays = settled(log_alpha) > 0
    masks = torch.stack([torch.ones(len(stays)), stays.float()])
    found = losses(model, anatomy, batches=batches, loss=token_cross_entropy, masks=masks)
    kinds = [_kind(head) for head in anatomy.heads]
    ranks = log_alpha.argsort().argsort().double() / (len(stays) - 1)
    return {
        "stay": dict(
            Counter(kind for kind, open_ in zip(kinds, stays.tolist(), strict=True) if open_)
        ),
        "mean_rank": {
            kind: ranks[[place for place, other in enumerate(kinds) if other == kind]].mean().item()
            for kind in _KINDS
        },
        "loss": found.mean(1).tolist(),
    }


def _show(found: dict[str, Any], anatomy: Anatomy) -> None:
    of = Counter(_kind(head) for head in anatomy.heads)
    title = f"Heads that stay (mean rank, 0 goes first); n = {found['n']} texts, which trained the gates, too"
    table = Table(title=title, title_justify="left")
    for column in ("price", *(f"{kind}, of {of[kind]}" for kind in _KINDS), "loss, all -> those"):
        table.add_column(column)
    for row in found["measured"]:
        cells = [f"{row['stay'].get(kind, 0)} ({row['mean_rank'][kind]:.2f})" for kind in _KINDS]
        table.add_row(f"{row['price']:g}", *cells, "{:.3f} -> {:.3f}".format(*row["loss"]))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    sys.exit(main())
