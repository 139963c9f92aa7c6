"""Circuits and retrieval against their formulas, over weights and full maps of tiny models of several families."""

import pytest
import torch
from families import build, inspected, toy_tokenizer

import headprune as hp
from headprune.analysis.call import Vocabulary
from headprune.analysis.catalogue import ROLES
from headprune.analysis.needles import Trial, answered, decoded, make_trials
from headprune.analysis.request import RoleRequest
from headprune.analysis.statistics import measure_attention
from headprune.analysis.weights import copying, ov_maps, own_rank, suppressing
from headprune.errors import DataError, UnsupportedError
from headprune.passes import RunContext
from headprune.runtime.distributed import World
from headprune.runtime.journal import Journal


def request_for(model, anatomy):
    return RoleRequest(model, anatomy, tokenizer=toy_tokenizer(), predicts_next=True)


def projections(model, head):
    """Return V_h [head_dim, hidden] and O_h [hidden, head_dim], cut out of the weights by hand."""
    if model.config.model_type == "gpt2":
        attention = model.transformer.h[head.site.layer].attn
        width, dim = 48, 8
        value = attention.c_attn.weight[:, 2 * width + head.head * dim :][:, :dim].T
        return value, attention.c_proj.weight[head.head * dim :][:dim].T
    attention = model.model.layers[head.site.layer].self_attn
    dim, group = attention.head_dim, head.head // attention.num_key_value_groups
    return (
        attention.v_proj.weight[group * dim :][:dim],
        attention.o_proj.weight[:, head.head * dim :][:, :dim],
    )


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_what_heads_read_and_write_is_asked_of_the_model(family):
    model = build(family)
    anatomy = inspected(model)
    for maps in ov_maps(request_for(model, anatomy)):
        for place, index in enumerate(maps.site.heads):
            head = next(h for h in anatomy.heads if h == (maps.site.id, index))
            value, output = projections(model, head)
            torch.testing.assert_close(maps.value[place], value, atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(maps.output[place], output, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_copying_is_the_sum_of_the_eigenvalues_of_the_whole_circuit(family):
    model = build(family)
    anatomy = inspected(model)
    (copied,) = copying(request_for(model, anatomy))
    (suppressed,) = suppressing(request_for(model, anatomy))
    embedding = model.get_input_embeddings().weight.double()
    unembedding = model.get_output_embeddings().weight.double()
    for index, head in enumerate(anatomy.heads):
        value, output = (part.double() for part in projections(model, head))
        values = torch.linalg.eigvals(unembedding @ output @ value @ embedding.T)
        expected = float((values.real.sum() / values.abs().sum()).detach())
        assert copied.values[index] == pytest.approx(expected, abs=1e-3)
        assert suppressed.values[index] == pytest.approx(-expected, abs=1e-3)


def test_a_head_that_writes_what_it_reads_copies():
    model = build("gpt2")
    with torch.no_grad():
        attention = model.transformer.h[1].attn
        attention.c_proj.weight[:8] = attention.c_attn.weight[:, 2 * 48 : 2 * 48 + 8].T
    anatomy = inspected(model)
    request = request_for(model, anatomy)
    index = [str(head) for head in anatomy.heads].index("L1.H0")
    assert copying(request)[0].values[index] == pytest.approx(1, abs=1e-4)


def test_own_ranks_are_those_of_the_logits_a_head_would_write():
    model = build("llama")
    anatomy = inspected(model)
    top, bottom = own_rank(request_for(model, anatomy))
    assert (top.column, bottom.column) == ("top 5", "bottom 10")
    assert top.baseline[0] == pytest.approx(5 / 96)
    special = toy_tokenizer().all_special_ids
    tokens = torch.tensor([token for token in range(len(toy_tokenizer())) if token not in special])
    with torch.no_grad():
        states = model(tokens[:, None], output_hidden_states=True).hidden_states[1][:, 0]
        for index, head in enumerate(anatomy.heads):
            value, output = projections(model, head)
            logits = states @ value.T @ output.T @ model.get_output_embeddings().weight.T
            above = (logits > logits.gather(1, tokens[:, None])).sum(-1)
            assert top.values[index] == pytest.approx(float((above < 5).float().mean()), abs=0.02)
            assert bottom.values[index] == pytest.approx(
                float((above >= 86).float().mean()), abs=0.02
            )
            assert top.queries[index] == len(tokens)


def test_a_pruned_model_has_circuits_of_the_heads_that_are_left():
    model = build("gpt2")
    whole = inspected(model)
    before = dict(zip(whole.heads, copying(request_for(model, whole))[0].values, strict=True))
    hp.prune(model, {"L1": [0, 1], "L2": [5]})
    left = hp.inspect(model)
    after = dict(zip(left.heads, copying(request_for(model, left))[0].values, strict=True))
    assert len(after) == len(before) - 3
    assert all(after[head] == pytest.approx(before[head], abs=1e-3) for head in after)


def test_a_model_without_an_unembedding_has_none():
    model = build("bert")
    with pytest.raises(UnsupportedError, match="unembedding"):
        copying(request_for(model, inspected(model)))


def spaced_tokenizer():
    """Return the toy tokenizer, whose words count as words with a space before them."""
    tokenizer = toy_tokenizer()
    letters = "abcdefghij"
    names = {
        token: "Ġ" + "".join(letters[int(digit)] for digit in f"{token:04d}")
        for token in range(7, 87)
    }
    original = tokenizer.convert_ids_to_tokens
    tokenizer.convert_ids_to_tokens = lambda ids: [names.get(i, original(i)) for i in ids]
    return tokenizer


def test_a_code_word_stands_once_in_every_text_at_every_depth():
    text = list(range(7, 87)) * 3
    trials = make_trials(text, spaced_tokenizer(), count=55, longest=120, seed=1)
    assert len({len(trial.prompt) for trial in trials}) == 5
    for trial in trials:
        assert trial.prompt[trial.start : trial.start + 4] == trial.code
        assert len(trial.prompt) + 4 <= 120
    depths = {trial.start for trial in trials if len(trial.prompt) == len(trials[4].prompt)}
    assert len(depths) == 11
    assert trials == make_trials(text, spaced_tokenizer(), count=55, longest=120, seed=1)


def test_too_little_text_hides_nothing():
    with pytest.raises(DataError, match="10 tokens of text can't hide") as caught:
        make_trials([7] * 10, spaced_tokenizer(), count=2, longest=120, seed=1)
    assert caught.value.where == "`data`"


def test_what_bounds_the_prompts_is_named():
    text = list(range(7, 87)) * 3
    with pytest.raises(
        DataError, match="prompts of 40 tokens can't hide a code word: it takes"
    ) as e:
        make_trials(text, spaced_tokenizer(), count=2, longest=40, seed=1)
    assert "`needle_length`" in e.value.hint
    least = int(e.value.what.split()[-1])
    assert make_trials(text, spaced_tokenizer(), count=2, longest=least, seed=1)
    with pytest.raises(DataError, match=f"takes {least}"):
        make_trials(text, spaced_tokenizer(), count=2, longest=least - 1, seed=1)
    with pytest.raises(DataError, match="marks 0 tokens as words") as e:
        make_trials(text, toy_tokenizer(), count=2, longest=120, seed=1)
    assert "begin with a space" in e.value.hint


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_retrieval_is_credit_for_the_code_words_tokens(family):
    model = build(
        family, **({"max_position_embeddings": 128} if family == "llama" else {"n_positions": 128})
    )
    anatomy = inspected(model)
    torch.manual_seed(0)
    trials = []
    for length in (20, 30, 25):
        code = tuple(torch.randperm(60)[:4].add(7).tolist())
        prompt = tuple(torch.randint(7, 90, (length,)).tolist())
        trials.append(Trial((*prompt[:5], *code, *prompt[5:]), code, 5))
    answers = [trials[0].code, (*trials[1].code[:2], 90), trials[2].code]
    batches, needles = answered(trials, answers)
    (one,) = measure_attention(
        model,
        anatomy,
        [ROLES["retrieval"]],
        batches=batches,
        vocabulary=Vocabulary(needles=needles),
        context=RunContext(),
        name="test",
    )
    model.set_attn_implementation("eager")
    for index, head in enumerate(anatomy.heads):
        total = 0.0
        for trial, answer in zip(trials, answers, strict=True):
            ids = torch.tensor([[*trial.prompt, *answer]])
            with torch.no_grad():
                maps = model(ids, output_attentions=True).attentions[head.site.layer][0, head.head]
            for step, token in enumerate(answer):
                at = int(maps[len(trial.prompt) - 1 + step].argmax())
                total += (5 <= at < 9 and int(ids[0, at]) == token) / 4
        assert one.values[index] == pytest.approx(total / 3, abs=1e-6)
        assert one.queries[index] == one.examples[index] == 3


def test_an_answer_counts_if_it_has_more_than_half_of_the_code_word():
    model = build("gpt2", n_positions=128)
    prompt = torch.randint(7, 90, (1, 20))
    said = model.generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0)[
        0, 20:
    ].tolist()
    prompt = tuple(prompt[0].tolist())
    half = (said[0], said[1], 1, 1) if said[0] != said[1] else (said[0], 1, 1, 1)
    trials = [Trial(prompt, tuple(said[:4]), 3), Trial(prompt, half[:1] + (1, 1, 1), 3)]
    right, answers = decoded(model, trials, context=RunContext())
    assert right == trials[:1]
    assert answers == [said]


def most_likely(model, prompt, count):
    """Return the tokens that are the most likely ones, one after another."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == model.generation_config.eos_token_id:
            break
    return tuple(ids[len(prompt) :])


def asked(model, count):
    """Return trials whose code words are what the model says, and the answers."""
    generator = torch.Generator().manual_seed(0)
    prompts = [
        tuple(torch.randint(7, 90, (12 + index,), generator=generator).tolist())
        for index in range(count)
    ]
    answers = [most_likely(model, prompt, 8) for prompt in prompts]
    pairs = zip(prompts, answers, strict=True)
    return [Trial(prompt, answer[:4], 3) for prompt, answer in pairs], list(map(list, answers))


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 9.0},
        {"num_beams": 3},
        {"no_repeat_ngram_size": 1},
        {"min_length": 40, "eos_token_id": 2},
        {"suppress_tokens": list(range(7, 60))},
        {"do_sample": True, "temperature": 9.0},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_no_generation_setting_changes_an_answer(settings):
    model = build("gpt2", n_positions=128)
    model.generation_config.eos_token_id = None
    (first,), _ = asked(model, 1)
    if "eos_token_id" in settings:
        settings = {**settings, "eos_token_id": first.code[2]}
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    before = model.generation_config.to_dict()
    trials, answers = asked(model, 3)
    assert decoded(model, trials, context=RunContext()) == (trials, answers)
    assert model.generation_config.to_dict() == before


def test_a_stopped_run_goes_on_from_the_answers_that_it_has(tmp_path):
    model = build("gpt2", n_positions=128)
    trials, answers = asked(model, 4)
    journal = Journal(tmp_path)
    runs = []
    model.register_forward_hook(lambda *_: runs.append(1))
    decoded(model, trials, context=RunContext())
    undisturbed = len(runs)
    runs.clear()

    def stops(items, _name):
        yield from items[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decoded(model, trials, context=RunContext(track=stops, journal=journal))
    assert journal.count() == 2
    assert 0 < len(runs) < undisturbed
    assert decoded(model, trials, context=RunContext(journal=journal)) == (trials, answers)
    assert len(runs) == undisturbed, "what was done isn't done again"
    count = len(runs)
    decoded(model, trials, context=RunContext(journal=journal))
    assert len(runs) == count


class Alone(World):
    """One of two processes, whose other one has the rest."""

    def summed(self, tensor):
        gathered.append(tensor)
        return sum(gathered)


gathered = []


def test_processes_share_the_trials_and_agree_on_the_answers():
    model = build("gpt2", n_positions=128)
    model.generation_config.eos_token_id = None
    (first, *_), _ = asked(model, 5)
    model.generation_config.eos_token_id = first.code[2]
    trials, answers = asked(model, 5)
    assert len({len(answer) for answer in answers}) > 1
    gathered.clear()
    decoded(model, trials, context=RunContext(world=Alone(0, 2)))
    both = decoded(model, trials, context=RunContext(world=Alone(1, 2)))
    assert both == (trials, answers)
    first, second = (part.view(5, 8) for part in gathered)
    assert not first[1::2].any()
    assert not second[::2].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_circuits_are_found_in_every_type_of_weights(dtype):
    whole = build("llama")
    expected = copying(request_for(whole, inspected(whole)))[0].values
    model = build("llama").to(dtype)
    values = copying(request_for(model, hp.inspect(model)))[0].values
    assert None not in values
    assert max(abs(a - b) for a, b in zip(values, expected, strict=True)) < 0.1


def test_a_head_that_writes_nothing_has_no_number():
    model = build("gpt2")
    with torch.no_grad():
        model.transformer.h[1].attn.c_proj.weight[:8] = 0
    anatomy = inspected(model)
    values = dict(
        zip(map(str, anatomy.heads), copying(request_for(model, anatomy))[0].values, strict=True)
    )
    assert values.pop("L1.H0") is None
    assert None not in values.values()
