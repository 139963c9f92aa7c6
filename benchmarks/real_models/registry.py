"""Every model the check knows, by the name that it is asked for by."""

from collections.abc import Callable, Mapping

from benchmarks.real_models import antibodies, dinov2, minilm, smollm2, t5, whisper
from benchmarks.real_models.subject import Subject

SUBJECTS: Mapping[str, Callable[[], Subject]] = {
    "minilm": minilm.subject,
    "smollm2": smollm2.subject,
    "whisper": whisper.subject,
    "t5": t5.subject,
    "dinov2": dinov2.subject,
    "antiberty": antibodies.antiberty,
    "sapiens": antibodies.sapiens,
}
TINY: Mapping[str, Callable[[], Subject]] = {"tiny": minilm.tiny}
"""What ``--quick`` checks."""
