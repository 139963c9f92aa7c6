"""Documents as commands write them, of made-up numbers: two layers of four heads, of which three are removed."""

from headprune.analysis.compare import Subject
from headprune.analysis.compare import compare as compare_subjects
from headprune.analysis.likeness import Compared, Pair, Similarity
from headprune.analysis.roles import Measure, Roles
from headprune.artefact import EvalResult, Latency, Proof
from headprune.config import GateSpec
from headprune.gate import Baseline, compare
from headprune.heads import HeadId
from headprune.plans import HeadScores, PlannedSite, PruningPlan
from headprune.results import Curve, Results, Sweep, SweepPoint

HEADS = tuple(HeadId.parse(f"L{layer}.H{head}") for layer in range(2) for head in range(4))
REMOVED = tuple(HEADS[index] for index in (1, 2, 7))
VALUES = (0.5, 0.01, 0.02, 0.4, 0.3, 0.2, 0.1, 0.03)
DATA = {"name": "rows.csv", "split": "test", "n": 40, "fingerprint": "1234567812345678"}
MODEL = {"name": "org/tiny", "revision": "abc", "fingerprint": "8765432187654321"}
PRUNED = {"name": "smaller", "fingerprint": "1111222233334444", "source": MODEL}
VERSIONS = {"headprune": "0.1.0", "torch": "2.9"}


def scores(method="unique", values=VALUES, **more):
    return HeadScores(
        method=method, heads=HEADS, values=values, standard_errors=(0.01,) * 8, n=30, seed=0, data=DATA, model=MODEL,
        versions=VERSIONS, **more,
    )  # fmt: skip


def plan():
    sites = {name: PlannedSite(heads=(0, 1, 2, 3)) for name in ("L0", "L1")}
    return PruningPlan(
        remove=REMOVED,
        kept_per_site={"L0": 2, "L1": 3},
        sites=sites,
        reasons={"L1.H7": "x"},
        model=MODEL,
    )


def evaluated(value, *, heads, parameters, model, ms):
    return EvalResult(
        metric="accuracy", value=value, interval=(value - 0.05, value + 0.04), n=40, seed=0, higher_is_better=True,
        parameters=parameters, heads=heads, kv_cache_bytes_per_token=heads * 64, data=DATA, model=model, versions=VERSIONS,
        latency_ms={"batch_1": Latency(ms=ms, interval=(ms * 0.9, ms * 1.1), repeats=9, tokens=20)},
    )  # fmt: skip


BEFORE = evaluated(0.81, heads=8, parameters=1000, model=MODEL, ms=10.0)
AFTER = evaluated(0.79, heads=5, parameters=800, model=PRUNED, ms=7.5)


def results():
    proof = Proof(
        name="masked == pruned", passed=True, measured=0.0, limit=1e-5, detail="on 4 rows"
    )
    return Results(
        heads=(8, 5), parameters=(1000, 800), proofs=(proof,), weights_bytes=(4000, 3200),
        removed=tuple(map(str, REMOVED)), loads_with="stock", auto_class="AutoModel", before=BEFORE, after=AFTER,
        difference=-0.02, difference_interval=(-0.06, 0.02), calibration=DATA,
    )  # fmt: skip


def roles():
    sinks = (0.9, 0.8, 0.1, 0.1, 0.2, 0.2, 0.1, 0.7)
    previous = (0.1, 0.1, 0.1, 0.8, 0.2, 0.1, 0.1, 0.1)
    measures = tuple(
        Measure(
            role=name, values=values, low=values, high=values, baseline=(0.1,) * 8, queries=(50,) * 8, examples=(5,) * 8,
            passes=tuple(value > threshold for value in values),
        )
        for name, values, threshold in (("sink", sinks, 0.3), ("previous", previous, 0.5))
    )  # fmt: skip
    thresholds = {"sink": "> 0.3", "previous": "> 0.5"}
    return Roles(heads=HEADS, measures=measures, thresholds=thresholds, data=DATA, model=MODEL)


def sweep():
    curves = []
    for method, slope in (("unique", 0.1), ("random", 0.4)):
        points = [
            SweepPoint(
                keep=keep, share=keep, heads=round(8 * keep), removed=(), value=0.81 - slope * (1 - keep),
                interval=(0.76 - slope * (1 - keep), 0.86 - slope * (1 - keep)), difference=-slope * (1 - keep),
                difference_interval=(-slope * (1 - keep) - 0.02, 0.02 - slope * (1 - keep)), loss=1.0,
                loss_standard_error=0.1,
            )
            for keep in (1.0, 0.75, 0.5, 0.25)
        ]  # fmt: skip
        curves.append(
            Curve(method=method, scored_on=30, points=tuple(points), knee=0.5, within_drop=0.75)
        )
    return Sweep(
        metric="accuracy", higher_is_better=True, n=40, num_heads=8, max_drop=0.05, curves=tuple(curves),
        constraints={"sites": []}, objective="loss", normalize="none", limit=None, seed=0, calibration=DATA, data=DATA,
        model=MODEL, versions=VERSIONS,
    )  # fmt: skip


def verdict():
    return compare(AFTER, Baseline.of(BEFORE), limits=GateSpec(max_drop=0.05))


def similarity():
    """Two clusters: the layers."""
    divergences = [
        [0.01 if one.site == other.site else 0.5 for other in HEADS[:index]]
        for index, one in enumerate(HEADS)
    ]
    group = Compared(
        heads=HEADS, divergences=divergences, errors=[[0.002] * index for index in range(8)], queries=50, examples=5,
        positions=[(head.site.layer, head.head) for head in HEADS], explained=0.9, clusters=(1,) * 4 + (2,) * 4,
    )  # fmt: skip
    pair = Pair(
        head=REMOVED[0], nearest=HEADS[0], divergence=0.01, low=0.006, high=0.014, closer_than=0.5
    )
    return Similarity(groups=(group,), closest=(pair,), successors=(pair,), data=DATA, model=MODEL)


def comparison():
    """Of the model before and after."""
    heads = frozenset(HEADS)
    return compare_subjects(
        [
            Subject("before", heads, roles(), (scores(),)),
            Subject("after", heads - {*REMOVED}, roles(), (scores(values=VALUES[::-1]),)),
        ]
    )


EVERYTHING = {
    "scores.json": scores,
    "scores.random.json": lambda: scores("random", VALUES[::-1]),
    "plan.json": plan,
    "results.json": results,
    "roles.json": roles,
    "sweep.json": sweep,
    "verdict.json": verdict,
    "eval.json": lambda: AFTER,
    "similarity.json": similarity,
    "compare.json": comparison,
}


CHARTS = ("heads", "roles", "similarity", "layers", "quality", "sweep", "speed", "methods")
"""The charts that all of them make."""


def write(folder, *names):
    """Write these documents, by default all, to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or EVERYTHING:
        (folder / name).write_text(EVERYTHING[name]().to_json(), encoding="utf-8")
    return folder
