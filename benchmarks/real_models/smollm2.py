"""SmolLM2-135M: a Llama decoder, 9 query heads on 3 key/value heads, on prose that every Python brings."""

import math
import pydoc_data.topics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.real_models.subject import Law, Sanity, Subject, at_least
from headprune import demo
from headprune.batch import Batch

_WINDOW = 64
_PROMPT = "The capital of France is"


def subject() -> Subject:
    """Return SmolLM2, scored on two chapters of the Python reference and measured on two others."""
    directory = demo.locate_model("demo:smollm2")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    held_out = _batches(("class", "import"), tokenizer)
    prompt = tokenizer(_PROMPT, return_tensors="pt")

    def texts(model: Any) -> dict[str, str]:
        ids = model.generate(**prompt, max_new_tokens=12, do_sample=False)
        return {_PROMPT: str(tokenizer.decode(ids[0], skip_special_tokens=True))}

    return Subject(
        directory=directory,
        auto_class="AutoModelForCausalLM",
        heads={"": 270},
        batches=_batches(("exceptions", "objects"), tokenizer),
        loss=_loss,
        inputs={"input_ids": held_out[0]["input_ids"]},
        numbers=lambda model: {"perplexity": _perplexity(model, held_out)},
        texts=texts,
        base=_base,
        tokenizer=tokenizer,
    )


def _base(sanity: Sanity) -> list[Law]:
    knows = float("Paris" in sanity.texts[_PROMPT])
    return [
        at_least("it knows Paris", knows, 1.0),
        at_least("prose is likely (1 / perplexity)", 1 / sanity.numbers["perplexity"], 1 / 100),
    ]


def _batches(
    chapters: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Tensor]]:
    ids = tokenizer("\n".join(pydoc_data.topics.topics[name] for name in chapters))["input_ids"]
    windows = torch.tensor(ids[: len(ids) // _WINDOW * _WINDOW]).reshape(-1, _WINDOW)[:16]
    return [{"input_ids": rows, "labels": rows} for rows in windows.split(4)]


def _loss(outputs: Any, batch: Batch) -> Tensor:
    return _next_token_losses(outputs.logits, batch.targets).mean(1)


def _next_token_losses(logits: Tensor, ids: Tensor) -> Tensor:
    return cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")


@torch.no_grad()
def _perplexity(model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]]) -> float:
    losses = [
        _next_token_losses(model(input_ids=rows["input_ids"]).logits, rows["input_ids"])
        for rows in batches
    ]
    return math.exp(torch.cat(losses).mean().item())
