"""What the check needs to know of a real model, and what it says of it. Plain values."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from headprune.batch import Batch, Loss


@dataclass(frozen=True)
class Law:
    """One claim that must hold: what was measured, and its limit (``measured <= limit`` passes)."""

    name: str
    measured: float
    limit: float
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether it holds; a nan never does."""
        return self.measured <= self.limit


def says(name: str, found: str, expected: str) -> Law:
    """Return the law that a text is the expected one."""
    return Law(name, float(found != expected), 0.0, f"{found!r}, expected {expected!r}")


def at_least(name: str, found: float, least: float) -> Law:
    """Return the law that a number isn't below another."""
    return Law(name, -found, -least, f"{found:.4g}, at least {least:.4g}")


@dataclass(frozen=True)
class Sanity:
    """What a model does at its task: numbers, and texts that it wrote."""

    numbers: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """A real model, ready to be checked.

    Args:
        directory: Where it lies, as transformers loads it.
        auto_class: Which ``AutoModel...`` it is.
        heads: How many heads its attentions have, by kind: ``""`` where there is one stack, else ``encoder``, ``decoder``,
            ``cross``.
        batches: Calibration rows.
        loss: One number per example, smaller is better.
        inputs: What masked, pruned and reloaded models are compared on.
        numbers: What it achieves at its task.
        texts: What it writes; empty for models that don't.
        base: What must hold of the unpruned model, told from what it does: the conversion is right.
        keeps: The shares of heads to keep.
        tokenizer: Saved beside the pruned model.
    """

    directory: Path
    auto_class: str
    heads: Mapping[str, int]
    batches: Sequence[Batch | Mapping[str, Tensor]]
    loss: Loss
    inputs: Mapping[str, Tensor]
    numbers: Callable[[PreTrainedModel], dict[str, float]]
    texts: Callable[[PreTrainedModel], dict[str, str]]
    base: Callable[[Sanity], list[Law]]
    keeps: tuple[float, ...] = (0.7,)
    tokenizer: Any = None


@dataclass(frozen=True)
class Round:
    """One cut: how much was to stay, what was cut, what held, what the smaller model does."""

    keep: str
    heads: tuple[int, int]
    parameters: tuple[int, int]
    kept_per_site: Mapping[str, int]
    route: str
    laws: tuple[Law, ...]
    sanity: Sanity


@dataclass(frozen=True)
class Report:
    """Everything about one model. ``problem`` says why the check ended early."""

    name: str
    base: Sanity
    laws: tuple[Law, ...]
    rounds: tuple[Round, ...]
    seconds: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether every law held."""
        laws = [*self.laws, *(law for found in self.rounds for law in found.laws)]
        return not self.problem and all(law.passed for law in laws)
