"""The record of a model, ``headprune.yaml`` beside its weights: on which rows it was made. Nothing else is taken from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headprune.config import OF_THE_ROWS, RECIPE_FILE, Recipe, merged, recorded_rows
from headprune.errors import CheckpointError
from headprune.results import Results
from headprune.runtime.local import note_places, place_of, published_name
from headprune.subject import Progress
from headprune.untrusted.directories import refuse_foreign_files
from headprune.untrusted.documents import read_json

_NAMES = ("model", "data", "eval_data", "teacher", "scores", "run_dir", "out")
"""Settings that may be paths."""


def with_recorded_rows(recipe: Recipe, *, progress: Progress, measures: bool = False) -> Recipe:
    """Return the recipe; where it names no data, with the rows of the run that made the model, and how they were judged.

    Args:
        recipe: The settings.
        progress: How to talk meanwhile.
        measures: Whether one data set is read, and measured.
    """
    home = Path(recipe.model or "")
    recorded = home / RECIPE_FILE
    if recipe.data is not None or recipe.model is None or not _is_file(recorded):
        return recipe
    refuse_foreign_files(home)
    known, refused = recorded_rows(recorded)
    if "data" not in known:
        return recipe
    progress.notify(f"data as in {recorded}: {known['data']}")
    for setting in refused:
        progress.notify(f"careful: left out, as code that a record names isn't run: {setting}")
    said = {
        name: value
        for name in recipe.model_fields_set & set(OF_THE_ROWS)
        if (value := getattr(recipe, name)) is not None
    }
    return recipe.model_copy(update=merged(_with_places(known, home), said, measures=measures))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # find() says what is wrong with the name
        return False


def _with_places(known: dict[str, Any], home: Path) -> dict[str, Any]:
    """Return the settings with the full paths of data that a record calls by its last name, where this machine knows them."""
    fingerprints = _fingerprints(home)
    places = {
        name: place_of(fingerprints.get(name), name=str(known[name]))
        for name in ("data", "eval_data")
        if known.get(name) is not None
    }
    return {**known, **{name: place for name, place in places.items() if place is not None}}


def _fingerprints(home: Path) -> dict[str, Any]:
    """Return the fingerprints of the rows that made a model, as far as its documents tell."""
    for document in ("results.json",):
        try:
            content = read_json(home / document)
        except CheckpointError:  # where it matters it is read again, and named
            continue
        after = content.get("after")
        reporting = after.get("data") if isinstance(after, dict) else None
        chose = content.get("calibration")
        return {
            "data": chose.get("fingerprint") if isinstance(chose, dict) else None,
            "eval_data": reporting.get("fingerprint") if isinstance(reporting, dict) else None,
        }
    return {}


def record_of(recipe: Recipe) -> str:
    """Return the record of a run, as YAML; what lies on this machine by its last name alone."""
    names = {
        name: published_name(value)
        for name in _NAMES
        if isinstance(value := getattr(recipe, name), str)
    }
    return recipe.model_copy(update=names).to_yaml()


def note_where(recipe: Recipe, *, results: Results, model: Mapping[str, Any]) -> None:
    """Keep on this machine where the model and the data of a run lie: what is saved says their last names alone.

    Args:
        recipe: The settings, as the user wrote them.
        results: What is saved.
        model: What it says of the model, its fingerprint among it.
    """
    places = {str(model.get("fingerprint")): recipe.model}
    if results.after is not None:
        reporting = str(results.after.data.get("fingerprint"))
        places[reporting] = recipe.eval_data or recipe.data
        places[str(results.calibration.get("fingerprint"))] = recipe.data
    if results.heal is not None:
        places[str(results.heal.teacher.get("fingerprint"))] = recipe.teacher
    note_places({fingerprint: name for fingerprint, name in places.items() if name is not None})
