"""What a training leaves as it was: random states, the model's config, dtypes, what learns, the dead weight of heads."""

import random
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy.sites import Anatomy
from headprune.surgery.cut import dead_indices


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Trainer seeds Python's, numpy's and torch's global generators; give them back as they were."""
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that Trainer seeds
    try:
        with torch.random.fork_rng(
            [torch.cuda.current_device()] if torch.cuda.is_available() else []
        ):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002


@contextmanager
def config_kept(model: PreTrainedModel) -> Iterator[None]:
    """Trainer turns the key/value cache off, and its checkpoints note their dtype and class, in the model's own config."""
    before = dict(vars(model.config))
    try:
        yield
    finally:
        vars(model.config).clear()
        vars(model.config).update(before)


@contextmanager
def trainable_kept(
    model: PreTrainedModel, trained: Collection[str] | None = None
) -> Iterator[None]:
    """Freeze what isn't ``trained`` (None: nothing is) for the length of a block; adapters freeze what is under them, too."""
    # The parameters themselves: while adapters are there, their names are others, and an error leaves them there.
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for name, parameter in model.named_parameters():
        if trained is not None and name not in trained:
            parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, is_trainable in before:
            parameter.requires_grad_(is_trainable)


@contextmanager
def single_precision(model: PreTrainedModel) -> Iterator[None]:
    """Let weights of half precision be single: a step of training is often less than half the distance to their neighbour."""
    # The parameters themselves: their names change as adapters are merged.
    half = [(p, p.dtype) for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)]
    for parameter, _dtype in half:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in half:
            parameter.grad = None
            parameter.data = parameter.data.to(dtype)


@contextmanager
def dead_weight_kept(model: PreTrainedModel, anatomy: Anatomy) -> Iterator[None]:
    """Zero the gradients of padded heads: zero weights with zero gradients stay zero, whatever the optimizer."""
    hooks = []
    for site in anatomy.sites:
        for item, dead in dead_indices(site):
            indices = torch.tensor(dead)

            def without(gradient: Tensor, dim: int = item.dim, indices: Tensor = indices) -> Tensor:
                return gradient.index_fill(dim, indices.to(gradient.device), 0)

            hooks.append(model.get_parameter(item.parameter).register_hook(without))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
