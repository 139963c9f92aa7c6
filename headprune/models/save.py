"""Write a model so that it loads again: weights, config, tokenizer, and what else made its source work.

A pruned model's own ``save_pretrained`` does so too: Trainer's checkpoints and ``push_to_hub`` are written by it.
"""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from headprune.anatomy.clone import quiet
from headprune.anatomy.sites import Anatomy
from headprune.artefact import LoadMethod
from headprune.errors import CheckpointError, UnsupportedError
from headprune.inspection import inspect
from headprune.models.describe import Description, describe, has_uneven_cache
from headprune.models.manifest import MANIFEST, claims_to_be_ours
from headprune.models.side_files import (
    change_settings,
    copy_side_files,
    drop_foreign_code,
    write_config,
    write_tokenizer,
    writing,
)
from headprune.surgery import modeling_headprune
from headprune.surgery.head_settings import head_settings
from headprune.surgery.modeling_headprune import UNEVEN_CACHE

MAX_SHARD_SIZE = "50GB"
"""As transformers has it."""

# What push_to_hub takes, of all that save_pretrained does.
_OF_THE_HUB = (
    *("commit_message", "commit_description", "private", "token", "revision", "create_pr"),
    *("max_shard_size", "tags"),
)


def write_model(
    model: PreTrainedModel,
    directory: Path,
    *,
    anatomy: Anatomy,
    tokenizer: Any = None,
    source: Path | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> LoadMethod:
    """Write weights, config, tokenizer and what else a load needs into an existing directory.

    Args:
        model: The model, pruned or not.
        directory: Where to.
        anatomy: The model's anatomy as it is now.
        tokenizer: The tokenizer; None stands for the source's own.
        source: The directory of the model that it was made from: what made that one work comes along.
        max_shard_size: Weights larger than this are split over several files.

    Raises:
        CheckpointError: A write failed: the disk is full, say; or transformers can't save such a model.
    """
    description = describe(model, anatomy)
    with quiet(), writing(directory, "the model"):
        # The class's own: that of a pruned model ends here.
        type(model).save_pretrained(model, directory, max_shard_size=max_shard_size)
    write_side_files(model, directory, description, tokenizer=tokenizer, source=source)
    return description.load_method


def write_side_files(
    model: PreTrainedModel,
    directory: Path,
    description: Description,
    *,
    tokenizer: Any = None,
    source: Path | None = None,
) -> None:
    """Write all that a load needs but the weights; names and shapes of ``model`` are enough.

    Raises:
        CheckpointError: A file of the source is a link to somewhere else, or can't be written.
    """
    if source is not None:
        copy_side_files(source, directory)
    write_tokenizer(tokenizer, directory, source=source)
    _write_config_and_code(model, directory, description)


def _write_config_and_code(
    model: PreTrainedModel, directory: Path, description: Description
) -> None:
    """Write the config, the code that it names, and ``generation_config.json`` with the new indices of heads that it names."""
    config = description.config
    config.dtype = model.config.dtype  # as save_pretrained found it
    with quiet():
        write_config(config, directory)
    code = directory / "modeling_headprune.py"
    if description.load_method == "remote-code":
        shutil.copyfile(str(modeling_headprune.__file__), code)
    else:
        code.unlink(missing_ok=True)
    change_settings(directory / "generation_config.json", head_settings(model))
    drop_foreign_code(directory)


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
        arguments = {"is_main_process": is_main_process, "state_dict": state_dict, **options}
        emptied = {**arguments, "state_dict": state_dict and dict(state_dict)}  # as it is written
        if getattr(model, "_hf_peft_config_loaded", False):
            hub: dict[str, Any] = {"push_to_hub": True, "repo_id": name} if push_to_hub else {}
            write(model, directory, **emptied, **hub)  # the adapters alone
            return
        if directory.is_file():
            raise CheckpointError(
                f"{directory.name} is a file", where=str(directory), hint="name a directory"
            )
        description = describe(model, self.anatomy or inspect(model))
        with writing(directory, "the model"):
            write(model, directory, **emptied)
        is_writer = getattr(model, "should_save_on_this_rank", bool)  # not in older transformers
        if is_writer(is_main_process):
            _write_config_and_code(model, directory, description)
            _discard_stale_manifest(directory)
        if push_to_hub:
            # It saves once more, by this very method, which is to be given the same arguments.
            upload: Any = model.push_to_hub
            vars(model)["save_pretrained"] = partial(self, **arguments)
            try:
                upload(name, **{k: v for k, v in options.items() if k in _OF_THE_HUB})
            finally:
                vars(model)["save_pretrained"] = self


def own_save(model: PreTrainedModel) -> OwnSave | None:
    """Return how a pruned model saves itself; None for one that does so as its class does."""
    own = vars(model).get("save_pretrained")
    return own if isinstance(own, OwnSave) else None


def let_it_save_itself(model: PreTrainedModel, anatomy: Anatomy, *, source: str) -> None:
    """Let ``save_pretrained`` of a model, and of the models inside it, write a directory that loads; no class is changed.

    ``source`` is where it was loaded from, before it was pruned.
    """
    before = own_save(model)
    source = source or (before.source if before else "")
    cut = [f"{site.path}." for site in anatomy.sites]
    for path, part in model.named_modules():
        # A part without attentions is saved as it always was.
        if isinstance(part, PreTrainedModel) and any(
            path_of_site.startswith(f"{path}." if path else "") for path_of_site in cut
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
