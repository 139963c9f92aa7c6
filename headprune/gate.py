"""The regression check for CI: results against a baseline that lies in the repository -> verdict."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from headprune.artefact import Artefact, EvalResult, Latency, Measurement, read_artefact
from headprune.config import GateSpec
from headprune.errors import CheckpointError, ConfigError
from headprune.runtime.files import write_text
from headprune.runtime.targets import refuse_unwritable


class Baseline(Measurement):
    """What a model must be compared with; written by ``headprune check --update-baseline``, rounded so that it diffs well."""

    written_by = "check --update-baseline"

    @classmethod
    def of(cls, result: EvalResult) -> "Baseline":
        """Return the baseline that a result makes."""
        fields = result.model_dump(include={*Measurement.model_fields} - {"format"})
        fields["value"] = round(result.value, 6)
        fields["interval"] = tuple(round(end, 6) for end in result.interval)
        fields["latency_ms"] = {name: _rounded(took) for name, took in result.latency_ms.items()}
        kept = ("name", "split", "n", "fingerprint", "max_length")
        fields["data"] = {name: result.data.get(name) for name in kept}
        fields["model"] = {name: result.model.get(name) for name in ("name", "revision")}
        return cls(**fields)


def _rounded(took: Latency) -> Latency:
    low, high = (float(f"{end:.3g}") for end in took.interval)
    return took.model_copy(update={"ms": float(f"{took.ms:.3g}"), "interval": (low, high)})


class Finding(BaseModel):
    """One limit, held or broken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    passed: bool
    message: str


class Verdict(Artefact):
    """All findings, with the two results they come from."""

    passed: bool
    within_noise: bool
    drop: float
    noise: float
    findings: tuple[Finding, ...]
    baseline: Baseline
    result: EvalResult


def read_baseline(path: Path) -> Baseline:
    """Read a baseline file.

    Raises:
        ConfigError: There is none yet.
        CheckpointError: It is not a baseline.
    """
    if not path.is_file():
        raise ConfigError(
            f"there is no baseline at {path}",
            where="`baseline`",
            hint=f"make one from a model you trust: headprune check MODEL `baseline={path}` `update_baseline`",
        )
    return read_artefact(Baseline, path)


def refuse_unusable_baseline(path: Path) -> None:
    """Check, before a model is measured, that the baseline can be written.

    Raises:
        CheckpointError: It can't, or something else lies there.
    """
    refuse_unwritable(path, where=f"`baseline={path}`")
    if path.is_file() and path.read_bytes()[:10].strip() not in (b"", b"{}"):
        try:
            read_artefact(Baseline, path)
        except CheckpointError as error:
            what = f"{path.name} is no baseline, and is not replaced: {error.what}"
            raise CheckpointError(what, where=str(path), hint="choose another file") from error


def write_baseline(path: Path, result: EvalResult) -> Baseline:
    """Make ``result`` the baseline, atomically."""
    baseline = Baseline.of(result)
    write_text(path, baseline.to_json())
    return baseline


def compare(result: EvalResult, baseline: Baseline, *, limits: GateSpec) -> Verdict:
    """Judge a result.

    The drop is one-sided: an improvement never fails. ``noise`` is the half-width of the 95 % interval of the difference,
    taken as if the two were independent (on the same rows they are not, so it errs on the wide side). With no limit set, the
    metric may not be worse than the baseline beyond noise.

    Args:
        result: What was measured.
        baseline: What it is compared with.
        limits: What is tolerated; a share as ``max_drop`` is one of the baseline's metric, and a limit of latency is broken
            where the result is surely slower, at any size of the baseline.

    Raises:
        ConfigError: The two can't be compared: other data, metric, limit or model revision.
    """
    refuse_incomparable(result, baseline)
    sign = 1.0 if baseline.higher_is_better else -1.0
    # Rounded as the baseline is: a model never differs from its own.
    rounded = Baseline.of(result)
    drop = sign * (baseline.value - rounded.value)
    halves = [(high - low) / 2 for low, high in (result.interval, baseline.interval)]
    noise = (halves[0] ** 2 + halves[1] ** 2) ** 0.5
    findings = _metric_findings(result, baseline, limits, drop=drop, noise=noise)
    if limits.max_parameters is not None:
        message = f"{result.parameters:,} parameters, allowed {limits.max_parameters:,}"
        findings.append(
            _finding("max-parameters", result.parameters <= limits.max_parameters, message)
        )
    if limits.max_latency_increase is not None:
        refuse_untimed(baseline, limits, names=result.latency_ms)
        findings.append(_latency_finding(rounded, baseline, allowed=limits.max_latency_increase))
    return Verdict(
        passed=all(finding.passed for finding in findings),
        within_noise=abs(drop) <= noise,
        drop=drop,
        noise=noise,
        findings=tuple(findings),
        baseline=baseline,
        result=result,
    )


def refuse_incomparable(result: Measurement, baseline: Baseline) -> None:
    """Refuse to compare what was measured in different ways.

    Raises:
        ConfigError: Other data, metric, limit or model revision.
    """
    _refuse_difference("direction", result.higher_is_better, baseline.higher_is_better)
    refuse_other_revision(baseline, result.model)
    refuse_other_rows(baseline, metric=result.metric, limit=result.limit, data=result.data)


def refuse_other_revision(baseline: Baseline, model: dict[str, Any]) -> None:
    """Refuse to compare what is, or was made from, another revision of the baseline's model.

    Raises:
        ConfigError: The revisions are known and differ.
    """
    source = model.get("source", model)
    revisions = (source.get("revision"), baseline.model.get("revision"))
    if source.get("name") == baseline.model.get("name") and None not in revisions:
        _refuse_difference("model revision", *revisions)


def refuse_other_rows(
    baseline: Baseline, *, metric: str, limit: int | None, data: dict[str, Any]
) -> None:
    """Refuse to compare what is, or would be, measured on other rows or by another metric.

    Raises:
        ConfigError: One of them differs.
    """
    _refuse_difference("metric", metric, baseline.metric, field="metric")
    _refuse_difference("limit", limit, baseline.limit, field="limit")
    lengths = (data.get("max_length"), baseline.data.get("max_length"))
    _refuse_difference("max_length", *lengths, field="max_length")
    if data.get("fingerprint") != baseline.data.get("fingerprint"):
        new, old = _described(data), _described({"n": baseline.n, **baseline.data})
        if new == old:
            new, old = f"{new} as it is now", "other rows of that name"
        _refuse_difference("data", new, old)


def refuse_untimed(baseline: Baseline, limits: GateSpec, *, names: Collection[str]) -> None:
    """Refuse a limit of latency where the baseline was not timed at any of the sizes that ``names`` are.

    Raises:
        ConfigError: The two have no size in common.
    """
    if limits.max_latency_increase is None or set(names) & set(baseline.latency_ms):
        return
    new, old = (
        ", ".join(map(spaced, sizes)) or "nothing" for sizes in (names, baseline.latency_ms)
    )
    raise ConfigError(
        f"there is no latency to compare: {new} here, {old} in the baseline",
        where="`max_latency_increase`",
        hint="time the same sizes, or make the baseline again with `update_baseline`, on the machine that checks",
    )


def spaced(name: str) -> str:
    """Return how a person calls a size."""
    return name.replace("_", " ")


def _described(data: dict[str, Any]) -> str:
    """Return how a person calls rows."""
    split = f" ({data['split']})" if data.get("split") else ""
    rows = f", {data['n']:,} rows" if data.get("n") is not None else ""
    return f"{data.get('name') or 'unnamed rows'}{split}{rows}"


def _refuse_difference(name: str, new: object, old: object, *, field: str = "") -> None:
    if new != old:
        same = (f" (`{field}={old}`)" if old else f" (without `{field}`)") if field else ""
        raise ConfigError(
            f"the results can't be compared: {name} is {new!r} here and {old!r} in the baseline",
            where="`baseline`",
            hint=f"evaluate as the baseline was made{same}, or make a new one with `update_baseline`",
        )


def _finding(name: str, passed: bool, message: str) -> Finding:
    return Finding(name=name, passed=passed, message=message)


def _metric_findings(
    result: EvalResult, baseline: Baseline, limits: GateSpec, *, drop: float, noise: float
) -> list[Finding]:
    low, high = result.interval
    shown = (
        f"{result.metric} {baseline.value:.4f} -> {result.value:.4f} [{low:.4f}, {high:.4f}], "
        f"{'drop' if drop > 0 else 'gain'} {abs(drop):.4f}"
        f"{', within noise' if abs(drop) <= noise else ''} (n = {result.n:,})"
    )
    findings: list[Finding] = []
    if limits.max_drop is not None:
        allowed = limits.max_drop.of(baseline.value)
        unsure = drop > 0 and abs(drop - allowed) <= noise
        doubt = (
            "; the distance to the limit is within noise: more rows would tell" if unsure else ""
        )
        message = f"{shown}; allowed drop {allowed:g}{doubt}"
        findings.append(_finding("max-drop", drop <= allowed, message))
    if limits.min_recovery is not None:
        recovery = _recovery(result, baseline)
        message = (
            f"{shown}; recovery is not defined, since a value is not above zero"
            if recovery is None
            else f"{shown}; recovery {recovery:.4f}, at least {limits.min_recovery:g} expected"
        )
        passed = recovery is not None and recovery >= limits.min_recovery
        findings.append(_finding("min-recovery", passed, message))
    if not findings:
        message = f"{shown}; no limit was given, so a drop beyond noise ({noise:.4f}) fails"
        findings.append(_finding("metric", drop <= noise, message))
    return findings


def _recovery(result: EvalResult, baseline: Baseline) -> float | None:
    """Return the share of the baseline's metric that is reached, or None where a share makes no sense."""
    value = Baseline.of(result).value
    if baseline.value <= 0 or value <= 0:
        return None
    ratio = value / baseline.value
    return ratio if baseline.higher_is_better else 1 / ratio


def _latency_finding(now: Baseline, baseline: Baseline, *, allowed: float) -> Finding:
    """Judge the size that is most surely slower: by the interval of the increase, not by a point in it."""
    before, after = baseline.latency_ms, now.latency_ms
    changes = {name: before[name].change_to(after[name]) for name in before if name in after}
    worst = max(changes, key=lambda name: changes[name][1][0])
    increase, (low, high) = changes[worst]
    doubt = ""
    if low <= allowed < high:
        doubt = "; the interval reaches the limit, so whether it is slower can't be told"
    busy = after[worst].busy or before[worst].busy
    message = (
        f"{spaced(worst)}: {before[worst].ms:g} -> {after[worst].ms:g} ms "
        f"({increase:+.1%} [{low:+.1%}, {high:+.1%}]), allowed {allowed:+.1%}{doubt}{busy and '; ' + busy}"
    )
    return _finding("max-latency-increase", low <= allowed, message)
