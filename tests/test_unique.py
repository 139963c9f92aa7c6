"""What only one head brings: against regressions head by head, and what it means for heads that do the same."""

from dataclasses import replace

import pytest
import torch
import transformers
from families import build, inspected, token_inputs
from test_methods import close, paired, recorded, unpadded
from test_scoring import classifier_loss, setting

import headprune as hp
from headprune.batch import Batch, as_batches
from headprune.masking import row_of_position
from headprune.scoring import gradients
from headprune.scoring.derivatives import mean_over_stretches
from headprune.scoring.gradients import _RIDGE, _STRETCH
from headprune.scoring.request import ScoreRequest


def slopes(model, batch, loss):
    """Return what every output projection reads, and d l_n / d z, row by row: {site: [(z, slope)]}."""
    anatomy = inspected(model)
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


@pytest.mark.parametrize("stretch", [_STRETCH, 2])
@pytest.mark.parametrize(
    ("family", "left"), [("bert", False), ("gpt2", False), ("llama", False), ("llama", True)]
)
def test_the_part_that_other_heads_tell_is_left_out(family, left, stretch, monkeypatch):
    """Row by row without padding, whichever side it was on: stretches begin where the row does."""
    monkeypatch.setattr(gradients, "_STRETCH", stretch)
    model, batch, loss = setting(family, rows=12, left=left)
    anatomy = inspected(model)
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
            sizes = [torch.stack([p.sum().abs() for p in m.split(stretch)]).sum() for m in moves]
            expected.append(torch.stack(sizes).mean())
    scores = hp.score(model.float(), [batch], loss=loss, method="unique")
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
    anatomy = inspected(model)
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


def stretched(model, batches, loss, length):
    """Return ``mean_n sum_s |sum_{t in s} z_t . d l_n / d z_t|``."""
    request = ScoreRequest(model, inspected(model), batches, loss)
    return mean_over_stretches(request, name="stretches", length=length)


@pytest.mark.parametrize(
    ("family", "length", "method"),
    [
        ("bert", 10**6, "gradient"),
        ("llama", 10**6, "gradient"),
        ("bert", 1, "gradient:token"),
        ("llama", 1, "gradient:token"),
    ],
)
def test_the_longest_stretch_is_the_example_and_the_shortest_is_the_token(family, length, method):
    model, batch, loss = setting(family)
    found = stretched(model, as_batches([batch]), loss, length)
    scores = hp.score(model, [batch], loss=loss, method=method)
    assert close(scores, found.values)
    assert torch.allclose(torch.tensor(scores.standard_errors).double(), found.standard_errors)


def test_an_attention_that_runs_several_times_has_one_gate():
    """What a head does in one call may make up for what it does in another."""
    config = transformers.AlbertConfig(
        vocab_size=96,
        embedding_size=16,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=40,
        num_hidden_layers=3,
        initializer_range=0.4,
    )
    torch.manual_seed(0)
    model = transformers.AlbertForSequenceClassification(config).eval()
    batch = {**token_inputs(), "labels": torch.arange(4) % 2}
    found = stretched(model, as_batches([batch]), classifier_loss, 10**6)
    scores = hp.score(model, [batch], loss=classifier_loss, method="gradient")
    assert close(scores, found.values)


def test_positions_know_their_row_however_the_model_lays_them_out():
    batch = Batch({}, torch.zeros(2), torch.tensor([0, 0, 1]), torch.arange(2))
    major = inspected(build("bert")).sites[0]
    minor = replace(major, rows="time-major")
    assert row_of_position(major, (3, 2), batch).tolist() == [0, 0, 1, 1, 2, 2]
    assert row_of_position(minor, (2, 3), batch).tolist() == [0, 1, 2, 0, 1, 2]
    windows = row_of_position(major, (6, 2), batch)  # two windows of every row, one after the other
    assert windows.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert row_of_position(major, (6,), batch).tolist() == [0, 0, 1, 1, 2, 2]
    assert row_of_position(major, (1, 6), batch) is None  # packed into one row: nobody knows


def test_rows_of_an_example_have_stretches_in_common():
    """As a gate has that is the same for both: what it does in one may make up for what it does in the other."""
    model = build("bert", cls="BertModel")
    both = paired(token_inputs())

    def loss(outputs, batch):
        rows = outputs[0][:, 0]
        return torch.stack([rows[batch.example_of_row == i].prod(0).mean() for i in range(2)])

    found = stretched(model, [both], loss, 10**6)
    assert close(hp.score(model, [both], loss=loss, method="gradient"), found.values)
    apart = stretched(model, [both], loss, None)
    assert (apart.values > 0.999 * found.values).all()
    assert (apart.values > 1.1 * found.values).any()


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_logits_are_made_only_where_a_loss_reads_them(family, monkeypatch):
    """The first forward asks for the outputs of heads, the second for derivatives."""
    model, batch, loss = setting(family, rows=12)
    made, own = [], model.get_output_embeddings().forward
    monkeypatch.setattr(
        model.get_output_embeddings(), "forward", lambda states: made.append(0) or own(states)
    )
    hp.score(model, [batch], loss=loss, method="unique")
    assert len(made) == 1
