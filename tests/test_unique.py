"""What only one head brings: against regressions head by head, and what it means for heads that do the same."""

import pytest
import torch
from test_methods import close, recorded, unpadded
from test_scoring import setting

import headprune as hp
from headprune.batch import as_batches
from headprune.scoring.unique import _RIDGE


def slopes(model, batch, loss):
    """Return what every output projection reads, and d l_n / d z, row by row: {site: [(z, slope)]}."""
    anatomy = hp.inspect(model)
    found = {site.id: [] for site in anatomy.sites}
    for row in unpadded(batch):
        inputs = {name: value for name, value in row.items() if name != "labels"}
        with recorded(model, anatomy) as seen:
            value = loss(model(**inputs), as_batches([row])[0]).sum()
        for site, slope in zip(
            anatomy.sites,
            torch.autograd.grad(value, [seen[site.id] for site in anatomy.sites]),
            strict=True,
        ):
            found[site.id].append((seen[site.id][0].detach(), slope[0]))
    return found


def regressed(inputs, wanted, *, ridge):
    """Return coefficients; the ridge as rows of the data, by QR."""
    rows = torch.cat([inputs, ridge**0.5 * torch.eye(inputs.shape[1]).double()])
    targets = torch.cat([wanted, torch.zeros(inputs.shape[1], wanted.shape[1]).double()])
    return torch.linalg.lstsq(rows, targets).solution


@pytest.mark.parametrize("method", ["unique", "unique:token"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_the_part_that_other_heads_tell_is_left_out(family, method):
    model, batch, loss = setting(family, rows=12)
    anatomy = hp.inspect(model)
    model = model.double()
    expected = []
    found = slopes(model, batch, loss)
    for site in anatomy.sites:
        z = torch.cat([part for part, _slope in found[site.id]])
        bias = getattr(model.get_submodule(site.output), "bias", None)
        mean = torch.zeros(z.shape[1]).double() if bias is None else z.mean(0)
        centred = z - mean
        ridge = _RIDGE * centred.square().mean() * len(z)
        for head in range(len(site.heads)):
            own = torch.zeros(z.shape[1], dtype=torch.bool)
            own[head * site.head_dim : (head + 1) * site.head_dim] = True
            told = regressed(centred[:, ~own], centred[:, own], ridge=ridge)
            moves = [
                (((row - mean)[:, own] - (row - mean)[:, ~own] @ told) * slope[:, own]).sum(1)
                for row, slope in found[site.id]
            ]
            sizes = [m.sum().abs() if method == "unique" else m.abs().sum() for m in moves]
            expected.append(torch.stack(sizes).mean())
    scores = hp.score(model.float(), [batch], loss=loss, method=method)
    assert close(scores, torch.stack(expected).detach())


def test_a_head_that_another_one_repeats_is_not_unique_and_both_count_by_their_gradient():
    model, batch, loss = setting("bert", rows=32)
    attention = model.bert.encoder.layer[1].attention.self
    with torch.no_grad():
        for linear in (attention.query, attention.key, attention.value):
            linear.weight[8:16] = linear.weight[:8]
            linear.bias[8:16] = linear.bias[:8]
    alone, all_of_it = (
        {
            str(head): value
            for head, value in hp.score(model, [batch], loss=loss, method=method).by_head().items()
        }
        for method in ("unique", "gradient")
    )
    for head in ("L1.H0", "L1.H1"):
        assert alone[head] < 0.05 * all_of_it[head]
    assert alone["L1.H2"] > 0.2 * all_of_it["L1.H2"]


def test_the_only_head_of_an_attention_counts_by_its_gradient():
    model, batch, loss = setting("llama", rows=12)
    anatomy = hp.inspect(model)
    gone = [head for head in anatomy.heads if head.head]
    with hp.masked(model, gone):
        alone, whole = (
            hp.score(model, [batch], loss=loss, method=method, anatomy=anatomy).by_head()
            for method in ("unique", "gradient")
        )
    for site in anatomy.sites:
        head = site.heads[0]
        name = next(h for h in anatomy.heads if h.site == site.id and h.head == head)
        assert alone[name] == pytest.approx(whole[name], rel=1e-4)
