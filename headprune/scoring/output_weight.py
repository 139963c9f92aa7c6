"""What a head writes with: its part of the output projection."""

import torch
from jaxtyping import Float64
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from headprune.anatomy import Site
from headprune.masking import places_of


def output_weight(model: PreTrainedModel, site: Site) -> Float64[Tensor, "heads head_dim out"]:
    """Return ``W_O,h`` of every head of a site, on the CPU."""
    output = model.get_submodule(site.output)
    weight = output.get_parameter("weight").detach().double().cpu()
    reads = weight if isinstance(output, Conv1D) else weight.T
    by_place = reads.unflatten(0, (-1, site.head_dim))
    places = places_of(site, len(by_place))
    if places is not None:
        by_place = by_place[torch.tensor(places, dtype=torch.long)]
    found: Tensor = by_place
    return found
