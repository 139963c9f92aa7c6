"""Documents that earlier versions wrote are read, and mean what they meant."""

import json

import pytest

from headprune.artefact import _checksum, dump_json, read_artefact
from headprune.errors import CheckpointError
from headprune.plans import HeadScores
from headprune.results import Results

SCORES = {
    "format": 1, "method": "unique", "heads": ["L0.H0", "L0.H1"], "values": [1.0, 2.0], "n": 4, "seed": 0,
    "race": None,
    "steps": {"count": 2, "keep": 0.5, "constraints": {}, "went": [1, 0], "mended": "refit"},
}  # fmt: skip
MEASURED = {
    "format": 1, "metric": "accuracy", "value": 0.5, "interval": [0.4, 0.6], "n": 20, "seed": 0, "higher_is_better": True,
    "parameters": 100, "heads": 2,
}  # fmt: skip
TRIED = {"how": "refit", "ridges": {}, "value": 0.5}
RESULTS = {
    "format": 1, "before": MEASURED, "after": {**MEASURED, "heads": 1, "parameters": 80}, "proofs": [],
    "weights_bytes": [400, 320], "removed": ["L0.H1"], "loads_with": "stock", "auto_class": "AutoModel",
    "mend": {"kept": TRIED, "tried": [TRIED], "fitted_on": 15, "held_out": 5, "judged_by": "accuracy", "unmended": 0.4},
}  # fmt: skip


def _written(path, document):
    path.write_text(dump_json({**document, "sha256": _checksum(document)}))
    return path


def test_scores_of_an_earlier_version_are_read(tmp_path):
    scores = read_artefact(HeadScores, _written(tmp_path / "scores.json", SCORES))
    assert scores.steps.reconstructed == "refit"
    assert scores.values == (1.0, 2.0)


def test_results_of_an_earlier_version_are_read(tmp_path):
    results = read_artefact(Results, _written(tmp_path / "results.json", RESULTS))
    assert results.heads == (2, 1)
    assert results.parameters == (100, 80)
    assert results.reconstruct.without_reconstruction == 0.4
    assert results.reconstruct.kept.method == "refit"
    assert results.roles is None


@pytest.mark.parametrize("change", [{"values": [2.0, 1.0]}, {"race": {"decided": 1}}])
def test_what_was_changed_or_is_gone_is_refused(change, tmp_path):
    document = json.loads(dump_json({**SCORES, "sha256": _checksum(SCORES)}))
    path = tmp_path / "scores.json"
    path.write_text(dump_json({**document, **change}))
    with pytest.raises(CheckpointError, match="changed after it was written|race"):
        read_artefact(HeadScores, path)
