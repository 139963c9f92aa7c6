"""What ``model.save_pretrained`` is for a pruned model: Trainer's checkpoints and ``push_to_hub`` are written by it, too."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from headprune.anatomy import Anatomy
from headprune.errors import CheckpointError, UnsupportedError
from headprune.inspection import inspect
from headprune.models.manifest import MANIFEST, claims_to_be_ours
from headprune.models.save import described, has_uneven_cache, write_described
from headprune.models.writing import writing
from headprune.surgery.modeling_headprune import UNEVEN_CACHE

# What push_to_hub takes, of all that save_pretrained does.
_OF_THE_HUB = (
    *("commit_message", "commit_description", "private", "token", "revision", "create_pr"),
    *("max_shard_size", "tags"),
)


@dataclass(frozen=True, eq=False)
class OwnSave:
    """Saves a pruned model so that it loads: its weights as transformers does, its config and code as headprune does.

    It is an attribute of that one model. A copy of the model gets its own, and so does one that was pickled.

    Args:
        model: The model.
        anatomy: Its anatomy as it is now; None for a part of what was pruned, which is looked at when it is saved.
        source: Where it was loaded from, before it was pruned.
    """

    model: PreTrainedModel
    anatomy: Anatomy | None
    source: str = ""

    def __call__(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        push_to_hub: bool = False,
        **options: Any,
    ) -> None:
        """Do what ``PreTrainedModel.save_pretrained`` does, which says what the arguments mean.

        Raises:
            CheckpointError: The model can't be saved so that it loads.
            UnsupportedError: It is a part of a model, whose heads are called otherwise alone.
        """
        model, directory = self.model, Path(save_directory)
        write = type(model).save_pretrained
        name = options.pop("repo_id", None) or directory.name
        given = {"is_main_process": is_main_process, "state_dict": state_dict, **options}
        emptied = {**given, "state_dict": state_dict and dict(state_dict)}  # as it is written
        if getattr(model, "_hf_peft_config_loaded", False):
            hub: dict[str, Any] = {"push_to_hub": True, "repo_id": name} if push_to_hub else {}
            write(model, directory, **emptied, **hub)  # the adapters alone
            return
        if directory.is_file():
            raise CheckpointError(
                f"{directory.name} is a file", where=str(directory), hint="name a directory"
            )
        description = described(model, self.anatomy or inspect(model))
        with writing(directory, "the model"):
            write(model, directory, **emptied)
        is_writer = getattr(model, "should_save_on_this_rank", bool)  # not in older transformers
        if is_writer(is_main_process):
            write_described(model, directory, description)
            _discard_stale_manifest(directory)
        if (
            push_to_hub
        ):  # which saves once more, by this very method: what was given here is given there
            upload: Any = model.push_to_hub
            vars(model)["save_pretrained"] = partial(self, **given)
            try:
                upload(name, **{k: v for k, v in options.items() if k in _OF_THE_HUB})
            finally:
                vars(model)["save_pretrained"] = self


def own_save(model: PreTrainedModel) -> OwnSave | None:
    """Return how a pruned model saves itself; None for one that does so as its class does."""
    found = vars(model).get("save_pretrained")
    return found if isinstance(found, OwnSave) else None


def let_it_save_itself(model: PreTrainedModel, anatomy: Anatomy, *, source: str) -> None:
    """Let ``save_pretrained`` of a model, and of the models inside it, write a directory that loads; no class is changed.

    Args:
        model: A model that was just pruned.
        anatomy: Its anatomy as it is now.
        source: Where it was loaded from, before it was pruned.
    """
    before = own_save(model)
    source = source or (before.source if before else "")
    cut = [f"{site.path}." for site in anatomy.sites]
    for path, part in model.named_modules():
        # A part without attentions is saved as it always was.
        if isinstance(part, PreTrainedModel) and any(
            place.startswith(f"{path}." if path else "") for place in cut
        ):
            vars(part)["save_pretrained"] = OwnSave(
                part, anatomy if part is model else None, source
            )
    if has_uneven_cache(model, anatomy):
        vars(model)["init_continuous_batching"] = _no_continuous_batching


def _no_continuous_batching(*_args: Any, **_options: Any) -> None:
    raise UnsupportedError(
        UNEVEN_CACHE,
        where="generate_batch",
        hint="use generate(), or hp.plan(..., uniform=True) and hp.save: a stock model",
    )


def _discard_stale_manifest(directory: Path) -> None:
    """Remove a manifest of ours: what it names was just written over."""
    path = directory / MANIFEST
    if path.is_file() and not path.is_symlink() and claims_to_be_ours(path):
        path.unlink()
