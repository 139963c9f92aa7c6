"""However a pruned model is saved, what lies on disk is the model: by its own method, by Trainer, in a copy, pruned again."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers
from families import build, byte_level_tokenizer, inspected, sentences, token_inputs, toy_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

import headprune as hp
from headprune.errors import CheckpointError, ModelError, PlanError, ProofError, UnsupportedError
from headprune.models.classes import auto_class_of
from headprune.models.find import find
from headprune.models.side_files import copy_side_files, with_old_names
from headprune.models.tokenizer import load_tokenizer, tokenizer_files
from headprune.surgery.head_settings import named_heads_after
from headprune.verify import loads_afresh

UNEVEN = ["L0.H0", "L0.H1", "L2.H2", "L2.H3"]
UNIFORM = [f"L{layer}.H{head}" for layer in range(3) for head in (2, 3)]


def logits(model):
    with torch.no_grad():
        return model(**token_inputs())[0]


def assert_loads(directory, model, auto_class, **trust):
    """Both ways to load give the same bits."""
    plain = getattr(transformers, auto_class).from_pretrained(directory, **trust).eval()
    for again in (plain, hp.load(directory, device="cpu")):
        assert torch.equal(logits(again), logits(model))


def by_itself(model, directory):
    model.save_pretrained(directory)
    return directory


def by_a_copy(model, directory):
    copy.deepcopy(model).save_pretrained(directory)
    return directory


def by_its_state(model, directory):
    model.save_pretrained(directory, state_dict=model.state_dict(), max_shard_size="20KB")
    return directory


def by_trainer(model, directory):
    arguments = transformers.TrainingArguments(
        str(directory), max_steps=1, save_steps=1, report_to="none", use_cpu=True, learning_rate=0.1
    )
    rows = [{"input_ids": [7, 8, 9], "attention_mask": [1, 1, 1], "labels": 1}] * 8
    transformers.Trainer(model, arguments, train_dataset=rows).train()
    model.eval()
    return directory / "checkpoint-1"


@pytest.mark.parametrize(
    ("family", "auto_class", "removed", "route"),
    [
        ("bert", "AutoModelForSequenceClassification", UNEVEN, "remote-code"),
        ("gpt2", "AutoModelForCausalLM", UNEVEN, "remote-code"),
        ("llama", "AutoModelForCausalLM", UNEVEN, "remote-code"),
        ("llama", "AutoModelForCausalLM", UNIFORM, "stock"),
    ],
)
@pytest.mark.parametrize("save", [by_itself, by_a_copy, by_its_state])
def test_what_a_pruned_model_saves_of_itself_loads(
    family, auto_class, removed, route, save, tmp_path
):
    model = build(family)
    hp.prune(model, removed, anatomy=inspected(model))
    directory = save(model, tmp_path / "out")
    trust = {} if route == "stock" else {"trust_remote_code": True}
    assert_loads(directory, model, auto_class, **trust)
    assert (directory / "modeling_headprune.py").exists() == (route == "remote-code")
    assert "save_pretrained" not in vars(type(model))


def test_a_checkpoint_of_trainer_loads(tmp_path):
    model = build("bert")
    hp.prune(model, UNEVEN, anatomy=inspected(model))
    directory = by_trainer(model, tmp_path)
    assert_loads(directory, model, "AutoModelForSequenceClassification", trust_remote_code=True)


def test_a_loaded_model_is_pruned_again_and_saves_itself_over_what_was_there(tmp_path):
    model = build("llama")
    hp.prune(model, UNEVEN, anatomy=inspected(model))
    assert hp.save(model, tmp_path / "out") == "remote-code"
    again = hp.load(tmp_path / "out", device="cpu")
    hp.prune(again, ["L1.H0", "L1.H1", "L2.H0", "L2.H1", "L0.H4", "L0.H5"])
    again.save_pretrained(tmp_path / "out")
    assert_loads(tmp_path / "out", again, "AutoModelForCausalLM", trust_remote_code=True)


@pytest.mark.parametrize("pruned_again", [False, True])
def test_caches_of_every_kind_have_the_size_of_their_layer(pruned_again, tmp_path):
    """Those that are made before the first token read the counts of single layers in the config."""
    model = build("llama")
    hp.prune(model, UNEVEN, anatomy=inspected(model))
    model.save_pretrained(tmp_path)
    again = hp.load(tmp_path, device="cpu")
    if pruned_again:
        hp.prune(again, ["L1.H6", "L1.H7"])
    ids = {"input_ids": torch.tensor([[7, 8, 9, 10]]), "max_new_tokens": 5, "do_sample": False}
    plain = again.generate(**ids)
    ahead = again.generate(**ids, cache_implementation="static", prefill_chunk_size=2)
    assert torch.equal(plain, ahead)
    for one in (model, again):
        with pytest.raises((NotImplementedError, UnsupportedError), match="continuous batching"):
            one.generate_batch([[7, 8]])


def test_a_layer_without_heads_can_be_trained_by_any_optimiser():
    model = build("llama")
    hp.prune(model, {"L1": range(8)}, anatomy=inspected(model))
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.numel() for parameter in learning)
    model.train()(**token_inputs(), labels=token_inputs()["input_ids"]).loss.backward()
    assert all(parameter.grad is not None for parameter in learning)


def test_a_pruned_model_is_not_called_by_the_whole_ones_path(tmp_path):
    build("bert").save_pretrained(tmp_path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    hp.prune(model, UNEVEN, anatomy=inspected(model))
    parts = [part for part in model.modules() if isinstance(part, transformers.PreTrainedModel)]
    assert (
        {part.name_or_path for part in parts}
        == {part.config.name_or_path for part in parts}
        == {""}
    )


def whisper():
    config = transformers.WhisperConfig(
        vocab_size=96,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_mel_bins=8,
        max_source_positions=20,
        max_target_positions=20,
        init_std=0.4,
        pad_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration._from_config(config)
    return model.set_attn_implementation("eager") or model.eval()


NAMED = [[0, 1], [1, 0], [1, 3]]


@settings(max_examples=12, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 1), st.integers(0, 3)), max_size=6), st.booleans())
def test_heads_that_settings_name_are_found_after_any_cut(removed, twice):
    model = whisper()
    anatomy = inspected(model)
    model.generation_config.alignment_heads = [list(pair) for pair in NAMED]
    left = {layer: [h for h in range(4) if (layer, h) not in removed] for layer in (0, 1)}
    expected = [[layer, left[layer].index(h)] for layer, h in NAMED if h in left[layer]]
    names = [f"decoder.L{layer}.cross.H{head}" for layer, head in sorted(removed)]
    parts = [names[:2], names[2:]] if twice else [names]
    try:
        for part in parts:
            hp.prune(model, part, anatomy=anatomy if part is parts[0] else None)
    except PlanError:  # no layer without heads, or none left that is named
        assert not expected or not all(left.values())
        return
    assert model.generation_config.alignment_heads == expected


def test_names_stay_where_an_attention_is_left_whole_or_shows_all_its_heads():
    model = whisper()
    model.generation_config.alignment_heads = NAMED
    sites = [site for site in inspected(model).sites if site.id.kind == "cross"]
    wide = [replace(site, execution="zero_padded") for site in sites]
    without_first = [site.after(site.heads[1:]) for site in wide]
    for before, after, expected in (
        ([], [], NAMED),
        (wide, without_first, [pair for pair in NAMED if pair[1] != 0]),
    ):
        ((_settings, names),) = named_heads_after(model, before, after)
        assert names == expected


def test_named_heads_are_written_as_they_are_called_now(tmp_path):
    model = whisper()
    model.save_pretrained(tmp_path / "whole")
    # As published ones are: transformers wouldn't write such settings if someone had changed them.
    path = tmp_path / "whole" / "generation_config.json"
    more = {"alignment_heads": NAMED, "do_sample": True, "temperature": 0.9}
    more["_from_model_config"] = False
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    model = hp.load(tmp_path / "whole", device="cpu")
    hp.prune(model, ["decoder.L1.cross.H0"])
    hp.save(model, tmp_path / "small")
    saved = json.loads((tmp_path / "small" / "generation_config.json").read_text())
    assert (saved["alignment_heads"], saved["temperature"]) == ([[0, 1], [1, 2]], 0.9)
    names = [f"decoder.L{layer}.cross.H{h}" for layer, h in ((0, 1), (1, 3))]
    with pytest.raises(PlanError, match="alignment_heads"):
        hp.prune(model, names)


ROPE = {
    "LlamaConfig": {"rope_theta": 5e5},
    "MistralConfig": {"rope_theta": 1e6},
    "GPTNeoXConfig": {"rotary_pct": 0.5, "rotary_emb_base": 2e4},
    "PhiConfig": {"rope_theta": 3e4, "partial_rotary_factor": 0.25},
    "Gemma3TextConfig": {"rope_theta": 5e5, "rope_local_base_freq": 2e4},
    "ModernBertConfig": {"global_rope_theta": 5e5, "local_rope_theta": 2e4},
    "Qwen2Config": {
        "rope_theta": 5e5,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
}


@pytest.mark.parametrize("name", ROPE)
def test_a_config_says_to_old_readers_what_it_says_to_new_ones(name):
    kind, old = getattr(transformers, name), ROPE[name]
    config = kind(**copy.deepcopy(old), dtype="float32")
    both = with_old_names(config.to_dict(), config)
    assert both["torch_dtype"] == "float32"
    assert {key: both[key] for key in old} == old
    assert ("rope_scaling" in both) == ("rope_scaling" in old)
    assert kind.from_dict(copy.deepcopy(both)).rope_parameters == config.rope_parameters
    # What an old reader has: it knows nothing of rope_parameters.
    without = {key: value for key, value in both.items() if key != "rope_parameters"}
    assert kind.from_dict(without).rope_parameters == config.rope_parameters


def test_old_names_are_written_in_configs_inside_too_and_nowhere_where_they_would_be_read_otherwise():
    text = transformers.LlamaConfig(rope_theta=5e5)
    config = transformers.LlavaConfig(text_config=text.to_dict())
    assert with_old_names(config.to_dict(), config)["text_config"]["rope_theta"] == 5e5
    # A class with a default of its own for what it is told of old names.
    config = transformers.Ministral3Config()
    both = with_old_names(config.to_dict(), config)
    assert type(config).from_dict(both).rope_parameters == config.rope_parameters


@pytest.fixture(scope="module")
def old_fashioned(tmp_path_factory):
    """A model whose tokenizer was written by transformers v4: written anew, it splits texts another way."""
    directory = tmp_path_factory.mktemp("old") / "model"
    build("llama", vocab_size=400).save_pretrained(directory)
    byte_level_tokenizer().save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    made = json.loads(path.read_text())
    path.write_text(json.dumps({**made, "legacy": True, "chat_template": "{{ messages }}"}))
    (directory / "special_tokens_map.json").write_text("{}")
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    return directory


def tokenizer_bytes(directory):
    names = ("token", "vocab", "merges", "chat")
    files = {str(p.relative_to(directory)): p for p in directory.rglob("*") if p.is_file()}
    return {file: p.read_bytes() for file, p in files.items() if any(n in file for n in names)}


def test_a_tokenizer_that_was_not_changed_is_saved_as_its_own_files(old_fashioned, tmp_path):
    model = hp.load(old_fashioned, device="cpu")
    tokenizer = transformers.AutoTokenizer.from_pretrained(old_fashioned)
    hp.prune(model, UNEVEN, anatomy=inspected(model))
    for name, given_one in (("given", tokenizer), ("none", None)):
        hp.save(model, tmp_path / name, tokenizer=given_one)
        assert tokenizer_bytes(tmp_path / name) == tokenizer_bytes(old_fashioned)
    tokenizer.add_tokens(["newword"])
    hp.save(model, tmp_path / "changed", tokenizer=tokenizer)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "changed")
    assert again("newword")["input_ids"] == tokenizer("newword")["input_ids"]


def in_lower_case(backend):
    backend["normalizer"] = {"type": "Lowercase"}


def special_tokens_eat_spaces(backend):
    for token in backend["added_tokens"]:
        token["rstrip"] = token["content"] == "</s>"


@pytest.mark.parametrize("changed", [in_lower_case, special_tokens_eat_spaces])
def test_the_proof_sees_a_tokenizer_that_splits_otherwise(changed, old_fashioned, tmp_path):
    model = hp.load(old_fashioned, device="cpu")
    tokenizer = transformers.AutoTokenizer.from_pretrained(old_fashioned)
    route = hp.save(model, tmp_path / "out", tokenizer=tokenizer)
    facts = {
        "auto_class": "AutoModelForCausalLM",
        "route": route,
        "known": (),
        "tokenizer": tokenizer,
    }
    assert loads_afresh(tmp_path / "out", **facts).passed
    path = tmp_path / "out" / "tokenizer.json"
    backend = json.loads(path.read_text())
    changed(backend)
    path.write_text(json.dumps(backend))
    proof = loads_afresh(tmp_path / "out", **facts)
    assert not proof.passed
    assert "another way" in proof.detail


class InLowerCase(transformers.PreTrainedTokenizerFast):
    """What it does isn't in its files."""

    def __call__(self, text, **options):
        return super().__call__(text.lower(), **options)


def test_a_tokenizer_whose_files_split_otherwise_is_not_saved(tmp_path):
    plain = byte_level_tokenizer()
    tokenizer = InLowerCase(tokenizer_object=plain.backend_tokenizer, pad_token="<pad>")
    model = hp.prune(build("llama", vocab_size=400), UNEVEN)
    with pytest.raises(ProofError, match="another way|reload is identical"):
        hp.save(model, tmp_path / "out", tokenizer=tokenizer)
    assert not (tmp_path / "out").exists()


def test_files_that_a_tokenizer_names_are_its_files(tmp_path):
    for name in ("tokenizer.json", "emoji.json", "config.json", "spiece.model"):
        (tmp_path / name).write_text("{}")
    own = SimpleNamespace(vocab_files_names={"emoji_file": "emoji.json"})
    found = [{path.name for path in tokenizer_files(tmp_path, one)} for one in (None, own)]
    assert found[0] == {"tokenizer.json", "spiece.model"} == found[1] - {"emoji.json"}
    assert found[0] != found[1]


@pytest.mark.parametrize("how", ["hp.save", "save_pretrained"])
def test_what_transformers_cannot_save_is_refused_in_three_parts(how, tmp_path):
    model = build("llama")
    hp.prune(model, UNEVEN, anatomy=inspected(model))
    model.generation_config.temperature = 0.5
    with pytest.raises(CheckpointError, match="temperature") as caught:
        if how == "hp.save":
            hp.save(model, tmp_path / "out")
        else:
            model.save_pretrained(tmp_path / "out")
    assert caught.value.where == "generation_config"


def test_saving_in_python_ends_as_a_prune_does(tmp_path):
    """What made the source work comes along."""
    assert sentences(1)
    build("bert").save_pretrained(tmp_path / "whole")
    toy_tokenizer().save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "preprocessor_config.json").write_text('{"size": 3}')
    model = hp.load(tmp_path / "whole", device="cpu")
    hp.prune(model, UNEVEN, anatomy=inspected(model))
    hp.prune(model, ["L1.H0"])  # twice: it still is that source's
    hp.save(model.train(), tmp_path / "small")
    assert model.training
    names = {path.name for path in (tmp_path / "small").iterdir()}
    assert names >= {"preprocessor_config.json", "tokenizer.json", "manifest.json"}


@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_model_that_builds_the_one_inside_by_its_config_loads_too(family, head, tmp_path):
    name = f"{family.capitalize()}For{head}"
    model = hp.prune(build(family, cls=name, pad_token_id=0), UNEVEN)
    assert hp.save(model, tmp_path / "out") == "remote-code"
    assert_loads(tmp_path / "out", model, f"AutoModelFor{head}", trust_remote_code=True)
    again = hp.load(tmp_path / "out", device="cpu")
    hp.save(hp.prune(again, ["L1.H0", "L1.H1"]), tmp_path / "again")
    assert_loads(tmp_path / "again", again, f"AutoModelFor{head}", trust_remote_code=True)


def clip():
    """A model of two, each with a config of its own."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    both = {**sizes, "num_attention_heads": 4, "initializer_range": 0.4}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = {**both, **ids, "vocab_size": 96, "max_position_embeddings": 20}
    vision = {**both, "image_size": 16, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    return transformers.CLIPModel(config).eval()


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_part_of_a_pruned_model_saves_itself_too(family, tmp_path):
    model = hp.prune(build(family), UNEVEN)
    model.base_model.save_pretrained(tmp_path)
    assert_loads(tmp_path, model.base_model, "AutoModel", trust_remote_code=True)


class WithImages(transformers.BertForSequenceClassification):
    """A model that holds one without attentions."""

    def __init__(self, config):
        super().__init__(config)
        self.images = transformers.ConvNextModel(
            transformers.ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2)
        )


def test_a_part_without_attentions_saves_itself_as_ever(tmp_path):
    model = WithImages(build("bert").config).eval()
    hp.prune(model, ["L0.H0"])
    model.images.save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path).state_dict()
    expected = model.images.state_dict()
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], value) for name, value in expected.items())


def t5():
    config = transformers.T5Config(
        vocab_size=96, d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=4
    )
    return transformers.T5ForConditionalGeneration(config).eval()


@pytest.mark.parametrize("save", ["hp.save", "save_pretrained"])
@pytest.mark.parametrize(
    ("make", "pruned", "saved"),
    [
        (clip, "", "vision_model"),
        (clip, "vision_model", ""),
        (t5, "", "encoder"),
    ],
)
def test_what_would_not_load_is_refused_before_it_is_written(make, pruned, saved, save, tmp_path):
    """Heads are noted in the config of the model that was pruned, which isn't the one that is saved."""
    model = make()
    anatomy = hp.inspect(model.get_submodule(pruned))
    hp.prune(model.get_submodule(pruned), [head for head in anatomy.heads if head.head == 1])
    part, out = model.get_submodule(saved), tmp_path / "out"
    if saved or save == "hp.save":
        with pytest.raises(CheckpointError) as caught:
            hp.save(part, out) if save == "hp.save" else part.save_pretrained(out)
        assert "part" in caught.value.hint or "inside or around" in caught.value.hint
        assert not out.exists()
        return
    part.save_pretrained(out)  # a class knows nothing of what was done to a model inside it
    with pytest.raises(ModelError, match="describes") as told:
        hp.load(out, device="cpu")
    assert "a part of it was pruned" in told.value.hint


def test_sizes_that_the_config_does_not_say_are_named_before_a_weight_is_written(
    tmp_path, monkeypatch
):
    model, written = hp.prune(build("bert"), UNEVEN), []
    model.classifier = torch.nn.Linear(48, 7)
    monkeypatch.setattr(
        type(model), "save_pretrained", lambda *_args, **_options: written.append(1)
    )
    with pytest.raises(CheckpointError, match=r"classifier.weight is 7 x 48 .* describes 2 x 48"):
        hp.save(model, tmp_path / "out")
    assert not written


def test_a_model_made_of_two_that_compares_its_config_loads(tmp_path):
    torch.manual_seed(0)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        build("bert").config, build("gpt2", add_cross_attention=True).config
    )
    model = transformers.EncoderDecoderModel(config).eval()
    hp.prune(model, ["encoder.L0.H1", "decoder.L1.cross.H2"])
    inputs = {**token_inputs(), "decoder_input_ids": token_inputs()["input_ids"][:, :5]}
    hp.save(model, tmp_path / "proven")
    model.save_pretrained(tmp_path / "own")
    for name in ("proven", "own"):
        kind = transformers.AutoModelForSeq2SeqLM
        by_its_code = kind.from_pretrained(tmp_path / name, trust_remote_code=True).eval()
        for again in (by_its_code, hp.load(tmp_path / name, device="cpu")):
            with torch.no_grad():
                assert torch.equal(again(**inputs)[0], model(**inputs)[0])


def test_what_is_pushed_is_what_was_saved(tmp_path, monkeypatch):
    model = hp.prune(build("bert"), UNEVEN, anatomy=inspected(build("bert")))
    asked = {}

    def push(self, name, **options):  # as transformers does, but for the network
        asked.update(options, name=name)
        self.save_pretrained(tmp_path / "pushed", max_shard_size="50GB")

    monkeypatch.setattr(type(model), "push_to_hub", push)
    halved = {name: tensor / 2 for name, tensor in model.state_dict().items()}
    facts = {"repo_id": "me/small", "commit_message": "smaller", "private": True}
    model.save_pretrained(tmp_path / "own", state_dict=halved, push_to_hub=True, **facts)
    assert asked == {"name": "me/small", "commit_message": "smaller", "private": True}
    model.load_state_dict(halved)
    for name in ("own", "pushed"):
        assert torch.equal(logits(hp.load(tmp_path / name, device="cpu")), logits(model))
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "modeling_headprune.py").exists()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("GPT2LMHeadModel", "AutoModelForCausalLM"),
        ("BertForMaskedLM", "AutoModelForMaskedLM"),
        ("T5ForConditionalGeneration", "AutoModelForSeq2SeqLM"),
        ("BertModel", "AutoModel"),
    ],
)
def test_a_class_is_loaded_by_the_name_that_users_know(kind, name):
    assert auto_class_of(getattr(transformers, kind)) == name


def test_a_list_of_modules_that_is_a_link_out_is_refused_whatever_lies_at_the_target(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir(), target.mkdir()
    (tmp_path / "elsewhere.json").write_text("[]")
    (source / "modules.json").symlink_to(tmp_path / "elsewhere.json")
    (target / "modules.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"modules\.json is no file of the model's own"):
        copy_side_files(source, target)
    (source / "modules.json").unlink()
    (source / "modules.json").write_text("[ ]")
    copy_side_files(source, target)
    assert (target / "modules.json").read_text() == "[]", "what is there stays"


@pytest.mark.parametrize("name", ["prophetnet.tokenizer", "vocab", "spiece.model", "tekken.json"])
def test_a_tokenizer_of_any_family_is_seen(name, tmp_path):
    """Whether transformers can read the file is for transformers to say."""
    build("bert").save_pretrained(tmp_path)
    (tmp_path / name).write_text("x")
    with pytest.raises(ModelError) as refused:
        load_tokenizer(find(str(tmp_path)))
    assert "has no tokenizer" not in str(refused.value)
