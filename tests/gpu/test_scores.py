"""Scores on a device are those of the CPU; losses under masks are those of plain forwards; the host waits for no head."""

import pytest
import torch
from families import build, inspected
from scipy.stats import spearmanr

import headprune as hp
from gpu.subjects import batches, loss, naive_losses, plain, with_unequal_heads
from headprune.passes import RunContext
from headprune.replay.losses import losses
from headprune.replay.modes import find_modes
from headprune.replay.resume import record, run_masks
from headprune.scoring.catalogue import METHODS
from headprune.scoring.gates import gradient as gates_gradient
from headprune.scoring.request import ScoreRequest

FAMILIES = ("bert", "llama", "gpt2")
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
# Gates follow each other for 200 steps, and rounding grows from step to step: their law is about one step (below).
COMPARED = sorted(set(METHODS) - {"gates"})


def _scores(model, method, anatomy):
    return torch.tensor(
        hp.score(model, batches(), loss=loss, method=method, anatomy=anatomy).values
    )


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_scores_of_every_method_are_those_of_the_cpu(family, apart):
    model = build(family, **SMALL)
    anatomy = inspected(model)
    # What `shapley` does is what `ablation` does, many times.
    methods = [name for name in COMPARED if name != "shapley"]
    expected = {method: _scores(model, method, anatomy) for method in methods}
    model.to(apart)
    for method in methods:
        found = _scores(model, method, anatomy)
        scale = float(expected[method].abs().max())
        assert float((found - expected[method]).abs().max()) <= 1e-4 * scale, method


def test_a_step_of_gates_is_that_of_the_cpu(apart):
    model = build("bert")
    anatomy = inspected(model)
    (batch,) = batches(count=1)
    heads = len(anatomy.heads)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(batch.num_examples, heads, generator=generator, dtype=torch.float64)
    at = {"log_alpha": torch.zeros(heads, dtype=torch.float64), "noise": noise}
    request = ScoreRequest(model, anatomy, (batch,), loss)
    expected = gates_gradient(request, batch, **at, price=0.1)
    model.to(apart)
    found = gates_gradient(request, batch, **at, price=0.1)
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", ["gradient", "unique", "ablation", "activation"])
def test_half_precision_keeps_the_order_of_heads(method, dtype, device):
    model = with_unequal_heads().to(device)
    anatomy = inspected(model)
    expected = _scores(model, method, anatomy)
    found = _scores(model.to(dtype), method, anatomy)
    assert spearmanr(expected, found).statistic >= 0.99


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_the_naive_loop(family, apart):
    model = build(family).to(apart)
    anatomy = inspected(model)
    heads = len(anatomy.heads)
    generator = torch.Generator().manual_seed(0)
    some = (torch.rand(4, heads, generator=generator) > 0.3).float()
    masks = torch.cat([torch.ones(1, heads), 1 - torch.eye(heads)[::5], some])
    data = batches()
    found = losses(model, anatomy, batches=data, loss=loss, masks=masks)
    modes = find_modes(model, anatomy, data[0].to(apart), loss, masks).by_site
    assert set(modes.values()) <= {"block"}, "nothing before a head's attention is run again"
    expected = naive_losses(model, anatomy, data, masks)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_host_waits_for_no_head(family, apart, waits):
    model = build(family).to(apart)
    anatomy = inspected(model)
    data = batches(count=1)
    masks = 1 - torch.eye(len(anatomy.heads))

    def run(some):
        return waits(
            lambda: losses(
                model,
                anatomy,
                batches=data,
                loss=loss,
                masks=some,
                context=RunContext(tokens_per_forward=10**6),
            )
        )

    firsts = [anatomy.columns[site.id].start for site in anatomy.sites]
    run(masks)  # the first time, kernels are chosen and constants are made
    assert len(run(masks)) == len(run(masks[firsts]))
    # A further attention costs a trial and a forward, and these wait as the model does, and once for what they found.
    batch = data[0].to(apart)
    of_the_model = len(waits(lambda: plain(model, batch.inputs)))
    per_site = (len(run(masks[firsts])) - len(run(masks[firsts[:1]]))) / (len(firsts) - 1)
    assert per_site <= 4 * of_the_model + 2


@pytest.mark.parametrize("mode", ["block", "stacked"])
def test_running_masks_waits_no_more_than_a_forward_does(mode, apart, waits):
    model = build("bert").to(apart)
    anatomy = inspected(model)
    batch = batches(count=1)[0].to(apart)
    with torch.no_grad():
        state = record(model, anatomy, batch, loss)
        site = anatomy.sites[1]
        masks = (1 - torch.eye(len(anatomy.heads)))[anatomy.columns[site.id]]
        run_masks(state, masks, site=site, mode=mode)
        # Models look at their padding once a forward.
        of_the_model = waits(lambda: plain(model, batch.inputs))
        assert len(waits(lambda: run_masks(state, masks, site=site, mode=mode))) <= len(
            of_the_model
        )


def test_out_of_memory_halves_and_goes_on(device, on_gpu):
    if not on_gpu:
        pytest.skip("memory of a GPU is what runs out here")
    # Larger weights would round too much for masks to share a forward.
    model = build(
        "bert",
        hidden_size=768,
        num_attention_heads=12,
        intermediate_size=3072,
        initializer_range=0.02,
    )
    model.to(device)
    anatomy = inspected(model)
    data = batches(count=1, rows=16, length=64)
    masks = 1 - torch.eye(len(anatomy.heads))

    def scored(tokens):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        given = {
            "batches": data,
            "loss": loss,
            "masks": masks,
            "context": RunContext(tokens_per_forward=tokens),
        }
        return losses(model, anatomy, **given), torch.cuda.max_memory_reserved(device)

    scored(1024)  # what libraries keep for themselves is taken by now
    expected, least = scored(1024)
    _whole, most = scored(10**9)
    assert most > least + 30_000_000, "masks that run together need no more room"
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((least + most) / 2 / total, device)
    torch.cuda.reset_accumulated_memory_stats(device)
    found, taken = scored(10**9)
    assert torch.cuda.memory_stats(device)["num_ooms"] > 0, (least, most, taken)
    assert taken < most
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.max()))
