"""The first and the last section of a report: what came of it, and how it was made."""

from collections.abc import Iterator
from typing import Any

from headprune.artefact import Artefact, EvalResult, Latency
from headprune.gate import Baseline, Verdict
from headprune.plans import HeadScores, PruningPlan
from headprune.report.ci import headline
from headprune.report.documents import Document, Documents, source_of
from headprune.report.facts import subjects
from headprune.report.numbers import interval, milliseconds, number, share, timed
from headprune.report.parts import Code, Prose, Table, Tile, Tiles, Tone
from headprune.results import Results
from headprune.runtime.local import published_name


def summary(documents: Documents) -> Iterator[Tiles | Prose]:
    """Yield what was pruned, the metric before and after, what it saves, and the verdict."""
    for results in documents.of(Results):
        yield _outcome(results)
    if not documents.of(Results):
        yield from _without_results(documents)
    yield from map(Prose, _about_roles(documents))
    for results in documents.of(Results):
        yield _proofs(results)
    for verdict in documents.of(Verdict):
        found = "; ".join(finding.message for finding in verdict.findings)
        yield Prose(f"Check {headline(verdict)}: {found}.", "good" if verdict.passed else "bad")


def _outcome(results: Results) -> Tiles:
    before, after = results.heads
    model = published_name(str(source_of(results).get("name") or "the model"))
    heading = f"{before - after} of {before} heads of {model} were removed."
    if results.heal is not None and results.heal.kept:
        steps = f"healed in {results.heal.steps:,} steps"
        heading = f"{model} was {steps}; it has {after} heads."
        if results.removed:
            heading = (
                f"{before - after} of {before} heads of {model} were removed, and it was {steps}."
            )
    return Tiles(heading, tuple(_tiles(results)))


def _tiles(results: Results) -> Iterator[Tile]:
    before, after, ends = results.before, results.after, results.difference_interval
    if before and after and results.difference is not None and ends is not None:
        change = f"{number(results.difference, sign='+')} {interval(ends, sign='+')}"
        tone = _tone(ends, higher_is_better=after.higher_is_better)
        word = {"good": "surely better", "bad": "surely worse"}.get(tone, "within noise")
        stages = [one for one in (before, results.cut, after) if one is not None]
        value = " → ".join(number(one.value) for one in stages)
        yield Tile(after.metric, value, f"{change}, {word}; n = {after.n:,}", tone)
    else:
        yield Tile("quality", "not measured", "headprune eval measures it")
    yield Tile("heads", "{} → {}".format(*results.heads), share(*results.heads))
    whole, left = results.parameters
    if whole is not None:
        yield Tile("parameters", f"{whole / 1e6:.1f} → {left / 1e6:.1f} M", share(whole, left))
    large, small = results.weights_bytes
    if large is not None:
        yield Tile("weights", f"{large / 1e6:.1f} → {small / 1e6:.1f} MB", share(large, small))
    if before and after:
        for size, took in after.latency_ms.items():
            if size in before.latency_ms:
                yield _latency_tile(timed(size), before.latency_ms[size], took)
        all_of, rest = before.kv_cache_bytes_per_token, after.kv_cache_bytes_per_token
        if all_of and rest is not None:
            cells = f"{all_of:,} → {rest:,} B"
            yield Tile("key/value cache per token", cells, share(all_of, rest))


def _latency_tile(label: str, before: Latency, after: Latency) -> Tile:
    change, ends = before.change_to(after)
    tone = _tone(ends, higher_is_better=False)
    word = {"good": "surely faster", "bad": "surely slower"}.get(tone, "within noise")
    busy = "; the machine was busy" if before.busy or after.busy else ""
    detail = f"{change:+.0%} [{ends[0]:+.0%}, {ends[1]:+.0%}], {word}{busy}"
    return Tile(label, f"{milliseconds(before.ms)} → {milliseconds(after.ms)} ms", detail, tone)


def _tone(ends: tuple[float, float], *, higher_is_better: bool) -> Tone:
    """Return what the interval of a difference says: one that has 0 in it says nothing."""
    low, high = ends if higher_is_better else (-ends[1], -ends[0])
    return "good" if low > 0 else "bad" if high < 0 else "even"


def _about_roles(documents: Documents) -> Iterator[str]:
    """Yield which of the removed heads had which role: as the results or a plan say, or by roles that were measured apart."""
    fates = [results.roles for results in documents.of(Results)]
    for subject in subjects(documents):
        if subject.plan is not None:
            apart = subject.roles.fates(subject.plan.remove) if subject.roles else None
            fates.append(subject.plan.roles or apart)
    yield from dict.fromkeys(one.statement for one in fates if one and one.statement)


def _proofs(results: Results) -> Prose:
    if not results.proofs:
        return Prose("Nothing was proven.")
    held = sum(proof.passed for proof in results.proofs)
    names = ", ".join(proof.name for proof in results.proofs)
    tone: Tone = "good" if held == len(results.proofs) else "bad"
    return Prose(f"{held} of {len(results.proofs)} proofs hold: {names}.", tone)


def _without_results(documents: Documents) -> Iterator[Tiles | Prose]:
    """Yield what there is where nothing was pruned."""
    for plan in documents.of(PruningPlan):
        kept = sum(plan.kept_per_site.values())
        before = kept + len(plan.remove)
        tile = Tile("heads", f"{before} → {kept}", share(before, kept))
        yield Tiles(f"A plan for {documents.model_name}.", (tile,))
    for one in (*documents.of(EvalResult), *documents.of(Baseline)):
        name = published_name(str(one.model.get("name") or "a model"))
        tile = Tile(one.metric, number(one.value), f"{interval(one.interval)}, n = {one.n:,}")
        yield Tiles(f"{name}, as it was measured.", (tile,))
    for scores in documents.of(HeadScores):
        rows = f" on {scores.n:,} rows" if scores.n else ""
        ranked = [str(head) for head in scores.ranked()]
        yield Prose(
            f"{len(ranked)} heads were scored by {scores.method}{rows}. "
            f"Most important: {', '.join(ranked[::-1][:4])}; least important: {', '.join(ranked[:4])}."
        )


def made(documents: Documents) -> Iterator[Table | Code]:
    """Yield the documents, what they were made from, the versions, and the settings of runs."""
    titles = ("document", "what it is", "model", "rows", "seed")
    rows = tuple(map(_origin, documents.items))
    yield Table(titles, rows, caption="Documents, with the fingerprints of models and rows")
    versions: dict[str, dict[str, None]] = {}
    for each in documents.items:
        for name, version in getattr(_measured(each.value), "versions", {}).items():
            versions.setdefault(name, {})[version] = None
    if versions:
        cells = tuple((name, ", ".join(found)) for name, found in sorted(versions.items()))
        yield Table(("library", "version"), cells, caption="Versions")
    healed = any(one.heal and not one.removed for one in documents.of(Results))
    for source, text in documents.records:
        command = "heal" if healed else "prune"
        yield Code(f"{source}: headprune {command} -c {source} does it again", text)


def _measured(value: Artefact) -> Any:
    """Return what of a document says where its numbers come from."""
    if isinstance(value, Results):
        return value.after
    return value.result if isinstance(value, Verdict) else value


def _origin(document: Document) -> tuple[str, ...]:
    value, told = document.value, _measured(document.value)
    data, model = getattr(told, "data", {}), getattr(told, "model", {})
    seed = getattr(told, "seed", None)
    method = f", {value.method}" if isinstance(value, HeadScores) else ""
    count = f", {data['n']} rows" if data.get("n") else ""
    return (
        document.source,
        f"{document.kind}{method}",
        _named(model),
        _named({**data, "name": f"{data.get('name') or ''}", "revision": data.get("split")})
        + count,
        "" if seed is None else str(seed),
    )


def _named(origin: dict[str, Any]) -> str:
    """Return the name of a model or of rows, with what tells this one from others of the name."""
    name = published_name(str(origin.get("name") or ""))
    marks = [str(origin[key]) for key in ("revision", "fingerprint") if origin.get(key)]
    return f"{name} ({', '.join(marks)})" if marks else name
