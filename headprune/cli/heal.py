"""``headprune heal``."""

import re
from pathlib import Path

from headprune.cli.options import Call


def heal(call: Call) -> None:
    """Let a pruned model learn from the one it came from, by distillation; prove it and save it anew."""
    from headprune.report.tables import prune_table
    from headprune.workflows.heal import heal as heal_model

    out = call.settings.run.out or _beside(call.settings.model.model or "")
    results = heal_model(
        call.settings.replaced(out=out), resume=call.own.resume, progress=call.progress
    )
    call.write(results.to_json()) if call.own.as_json else call.show(
        prune_table(results, directory=out)
    )


def _beside(model: str) -> str:
    """Return where the healed model goes: beside the pruned one."""
    home = Path(model)
    if not home.is_dir():
        home = Path("headprune-models") / re.sub("[/:]", "-", model)
    home = home if home.name else home.absolute()
    return str(home.with_name(f"{home.name}-healed"))
