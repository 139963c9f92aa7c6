"""Detectors of retrieval: a code word stands somewhere in a text; which heads look at it when it is said again?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headprune.analysis.call import AttentionCall, Needle
from headprune.analysis.greedy import greedy
from headprune.analysis.positions import Columns
from headprune.batch import Batch
from headprune.errors import DataError
from headprune.passes import RunContext, Work, each_batch, one_after_another
from headprune.placement import input_device
from headprune.tasks.batches import batches_of_ids

_CODE = 4
_LEAST_LETTERS = 3
_NEEDLE = "\nThe secret code of the archive is"
_QUESTION = (
    "\nQuestion: What is the secret code of the archive?\nAnswer: The secret code of the archive is"
)
_FEWEST = 32
_RECALL = 0.5
_MORE = 4
_ROWS = 4


@dataclass(frozen=True)
class Trial:
    """A text with a code word, and the question that it answers.

    Args:
        prompt: Tokens up to where the answer begins.
        code: Tokens of the code word.
        start: Where the code word stands in the prompt.
    """

    prompt: tuple[int, ...]
    code: tuple[int, ...]
    start: int


def make_trials(
    text: Sequence[int], tokenizer: Any, *, count: int, longest: int, seed: int
) -> tuple[Trial, ...]:
    """Return texts of different length, each with a code word of random words at a different depth.

    Args:
        text: Tokens that the text around it is taken from.
        tokenizer: The model's.
        count: How many trials.
        longest: The longest prompt with its answer, in tokens.
        seed: Of what is drawn.

    Raises:
        DataError: There is too little text, or the tokenizer has no words.
    """
    generator = torch.Generator().manual_seed(seed)

    def encoded(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    needle, end, question = encoded(_NEEDLE), encoded("."), encoded(_QUESTION)
    words = _words(tokenizer)
    around = len(needle) + len(end) + len(question) + 2 * _CODE + _MORE + 1
    most = longest - around
    _require_room(len(text), most, len(words), least=around + _FEWEST)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    trials = []
    for index in range(count):
        length = min(len(text), _FEWEST + (most - _FEWEST) * (index % 5) // 4)
        offset = int(torch.randint(len(text) - length + 1, (1,), generator=generator))
        depth = length * ((index // 5) % 11) // 10
        around_it = text[offset : offset + length]
        code = [
            words[place]
            for place in torch.randperm(len(words), generator=generator)[:_CODE].tolist()
        ]
        before = [*start, *around_it[:depth], *needle]
        prompt = [*before, *code, *end, *around_it[depth:], *question]
        trials.append(Trial(tuple(prompt), tuple(code), len(before)))
    return tuple(trials)


def _require_room(text: int, most: int, words: int, *, least: int) -> None:
    """Refuse what no code word can be hidden in: too short a text, too short prompts, too few words.

    Raises:
        DataError: Of that.
    """
    if words < _CODE:
        raise DataError(
            f"a tokenizer that marks {words} tokens as words can't hide a code word",
            where="`tokenizer`",
            hint="it takes one whose words begin with a space, as those of GPT-2 and Llama do",
        )
    if most < _FEWEST:
        raise DataError(
            f"prompts of {least - _FEWEST + most} tokens can't hide a code word: it takes {least}",
            where="`needle_length`",
            hint="a larger `needle_length`, where the model takes rows that long",
        )
    if text < _FEWEST:
        raise DataError(
            f"{text} tokens of text can't hide a code word",
            where="`data`",
            hint=f"give a text of {_FEWEST} tokens or more",
        )


def _words(tokenizer: Any) -> list[int]:
    """Return tokens that are words of a few letters with a space before them."""
    size = len(tokenizer)
    return [
        token
        for token, text in enumerate(tokenizer.convert_ids_to_tokens(list(range(size))))
        if text
        and text[0] in "Ġ▁"
        and len(text) > _LEAST_LETTERS
        and text[1:].isascii()
        and text[1:].isalpha()
    ]


def answered(
    trials: Sequence[Trial], answers: Sequence[Sequence[int]]
) -> tuple[tuple[Batch, ...], dict[int, Needle]]:
    """Return trials with answers as batches, and where each code word stands.

    Args:
        trials: The trials.
        answers: Tokens of the answers.
    """
    pairs = list(zip(trials, answers, strict=True))
    needles = {
        index: Needle(
            trial.start, trial.start + len(trial.code), len(trial.prompt) - 1, len(answer)
        )
        for index, (trial, answer) in enumerate(pairs)
    }
    rows = [(*trial.prompt, *answer) for trial, answer in pairs]
    return batches_of_ids(rows, batch_size=_ROWS), needles


def decoded(
    model: PreTrainedModel, trials: Sequence[Trial], *, context: RunContext
) -> tuple[list[Trial], list[list[int]]]:
    """Return the trials that the model answers rightly by greedy decoding, and its answers.

    A trial counts if more than half of the code word's tokens are in the answer.

    Args:
        model: The model.
        trials: The trials.
        context: How the work runs: trials are shared by its processes, and kept one by one.
    """
    work: Work[Trial] = Work(
        lambda trial: _answer(model, trial),
        shape=lambda _trial: (_CODE + _MORE,),
        dtype=torch.long,
        join=one_after_another(0),
        halves=lambda _trial: (),
    )
    right: list[Trial] = []
    answers: list[list[int]] = []
    padded = each_batch(trials, work, context=context, name="code words, asked for")
    for trial, tokens in zip(trials, padded, strict=True):
        answer = tokens[tokens >= 0].tolist()
        if sum(token in answer for token in trial.code) > _RECALL * len(trial.code):
            right.append(trial)
            answers.append(answer)
    return right, answers


def _answer(model: PreTrainedModel, trial: Trial) -> Tensor:
    """Return the tokens of the model's answer, and -1 behind its end."""
    prompt = torch.tensor([trial.prompt], device=input_device(model))
    inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    answer = greedy(model, inputs, most=_CODE + _MORE)[0, prompt.shape[1] :]
    padded = answer.new_full((_CODE + _MORE,), -1)
    padded[: len(answer)] = answer
    return padded


def retrieval(call: AttentionCall) -> Columns:
    """Return how much of the code word a head looks at while it is said, once per trial.

    For each token of the answer that is in the code word, the head gets ``1 / length of the code word`` if its largest weight, at
    the position that predicts the token, is on that token in the text.

    Source: Wu et al., "Retrieval Head Mechanistically Explains Long-Context Factuality", ICLR 2025, section 2: retrieval heads
    are above 0.1. There, answers are decoded (``retrieval-decoded``); where the code word is given as the answer, every trial
    counts (``retrieval``), and a small model has a number, too.
    """
    if call.key_ids is None or call.is_cross or not call.needles:
        return {}
    numbers = call.weights.new_full(call.weights.shape[:3], torch.nan)
    largest = call.largest()
    for row, needle in enumerate(call.needles):
        ids = call.key_ids[row]
        numbers[row, :, needle.first] = _credit(largest[row], ids, needle)
    return {"": numbers}


def _credit(largest: Tensor, ids: Tensor, needle: Needle) -> Tensor:
    """Return the credit of every head in one trial."""
    queries = torch.arange(needle.first, needle.first + needle.length, device=ids.device)
    span = torch.arange(needle.start, needle.stop, device=ids.device)
    same = ids[queries + 1][:, None] == ids[span][None]
    looked = largest[:, queries][:, :, span] * same
    return looked.sum((-2, -1)) / (needle.stop - needle.start)
