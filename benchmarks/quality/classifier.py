"""A classifier whose test set is known: MiniLM, its pooler, and a linear head fitted to the intents of CLINC150."""

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from headprune.demo import cache_directory, locate_model
from headprune.runtime.files import staged_directory

_STEPS = 200
_DECAY = 1e-4


def build_classifier(source: Path) -> tuple[Path, Path, Path]:
    """Return the directory of the classifier, and tables of its training and test rows; made once and kept.

    The transformer stays as it is: only the head is fitted, by cross-entropy on the training rows with a little weight decay.
    """
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    target = cache_directory() / f"clinc150-minilm-{digest}"
    if not (target / "model" / "config.json").is_file():
        with staged_directory(target) as folder:
            _build(source, folder)
    return target / "model", target / "train.csv", target / "test.csv"


def _build(source: Path, folder: Path) -> None:
    content = json.loads(source.read_text(encoding="utf-8"))
    labels = sorted({label for _text, label in content["train"]})
    for split in ("train", "test"):
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *content[split]])
    start = locate_model("demo:minilm")
    tokenizer = AutoTokenizer.from_pretrained(start)
    names = dict(enumerate(labels))
    config = AutoConfig.from_pretrained(
        start, num_labels=len(labels), id2label=names, label2id={n: i for i, n in names.items()}
    )
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(start, config=config).eval()
    texts = [text for text, _label in content["train"]]
    wanted = torch.tensor([labels.index(label) for _text, label in content["train"]])
    _fit(model.classifier, _pooled(model, tokenizer, texts), wanted)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


@torch.no_grad()
def _pooled(model: Any, tokenizer: Any, texts: Sequence[str], size: int = 64) -> Tensor:
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    pooled = torch.empty(len(texts), model.config.hidden_size)
    for first in range(0, len(order), size):
        indices = order[first : first + size]
        inputs = tokenizer(
            [texts[index] for index in indices], padding=True, truncation=True, return_tensors="pt"
        )
        pooled[indices] = model.bert(**inputs).pooler_output
    return pooled


def _fit(head: nn.Linear, inputs: Tensor, wanted: Tensor) -> None:
    nn.init.zeros_(head.weight)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(head(inputs), wanted) + _DECAY * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
