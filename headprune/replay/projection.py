"""What an attention puts out under other masks, without running it again.

The output projection is a sum over heads (Vaswani et al. 2017, section 3.2.2), so under another mask it puts out what was
recorded and the difference ``z_h W_O,h`` of the heads that changed.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from headprune.anatomy import Site
from headprune.masking import places_of
from headprune.placement import staged
from headprune.replay.recording import SiteCall
from headprune.replay.rows import map_tensors, repeat, tensors_in


def can_share(model: PreTrainedModel, site: Site, here: SiteCall, *, rows: int) -> bool:
    """Whether an attention's output projection is a plain sum over heads whose parts can be told apart."""
    projection = model.get_submodule(site.output)
    z, output = here.projection.read, here.projection.output
    if type(projection) not in (nn.Linear, Conv1D) or site.gate != site.output:
        return False
    if not (isinstance(z, Tensor) and isinstance(output, Tensor)) or z.dim() != 3:
        return False
    weight = _weight(projection)
    return (
        weight.device
        == z.device  # weights that wait elsewhere are brought by a hook of another library
        and z.shape[-1] == weight.shape[0]
        and z.shape[0] == rows
        and site.rows == "batch-major"
        and (
            _ended_before(here)
            or any(_is_view(tensor, output) for tensor in tensors_in(here.attention.output))
        )
    )


def shared_forwards(
    site: Site, here: SiteCall, *, changes: Float[Tensor, "masks heads"], rows: int
) -> Mapping[nn.Module, Any]:
    """Return forwards that put out what the attention puts out under each mask.

    Args:
        site: The attention, for which :func:`can_share` holds.
        here: Its recorded calls.
        changes: Each mask less the gates under which it was recorded, on the CPU.
        rows: Rows of the recorded batch.
    """
    output = _projected(site, here, changes)
    forwards: dict[nn.Module, Any] = {
        here.projection.module: lambda *_args, **_kwargs: output,
    }
    if not _ended_before(here):

        def put_in(tensor: Tensor) -> Tensor:
            if _is_view(tensor, here.projection.output):
                return output.view(-1, *tensor.shape[1:])
            repeated: Tensor = repeat(tensor, copies=len(changes), rows=rows)
            return repeated

        attended = map_tensors(here.attention.output, put_in)
        forwards[here.attention.module] = lambda *_args, **_kwargs: attended
    return forwards


def _projected(
    site: Site, here: SiteCall, changes: Float[Tensor, "masks heads"]
) -> Float[Tensor, "rows length out"]:
    """Return the projection's output under each mask, ``recorded + sum_h change_h z_h W_O,h``, one mask after the other."""
    z, output = here.projection.read, here.projection.output
    # As many heads for every mask as the one that changes most; those that needn't are changed by zero.
    most = max(1, int((changes != 0).sum(dim=1).max()))
    heads = changes.abs().topk(most, dim=1).indices
    scale = staged(changes.gather(1, heads).to(z.dtype), z.device)
    width = z.shape[-1] // site.head_dim
    at = torch.tensor(places_of(site, width) or range(width))
    places = staged(at[heads].flatten(), z.device)
    by_head = z.flatten(0, 1).unflatten(-1, (width, site.head_dim)).transpose(0, 1)
    parts = by_head[places].unflatten(0, heads.shape) * scale[:, :, None, None]
    weights = _weight(here.projection.module).unflatten(0, (width, site.head_dim))[places]
    changed = torch.baddbmm(
        output.flatten(0, 1)[None].expand(len(changes), -1, -1),
        parts.transpose(1, 2).flatten(2),
        weights.unflatten(0, heads.shape).flatten(1, 2),
    )
    stacked: Tensor = changed.unflatten(1, output.shape[:2]).flatten(0, 1)
    return stacked


def _weight(projection: nn.Module) -> Float[Tensor, "inputs outputs"]:
    weight = projection.get_parameter("weight")
    return weight if isinstance(projection, Conv1D) else weight.T


def _ended_before(here: SiteCall) -> bool:
    return here.attention.ended < here.projection.began


def _is_view(one: Tensor, other: Tensor) -> bool:
    return one.numel() == other.numel() and one.data_ptr() == other.data_ptr()
