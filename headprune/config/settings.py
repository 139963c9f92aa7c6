"""All settings, from the command line, a YAML file and the defaults; and what wins where one is given twice."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from headprune.config.recovery import DistillSpec, ReconstructSpec
from headprune.config.sections import (
    BUDGETS,
    OF_THE_ROWS,
    AnalyzeSpec,
    Constraints,
    DataSpec,
    GateSpec,
    ModelSpec,
    RunSpec,
    ScoreSpec,
)
from headprune.errors import ConfigError, did_you_mean, first_line
from headprune.tasks.catalogue import METRICS
from headprune.untrusted.documents import MOST_BYTES_OF_YAML, parse_yaml, read_text

PRESETS: dict[str, dict[str, Any]] = {
    "michel": {"method": "gradient", "normalize": "layer", "steps": 1, "reconstruct": "none"},
    "kwon": {"method": "fisher:batch", "rearrange": True, "steps": 1, "reconstruct": "scale"},
    "flap": {
        "method": "fluctuation:channel",
        "steps": 1,
        "reconstruct": "bias",
        "allow_bias": True,
    },
    "minitron": {"method": "activation", "uniform": True, "steps": 1, "reconstruct": "none"},
}
"""What others do, in these settings: Michel et al. 2019, Kwon et al. 2022, An et al. 2024 (FLAP), Muralidharan et al. 2024."""


class Settings(BaseModel):
    """All settings, from the command line, a YAML file and the defaults; and what wins where one is given twice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelSpec = ModelSpec()
    data: DataSpec = DataSpec()
    score: ScoreSpec = ScoreSpec()
    analyze: AnalyzeSpec = AnalyzeSpec()
    plan: Constraints = Constraints()
    reconstruct: ReconstructSpec = ReconstructSpec()
    distill: DistillSpec = DistillSpec()
    gate: GateSpec = GateSpec()
    run: RunSpec = RunSpec()

    @classmethod
    def of(cls, **values: Any) -> "Settings":
        """Return settings by their fields' names; gate fields are called ``check.max_drop`` and so on.

        Raises:
            ConfigError: A name is unknown, a value is out of range, or two contradict each other.
        """
        values = {**PRESETS.get(str(values.get("recipe")), {}), **values}
        parts: dict[str, dict[str, Any]] = {name: {} for name in cls.model_fields}
        for name, value in values.items():
            if name not in SECTION_OF:
                raise ConfigError(
                    f"unknown setting {name!r}",
                    where="settings",
                    hint=did_you_mean(name, SECTION_OF),
                )
            parts[SECTION_OF[name]][name.removeprefix(CHECK)] = value
        return cls.model_validate(parts)

    @property
    def flat(self) -> dict[str, Any]:
        """The settings that were given, by their fields' names, as :meth:`of` takes them."""
        return {
            f"{CHECK if section == 'gate' else ''}{name}": getattr(part, name)
            for section, part in self
            for name in type(part).model_fields
            if name in part.model_fields_set
        }

    def replaced(self, **values: Any) -> "Settings":
        """Return these settings with other values, by their fields' names; they are checked like all others."""
        return type(self).of(**{**self.flat, **values})

    def to_yaml(self) -> str:
        """Return the settings that differ from the defaults, as YAML that is read back as the same settings."""
        parts = self.model_dump(mode="json", exclude_defaults=True)
        check = {"check": parts.pop("gate")} if "gate" in parts else {}
        values = {name: value for part in parts.values() for name, value in part.items()}
        values.pop("recipe", None)  # the settings that it stands for are there already
        return yaml.safe_dump({**values, **check}, sort_keys=False, allow_unicode=True)


CHECK = "check."
"""The prefix of gate fields in flat dicts, which have the fields of all sections."""

SECTION_OF: dict[str, str] = {
    f"{CHECK if section == 'gate' else ''}{name}": section
    for section, part in Settings()
    for name in type(part).model_fields
}
"""The section of every field."""

DEMO = Settings.of(
    model="demo:minilm",
    task="similarity",
    data="demo:stsb",
    split="train",
    eval_data="demo:stsb",
    eval_split="test",
)
"""The built-in demo: all-MiniLM-L6-v2, scored on STS-B train, reported on STS-B test."""


RECIPE_FILE = "headprune.yaml"

_BELONGS_TO: dict[str, tuple[str, ...]] = {
    "model": ("revision",),
    "data": ("split",),
    "eval_data": ("eval_split",),
    "heal_data": ("heal_split",),
    "metric": ("higher_is_better",),
    "epochs": ("max_steps",),
    **dict.fromkeys(("method", "recipe", "objective", "normalize"), ("scores",)),
    **dict.fromkeys(BUDGETS, BUDGETS),
}
"""By key: fields of the file that depend on its value. Setting the key discards these fields of the file."""


def load_settings(
    options: Mapping[str, Any],
    *,
    file: Path | None = None,
    folder: Path | None = None,
    trust_metric_code: bool = False,
    measures: bool = False,
) -> tuple[Settings, str]:
    """Put settings together: the command line wins over the file, the file over the defaults.

    Args:
        options: What the command line gives, by field; None counts as not given.
        file: A YAML file of settings. Without one, ``headprune.yaml`` of ``folder`` is used where there is one; without that,
            and where neither a model nor data are named, the built-in demo.
        folder: Where to look for ``headprune.yaml``; the working directory by default. One that lies beside a model is the
            record of that model, and no settings.
        trust_metric_code: Whether a metric that the file names, and that isn't built in, may be loaded: it is code.
        measures: Whether the command reads one data set, which it measures.

    Returns:
        The settings, and a sentence that says where they come from.

    Raises:
        ConfigError: The file can't be read, a key is unknown, a value is out of range, or it names code that isn't trusted.
    """
    given = {name: value for name, value in options.items() if value is not None}
    # A preset of the command line overrides the settings of a file.
    given = {**PRESETS.get(str(given.get("recipe")), {}), **given}
    aside = ""
    default = (folder or Path()) / RECIPE_FILE
    if file is None and default.is_file():
        if any((default.parent / name).exists() for name in ("config.json", "manifest.json")):
            aside = f" ({default} is the record of the model beside it and no settings; -c {default} makes it so)"
        else:
            file = default
    if file is not None:
        read = _read_yaml(file)
        if "metric" not in given and not trust_metric_code:
            _refuse_metric_code(read.get("metric"), file)
        name = f"./{file}" if file == default and folder is None else f"{file}"
        settings = _checked(merged(read, given, measures=measures), given, file)
        return settings, f"settings from {name}"
    if "model" not in given and "data" not in given:
        origin = f"no MODEL, no {RECIPE_FILE}: the built-in demo (all-MiniLM-L6-v2 on STS-B)"
        return _checked({**DEMO.flat, **given}, given), f"{origin}{aside}"
    return _checked(given, given), f"settings from the command line{aside}"


def recorded_rows(file: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the settings of rows in the record of a model, and, as text, the ones among them that aren't trusted.

    Nothing else of a record is used: it was written by the maker of the directory, and the user named only the directory.

    Raises:
        ConfigError: The record can't be read, or a value is out of range.
    """
    read = _read_yaml(file, any_name=True)
    rows = {name: read[name] for name in OF_THE_ROWS if name in read}
    refused: tuple[str, ...] = ()
    if rows.get("metric") not in (None, *METRICS):
        refused = (f"metric: {rows['metric']}",)
        rows = {k: v for k, v in rows.items() if k not in ("metric", "higher_is_better")}
    return _checked(rows, {}, file).flat, refused


def merged(
    read: Mapping[str, Any], given: Mapping[str, Any], *, measures: bool = False
) -> dict[str, Any]:
    """Return the settings of a file, overridden by the settings of the command line.

    Args:
        read: Settings from the file, or from the record of a model.
        given: Settings from the command line.
        measures: Whether the command reads one data set, which it measures; then ``data`` also replaces the file's
            ``eval_data``.

    >>> merged({"max_drop": 0.01, "seed": 3}, {"heads": 9})
    {'seed': 3, 'heads': 9}
    >>> merged({"data": "a", "eval_data": "b"}, {"data": "c"}, measures=True)
    {'data': 'c'}
    """
    displaced = {name for field in given for name in _BELONGS_TO.get(field, ())}
    if "data" in given and not read.get("eval_data"):
        displaced |= {"eval_split"}
    if measures and "data" in given:
        displaced |= {"eval_data", "eval_split"}
    both = {**{name: value for name, value in read.items() if name not in displaced}, **given}
    if measures and "split" in given and not given.keys() & {"eval_data", "eval_split"}:
        both["eval_split"] = given["split"]
    return both


def _checked(
    values: Mapping[str, Any], given: Collection[str], file: Path | None = None
) -> Settings:
    """Return checked settings; an error in a setting of the file names the file."""
    try:
        return Settings.of(**values)
    except ConfigError as error:
        blamed = set(re.findall(r"`([a-z_]+)[=`]", error.where))
        if file is not None and not blamed & {name.removeprefix(CHECK) for name in given}:
            error.where = f"{file} ({error.where})"
        raise


def _refuse_metric_code(metric: Any, file: Path) -> None:
    """Refuse a metric that a file names and that isn't built in, as it is code."""
    if metric is not None and metric not in METRICS:
        raise ConfigError(
            f"the metric {str(metric)[:100]!r} isn't built in: it is code, and {file} names it",
            where=f"{file} (metric)",
            hint="give `metric` yourself, or `trust_metric_code` if you trust the file; built in: "
            + ", ".join(METRICS),
        )


def _read_yaml(file: Path, *, any_name: bool = False) -> dict[str, Any]:
    """Return the settings in a file, by field; names that no setting has are an error, or with ``any_name`` left out."""
    text = read_text(
        file,
        error=ConfigError,
        hint="check the path",
        most_bytes=MOST_BYTES_OF_YAML,
        called="the recipe",
    )
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(
            f"the recipe is not YAML: {first_line(error)}",
            where=f"`config={file}`",
            hint="check the indentation; a recipe is a list of `name: value` lines",
        ) from error
    content = {} if content is None else content
    check = content.pop("check", None) if isinstance(content, dict) else None
    check = {} if check is None else check
    for part, called in ((content, "recipe"), (check, "recipe's check")):
        if not isinstance(part, dict):
            raise ConfigError(
                f"the {called} is a {type(part).__name__}, not a mapping",
                where=f"`config={file}`",
                hint="write `name: value` lines",
            )
    values = {**content, **{f"{CHECK}{name}": value for name, value in check.items()}}
    for name in () if any_name else values:
        if name not in SECTION_OF:
            raise _unknown_setting(str(name), file)
    return {str(name): value for name, value in values.items()}


def _unknown_setting(name: str, file: Path) -> ConfigError:
    if f"{CHECK}{name}" in SECTION_OF:
        hint = f"it is a limit of the check: write it under `check:`, as `check: {{{name}: ...}}`"
    else:
        hint = did_you_mean(name, SECTION_OF)
    return ConfigError(f"unknown setting {name!r}", where=f"`config={file}`", hint=hint)
