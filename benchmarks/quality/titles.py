"""A T5 that writes titles of what users ask: how likely the titles of the whole model are to the pruned one.

The titles are the whole model's own, so its perplexity is close to 1 and nothing but a change is measured.
"""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration

from benchmarks.real_models import t5
from benchmarks.real_models.losses import IGNORED, token_cross_entropy
from headprune.batch import Batch
from headprune.demo import cache_directory
from headprune.runtime.files import write_text
from headprune.tasks.batches import InputFormat, pack, pad
from headprune.tasks.distill import divergence
from headprune.tasks.rows import Example
from headprune.tasks.task import Task, get_task

_CHOOSING, _REPORTING, _TRAINING = 512, 1024, 10_240
_SIZE = 32


def titled_requests(source: Path, *, seed: int) -> tuple[Path, dict[str, list[Example]]]:
    """Return the model's directory, and requests that choose, that are trained on, and that report; with their titles.

    Args:
        source: CLINC150, whose requests are used without their intents.
        seed: Of the rows from the training part, those that choose and others. Those that report are always the same, from the
            test part.
    """
    directory = t5.subject().directory
    content = json.loads(source.read_text(encoding="utf-8"))
    train = [text for text, _intent in content["train"]]
    test = random.Random(0).sample([text for text, _intent in content["test"]], _REPORTING)
    chosen = random.Random(seed).sample(sorted(set(train) - set(test)), _CHOOSING)
    others = random.Random(seed).sample(sorted(set(train) - {*test, *chosen}), _TRAINING)
    parts = {"choose": chosen, "train": others, "report": test}
    return directory, {name: _titled(directory, part) for name, part in parts.items()}


def _titled(directory: Path, requests: Sequence[str]) -> list[Example]:
    """Return the requests with the titles that the model writes of them; made once and kept."""
    texts = [f"summarize: The user asked: {request}" for request in requests]
    digest = hashlib.sha256("\n".join([str(directory.name), *texts]).encode()).hexdigest()[:12]
    kept = cache_directory() / f"titles-{digest}.json"
    if not kept.is_file():
        model = T5ForConditionalGeneration.from_pretrained(directory).eval()
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
        write_text(kept, json.dumps(_write_titles(model, tokenizer, texts)))
    titles = json.loads(kept.read_text(encoding="utf-8"))
    return [
        Example(texts=(text,), tokens=tuple(title))
        for text, title in zip(texts, titles, strict=True)
    ]


@torch.no_grad()
def _write_titles(
    model: Any, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> list[list[int]]:
    """Return the tokens of greedy titles, from the start token to the end of each."""
    found: list[list[int]] = []
    end = model.config.eos_token_id
    for first in range(0, len(texts), _SIZE):
        inputs = tokenizer(
            list(texts[first : first + _SIZE]),
            padding=True,
            return_tensors="pt",
            return_token_type_ids=False,
        )
        written = model.generate(**inputs, max_new_tokens=24, do_sample=False, num_beams=1)
        for ids in written.tolist():
            stop = ids.index(end) + 1 if end in ids else len(ids)
            found.append(ids[:stop])
    return found


def _to_batches(examples: Sequence[Example], input_format: InputFormat) -> tuple[Batch, ...]:
    """Give each request one row: its title is forced, token after token, and each is to be followed by the next."""
    read = input_format.tokenizer(
        [example.texts[0] for example in examples],
        truncation=True,
        max_length=input_format.max_length,
    )["input_ids"]
    batches = []
    for members in pack([len(ids) for ids in read], batch_size=input_format.batch_size):
        titles = [examples[place].tokens for place in members]
        forced = _padded([title[:-1] for title in titles])
        batches.append(
            Batch(
                inputs={
                    **_padded([read[place] for place in members]),
                    **{f"decoder_{name}": value for name, value in forced.items()},
                },
                targets=_wanted(titles),
                example_of_row=torch.arange(len(members)),
                indices=torch.tensor(members),
            )
        )
    return tuple(batches)


def _padded(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    return pad(
        [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows], pad_token_id=0
    )


def _wanted(titles: Sequence[Sequence[int]]) -> Tensor:
    longest = max(len(title) for title in titles) - 1
    return torch.tensor([[*title[1:], *[IGNORED] * (longest - len(title) + 1)] for title in titles])


def _predict(outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return what perplexity is made of: the summed negative log-likelihood and the number of tokens."""
    logits = outputs.logits.transpose(1, 2).float()
    lost = cross_entropy(logits, batch.targets, ignore_index=IGNORED, reduction="none")
    return lost.sum(1), (batch.targets != IGNORED).sum(1)


def _distance(student: Tensor, teacher: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return KL(teacher || student) of the next token, the mean over a title."""
    real = inputs["decoder_attention_mask"].bool()
    by_token = divergence(student, teacher.softmax(-1)).where(real, 0.0)
    return by_token.sum(-1) / real.sum(-1)


_CAUSAL_LM = get_task("causal-lm")
TASK = Task(
    row=replace(_CAUSAL_LM.row, name="titles", auto_class="AutoModelForSeq2SeqLM"),
    to_examples=_CAUSAL_LM.to_examples,
    to_batches=_to_batches,
    loss=token_cross_entropy,
    predict=_predict,
    distillation=replace(_CAUSAL_LM.distillation, distance=_distance),
)
