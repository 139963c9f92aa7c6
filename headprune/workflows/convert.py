"""A model in another form: ``convert`` makes old checkpoints loadable, ``export`` writes GGUF."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from headprune.anatomy.clone import pruning_record, stock_class
from headprune.config import Settings
from headprune.errors import CheckpointError
from headprune.export.gguf import Exported, embedding_rows, export_gguf, refuse_unusable_file
from headprune.export.layout import refuse_family
from headprune.export.vocabulary import read_vocabulary
from headprune.inspection import inspect
from headprune.models.classes import auto_class_of
from headprune.models.find import ModelSource, find
from headprune.models.legacy import pickled_weights, pruned_heads, rewritten
from headprune.models.load import load_model
from headprune.models.manifest import refuse_source, refuse_unusable_output
from headprune.models.tokenizer import load_tokenizer, tokenizer_of
from headprune.passes import Progress
from headprune.placement import count_parameters
from headprune.results import Results
from headprune.workflows.finish import InMemory, Written, finish
from headprune.workflows.session import find_model, model_name


def convert(settings: Settings, *, progress: Progress) -> Results:
    """Write a model that transformers v4 pruned, or pickled, so that it loads today.

    Raises:
        CheckpointError: The model isn't one, or ``out`` isn't empty.
        ModelError: Its weights are pickled and the settings are without ``allow_pickle``; or it can't be loaded.
        ProofError: What was written isn't the model; nothing was kept of it.
    """
    out, overwrite = Path(settings.run.out or ""), settings.run.overwrite
    refuse_unusable_output(out, overwrite=overwrite, notify=progress.notify)
    with _readable(settings, progress=progress) as (source, home):
        refuse_source(out, home)
        if not pruned_heads(source.config) and source.directory == home:
            raise CheckpointError(
                "transformers v4 didn't prune this model: its config has no pruned_heads",
                where=str(home / "config.json"),
                hint="headprune pruned it, and it loads as it is: headprune.load, headprune eval"
                if pruning_record(source.config)
                else "prune it: headprune prune MODEL --keep 0.7",
            )
        model = load_model(
            source,
            auto_class=None,
            device="cpu",
            dtype=settings.model.dtype,
            notify=progress.notify,
        )
        removed = pruning_record(model.config).get("removed", ())
        progress.notify(f"model {settings.model.model}: {len(removed)} heads were removed")
        progress.notify("saving it, and loading it again in a fresh process")
        anatomy, size = inspect(model), count_parameters(model)

        def results(written: Written, weights: int) -> Results:
            return Results(
                heads=(len(anatomy.heads) + len(removed), len(anatomy.heads)),
                parameters=(None, size),
                proofs=written.proofs,
                weights_bytes=(None, weights),
                removed=tuple(removed),
                loads_with=written.loads_with,
                auto_class=auto_class_of(stock_class(model)),
            )

        tokenizer = tokenizer_of(replace(source, directory=home))
        outcome = finish(
            out,
            overwrite=overwrite,
            write=InMemory(model, anatomy, home, tokenizer=tokenizer).write,
            results=results,
            documents=lambda results: {"results.json": results.to_json()},
        )
    for proof in outcome.proofs:
        progress.notify(f"proof: {proof.name} ({proof.detail})")
    return outcome


@contextmanager
def _readable(settings: Settings, *, progress: Progress) -> Iterator[tuple[ModelSource, Path]]:
    """Yield the model, and its own directory; pickled weights, if allowed, are first rewritten to another directory."""
    spec = settings.model
    home = Path(model_name(spec))
    if not (spec.allow_pickle and home.is_dir() and pickled_weights(home)):
        source = find_model(spec)
        yield source, source.root
        return
    find(model_name(spec), weights=False)  # its other files are looked at before any is read
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        progress.notify("reading pickled weights, tensors alone")
        yield replace(find(str(rewritten(home, Path(folder)))), name=str(spec.model)), home


def export(settings: Settings, *, gguf: Path, with_tokenizer: bool, progress: Progress) -> Exported:
    """Write a model as GGUF, in the dtype of the settings, with its tokenizer or without.

    Raises:
        ProofError: What was read back isn't the model; nothing was saved.
        UnsupportedError: The model or its tokenizer has something that GGUF can't express.
    """
    refuse_unusable_file(gguf, overwrite=settings.run.overwrite)
    source = find_model(settings.model)
    refuse_family(source.config, where=f"{source.directory}/config.json")
    tokenizer = load_tokenizer(source) if with_tokenizer else None
    model = load_model(
        source,
        auto_class="AutoModelForCausalLM",
        device="cpu",
        dtype=settings.model.dtype,
        notify=progress.notify,
    )
    progress.notify(f"model {settings.model.model} ({model.config.model_type})")
    vocabulary = None
    if tokenizer is not None:
        vocabulary = read_vocabulary(
            tokenizer, rows=embedding_rows(model), where=str(source.directory)
        )
    return export_gguf(
        model,
        gguf,
        vocabulary=vocabulary,
        name=Path(source.name).name or source.directory.absolute().name,
        overwrite=settings.run.overwrite,
    )
