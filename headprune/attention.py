"""Attention weights as a model's plain attention makes them: handed on one attention at a time, then let go of.

Fused kernels never hold the weights, so the model's own eager attention runs meanwhile.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any, TypeAlias

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy.sites import Anatomy, Site
from headprune.batch import Batch, forward
from headprune.errors import UnsupportedError
from headprune.masking import places_of
from headprune.passes import Parts, halves_of_batch
from headprune.placement import input_device
from headprune.replay.record import tensors_in

See: TypeAlias = Callable[[Site, Float[Tensor, "rows heads queries keys"]], None]
"""Reads the weights of one call of an attention, its heads in the order of ``site.heads``."""

WeightReader: TypeAlias = Callable[[Batch, See], None]
"""Runs the model on a batch, on the model's device, and hands on the weights of every attention as they are made."""


@contextmanager
def plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let the model, and what it is made of, run their plain (eager) attention."""
    parts = {"": model.config} | {
        name: getattr(model.config, name)
        for name in model.config.sub_configs
        if getattr(model.config, name, None) is not None
    }
    before = {name: config._attn_implementation for name, config in parts.items()}
    if set(before.values()) <= {"eager"}:
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before if len(before) > 1 else before[""])


def weight_reader(model: PreTrainedModel, anatomy: Anatomy, batch: Batch) -> WeightReader:
    """Return what reads the attention weights of batches; call it, and use it, inside :func:`plain_attention`.

    Args:
        model: The model, in eval mode.
        anatomy: Where its heads are.
        batch: A first batch; one example of it is tried.

    Raises:
        UnsupportedError: An attention doesn't hand out its weights.
    """
    asking: dict[str, Any] = {}

    def read(batch: Batch, see: See) -> None:
        with _listening(model, anatomy, batch, see):
            forward(model, {**batch.inputs, **asking})

    first = batch.take(1).to(input_device(model))
    attempt = Parts("attention weights", halves_of_batch)
    try:
        attempt.run(first, lambda part: read(part, _ignore))
    except UnsupportedError:
        # Some hand them out only when they are asked, and then keep the weights of all layers.
        asking["output_attentions"] = True
        if "output_attentions" not in signature(model.forward).parameters:
            raise
        attempt.run(first, lambda part: read(part, _ignore))
    return read


def _ignore(_site: Site, _weights: Tensor) -> None:
    """Read nothing."""


@contextmanager
def _listening(model: PreTrainedModel, anatomy: Anatomy, batch: Batch, see: See) -> Iterator[None]:
    """Hand the weights that attentions put out beside their results to ``see``."""
    seen = {site.id: 0 for site in anatomy.sites}

    def listen(site: Site) -> Callable[..., None]:
        def note(_module: Any, _args: Any, output: Any) -> None:
            for tensor in tensors_in(output):
                if _are_weights(site, tensor, rows=batch.num_rows):
                    places = places_of(site, tensor.shape[1])
                    seen[site.id] += 1
                    see(site, (tensor if places is None else tensor[:, places]).float())

        return note

    with ExitStack() as hooks:
        for site in anatomy.sites:
            handle = model.get_submodule(site.path).register_forward_hook(listen(site))
            hooks.callback(handle.remove)
        yield
    for site in anatomy.sites:
        if site.heads and not seen[site.id]:
            raise UnsupportedError(
                f"the attention {site.id} doesn't hand out its weights",
                where=f"{type(model).__name__} ({anatomy.model_type})",
                hint="what doesn't look at attention works: scores by gradient or ablation need the outputs only",
            )


def _are_weights(site: Site, tensor: Tensor, *, rows: int) -> bool:
    """Whether a tensor is [rows, heads, queries, keys], and every query's weights sum to one (or, with a sink, to less)."""
    if tensor.dim() != 4 or not tensor.is_floating_point() or tensor.shape[0] % rows:
        return False
    if tensor.shape[1] not in (len(site.heads), len(site.slots), site.num_heads):
        return False
    total = tensor.sum(-1)
    return bool((tensor >= 0).all() and (total < 1.01).all() and (total > 0).all())
