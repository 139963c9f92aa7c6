"""all-MiniLM-L6-v2: a BERT encoder, on the STS benchmark. Both are headprune's own demo."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.real_models.subject import Law, Sanity, Subject, at_least
from benchmarks.tiny import tiny_bert
from headprune import demo
from headprune.batch import Batch

_CALIBRATION_PAIRS, _HELD_OUT_PAIRS, _PAIRS_PER_BATCH = 64, 300, 16


def subject() -> Subject:
    """Return MiniLM, scored on pairs of sentences of STS-B dev and measured on pairs of its test split."""
    found = _subject(demo.locate_model("demo:minilm"), (_CALIBRATION_PAIRS, _HELD_OUT_PAIRS))
    return replace(found, heads={"": 72}, base=_base)


def tiny() -> Subject:
    """Return a tiny random BERT on a few pairs, cut once; nothing is to be expected of what it does."""
    found = _subject(tiny_bert(), (8, 16))
    return replace(found, heads={"": 12}, keeps=())


def _subject(directory: Path, pairs: tuple[int, int]) -> Subject:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    calibration = _batches("dev", pairs[0], tokenizer)
    held_out = _batches("test", pairs[1], tokenizer)
    return Subject(
        directory=directory,
        auto_class="AutoModel",
        heads={},
        batches=calibration,
        loss=_loss,
        inputs=held_out[0].inputs,
        numbers=lambda model: {"spearman": _spearman(model, held_out)},
        texts=lambda _model: {},
        base=lambda _sanity: [],
        tokenizer=tokenizer,
    )


def _base(sanity: Sanity) -> list[Law]:
    return [at_least("similar sentences are alike", sanity.numbers["spearman"], 0.8)]


def _batches(split: str, pairs: int, tokenizer: PreTrainedTokenizerBase) -> list[Batch]:
    """Return evenly spread pairs of a split (its rows are grouped by genre)."""
    lines = demo.locate_data("demo:stsb", split).read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines][:: len(lines) // pairs][:pairs]
    return [
        _batch(rows[start : start + _PAIRS_PER_BATCH], start, tokenizer)
        for start in range(0, pairs, _PAIRS_PER_BATCH)
    ]


def _batch(rows: Sequence[list[str]], start: int, tokenizer: PreTrainedTokenizerBase) -> Batch:
    sentences = [sentence for row in rows for sentence in row[5:7]]
    inputs = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
    return Batch(
        inputs=dict(inputs),
        targets=torch.tensor([float(row[4]) / 5 for row in rows]),
        example_of_row=torch.arange(len(rows)).repeat_interleave(2),
        indices=torch.arange(start, start + len(rows)),
    )


def _similarities(outputs: Any, batch: Batch) -> Tensor:
    mask = batch.inputs["attention_mask"].unsqueeze(-1)
    pooled = (outputs.last_hidden_state * mask).sum(1) / mask.sum(1)
    return cosine_similarity(pooled[::2], pooled[1::2])


def _loss(outputs: Any, batch: Batch) -> Tensor:
    return (_similarities(outputs, batch) - batch.targets).square()


@torch.no_grad()
def _spearman(model: PreTrainedModel, batches: Sequence[Batch]) -> float:
    found = torch.cat([_similarities(model(**batch.inputs), batch) for batch in batches])
    wanted = torch.cat([batch.targets for batch in batches])
    return float(spearmanr(found.numpy(), wanted.numpy()).statistic)
