"""The record of a model, ``headprune.yaml`` beside its weights: the rows that it was made with. Nothing else is used from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headprune.config import OF_THE_ROWS, RECIPE_FILE, Settings, merged, recorded_rows
from headprune.errors import CheckpointError
from headprune.passes import Progress
from headprune.results import Results
from headprune.runtime.local import note_places, place_of, published_name
from headprune.untrusted.directories import refuse_foreign_files
from headprune.untrusted.documents import read_json

_PATHS = (
    "model",
    "data",
    "eval_data",
    "heal_data",
    "teacher",
    "scores",
    "roles",
    "run_dir",
    "out",
    "check.baseline",
)
"""Settings that may be paths."""


def with_recorded_rows(
    settings: Settings, *, progress: Progress, measures: bool = False
) -> Settings:
    """Return the settings; if they name no data, with the rows and metric of the run that made the model."""
    home = Path(settings.model.model or "")
    record = home / RECIPE_FILE
    if settings.data.data is not None or settings.model.model is None or not _is_file(record):
        return settings
    refuse_foreign_files(home)
    known, refused = recorded_rows(record)
    if "data" not in known:
        return settings
    progress.notify(f"data as in {record}: {known['data']}")
    for setting in refused:
        progress.notify(f"careful: left out, as code that a record names isn't run: {setting}")
    given = {
        name: value
        for name, value in settings.flat.items()
        if name in OF_THE_ROWS and value is not None
    }
    return settings.replaced(**merged(_with_places(known, home), given, measures=measures))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # find() says what is wrong with the name
        return False


def _with_places(known: dict[str, Any], home: Path) -> dict[str, Any]:
    """Return the settings with full paths of data that a record names by file name, if this machine has noted the path."""
    fingerprints = _fingerprints(home)
    paths = {
        name: place_of(fingerprints.get(name), name=str(known[name]))
        for name in ("data", "eval_data")
        if known.get(name) is not None
    }
    return {**known, **{name: path for name, path in paths.items() if path is not None}}


def _fingerprints(home: Path) -> dict[str, Any]:
    """Return the fingerprints of the rows that made a model, if its results have them."""
    try:
        content = read_json(home / "results.json")
    except CheckpointError:  # where it matters it is read again, and named
        return {}
    after, calibration = content.get("after"), content.get("calibration")
    reporting = after.get("data") if isinstance(after, dict) else None
    return {
        "data": calibration.get("fingerprint") if isinstance(calibration, dict) else None,
        "eval_data": reporting.get("fingerprint") if isinstance(reporting, dict) else None,
    }


def record_of(settings: Settings) -> str:
    """Return the record of a run, as YAML, with local paths reduced to their file name."""
    names = {
        name: published_name(value)
        for name, value in settings.flat.items()
        if name in _PATHS and isinstance(value, str)
    }
    return settings.replaced(**names).to_yaml()


def note_where(settings: Settings, *, results: Results, model: Mapping[str, Any]) -> None:
    """Note on this machine the full paths of a run's model and data: saved files have only the file names."""
    data = settings.data
    paths = {str(model.get("fingerprint")): settings.model.model}
    if results.after is not None:
        paths[str(results.after.data.get("fingerprint"))] = data.eval_data or data.data
        paths[str(results.calibration.get("fingerprint"))] = data.data
    if results.heal is not None:
        paths[str(results.heal.teacher.get("fingerprint"))] = settings.distill.teacher
    note_places({fingerprint: path for fingerprint, path in paths.items() if path is not None})
