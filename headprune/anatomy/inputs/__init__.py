"""Plausible inputs for any model: what its forward accepts, in the sizes its config names. Random, with a seed."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headprune.anatomy.inputs.arguments import Maker
from headprune.anatomy.inputs.matter import first

__all__ = ["example_inputs"]

_LEAD = 4  # text tokens before an image's


def example_inputs(
    model: PreTrainedModel, *, rows: int = 2, length: int = 16, seed: int = 0
) -> dict[str, Any]:
    """Return inputs for ``model``: tokens (the last row padded), pixels, sound, or whatever its forward asks for.

    Dimension 0 of nearly every tensor is the rows. Models that read images or sound among their text get those too where they
    run with them.
    """
    generator = torch.Generator().manual_seed(seed)
    maker = Maker(model, rows, length, generator)
    plain = maker.arguments()
    for modality in _CANDIDATES:
        richer = _with_features(maker, plain, modality)
        if richer is not None and _runs(model, richer):
            return richer
    return plain


def _with_features(maker: Maker, plain: dict[str, Any], modality: str) -> dict[str, Any] | None:
    """Return inputs with an image (or sound) among the text, or None."""
    features = getattr(maker.model, f"get_{modality}_features", None)
    token = maker.token(modality)
    if features is None or token is None or "input_ids" not in plain:
        return None
    accepted = inspect.signature(features).parameters
    for candidate in _CANDIDATES[modality](maker):
        given = {k: v for k, v in candidate.items() if k in accepted and k in maker.accepted}
        count = _feature_count(features, given)
        if count and count % maker.rows == 0:
            return _spliced(maker, plain, given, token=token, count=count // maker.rows)
    return None


def _image_candidates(maker: Maker) -> Iterator[dict[str, Any]]:
    """Yield the forms in which models take images."""
    sizes = torch.tensor([[maker.image_size()] * 2] * maker.rows)
    patches, images = maker.patches(), maker.images()
    side = first(getattr(maker.vision, "patch_size", None) or 8)
    yield {"pixel_values": patches, "image_grid_thw": maker.grid()}
    yield {"pixel_values": images}
    yield {"pixel_values": images, "image_sizes": sizes}
    for several in (1, 3, 2, 5):
        stacked = images.unsqueeze(1).repeat(1, several, 1, 1, 1)
        yield {"pixel_values": stacked, "image_sizes": sizes}
    flat = maker.patches().reshape(maker.rows, 16, -1)
    yield {
        "pixel_values": flat,
        "pixel_attention_mask": maker._needed_pixel_attention_mask(),
        "spatial_shapes": maker._needed_spatial_shapes(),
        "image_position_ids": maker._needed_pixel_position_ids(),
    }
    squares = patches.reshape(len(patches), -1, side, side)
    yield {"pixel_values": squares, "image_grid_thw": maker.grid()}


def _audio_candidates(maker: Maker) -> Iterator[dict[str, Any]]:
    """Yield the forms in which models take sound."""
    features = maker.spectrogram(maker.audio)
    for form in (features, features.transpose(1, 2)):
        mask = torch.ones(maker.rows, form.shape[-1], dtype=torch.long)
        masks = dict.fromkeys(
            ("input_features_mask", "feature_attention_mask", "audio_attention_mask"), mask
        )
        yield {"input_features": form, **masks}
        mask = torch.ones(maker.rows, form.shape[1], dtype=torch.bool)
        yield {"input_features": form, **dict.fromkeys(masks, mask)}


_CANDIDATES: dict[str, Callable[[Maker], Iterator[dict[str, Any]]]] = {
    "image": _image_candidates,
    "audio": _audio_candidates,
}


def _feature_count(features: Callable[..., Any], given: dict[str, Any]) -> int | None:
    """Return how many tokens an image's features take the place of, of all rows together."""
    try:
        with torch.no_grad():
            found = features(**given)
    except Exception:  # noqa: BLE001 - not the form that this model takes
        return None
    found = getattr(found, "pooler_output", found)
    parts = [found] if isinstance(found, torch.Tensor) else list(found or ())
    if not all(isinstance(part, torch.Tensor) and part.dim() > 1 for part in parts):
        return None
    return sum(part.numel() // part.shape[-1] for part in parts)


def _spliced(
    maker: Maker, plain: dict[str, Any], given: dict[str, Any], *, token: int, count: int
) -> dict[str, Any]:
    """Return inputs in which every row has a run of an image's tokens among its text."""
    rows = maker.rows
    run = torch.full((rows, count), token)

    def with_run(tensor: Tensor, filling: Tensor) -> Tensor:
        return torch.cat([tensor[:, :_LEAD], filling, tensor[:, _LEAD:]], dim=1)

    made = {**plain, **given, "input_ids": with_run(plain["input_ids"], run)}
    if "attention_mask" in plain:
        made["attention_mask"] = with_run(plain["attention_mask"], torch.ones_like(run))
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in maker.accepted:
            made[name] = (made["input_ids"] == token).long()
    return made


def _runs(model: PreTrainedModel, made: dict[str, Any]) -> bool:
    """Say whether a model's forward accepts inputs."""
    try:
        with torch.no_grad():
            model(**made)
    except Exception:  # noqa: BLE001 - whatever it is, it's not these inputs
        return False
    return True
