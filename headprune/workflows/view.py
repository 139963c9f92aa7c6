"""``view``: attention of every head on one text, as a page that needs nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from headprune.analysis.maps import AttentionView, ViewedHead, attention_maps, longest_text
from headprune.analysis.roles import Roles
from headprune.analysis.text import encode
from headprune.anatomy.sites import Anatomy
from headprune.artefact import read_artefact
from headprune.config import MAX_LENGTH, Settings
from headprune.config.checks import NO_ROLES
from headprune.errors import ConfigError, PlanError, UnsupportedError
from headprune.heads import HeadId, SiteId
from headprune.models.find import ModelSource
from headprune.models.load import load_model
from headprune.models.tokenizer import load_tokenizer, tokenizing
from headprune.passes import Progress
from headprune.placement import describe, versions
from headprune.plans import HeadScores
from headprune.report.html import refuse_unusable_page, write_page
from headprune.report.view import attention_page
from headprune.runs import ROLES_FILE, SCORES, make_next_run, next_run, roles_file, scores_file
from headprune.tasks.model_inputs import longest_row
from headprune.workflows.session import find_model, model_note, proven_anatomy
from headprune.workflows.stepwise import method_of

PAGE = "view.html"

_FEW = 16
"""Tokens by which it is seen how often the model calls each attention."""


@dataclass(frozen=True)
class Viewed:
    """What is to be looked at.

    Args:
        text: The text; of an encoder-decoder what its encoder reads.
        pair: A second text in the same row; of an encoder-decoder what its decoder reads.
        layers: Numbers of layers, and ranges of them; nothing: all.
    """

    text: str
    pair: str | None = None
    layers: tuple[str, ...] = ()


def view(settings: Settings, viewed: Viewed, *, progress: Progress) -> tuple[AttentionView, Path]:
    """Write a page that shows what every head of a model looks at in a text.

    Args:
        settings: The settings; ``out`` is the page, ``scores`` and ``roles`` are files of these.
        viewed: What is looked at.
        progress: Where progress is reported.

    Raises:
        CheckpointError: The page is there already, or can't be written.
        ConfigError: The model has no such layers.
        DataError: The tokenizer leaves nothing of the text.
        PlanError: Scores or roles are of another model.
        UnsupportedError: The model reads no text, or an attention doesn't hand out its weights.
    """
    out, overwrite = settings.run.out, settings.run.overwrite
    target = Path(out) if out else next_run("view") / PAGE
    refuse_unusable_page(target, command="view", overwrite=overwrite)
    source = find_model(settings.model)
    model = load_model(
        source,
        auto_class=None,
        device=settings.model.device,
        dtype=settings.model.dtype,
        notify=progress.notify,
    )
    _refuse_other_inputs(model, source)
    progress.notify(
        f"model {settings.model.model} ({model.config.model_type}), on {describe(model)}"
    )
    tokenizer = load_tokenizer(source)
    anatomy = proven_anatomy(model, name=source.name, progress=progress)
    sites = _chosen(anatomy, viewed.layers)
    taken = longest_row(model, special=tokenizer.all_special_ids)
    longest = min(filter(None, (settings.data.max_length or MAX_LENGTH, taken)))
    with tokenizing(source):
        few = encode(model, tokenizer, viewed.text, viewed.pair, longest=min(longest, _FEW))
        longest = min(longest, longest_text(model, anatomy, few.inputs, sites))
        texts = encode(model, tokenizer, viewed.text, viewed.pair, longest=longest)
    for name, before in texts.cut.items():
        progress.notify(
            f"the {name} has {before:,} tokens, and is cut at {longest}: `max_length` and `layers` say how much fits"
        )
    note = model_note(source, model)
    scores, roles = _scores(settings, source, note), _roles(settings, source, note)
    outcome = AttentionView(
        tokens=texts.tokens,
        cut=texts.cut,
        is_decoded=texts.is_decoded,
        heads=_heads(anatomy, sites, scores, roles),
        maps=attention_maps(model, anatomy, texts.inputs, sites),
        scores={"method": scores.method, "n": scores.n} if scores else {},
        roles={"thresholds": roles.thresholds} if roles else {},
        model=note,
        versions=versions(),
    )
    path = Path(out) if out else make_next_run("view") / PAGE
    write_page(attention_page(outcome), path, command="view", overwrite=overwrite)
    return outcome, path


def _refuse_other_inputs(model: PreTrainedModel, source: ModelSource) -> None:
    """Refuse a model that reads images or sound: what it looks at has no words to show."""
    if model.main_input_name != "input_ids":
        raise UnsupportedError(
            f"{source.name} reads {model.main_input_name}, and what is shown is attention between the tokens of a text",
            where=f"{type(model).__name__} ({model.config.model_type})",
            hint="name a model that reads text; headprune analyze says in numbers what heads do",
        )


def _chosen(anatomy: Anatomy, layers: Sequence[str]) -> frozenset[SiteId]:
    """Return the attentions of the layers named."""
    known = sorted({site.id.layer for site in anatomy.sites})
    numbers: set[int] = set()
    for name in layers:
        first, dash, last = name.partition("-")
        ends = (first, last if dash else first)
        if not all(end.isdecimal() for end in ends) or not {*map(int, ends)} <= {*known}:
            raise ConfigError(
                f"the model has no layer {name}",
                where=f"`layers={name}`",
                hint=f"it has layers {known[0]} to {known[-1]}; name some like 0,3-5",
            )
        low, high = sorted(map(int, ends))
        numbers.update(range(low, high + 1))
    return frozenset(site.id for site in anatomy.sites if not layers or site.id.layer in numbers)


def _scores(settings: Settings, source: ModelSource, note: Mapping[str, Any]) -> HeadScores | None:
    """Return the scores that are named, or that lie beside a pruned model; None: there are none."""
    named, beside = settings.run.scores, source.directory / SCORES
    if named is None and not beside.is_file():
        return None
    path = scores_file(named, method=method_of(settings.score)) if named else beside
    scores = read_artefact(HeadScores, path)
    _refuse_other_model(scores.model, note, path, what="scores")
    return scores


def _roles(settings: Settings, source: ModelSource, note: Mapping[str, Any]) -> Roles | None:
    """Return the roles that are named, or that lie beside the model; None: there are none."""
    named, beside = settings.run.roles, source.directory / ROLES_FILE
    if named == NO_ROLES or (named is None and not beside.is_file()):
        return None
    path = roles_file(named) if named else beside
    roles = read_artefact(Roles, path)
    _refuse_other_model(roles.model, note, path, what="roles")
    return roles


def _refuse_other_model(
    model: Mapping[str, Any], note: Mapping[str, Any], path: Path, *, what: str
) -> None:
    """Refuse what was measured on another model than this one, and the one that it was pruned from."""
    own = {note.get("fingerprint"), note.get("source", {}).get("fingerprint")}
    if model.get("fingerprint", note["fingerprint"]) not in own:
        raise PlanError(
            f"the {what} are of another model ({model.get('name')})",
            where=f"`{what}={path}`",
            hint="make them of this one, or of the model that it was pruned from",
        )


def _heads(
    anatomy: Anatomy,
    sites: frozenset[SiteId],
    scores: HeadScores | None,
    roles: Roles | None,
) -> tuple[ViewedHead, ...]:
    """Return all heads of the attentions, those that were removed among them, with what is known of them."""
    values = scores.by_head() if scores else {}
    ranks = {head: rank for rank, head in enumerate(reversed(scores.ranked()), 1)} if scores else {}
    having: dict[HeadId, list[str]] = {}
    for name in roles.names if roles else ():
        for head in roles.heads_with(name) if roles else ():
            having.setdefault(head, []).append(name)
    return tuple(
        ViewedHead(
            head=head,
            is_removed=index not in site.heads,
            importance=values.get(head),
            rank=ranks.get(head),
            roles=tuple(having.get(head, ())),
        )
        for site in anatomy.sites
        if site.id in sites
        for index in range(site.num_heads)
        for head in (HeadId(site.id, index),)
    )
