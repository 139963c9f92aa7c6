"""Settings: fields with their help, one section for each stage, and what wins where a setting is given twice."""

from headprune.config.fields import Drop
from headprune.config.recovery import DistillSpec, ReconstructSpec
from headprune.config.sections import (
    BUDGETS,
    MAX_LENGTH,
    OF_THE_ROWS,
    AnalyzeSpec,
    Constraints,
    DataSpec,
    GateSpec,
    ModelSpec,
    RunSpec,
    ScoreSpec,
)
from headprune.config.settings import (
    CHECK,
    DEMO,
    PRESETS,
    RECIPE_FILE,
    SECTION_OF,
    Settings,
    load_settings,
    merged,
    recorded_rows,
)

__all__ = [
    "BUDGETS",
    "CHECK",
    "DEMO",
    "MAX_LENGTH",
    "OF_THE_ROWS",
    "PRESETS",
    "RECIPE_FILE",
    "SECTION_OF",
    "AnalyzeSpec",
    "Constraints",
    "DataSpec",
    "DistillSpec",
    "Drop",
    "GateSpec",
    "ModelSpec",
    "ReconstructSpec",
    "RunSpec",
    "ScoreSpec",
    "Settings",
    "load_settings",
    "merged",
    "recorded_rows",
]
