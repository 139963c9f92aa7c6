"""Inputs that a model's forward accepts, by the names of its arguments."""

import inspect

import torch
from zoo_tables import FIRST_TEXT_TOKEN, VOCAB


def inputs(model, *, rows=2, length=16, seed=0):
    """Return inputs for a model of the zoo; the last row is padded where a mask is accepted."""
    accepted = inspect.signature(model.forward).parameters
    maker = _Maker(model, accepted, rows, length, seed)
    made = {}
    for name, make in _MAKERS.items():
        if name in accepted:
            value = make(maker)
            if value is not None:
                made[name] = value
    if "use_cache" in accepted:
        made["use_cache"] = False
    return made


class _Maker:
    """Makes the tensors of one call, all from one seed."""

    def __init__(self, model, accepted, rows, length, seed):
        self.model, self.config, self.accepted = model, model.config, accepted
        self.rows, self.length = rows, length
        self.generator = torch.Generator().manual_seed(seed)
        self.main = getattr(model, "main_input_name", "input_ids")

    def needs(self, name):
        """Say whether an argument is the main one or has no default."""
        parameter = self.accepted.get(name)
        return parameter is not None and (
            name == self.main or parameter.default is inspect.Parameter.empty
        )

    def tokens(self):
        """Return token ids, the last row's end padded."""
        ids = torch.randint(
            FIRST_TEXT_TOKEN, VOCAB, (self.rows, self.length), generator=self.generator
        )
        return ids

    def mask(self):
        """Return a mask that hides the end of the last row."""
        mask = torch.ones(self.rows, self.length, dtype=torch.long)
        mask[-1, -3:] = 0
        return mask

    def normal(self, *shape):
        """Return noise."""
        return torch.randn(shape, generator=self.generator)

    def images(self):
        """Return one image a row."""
        vision = getattr(self.config, "vision_config", None) or self.config
        size = getattr(vision, "image_size", None) or 32
        height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
        return self.normal(self.rows, getattr(vision, "num_channels", None) or 3, height, width)


def _pixel_values(maker):
    return maker.images() if maker.needs("pixel_values") or _two_towers(maker) else None


def _two_towers(maker):
    """Say whether text and image go side by side (clip), not the one into the other (llava)."""
    special = ("image_token_id", "image_token_index")
    return hasattr(maker.config, "vision_config") and not any(
        hasattr(maker.config, name) for name in special
    )


def _input_features(maker):
    if not maker.needs("input_features"):
        return None
    config = getattr(maker.config, "audio_config", maker.config)
    positions = getattr(config, "max_source_positions", 8)
    return maker.normal(maker.rows, getattr(config, "num_mel_bins", 16), 2 * positions)


def _boxes(maker):
    corners = torch.randint(0, 30, (maker.rows, maker.length, 2), generator=maker.generator)
    return torch.cat([corners, corners + 10], dim=-1)


_MAKERS = {
    "input_ids": lambda maker: maker.tokens(),
    "attention_mask": lambda maker: maker.mask() if "input_ids" in maker.accepted else None,
    "decoder_input_ids": lambda maker: maker.tokens(),
    "pixel_values": _pixel_values,
    "input_values": lambda maker: (
        maker.normal(maker.rows, 400) if maker.needs("input_values") else None
    ),
    "input_features": _input_features,
    "bbox": _boxes,
}
