"""Models with their calibration rows and the rows that report."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.quality import titles
from benchmarks.quality.classifier import build_classifier
from benchmarks.tiny import tiny_bert
from headprune.config import DEMO, Settings
from headprune.demo import locate_data
from headprune.errors import DataError
from headprune.models.find import find
from headprune.models.load import load_model
from headprune.models.tokenizer import load_tokenizer
from headprune.passes import Progress
from headprune.tasks.rows import Example
from headprune.workflows.reading import Rows
from headprune.workflows.rows import Purpose, RowParts, separate_rows
from headprune.workflows.session import Session, open_session


@dataclass(frozen=True)
class Case:
    """A subject, ready to be pruned in many ways.

    Args:
        session: The model, its settings and its task.
        parts: The rows.
    """

    session: Session
    parts: RowParts


Open = Callable[[int, Progress, Path | None], Case]
"""``open(seed, voice, data)``: ``data`` is a folder with data sets that no package brings."""


def _minilm(seed: int, progress: Progress, _data: Path | None, **settings: str) -> Case:
    asked = DEMO.replaced(seed=seed, **settings)
    session = open_session(asked, progress=progress)
    return Case(session, separate_rows(session, Purpose(trains=True)))


def _minilm_distill(seed: int, progress: Progress, data: Path | None) -> Case:
    return _minilm(seed, progress, data, objective="distill")


def _smollm2(seed: int, progress: Progress, data: Path | None) -> Case:
    """Perplexity of the first 8,192 tokens in windows of 512; calibration on 24 windows of 256 from token 60,000 on.

    What is trained on begins at token 66,200, or after those.
    """
    asked = Settings.of(
        model="demo:smollm2", task="causal-lm", gqa="pad", seed=seed, max_length=512
    )
    session = open_session(asked, progress=progress)
    text = _needed(data, "wikitext2-raw/wiki.test.raw").read_text(encoding="utf-8")
    tokens = session.tokenizer(text, verbose=False)["input_ids"]
    start = 60_000 + 24 * 256 * seed
    calibrate = _windows(tokens[start : start + 24 * 256], 256)
    parts = RowParts.of(calibrate, _windows(tokens[:8192], 512))
    return Case(
        session, replace(parts, train=_windows(tokens[max(66_200, start + 24 * 256) :], 256))
    )


def _smollm2_groups(seed: int, progress: Progress, data: Path | None) -> Case:
    """The same, whole key/value groups."""
    case = _smollm2(seed, progress, data)
    session = replace(case.session, settings=case.session.settings.replaced(gqa="group"))
    return Case(session, case.parts)


def _windows(tokens: list[int], size: int) -> Rows:
    examples = tuple(
        Example(tokens=tuple(tokens[start : start + size])) for start in range(0, len(tokens), size)
    )
    return Rows(examples, {"n": len(examples), "window": size})


def _classifier(seed: int, progress: Progress, data: Path | None) -> Case:
    """MiniLM with a linear head for the 150 intents of CLINC150."""
    directory, train, test = build_classifier(_needed(data, "clinc150/data_full.json"))
    asked = Settings.of(
        model=str(directory), task="classification", data=str(train), eval_data=str(test), seed=seed
    )
    session = open_session(asked, progress=progress)
    return Case(session, separate_rows(session))


def _titles(seed: int, progress: Progress, data: Path | None) -> Case:
    """A T5 with encoder, decoder and cross-attention heads, on titles of requests."""
    source = _needed(data, "clinc150/data_full.json")
    directory, requests = titles.titled_requests(source, seed=seed)
    found = find(str(directory), revision=None)
    model = load_model(found, auto_class=titles.TASK.auto_class, device="auto")
    asked = Settings.of(model=str(directory), task=titles.TASK.name, seed=seed)
    session = Session(asked, found, model, load_tokenizer(found), titles.TASK, progress)
    rows = {name: Rows(tuple(part), {"n": len(part)}) for name, part in requests.items()}
    parts = RowParts.of(rows["choose"], rows["report"])
    return Case(session, replace(parts, train=rows["train"]))


def _needed(data: Path | None, name: str) -> Path:
    if data is None or not (data / name).is_file():
        raise DataError(
            f"this subject needs {name}", where="--data", hint="give the folder that it lies in"
        )
    return data / name


def _tiny(seed: int, progress: Progress, _data: Path | None) -> Case:
    """A random BERT of three layers that classifies sentences of STS-B by nothing: what ``--quick`` runs on."""
    asked = Settings.of(model=str(tiny_bert(classes=2)), task="classification", seed=seed)
    session = open_session(asked, progress=progress)
    lines = locate_data("demo:stsb", "dev").read_text(encoding="utf-8").splitlines()
    examples = tuple(
        Example((line.split("\t")[5],), number % 2) for number, line in enumerate(lines)
    )
    choosing, reporting = (
        Rows(part, {"n": len(part)}) for part in (examples[:32], examples[32:96])
    )
    return Case(session, RowParts.of(choosing, reporting))


SUBJECTS: dict[str, Open] = {
    "tiny": _tiny,
    "minilm": _minilm,
    "minilm-distill": _minilm_distill,
    "smollm2": _smollm2,
    "smollm2-groups": _smollm2_groups,
    "clinc150": _classifier,
    "t5-titler": _titles,
}
