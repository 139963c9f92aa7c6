"""The detector of syntax: whether a head looks from a word to the word that it depends on, or the other way."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from headprune.analysis.call import AttentionCall, at_largest
from headprune.analysis.positions import Columns
from headprune.analysis.trees import Tree

_FARTHEST = 8
OFFSETS = (*range(-_FARTHEST, 0), *range(1, _FARTHEST + 1))
"""The baselines: heads that always look so many words ahead."""


def syntax(call: AttentionCall) -> Columns:
    """Return, for each relation and direction, whether the largest weight between words is where the tree says.

    The attention to a word is the sum over its pieces, that from a word the mean over its pieces; a word's attention to itself
    and to special tokens is left out. Ties are shared. The number of a dependent stands at its first piece, in both directions;
    after the heads come those that always look at one distance (:data:`OFFSETS`).

    Source: Clark et al., "What Does BERT Look at?", BlackboxNLP 2019, section 4.2; the margin over the best fixed distance is
    that of Voita et al., "Analyzing Multi-Head Self-Attention", ACL 2019, section 5.2.
    """
    if not call.trees or call.is_cross:
        return {}
    rows, heads, queries, _ = call.weights.shape
    shape = (rows, heads - 1 + len(OFFSETS), queries)
    numbers = {
        f"{relation} {direction}": call.weights.new_full(shape, torch.nan)
        for relation in call.vocabulary.relations
        for direction in ("to head", "to dependent")
    }
    for row, tree in enumerate(call.trees):
        dependents = (tree.heads >= 0).nonzero().flatten()
        if len(dependents):
            _fill(numbers, row, tree, dependents, call.weights[row, :-1])
    return numbers


def _fill(
    numbers: Columns,
    row: int,
    tree: Tree,
    dependents: Tensor,
    weights: Float[Tensor, "heads queries keys"],
) -> None:
    """Write the numbers of a sentence's dependents."""
    device = weights.device
    largest = at_largest(_between_words(weights, tree.members.to(device)))
    heads = tree.heads[dependents]
    first = tree.members[dependents].int().argmax(-1)
    ahead = (heads - dependents)[None] == torch.tensor(OFFSETS)[:, None]
    behind = (dependents - heads)[None] == torch.tensor(OFFSETS)[:, None]
    found = {
        "to head": torch.cat([largest[:, dependents, heads], ahead.to(largest)]),
        "to dependent": torch.cat([largest[:, heads, dependents], behind.to(largest)]),
    }
    for direction, values in found.items():
        for relation, places in _by_relation(tree.relations, dependents.tolist()).items():
            numbers[f"{relation} {direction}"][row, :, first[places]] = values[:, places]


def _between_words(
    weights: Float[Tensor, "heads queries keys"], members: Tensor
) -> Float[Tensor, "heads words words"]:
    """Return the attention between words: summed over the pieces that are looked at, averaged over those that look."""
    pieces = members.to(weights.dtype)
    words = pieces @ weights @ pieces.T / pieces.sum(-1)[:, None]
    return words.masked_fill(torch.eye(len(pieces), dtype=torch.bool, device=words.device), -1)


def _by_relation(relations: Sequence[str], dependents: Sequence[int]) -> dict[str, list[int]]:
    """Return the places among the dependents that have each relation."""
    places: dict[str, list[int]] = {}
    for place, word in enumerate(dependents):
        places.setdefault(relations[word], []).append(place)
    return places
