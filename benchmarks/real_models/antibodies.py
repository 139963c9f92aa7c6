"""Two small BERTs of antibody sequences, AntiBERTy and Sapiens: a BERT and a RoBERTa with a masked-token head."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from benchmarks.real_models.convert import converted, write_model
from benchmarks.real_models.packages import Package
from benchmarks.real_models.subject import Law, Sanity, Subject, at_least
from headprune.batch import Batch

_ANTIBERTY = Package("antiberty", "0.1.3")
_SAPIENS = Package("sapiens", "1.0.5")

# Heavy and light chains of public antibodies: the first of each to score on, the second (trastuzumab) to measure on.
_HEAVY = (
    "EVQLVESGGGLVQPGRSLRLSCAASGFTFDDYAMHWVRQAPGKGLEWVSAITWNSGHIDYADSVEGRFTISRDNAKNSLYLQMNSLRAEDTAVYYCAKVSYLSTASSLDYWGQGTLVTVSS",
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS",
)
_LIGHT = (
    "DIQMTQSPSSLSASVGDRVTITCRASQGIRNYLAWYQQKPGKAPKLLIYAASTLQSGVPSRFSGSGSGTDFTLTISSLQPEDVATYYCQRYNRAPYTFGQGTKVEIK",
    "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYCQQHYTTPPTFGQGTKVEIK",
)


def antiberty() -> Subject:
    """Return AntiBERTy (BERT, 8 layers of 8 heads), scored on one antibody and measured on another."""
    vocabulary = _ANTIBERTY.file(
        "antiberty/trained_models/vocab.txt",
        sha256="6db8c6cd6361eb233005b2dfe665d40d7f1ba78951bdf0fe61fa670ce192419a",
    ).read_text(encoding="utf-8")
    return _subject(
        converted("antiberty-0.1.3", _build_antiberty),
        tokens=_Tokens(vocabulary.split(), start="[CLS]", end="[SEP]", mask="[MASK]"),
        heads=64,
        calibration=(_HEAVY[0], _LIGHT[0]),
        held_out=(_HEAVY[1], _LIGHT[1]),
    )


def sapiens() -> Subject:
    """Return Sapiens for heavy chains (RoBERTa, 4 layers of 8 heads), scored on one antibody and measured on another."""
    lines = _SAPIENS.file(
        "sapiens/models/v1/dict.txt",
        sha256="8ff5c1d10c4e921ffb6c4ef6161e55880c1d9efb1c7c74fa3b39654470118dcd",
    ).read_text(encoding="utf-8")
    letters = [line.split()[0] for line in lines.splitlines()]
    return _subject(
        converted("sapiens-vh-1.0.5", _build_sapiens),
        tokens=_Tokens(
            ["<s>", "<pad>", "</s>", "<unk>", *letters, "<mask>"],
            start="<s>",
            end="</s>",
            mask="<mask>",
        ),
        heads=32,
        calibration=_HEAVY[:1],
        held_out=_HEAVY[1:],
    )


class _Tokens:
    """One token for each amino acid, and three special ones."""

    def __init__(self, words: Sequence[str], *, start: str, end: str, mask: str) -> None:
        self._ids = {word: at for at, word in enumerate(words)}
        self._start, self._end, self._mask = self._ids[start], self._ids[end], self._ids[mask]

    def masked_once(self, sequence: str, *, every: int) -> dict[str, Tensor]:
        """Return a row for every so many-th residue, in which it is masked; ``labels`` are the place and the residue."""
        residues = torch.tensor([self._ids[letter] for letter in sequence])
        ids = torch.cat([torch.tensor([self._start]), residues, torch.tensor([self._end])])
        places = torch.arange(1, len(residues) + 1, every)
        rows = ids.repeat(len(places), 1)
        rows[torch.arange(len(places)), places] = self._mask
        return {"input_ids": rows, "labels": torch.stack([places, ids[places]], 1)}


def _subject(
    directory: Path,
    *,
    tokens: _Tokens,
    heads: int,
    calibration: Sequence[str],
    held_out: Sequence[str],
) -> Subject:
    batches = [tokens.masked_once(sequence, every=4) for sequence in calibration]
    measured = [tokens.masked_once(sequence, every=1) for sequence in held_out]
    return Subject(
        directory=directory,
        auto_class="AutoModelForMaskedLM",
        heads={"": heads},
        batches=batches,
        loss=_masked_residue_loss,
        inputs={"input_ids": measured[0]["input_ids"][:8]},
        numbers=lambda model: {"masked accuracy": _accuracy(model, measured)},
        texts=lambda _model: {},
        base=_base,
    )


def _base(sanity: Sanity) -> list[Law]:
    return [at_least("residues are predicted", sanity.numbers["masked accuracy"], 0.7)]


def _at_mask(logits: Tensor, labels: Tensor) -> Tensor:
    return logits[torch.arange(len(labels)), labels[:, 0]]


def _masked_residue_loss(outputs: Any, batch: Batch) -> Tensor:
    logits = _at_mask(outputs.logits, batch.targets)
    return cross_entropy(logits, batch.targets[:, 1], reduction="none")


@torch.no_grad()
def _accuracy(model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]]) -> float:
    right = [
        _at_mask(model(input_ids=batch["input_ids"]).logits, batch["labels"]).argmax(-1)
        == batch["labels"][:, 1]
        for batch in batches
    ]
    return torch.cat(right).float().mean().item()


def _read_pickle(path: Path) -> Any:
    """Read a pickled checkpoint whose sha256 is pinned.

    The packages carry no other format. ``weights_only`` runs no code of the file: it makes tensors and plain values, and the
    one class that is allowed besides holds command-line settings.
    """
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251


def _build_antiberty(folder: Path) -> None:
    inside = "antiberty/trained_models/AntiBERTy_md_smooth"
    path = _ANTIBERTY.file(
        f"{inside}/pytorch_model.bin",
        sha256="f1ae33eac8cc8784a7d4be5a600141d2fa7bc7d8d5b3f5324d64a6a63bd0f137",
    )
    settings = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
    wanted = AutoModelForMaskedLM.from_config(BertConfig.from_dict(settings)).state_dict()
    found = _read_pickle(path)
    # Its training had two more heads, for species and for the chain; the decoder is tied to the embeddings.
    weights = {name: found[name] for name in wanted if name in found}
    write_model(folder, BertForMaskedLM, config=BertConfig.from_dict(settings), weights=weights)


def _build_sapiens(folder: Path) -> None:
    path = _SAPIENS.file(
        "sapiens/models/v1/checkpoint_vh.pt",
        sha256="43254666e9ac0d5aa8fc120f12ac02b6ff082cd1f107c389023c1b947f214825",
    )
    config = RobertaConfig(
        vocab_size=25,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=8,
        intermediate_size=256,
        max_position_embeddings=146,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    weights = _renamed(_read_pickle(path)["model"])
    write_model(folder, RobertaForMaskedLM, config=config, weights=weights)


_EMBEDDINGS = {
    "decoder.sentence_encoder.embed_tokens.weight": "word_embeddings.weight",
    "decoder.sentence_encoder.embed_positions.weight": "position_embeddings.weight",
    "decoder.sentence_encoder.emb_layer_norm.weight": "LayerNorm.weight",
    "decoder.sentence_encoder.emb_layer_norm.bias": "LayerNorm.bias",
}
_LAYER = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.output.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "output.LayerNorm",
}
_HEAD = {
    "dense.weight": "dense.weight",
    "dense.bias": "dense.bias",
    "layer_norm.weight": "layer_norm.weight",
    "layer_norm.bias": "layer_norm.bias",
    "weight": "decoder.weight",
    "bias": "bias",
}


def _renamed(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename fairseq's weights of a RoBERTa."""
    weights = {f"roberta.embeddings.{ours}": found[name] for name, ours in _EMBEDDINGS.items()}
    weights["roberta.embeddings.token_type_embeddings.weight"] = torch.zeros(1, 128)
    weights |= {f"lm_head.{ours}": found[f"decoder.lm_head.{name}"] for name, ours in _HEAD.items()}
    for layer in range(4):
        for name, ours in _LAYER.items():
            for part in ("weight", "bias"):
                theirs = f"decoder.sentence_encoder.layers.{layer}.{name}.{part}"
                weights[f"roberta.encoder.layer.{layer}.{ours}.{part}"] = found[theirs]
    return weights
