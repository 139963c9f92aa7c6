"""Made-up inputs for any model: what its forward accepts, in the sizes that its config names. Random, with a seed."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from headprune.anatomy import exceptions

FIRST_TEXT_TOKEN = 20  # lower ids are special tokens of a small copy
_MOST_TOKENS = 5000
_SAMPLES = 1600
_PATCHES = 16  # of an image, four times four
_LEAD = 4  # text tokens before an image's


def example_inputs(
    model: PreTrainedModel, *, rows: int = 2, length: int = 16, seed: int = 0
) -> dict[str, Any]:
    """Return inputs for a model: tokens (the last row padded), pixels, sound, or whatever its forward asks for.

    Dimension 0 of nearly every tensor is the rows. Models that read images or sound among their text get those too where they
    run with them.

    Args:
        model: The model; it is run to see whether it takes an image or a sound among its text.
        rows: How many rows.
        length: How many tokens a row has.
        seed: For the random numbers.
    """
    tensors = InputTensors(model, rows=rows, length=length, seed=seed)
    plain = forward_inputs(tensors)
    for modality in _FORMS:
        richer = _with_features(tensors, plain, modality)
        if richer is not None and _result(model, richer) is not None:
            return richer
    return plain


def forward_inputs(tensors: "InputTensors") -> dict[str, Any]:
    """Return the arguments that a model's forward needs, and those that it is better given."""
    inputs = {}
    for name, parameter in tensors.accepted.items():
        is_required = name == tensors.main or parameter.default is inspect.Parameter.empty
        is_optional = not is_required or name in exceptions.OPTIONAL_INPUTS
        table = exceptions.OPTIONAL_INPUTS if is_optional else exceptions.REQUIRED_INPUTS
        value = table[name](tensors) if name in table else None
        if value is not None:
            inputs[name] = value
    return inputs


class InputTensors:
    """Draws tensors in the sizes that a model's config names, all from one generator."""

    def __init__(self, model: PreTrainedModel, *, rows: int, length: int, seed: int) -> None:
        self.model: PreTrainedModel = model
        self.config: PreTrainedConfig = model.config
        self.rows: int = rows
        self.length: int = length
        self.generator = torch.Generator().manual_seed(seed)
        self.accepted: Mapping[str, Any] = inspect.signature(model.forward).parameters
        self.main = getattr(model, "main_input_name", "input_ids")
        self.vision = getattr(self.config, "vision_config", None) or self.config
        self.audio = getattr(self.config, "audio_config", None) or self.config

    def token(self, modality: str) -> int | None:
        """Return the id of the token that stands for an image or a sound among the text's, or None."""
        ids = [getattr(self.config, f"{modality}_token_{name}", None) for name in ("id", "index")]
        return next((token for token in ids if token is not None), None)

    @property
    def reads_patches(self) -> bool:
        """Whether images are given as patches, and no token stands for them."""
        return "spatial_shapes" in self.accepted and self.token("image") is None

    @property
    def frames(self) -> int:
        """Number of images in a film."""
        return _setting(self.vision, "num_frames", default=2)

    @property
    def image_size(self) -> int:
        """Height of an image, in pixels."""
        return _setting(self.vision, "image_size", default=32)

    @property
    def patch_size(self) -> int:
        """Height of a patch, in pixels."""
        return _setting(self.vision, "patch_size", default=8)

    # Plain tensors.

    def normal(self, *shape: int) -> Tensor:
        """Return normally distributed noise."""
        return torch.randn(shape, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        """Return noise between 0 and 1."""
        return torch.rand(shape, generator=self.generator)

    def integers(self, end: int, *shape: int, start: int = 0) -> Tensor:
        """Return random integers from ``start`` to below ``end``."""
        return torch.randint(start, end, shape, generator=self.generator)

    def full(self, value: int, *shape: int) -> Tensor:
        """Return integers that are all the same."""
        return torch.full(shape, value)

    # Text.

    def tokens(self) -> Tensor:
        """Return ids of words, none of them special: [rows, length]."""
        vocabulary = getattr(self.config.get_text_config(), "vocab_size", None) or 64
        start, end = min(FIRST_TEXT_TOKEN, vocabulary // 2), min(vocabulary, _MOST_TOKENS)
        return self.integers(end, self.rows, self.length, start=start)

    def decoder_tokens(self) -> Tensor:
        """Return ids for a decoder; some (of sound) read several code books, each as a row."""
        books = getattr(getattr(self.config, "decoder", None), "num_codebooks", 1)
        return self.tokens().repeat_interleave(books, dim=0)

    def attention_mask(self) -> Tensor:
        """Return a mask that pads the end of the last row."""
        mask = self.full(1, self.rows, self.length)
        mask[-1, -3:] = 0
        return mask

    def positions(self, start: int, stop: int) -> Tensor:
        """Return a mask that is 1 at some positions of every row."""
        mask = self.full(0, self.rows, self.length)
        mask[:, start:stop] = 1
        return mask

    def boxes(self) -> Tensor:
        """Return where each word stands on a page: [rows, length, 4]."""
        corners = self.integers(30, self.rows, self.length, 2)
        boxes = torch.cat([corners, corners + 10], dim=-1)
        return boxes / 50 if self.config.model_type in exceptions.BOXES_OF_FRACTIONS else boxes

    # Images.

    def pixel_values(self) -> Tensor | None:
        """Return images in the form that the model reads, or None where it runs better on text alone."""
        is_main = self.main == "pixel_values"
        is_seen_alone = is_main or self.token("image") is None
        is_read = (
            "aspect_ratio_ids" in self.accepted
            or self.accepted["pixel_values"].default is inspect.Parameter.empty
            or (is_seen_alone and (is_main or hasattr(self.config, "vision_config")))
            or self.config.model_type in exceptions.READS_IMAGES
        )
        if not is_read:
            return None
        if "spatial_shapes" in self.accepted or "pixel_position_ids" in self.accepted:
            return self.patches().reshape(self.rows, _PATCHES, -1)
        if "grid_thw" in self.accepted:
            return self.patches()
        images = self.images()
        return images[:, None, None] if "aspect_ratio_ids" in self.accepted else images

    def images(self) -> Tensor:
        """Return one image (or film, or pair of images) a row."""
        size = getattr(self.vision, "image_size", None) or 32
        height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
        channels = getattr(self.vision, "num_channels", None) or 3
        kind = self.config.model_type
        is_film = hasattr(self.vision, "num_frames") or hasattr(self.vision, "tubelet_size")
        if is_film or kind in exceptions.FILMS:
            return self.normal(self.rows, self.frames, channels, height, width)
        pair = (2,) if kind in exceptions.PAIRS_OF_IMAGES else ()
        return self.normal(self.rows, *pair, channels, height, width)

    def films(self) -> Tensor:
        """Return one film a row; of two frames that are the same where the model reads images."""
        images = self.images()
        return images if images.dim() == 5 else images.unsqueeze(1).repeat(1, 2, 1, 1, 1)

    def patches(self) -> Tensor:
        """Return images as rows of patches, four times four an image: [rows * 16, numbers of a patch]."""
        channels = _setting(self.vision, "in_channels", "num_channels", default=3)
        depth = _setting(self.vision, "temporal_patch_size", "patch_temporal", default=1)
        return self.normal(_PATCHES * self.rows, channels * depth * self.patch_size**2)

    def numbered_patches(self) -> Tensor:
        """Return patches that begin with their row and column."""
        patches = self.normal(self.rows, _PATCHES, 2 + 3 * 16**2)
        patches[..., :2] = torch.arange(_PATCHES).unsqueeze(-1) + 1
        return patches

    def grid(self) -> Tensor:
        """Return frames, height and width in patches of every image in :meth:`patches`."""
        return torch.tensor([[1, 4, 4]] * self.rows)

    def patch_positions(self) -> Tensor:
        """Return column and row of every patch: [rows, 16, 2]."""
        steps = torch.arange(_PATCHES)
        return torch.stack([steps % 4, steps // 4], dim=-1).expand(self.rows, -1, -1).clone()

    # Sound and time series.

    def wave(self) -> Tensor:
        """Return sound as samples, or as a spectrogram of a fixed length where the config names one."""
        if self.config.model_type in exceptions.WAVES_WITH_CHANNELS:
            return self.normal(self.rows, 1, _SAMPLES)
        if hasattr(self.config, "num_mel_bins") and hasattr(self.config, "max_length"):
            return self.normal(self.rows, self.config.max_length, self.config.num_mel_bins)
        return self.normal(self.rows, _SAMPLES)

    def spectrogram(self, config: PreTrainedConfig) -> Tensor:
        """Return sound as features of frames, in the sizes of one of the model's configs."""
        mels = _setting(config, *exceptions.MEL_BINS, default=16)
        frames = 2 * _setting(config, "max_source_positions", default=32)
        if config.model_type in exceptions.FRAMES_BEFORE_MELS:
            return self.normal(self.rows, frames, mels)
        return self.normal(self.rows, mels, frames)

    def past_values(self) -> Tensor:
        """Return a time series as long as the model looks back."""
        past = _setting(self.config, "context_length", default=32)
        past += max(getattr(self.config, "lags_sequence", None) or [0])
        channels = getattr(self.config, "num_input_channels", None)
        return self.normal(self.rows, past, *([channels] if channels else []))


def _image_forms(tensors: InputTensors) -> Iterator[dict[str, Any]]:
    """Yield the forms in which models take images among their text."""
    sizes = torch.tensor([[tensors.image_size] * 2] * tensors.rows)
    patches, images = tensors.patches(), tensors.images()
    yield {"pixel_values": patches, "image_grid_thw": tensors.grid()}
    yield {"pixel_values": images}
    yield {"pixel_values": images, "image_sizes": sizes}
    for several in (1, 3, 2, 5):
        stacked = images.unsqueeze(1).repeat(1, several, 1, 1, 1)
        yield {"pixel_values": stacked, "image_sizes": sizes}
    yield {
        "pixel_values": tensors.patches().reshape(tensors.rows, _PATCHES, -1),
        "pixel_attention_mask": tensors.full(1, tensors.rows, _PATCHES),
        "spatial_shapes": tensors.full(4, tensors.rows, 2),
        "image_position_ids": tensors.patch_positions(),
    }
    squares = patches.reshape(len(patches), -1, *[tensors.patch_size] * 2)
    yield {"pixel_values": squares, "image_grid_thw": tensors.grid()}


def _audio_forms(tensors: InputTensors) -> Iterator[dict[str, Any]]:
    """Yield the forms in which models take sound among their text."""
    names = ("input_features_mask", "feature_attention_mask", "audio_attention_mask")
    features = tensors.spectrogram(tensors.audio)
    for form in (features, features.transpose(1, 2)):
        for mask in (
            tensors.full(1, tensors.rows, form.shape[-1]),
            tensors.full(1, tensors.rows, form.shape[1]).bool(),
        ):
            yield {"input_features": form, **dict.fromkeys(names, mask)}


_FORMS = {"image": _image_forms, "audio": _audio_forms}


def _with_features(
    tensors: InputTensors, plain: dict[str, Any], modality: str
) -> dict[str, Any] | None:
    """Return inputs with an image (or sound) among the text of every row, or None."""
    features = getattr(tensors.model, f"get_{modality}_features", None)
    token = tensors.token(modality)
    if features is None or token is None or "input_ids" not in plain:
        return None
    accepted = inspect.signature(features).parameters
    for form in _FORMS[modality](tensors):
        given = {k: v for k, v in form.items() if k in accepted and k in tensors.accepted}
        count = _feature_count(features, given)
        if count and count % tensors.rows == 0:
            run = torch.full((tensors.rows, count // tensors.rows), token)
            return _spliced(tensors, {**plain, **given}, run=run)
    return None


def _feature_count(features: Callable[..., Any], given: dict[str, Any]) -> int | None:
    """Return how many tokens an image's features take the place of, of all rows together; None where it takes another form."""
    output = _result(features, given)
    output = getattr(output, "pooler_output", output)
    parts = [output] if isinstance(output, Tensor) else list(output or ())
    if output is None or not all(isinstance(part, Tensor) and part.dim() > 1 for part in parts):
        return None
    return sum(part.numel() // part.shape[-1] for part in parts)


def _spliced(tensors: InputTensors, inputs: dict[str, Any], *, run: Tensor) -> dict[str, Any]:
    """Return inputs in which every row has a run of an image's tokens among its text."""

    def splice(tensor: Tensor, run: Tensor) -> Tensor:
        return torch.cat([tensor[:, :_LEAD], run, tensor[:, _LEAD:]], dim=1)

    spliced = {**inputs, "input_ids": splice(inputs["input_ids"], run)}
    if "attention_mask" in inputs:
        spliced["attention_mask"] = splice(inputs["attention_mask"], torch.ones_like(run))
    is_image = (spliced["input_ids"] == run[0, 0]).long()
    types = ("mm_token_type_ids", "token_type_ids")
    return spliced | {name: is_image for name in types if name in tensors.accepted}


def _result(forward: Callable[..., Any], inputs: dict[str, Any]) -> Any:
    """Return what a forward makes of inputs; None where it refuses them, each model in its own way."""
    try:
        with torch.no_grad():
            return forward(**inputs)
    except Exception:  # noqa: BLE001 - whatever it is, it's not these inputs
        return None


def _setting(config: PreTrainedConfig, *names: str, default: int) -> int:
    """Return the first of some settings that is there and isn't 0: a number, or the first of several."""
    value = next((value for name in names if (value := getattr(config, name, None))), default)
    number: int = value if isinstance(value, int) else value[0]
    return number
