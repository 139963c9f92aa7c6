"""Mask the heads that a role names, and as many random heads, and see what the model can't do any more.

``induction`` is tried on random tokens said twice: the loss of the second time. ``retrieval`` is tried on texts with a code word:
the loss of the code word, given as the answer. Mean over sequences, with 1.96 standard errors of the difference from the whole
model, sequence by sequence; random heads are drawn several times, from the heads that haven't the role.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.command import add_files, parser, read, write_json
from headprune.analysis.needles import answered
from headprune.analysis.repeats import repeated_sequences
from headprune.analysis.request import RoleRequest
from headprune.analysis.roles import Roles
from headprune.artefact import read_artefact
from headprune.batch import Batch
from headprune.config import AnalyzeSpec, Settings
from headprune.heads import HeadId
from headprune.replay.losses import losses
from headprune.report.terminal import ConsoleProgress
from headprune.tasks.rows import Example
from headprune.workflows.rows import rows_without_labels
from headprune.workflows.session import Session, open_session

SPEC = AnalyzeSpec(num_sequences=48, num_needles=44, needle_length=256)


def loss_of_span(outputs: Any, batch: Batch) -> Tensor:
    """Return the mean loss of the tokens that the positions from ``targets[:, 0]`` up to ``targets[:, 1]`` predict."""
    spans = [
        cross_entropy(logits[start:stop].float(), ids[start + 1 : stop + 1])
        for logits, ids, (start, stop) in zip(
            outputs.logits, batch.inputs["input_ids"], batch.targets.tolist(), strict=True
        )
    ]
    return torch.stack(spans)


def said_twice(session: Session) -> tuple[Batch, ...]:
    """Return random tokens said twice; the second time counts."""
    tokenizer = session.tokenizer
    batches = repeated_sequences(
        vocabulary=min(session.model.config.get_text_config().vocab_size, len(tokenizer)),
        special=tokenizer.all_special_ids,
        start=tokenizer.bos_token_id,
        length=SPEC.sequence_length,
        count=SPEC.num_sequences,
        seed=session.settings.data.seed + 1,  # not those that the roles were measured on
    )
    length = SPEC.sequence_length
    first = batches[0].inputs["input_ids"].shape[1] - length
    # The first token of the second time can't be told from the one before it.
    span = torch.tensor([[first, first + length - 1]])
    return tuple(replace(one, targets=span.expand(one.num_rows, -1)) for one in batches)


def with_code_words(session: Session) -> tuple[Batch, ...]:
    """Return texts with a code word, which is given as the answer; the answer counts."""
    examples: tuple[Example, ...] = rows_without_labels(session, 100).examples
    request = RoleRequest(
        session.model,
        session.anatomy,
        batches=session.batches(examples),
        tokenizer=session.tokenizer,
        spec=SPEC,
        seed=session.settings.data.seed + 1,
        predicts_next=True,
    )
    batches, needles = answered(request.trials, [trial.code for trial in request.trials])
    spans = [
        [
            (needles[index].first, needles[index].first + needles[index].length)
            for index in one.indices.tolist()
        ]
        for one in batches
    ]
    return tuple(
        replace(one, targets=torch.tensor(span)) for one, span in zip(batches, spans, strict=True)
    )


TRIED = {"induction": said_twice, "retrieval": with_code_words}
"""What the heads of a role are said to do."""


def tried(
    session: Session, heads: Sequence[HeadId], batches: Sequence[Batch], *, draws: int
) -> dict[str, Any]:
    """Return the loss of the whole model, and how much worse it is without ``heads`` and without as many others."""
    anatomy = session.anatomy
    others = [head for head in anatomy.heads if head not in set(heads)]
    random = Random(session.settings.data.seed)
    removed = [[], list(heads), *(random.sample(others, len(heads)) for _ in range(draws))]
    values = losses(
        session.model,
        anatomy,
        batches=batches,
        loss=loss_of_span,
        masks=torch.stack([anatomy.mask(some) for some in removed]),
        context=session.context(),
        name="heads masked",
    ).double()
    whole, without, by_chance = values[0], values[1] - values[0], values[2:] - values[0]
    return {
        "heads": [str(head) for head in heads],
        "n": len(whole),
        "loss": float(whole.mean()),
        "without": _mean(without),
        "without_random": _mean(by_chance.mean(0)),
        "worst_random": float(by_chance.mean(1).max()),
        "draws": draws,
    }


def _mean(values: Tensor) -> tuple[float, float]:
    """Return a mean and 1.96 standard errors."""
    return float(values.mean()), 1.96 * float(values.std()) / sqrt(len(values))


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line."""
    about = parser("roles", __doc__, quick="a few sequences")
    about.add_argument("--model", default="demo:smollm2")
    about.add_argument(
        "--roles",
        type=Path,
        required=True,
        help="roles.json of the model, which headprune analyze writes; --quick needs it, too",
    )
    about.add_argument("--data", help="a text, for the code words")
    about.add_argument("--draws", type=int, default=10)
    add_files(about)
    asked = read(about, words)
    roles = read_artefact(Roles, asked.roles)
    settings = Settings.of(model=asked.model, data=asked.data, limit=100)
    session = open_session(settings, progress=ConsoleProgress())
    document: dict[str, Any] = {}
    for role, make in TRIED.items():
        heads = roles.heads_with(role)
        if not heads:
            continue
        batches = make(session)[:1] if asked.quick else make(session)
        document[role] = one = tried(
            session, heads, batches, draws=2 if asked.quick else asked.draws
        )
        sys.stdout.write(
            f"{role}: {len(heads)} heads, n = {one['n']}: loss {one['loss']:.3f}; without them "
            f"{one['without'][0]:+.3f} ± {one['without'][1]:.3f}; without as many others "
            f"{one['without_random'][0]:+.3f} ± {one['without_random'][1]:.3f}, at worst {one['worst_random']:+.3f}\n"
        )
    if asked.json:
        write_json(asked.json, document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
