"""The page of attention: its numbers are the model's, nothing in it comes from elsewhere, and a real browser draws it."""

import json
import re

import pytest
import torch
import transformers
from browser import needs_chromium, page
from families import build, t5, toy_tokenizer, written

import headprune as hp
from headprune.analysis.maps import (
    MOST_WEIGHTS,
    SCALE,
    AttentionView,
    attention_maps,
    longest_text,
)
from headprune.report.view import attention_page

TEXT = "w1 w2 w3 w2 w9 w40 w7"
HOSTILE = "</script><script>alert(1)</script>"


def saved(model, directory, tokenizer=None):
    (tokenizer or toy_tokenizer()).save_pretrained(directory)
    if getattr(model.config, "headprune", None):
        written(model, directory)
    else:
        model.save_pretrained(directory)
    return directory


NOT_GREEDY = {"num_beams": 3, "repetition_penalty": 9.0, "no_repeat_ngram_size": 1}
"""Generation settings with which a token isn't the most likely one."""


def albert():
    """One attention of six heads that is called three times."""
    config = transformers.AlbertConfig(
        vocab_size=96,
        embedding_size=16,
        hidden_size=48,
        num_attention_heads=6,
        intermediate_size=40,
        num_hidden_layers=3,
        initializer_range=0.4,
    )
    torch.manual_seed(0)
    return transformers.AlbertModel(config).eval()


@pytest.fixture
def viewed(run_here, command_line):
    """Return a function that views a text and returns the document."""

    def run(*words):
        code, out, err = command_line("view", *words, "--json")
        assert code == 0, err
        return AttentionView.model_validate(json.loads(out))

    return run


def same_as(view, expected, sites):
    """Hold every weight to the model's own: half of the last digit, and its rounding of single precision."""
    assert [one.site for one in view.maps] == sites
    for one in view.maps:
        weights = expected(one.site)
        assert one.shape == tuple(weights.shape)
        assert float((one.numbers() - weights).abs().max()) <= 0.5 / SCALE + 1e-6
        assert float((one.numbers().sum(-1) - 1).abs().max()) <= one.shape[2] * 0.5 / SCALE + 1e-5


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_its_weights_are_those_of_eager_attention(family, viewed, run_here):
    model = build(family, attention="eager")
    saved(model, run_here / "m")
    view = viewed("m", "--text", TEXT)
    encoded = toy_tokenizer()(TEXT, return_tensors="pt")
    with torch.no_grad():
        maps = model(input_ids=encoded.input_ids, output_attentions=True).attentions
    same_as(view, lambda site: maps[int(site[1:])][0], ["L0", "L1", "L2"])
    assert all(one.is_causal == (family != "bert") for one in view.maps)
    assert view.tokens == {"source": tuple(TEXT.split())}
    assert not any(head.is_removed for head in view.heads)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_removed_heads_are_marked_and_the_others_keep_their_names(family, viewed, run_here):
    model = build(family)
    hp.prune(model, {"L1": [0, 1], "L2": [4, 5]})
    saved(model, run_here / "m")
    view = viewed("m", "--text", TEXT)
    removed = {str(head.head) for head in view.heads if head.is_removed}
    assert removed == {"L1.H0", "L1.H1", "L2.H4", "L2.H5"}
    assert len(view.heads) == 3 * (6 if family == "bert" else 8)
    assert [len(one.heads) for one in view.maps] == [len(view.heads) // 3 - n for n in (0, 2, 2)]
    assert not {0, 1} & {*view.maps[1].heads}
    smaller = hp.load(run_here / "m", attn_implementation="eager")
    ids = toy_tokenizer()(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        maps = smaller(input_ids=ids, output_attentions=True).attentions
    same_as(view, lambda site: maps[int(site[1:])][0], ["L0", "L1", "L2"])


@pytest.mark.parametrize("target", ["w5 w6 w7 w8", None])
def test_cross_attention_looks_from_the_target_at_the_source(target, viewed, run_here):
    model = t5(eos_token_id=2, vocab_size=len(toy_tokenizer()))  # each of its tokens has a name
    for name, value in NOT_GREEDY.items():
        setattr(model.generation_config, name, value)
    saved(model, run_here / "m")
    pair = ("--text-pair", target) if target else ()
    view = viewed("m", "--text", TEXT, *pair)
    tokenizer = toy_tokenizer()
    ids = tokenizer.convert_tokens_to_ids(list(view.tokens["target"]))
    assert ids[0] == 0, "it starts with what starts a decoder"
    if target:
        assert view.tokens["target"][1:] == ("w5", "w6", "w7"), "each token predicts the next"
    assert view.is_decoded == (target is None)
    encoded = tokenizer(TEXT, return_tensors="pt")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(
            input_ids=encoded.input_ids,
            decoder_input_ids=torch.tensor([ids]),
            output_attentions=True,
        )
    if target is None:
        best = out.logits[0].argmax(-1).tolist()
        assert best[: len(ids) - 1] == ids[1:], "every token is the most likely one"
    kinds = {
        "encoder": (out.encoder_attentions, "source", "source"),
        "decoder": (out.decoder_attentions, "target", "target"),
        "cross": (out.cross_attentions, "target", "source"),
    }

    def kind(site):
        return "cross" if site.endswith("cross") else site.partition(".")[0]

    names = [one.site for one in view.maps]
    assert len(names) == 6
    same_as(view, lambda site: kinds[kind(site)][0][int(re.search(r"L(\d+)", site)[1])][0], names)
    for one in view.maps:
        assert (one.queries, one.keys) == kinds[kind(one.site)][1:]
        assert one.is_causal == (kind(one.site) == "decoder")


def test_layers_are_chosen(viewed, run_here, command_line):
    saved(build("bert"), run_here / "m")
    view = viewed("m", "--text", TEXT, "--layers", "0,2-2")
    assert [one.site for one in view.maps] == ["L0", "L2"]
    assert {str(head.head.site) for head in view.heads} == {"L0", "L2"}
    for wrong in ("3", "0-3", "x", "2-"):
        code, _out, err = command_line("view", "m", "--text", TEXT, "--layers", wrong)
        assert (code, f"the model has no layer {wrong}" in err) == (2, True), err


def test_a_long_text_is_cut_aloud(run_here, command_line):
    saved(build("bert"), run_here / "m")
    code, out, err = command_line(
        "view", "m", "--text", TEXT, "--max-length", "4", "--out", "v.html"
    )
    assert code == 0
    assert "the source has 7 tokens, and is cut at 4" in err
    assert "4 tokens of 7" in out
    assert "cut: the text has 7" in (run_here / "v.html").read_text()


@pytest.mark.parametrize(("family", "maps"), [("bert", 18), ("albert", 18)])
def test_no_text_makes_a_page_too_large(family, maps):
    """A head that the model calls three times has three maps."""
    model = albert() if family == "albert" else build(family)
    anatomy, inputs = hp.inspect(model), {"input_ids": torch.tensor([[1, 3, 2]])}
    sites = [site.id for site in anatomy.sites]
    shown = attention_maps(model, anatomy, inputs, sites)
    assert sum(len(one.heads) for one in shown) == maps
    longest = longest_text(model, anatomy, inputs, sites)
    assert longest**2 * maps <= MOST_WEIGHTS < (longest + 1) ** 2 * maps
    if family == "bert":
        assert longest_text(model, anatomy, inputs, sites[:1]) > longest


def test_importance_and_roles_stand_beside_the_heads(here, command_line):
    for words in (
        ("score", "m", "--method", "magnitude", "--run-dir", "s"),
        ("analyze", "m", "--data", "d.csv", "--role", "sink,self,confident", "--run-dir", "r"),
        (
            "view",
            "m",
            "--text",
            TEXT,
            "--scores",
            "s/scores.json",
            "--roles",
            "r/roles.json",
            "--json",
        ),
    ):
        code, out, err = command_line(*words)
        assert code == 0, err
    view = AttentionView.model_validate(json.loads(out))
    scores = json.loads((here / "s" / "scores.json").read_text())
    assert {str(one.head): one.importance for one in view.heads} == dict(
        zip(scores["heads"], scores["values"], strict=True)
    )
    best = max(view.heads, key=lambda one: one.importance)
    assert (best.rank, sorted(one.rank for one in view.heads)) == (1, [*range(1, 19)])
    assert view.scores["method"] == "magnitude"
    roles = json.loads((here / "r" / "roles.json").read_text())
    for measure in roles["measures"]:
        for name, passes in zip(roles["heads"], measure["passes"], strict=True):
            one = next(one for one in view.heads if str(one.head) == name)
            assert (measure["role"] in one.roles) == bool(passes)
    assert any(one.roles for one in view.heads)


def test_scores_of_another_model_are_refused(here, command_line):
    saved(build("bert", seed=1), here / "other")
    command_line("score", "other", "--method", "magnitude", "--run-dir", "s")
    code, _out, err = command_line("view", "m", "--text", TEXT, "--scores", "s/scores.json")
    assert (code, "of another model (other)" in err) == (2, True), err


def test_what_has_no_text_is_refused(run_here, command_line):
    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=6,
        intermediate_size=40,
        image_size=12,
        patch_size=4,
    )
    transformers.ViTForImageClassification(config).save_pretrained(run_here / "v")
    code, _out, err = command_line("view", "v", "--text", TEXT)
    assert (code, "v reads pixel_values" in err) == (2, True), err
    code, _out, err = command_line("view", "v")
    assert (code, "no text is named" in err, "in:   --text" in err) == (2, True, True), err
    code, _out, err = command_line("view", "v", "--text", "")
    assert (code, "--text can't be ''" in err) == (2, True), err


def test_only_pages_of_its_own_are_replaced(run_here, command_line):
    saved(build("bert"), run_here / "m")
    words = ("view", "m", "--text", TEXT, "--out", "v.html")
    assert command_line(*words)[0] == 0
    first = (run_here / "v.html").read_bytes()
    code, _out, err = command_line(*words)
    assert (code, "is there already" in err) == (2, True), err
    assert command_line(*words, "--overwrite")[0] == 0
    assert (run_here / "v.html").read_bytes() == first, "the same text makes the same page"
    (run_here / "v.html").write_text("<p>mine</p>")
    code, _out, err = command_line(*words, "--overwrite")
    assert (code, "no page of headprune view" in err) == (2, True), err
    assert (run_here / "v.html").read_text() == "<p>mine</p>"
    assert command_line("view", "m", "--text", TEXT)[0] == 0
    assert (run_here / "headprune-runs" / "001-view" / "view.html").is_file()


def hostile_page(run_here, viewed):
    """Return a page of a pruned model with tokens and a name that would run, were they not escaped."""
    tokenizer = toy_tokenizer()
    tokenizer.add_tokens([HOSTILE, "<!--"])
    model = build("gpt2")
    hp.prune(model, {"L1": [0, 1]})
    saved(model, run_here / "m<b onclick=alert(1)>", tokenizer)
    view = viewed("m<b onclick=alert(1)>", "--text", f"{TEXT} {HOSTILE} <!-- w5 &amp;")
    assert HOSTILE in view.tokens["source"]
    path = run_here / "v.html"
    path.write_text(attention_page(view))
    return view, path


def test_the_page_fetches_nothing_and_runs_nothing_of_strangers(viewed, run_here):
    _view, path = hostile_page(run_here, viewed)
    text = path.read_text()
    assert len(re.findall(r"<script", text)) == 2
    assert len(re.findall(r"</script", text)) == 2
    assert "<b onclick" not in text
    assert "<!--" not in text
    assert not re.search(r"https?://|src=|href=|@import|url\(", text)
    assert "default-src 'none'" in text


@needs_chromium
def test_a_browser_draws_it(viewed, run_here, tmp_path):
    view, path = hostile_page(run_here, viewed)
    with page(tmp_path / "profile") as browser:
        for width in (390, 1280):
            browser.open(path, width=width)
            assert browser.ask("document.documentElement.scrollWidth <= innerWidth")
        names = browser.ask(
            "[...document.querySelectorAll('.cell')].map((cell) => cell.dataset.head)"
        )
        assert names == [str(head.head) for head in view.heads]
        removed = browser.ask(
            "[...document.querySelectorAll('.removed')].map((cell) => cell.dataset.head)"
        )
        assert removed == ["L1.H0", "L1.H1"]
        tokens = browser.ask(
            "[...document.querySelectorAll('#asks button')].map((one) => one.textContent)"
        )
        assert tokens == list(view.tokens["source"])
        browser.hover("#asks button:nth-child(3)")
        weights = view.maps[0].numbers()[0, 2]
        said = browser.ask("document.getElementById('readout').textContent")
        best = int(weights.argmax())
        share = float(weights[best])
        assert said.startswith(
            f"“w3” (2) looks at: “{tokens[best]}” ({best}) {share * 100:.{0 if share >= 0.1 else 1}f} %"
        )
        browser.ask("document.querySelector('.cell').focus()")
        browser.press("ArrowDown")
        assert browser.ask("document.getElementById('title').textContent") == "L1.H0"
        assert "pruned" in browser.ask("document.getElementById('readout').textContent")
        browser.press("ArrowDown")
        assert browser.ask("document.getElementById('title').textContent") == "L2.H0"
        assert browser.complaints == []
        assert browser.requests == [path.as_uri()] * 2
