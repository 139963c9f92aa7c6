"""Families for each way to run and each way to load, pruned unevenly and saved: what the tests of loading load."""

import copy
from dataclasses import dataclass
from pathlib import Path

import law
import pytest
import torch
import transformers
import zoo
from transformers import PreTrainedModel

import headprune as hp
from headprune.anatomy.clone import quiet
from headprune.anatomy.sites import Anatomy
from headprune.heads import select_heads
from headprune.models.manifest import write_manifest
from headprune.models.save import write_model
from headprune.surgery.cut import cut

# name: (model type, class, settings). Their own forward runs with fewer heads ...
NATIVE = {
    "bert": ("bert", "AutoModelForMaskedLM", {}),
    "llama": ("llama", "AutoModelForCausalLM", {"intermediate_size": 64}),
    "gpt2": ("gpt2", "AutoModelForCausalLM", {}),
    "vit": ("vit", "AutoModelForImageClassification", {}),
    # transformers renames and fuses its weights when it loads them.
    "mixtral": ("mixtral", "AutoModelForCausalLM", {"intermediate_size": 64}),
    "whisper": ("whisper", "AutoModelForSpeechSeq2Seq", {}),
    "bart": ("bart", "AutoModelForSeq2SeqLM", {}),
}
# ... or their activations are spread to the width of all heads ...
EXPANDED = {
    "t5": ("t5", "AutoModelForSeq2SeqLM", {}),
    "bloom": ("bloom", "AutoModelForCausalLM", {}),
    "olmo2": ("olmo2", "AutoModelForCausalLM", {"intermediate_size": 64}),
    "mpnet": ("mpnet", "AutoModelForMaskedLM", {}),
}
# ... and where every layer has as many, a stock config says it all.
STOCK = {"llama-stock": ("llama", "AutoModelForCausalLM", {"intermediate_size": 64})}
CASES = {**NATIVE, **EXPANDED, **STOCK}
UNIFORM = {"L0": [1, 2], "L1": [0, 3]}


@dataclass(frozen=True)
class Case:
    """A pruned model in memory and on disk. The model is shared by the tests: copy it before changing it.

    Args:
        auto: Name of the auto class it was built with.
        whole: The model before anything was removed.
        model: The pruned model.
        anatomy_of_whole: What could be removed.
        anatomy: Of the pruned model.
        removed: The heads that went.
        inputs: What its forward takes.
        directory: Where it was saved.
        route: How it loads.
    """

    auto: str
    whole: PreTrainedModel
    model: PreTrainedModel
    anatomy_of_whole: Anatomy
    anatomy: Anatomy
    removed: set
    inputs: dict
    directory: Path
    route: str

    def load(self, by="transformers", directory=None, **settings):
        """Load the model by ``transformers`` alone or by ``headprune``; nothing may be missing or left over."""
        if by == "headprune":
            return hp.load(directory or self.directory, device="cpu", **settings)
        return self.load_as(self.auto, directory=directory, **settings)

    def load_as(self, auto, directory=None, **settings):
        """Load it as a class of transformers, with whatever that leaves unsaid drawn at random."""
        model = getattr(transformers, auto).from_pretrained(
            directory or self.directory,
            trust_remote_code=self.route == "remote-code",
            **settings,
        )
        return model[0].eval() if settings.get("output_loading_info") else model.eval()

    def save(self, model, directory, **settings):
        """Save a model that was cut like this one (known already: looking takes longer than writing)."""
        directory.mkdir(exist_ok=True)
        write_model(model, directory, anatomy=self.anatomy, **settings)
        write_manifest(directory)
        return directory

    def copy(self):
        """Return the pruned model in memory, to be changed."""
        return copy.deepcopy(self.model)


def make(name, directory):
    """Build, prune and save a case."""
    model_type, auto, settings = CASES[name]
    with quiet():
        fused = zoo.model_class(model_type, auto)._supports_sdpa
        attention = "sdpa" if fused else "eager"
        whole = zoo.build(model_type, auto=auto, attention=attention, **settings)
        inputs = zoo.inputs(whole)
    before = hp.inspect(whole)
    execution = "zero_padded" if name in EXPANDED else "native"
    assert {site.execution for site in before.sites} == {execution}
    plan = UNIFORM if name in STOCK else law.random_plan(before, 3)
    removed = set(select_heads(plan, before.heads))
    model = copy.deepcopy(whole)
    anatomy = cut(model, before, remove=removed)
    directory.mkdir(exist_ok=True)
    route = write_model(model, directory, anatomy=anatomy)
    write_manifest(directory)
    assert route == ("stock" if name in STOCK else "remote-code")
    return Case(auto, whole, model, before, anatomy, removed, inputs, directory, route)


def each(*names):
    """Parametrise ``case``: by these names, or by all."""
    return pytest.mark.parametrize("case", names or list(CASES), indirect=True)


def identical(ones, others):
    """Whether two models' outputs, or two lists of them, are the same bit for bit."""
    return len(ones) == len(others) > 0 and all(
        one.dtype == other.dtype and torch.equal(one, other)
        for one, other in zip(ones, others, strict=True)
    )
