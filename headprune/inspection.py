"""What of a model can be pruned, proven: its tiny clone is masked and cut, and both must say the same."""

import torch
from transformers import PreTrainedModel

from headprune.anatomy import Anatomy, Pattern, locate, probe
from headprune.anatomy.clone import quiet, tiny_inputs
from headprune.anatomy.exceptions import REASONS
from headprune.batch import forward, main_output
from headprune.errors import UnsupportedError
from headprune.heads import HeadId
from headprune.masking import gated
from headprune.surgery import cut

# fp32 rounding of a two-layer model whose outputs are of order one; heads of the clone move them by 0.1 and more.
_TOLERANCE = 1e-4


def inspect(model: PreTrainedModel) -> Anatomy:
    """Return the anatomy of ``model``, after proving on its tiny clone that it can be pruned.

    The proof: an uneven plan is masked and cut on the clone, and the outputs agree. Whether a layer may lose all its heads
    is tried in the same way. The model itself is not run, and the caller's random state is left alone.

    Raises:
        UnsupportedError: The heads can't be found, or cutting them is not the same as masking them.
    """
    with quiet():
        clone, patterns, refused = probe(model)
        uneven, empty = _plans(locate(clone, patterns, refused))
        difference = _difference(model, patterns, uneven, min_heads=1)
        if difference > _TOLERANCE:
            model_type = model.config.model_type
            known = REASONS.get(model_type)
            raise UnsupportedError(
                f"model type {model_type!r} is not supported: "
                + (
                    known
                    or f"cutting heads of a small copy is not the same as masking them ({difference:.1e})"
                ),
                where=f"{type(model).__name__} (config.json: model_type)",
                hint="BERT-like encoders, GPT-2 and Llama-like decoders are supported",
            )
        may_empty = _difference(model, patterns, empty, min_heads=0) <= _TOLERANCE
    return locate(model, patterns, refused, min_heads=0 if may_empty else 1)


def _plans(anatomy: Anatomy) -> tuple[set[HeadId], set[HeadId]]:
    """Return two plans for the clone: a different number of heads in each layer, and a layer with none.

    Lawful for any number of key/value heads: from each group the same number of heads goes, then whole groups.
    """
    first, *rest = anatomy.sites
    uneven: set[HeadId] = set()
    if first.group_size > 1:
        uneven |= {HeadId(first.id, group[-1]) for group in first.groups(first.heads).values()}
    elif len(first.heads) > 1:
        uneven |= {HeadId(first.id, first.heads[0])}
    for site in rest:
        groups = site.groups(site.heads)
        going = [groups[0]] if len(groups) > 1 else []
        uneven |= {HeadId(site.id, head) for group in going for head in group}
    return uneven, {HeadId(first.id, head) for head in first.heads}


def _difference(
    model: PreTrainedModel, patterns: tuple[Pattern, ...], remove: set[HeadId], *, min_heads: int
) -> float:
    """Return the largest difference between a masked and a cut clone (infinite where the cut one doesn't run)."""
    clone, _patterns, refused = probe(model)
    anatomy = locate(clone, patterns, refused, min_heads=min_heads)
    inputs = tiny_inputs(clone)
    mask = torch.tensor([float(head not in remove) for head in anatomy.heads])
    with torch.no_grad():
        with gated(clone, anatomy, gates=mask):
            masked = main_output(forward(clone, inputs))
        cut(clone, anatomy, remove=remove)
        try:
            pruned = main_output(forward(clone, inputs))
        except (ValueError, TypeError, RuntimeError, IndexError, ZeroDivisionError):
            return float("inf")
    if pruned.shape != masked.shape:
        return float("inf")
    return float((pruned - masked).abs().max())
