"""What inputs are made of: noise in the forms of images, films, patches and sound."""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from headprune.anatomy.inputs.tables import FILMS, FRAMES_BEFORE_MELS, PAIRS_OF_IMAGES


class Matter:
    """Makes tensors for a model, all from one generator."""

    def __init__(
        self, model: PreTrainedModel, rows: int, length: int, generator: torch.Generator
    ) -> None:
        self.model, self.generator = model, generator
        self.config: PreTrainedConfig = model.config
        self.accepted = inspect.signature(model.forward).parameters
        self.rows, self.length = rows, length
        self.main = getattr(model, "main_input_name", "input_ids")
        self.vision = getattr(self.config, "vision_config", None) or self.config
        self.audio = getattr(self.config, "audio_config", None) or self.config

    def normal(self, *shape: int) -> Tensor:
        """Return noise."""
        return torch.randn(shape, generator=self.generator)

    def has_token(self, modality: str) -> bool:
        """Say whether a kind of token stands for this modality among the text's."""
        return self.token(modality) is not None

    def token(self, modality: str) -> int | None:
        """Return the id of the token that stands for an image or a sound, or None."""
        names = (f"{modality}_token_id", f"{modality}_token_index")
        found = [getattr(self.config, name, None) for name in names]
        return next((token for token in found if token is not None), None)

    def image_size(self) -> int:
        """Return the height of an image."""
        return first(getattr(self.vision, "image_size", None) or 32)

    def frames(self) -> int:
        """Return the number of images in a film."""
        frames: int = getattr(self.vision, "num_frames", None) or 2
        return frames

    def images(self) -> Tensor:
        """Return one image (or film) a row."""
        config = self.vision
        size = getattr(config, "image_size", None) or 32
        height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
        shape = [getattr(config, "num_channels", None) or 3, height, width]
        film = hasattr(config, "num_frames") or hasattr(config, "tubelet_size")
        pair = self.config.model_type in PAIRS_OF_IMAGES
        film = film or self.config.model_type in FILMS
        several = [self.frames()] if film else [2] if pair else []
        return self.normal(self.rows, *several, *shape)

    def patches(self) -> Tensor:
        """Return images as rows of patches, four times four an image."""
        config = self.vision
        channels = (
            getattr(config, "in_channels", None) or getattr(config, "num_channels", None) or 3
        )
        size = getattr(config, "patch_size", None) or 8
        names = ("temporal_patch_size", "patch_temporal")
        depth = next((v for name in names if (v := getattr(config, name, None))), 1)
        return self.normal(16 * self.rows, first(channels) * first(depth) * first(size) ** 2)

    def grid(self) -> Tensor:
        """Return the height and width in patches of every image in patches()."""
        return torch.tensor([[1, 4, 4]] * self.rows)

    def spectrogram(self, config: PreTrainedConfig) -> Tensor:
        """Return sound as features of frames."""
        names = (
            *("feature_projection_input_dim", "input_feat_per_channel", "num_mel_bins"),
            *("input_feat_size", "input_dim", "input_size", "mel_dim"),
        )
        mels = next((v for name in names if (v := getattr(config, name, None))), 16)
        frames = 2 * (getattr(config, "max_source_positions", None) or 32)
        if config.model_type in FRAMES_BEFORE_MELS:
            return self.normal(self.rows, frames, mels)
        return self.normal(self.rows, mels, frames)


def first(value: Any) -> int:
    """Return a number, or the first of several."""
    number: int = value if isinstance(value, int) else value[0]
    return number
