"""Directories that models are written to: never the source itself, and nothing in them that isn't ours is replaced."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from headprune.atomic import refuse_unusable_target, staged_directory
from headprune.checkpoint.manifest import refuse_strangers
from headprune.errors import CheckpointError
from headprune.files.targets import naming


def refuse_unusable_output(
    out: Path,
    *,
    overwrite: bool,
    needed_bytes: int = 0,
    notify: Callable[[str], None] | None = None,
) -> None:
    """Check, before any work starts, that a directory can be written later, and holds nothing that isn't ours.

    Args:
        out: The directory.
        overwrite: Whether what is there may be replaced.
        needed_bytes: How much will be written.
        notify: Tells the user that what a run that was killed had moved aside is back.

    Raises:
        CheckpointError: See :func:`headprune.atomic.refuse_unusable_target` and :func:`refuse_strangers`.
    """
    was_put_back = refuse_unusable_target(
        out, overwrite=overwrite, needed_bytes=needed_bytes, check=refuse_strangers
    )
    if was_put_back and notify is not None:
        notify(f"{out} is back: a run that was killed while it replaced it had moved it aside")


def refuse_source(out: Path, source: Path) -> None:
    """Refuse an output directory that is, or holds, the model that is read, however the two are written.

    Raises:
        CheckpointError: It does.
    """
    with naming(out):
        place, home = out.resolve(), source.resolve()
        holders = (home, *home.parents)
        is_source = place in holders or (
            place.exists() and any(place.samefile(holder) for holder in holders)
        )
    if is_source:
        raise CheckpointError(
            f"the model that is read lies in {out}, which would be replaced",
            where=f"output directory {out}",
            hint="choose another directory",
        )


@contextmanager
def output_directory(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty directory that becomes ``out`` when the block ends well, replacing only what is ours.

    Raises:
        CheckpointError: See :func:`headprune.atomic.staged_directory` and :func:`refuse_strangers`.
    """
    with staged_directory(out, overwrite=overwrite, check=refuse_strangers) as staging:
        yield staging
