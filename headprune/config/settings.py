"""All settings: a section for each stage."""

from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from headprune.config.sections import (
    AnalyzeSpec,
    Constraints,
    DataSpec,
    DistillSpec,
    GateSpec,
    ModelSpec,
    ReconstructSpec,
    RunSpec,
    ScoreSpec,
)
from headprune.errors import ConfigError, did_you_mean

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
    """All settings: a section for each stage."""

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
