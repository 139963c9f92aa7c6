"""Inputs that a model's forward accepts, by the names of its arguments."""

import inspect

import torch
from zoo_tables import (
    BOXES_OF_FRACTIONS,
    FIRST_TEXT_TOKEN,
    FRAMES_BEFORE_MELS,
    PAIRS_OF_IMAGES,
    READS_IMAGES,
    SPECIAL_TOKENS,
    VOCAB,
    WAVES_WITH_CHANNELS,
)

SAMPLES = 400
_LEAD = 4  # text tokens before an image's


def inputs(model, *, rows=2, length=16, seed=0):
    """Return inputs for a model of the zoo; the last row is padded where a mask is accepted.

    Models that read images or sound among their text get those too where they run with them.
    """
    generator = torch.Generator().manual_seed(seed)
    maker = _Maker(model, rows, length, generator)
    plain = maker.arguments()
    for modality in SPECIAL_TOKENS:
        richer = _with_features(maker, plain, modality)
        if richer is not None and _runs(model, richer):
            return richer
    return plain


class _Maker:
    """Makes the tensors of one call from one generator; a method for every argument."""

    def __init__(self, model, rows, length, generator):
        self.model, self.config, self.generator = model, model.config, generator
        self.accepted = inspect.signature(model.forward).parameters
        self.rows, self.length = rows, length
        self.main = getattr(model, "main_input_name", "input_ids")
        self.vision = getattr(self.config, "vision_config", None) or self.config
        self.audio = getattr(self.config, "audio_config", None) or self.config

    def arguments(self):
        """Return the arguments that the model needs, and those that it likes to have."""
        made = {}
        for name, parameter in self.accepted.items():
            needed = name == self.main or parameter.default is inspect.Parameter.empty
            make = getattr(self, f"liked_{name}", None)
            if make is None and needed:
                make = getattr(self, f"needed_{name}", None)
            value = make() if make else None
            if value is not None:
                made[name] = value
        return made

    # What is always given.

    def liked_input_ids(self):
        return torch.randint(
            FIRST_TEXT_TOKEN, VOCAB, (self.rows, self.length), generator=self.generator
        )

    def liked_decoder_input_ids(self):
        ids = self.liked_input_ids()
        books = getattr(getattr(self.config, "decoder", None), "num_codebooks", 1)
        return ids.repeat_interleave(books, dim=0)

    def liked_attention_mask(self):
        if "input_ids" not in self.accepted:
            return None
        mask = torch.ones(self.rows, self.length, dtype=torch.long)
        mask[-1, -3:] = 0
        return mask

    def liked_pixel_values(self):
        alone = self.main == "pixel_values" or not self.has_token("image")
        towers = hasattr(self.config, "vision_config") or self.main == "pixel_values"
        required = self.accepted["pixel_values"].default is inspect.Parameter.empty
        wanted = required or (alone and towers) or self.config.model_type in READS_IMAGES
        if not wanted:
            return None
        if "spatial_shapes" in self.accepted or "pixel_position_ids" in self.accepted:
            return self.patches().reshape(self.rows, 16, -1)
        if "grid_thw" in self.accepted:
            return self.patches()
        return self.images()

    def liked_bbox(self):
        corners = torch.randint(0, 30, (self.rows, self.length, 2), generator=self.generator)
        boxes = torch.cat([corners, corners + 10], dim=-1)
        return boxes / 50 if self.config.model_type in BOXES_OF_FRACTIONS else boxes

    def liked_encoder_hidden_states(self):
        if not getattr(self.config, "add_cross_attention", False):
            return None
        return self.normal(self.rows, 8, self.config.hidden_size)

    def liked_global_attention_mask(self):
        if not getattr(self.config, "zoo_global_attention", False):
            return None
        mask = torch.zeros(self.rows, self.length, dtype=torch.long)
        mask[:, 0] = 1
        return mask

    def liked_flattened_patches(self):
        patches = self.normal(self.rows, 16, 2 + 3 * 16**2)
        patches[..., :2] = torch.arange(16).unsqueeze(-1) + 1
        return patches

    def liked_visual_feats(self):
        return self.normal(self.rows, 8, self.config.visual_feat_dim)

    def liked_visual_pos(self):
        return torch.rand(self.rows, 8, 4, generator=self.generator)

    def liked_states(self):
        return self.normal(self.rows, self.length, self.config.state_dim)

    def liked_actions(self):
        return self.normal(self.rows, self.length, self.config.act_dim)

    def liked_rewards(self):
        return self.normal(self.rows, self.length, 1)

    liked_returns_to_go = liked_rewards

    def liked_timesteps(self):
        return torch.arange(self.length).expand(self.rows, -1).clone()

    def liked_inputs(self):
        if self.config.model_type != "perceiver":
            return None
        return self.normal(self.rows, self.length, self.config.d_model)

    def liked_image_embeds_position_mask(self):
        mask = torch.zeros(self.rows, self.length, dtype=torch.bool)
        mask[:, 1 : 1 + self.config.latent_query_num] = True
        return mask

    def needed_prompt_pixel_values(self):
        return self.images()

    def needed_prompt_masks(self):
        return self.images()

    def needed_audio_mel(self):
        return self.normal(self.rows, 64, self.config.input_feat_size)

    def needed_audio_mel_mask(self):
        return torch.zeros(self.rows, 64, dtype=torch.bool)

    def needed_task_inputs(self):
        return torch.randint(0, 77, (self.rows, 77), generator=self.generator)

    def liked_noise(self):
        patches = self.image_size() // _first(getattr(self.config, "patch_size", 8))
        return torch.rand(self.rows, patches**2, generator=self.generator)

    def liked_use_cache(self):
        return False

    # What is given where there is no default, or where it is the main input.

    def needed_input_values(self):
        if self.config.model_type in WAVES_WITH_CHANNELS:
            return self.normal(self.rows, 1, 4 * SAMPLES)
        if hasattr(self.config, "num_mel_bins") and hasattr(self.config, "max_length"):
            return self.normal(self.rows, self.config.max_length, self.config.num_mel_bins)
        return self.normal(self.rows, 4 * SAMPLES)

    def needed_input_features(self):
        return self.spectrogram(self.config)

    def needed_input_features_mask(self):
        return torch.ones(self.spectrogram(self.config).shape[:2], dtype=torch.long)

    def needed_hidden_states(self):
        return self.patches() if "grid_thw" in self.accepted else None

    def needed_grid_thw(self):
        return self.grid()

    def needed_image_grid_thw(self):
        return self.grid()

    def needed_merge_sizes(self):
        return torch.ones(self.rows, dtype=torch.long)

    def needed_pixel_values_videos(self):
        images = self.images()
        return images if images.dim() == 5 else images.unsqueeze(1).repeat(1, 2, 1, 1, 1)

    def needed_query_embeds(self):
        return self.normal(self.rows, 8, self.config.hidden_size)

    def needed_inputs_embeds(self):
        return self.normal(self.rows, self.length, self.config.hidden_size)

    def needed_qformer_input_ids(self):
        return self.liked_input_ids()

    def needed_pixel_attention_mask(self):
        return torch.ones(self.rows, 16, dtype=torch.long)

    def liked_pixel_attention_mask(self):
        if "spatial_shapes" not in self.accepted or self.has_token("image"):
            return None
        return self.needed_pixel_attention_mask()

    def liked_spatial_shapes(self):
        return None if self.has_token("image") else self.needed_spatial_shapes()

    def needed_spatial_shapes(self):
        return torch.full((self.rows, 2), 4)

    def needed_pixel_position_ids(self):
        steps = torch.arange(16)
        return torch.stack([steps % 4, steps // 4], dim=-1).expand(self.rows, -1, -1).clone()

    def needed_action_embeds(self):
        return self.normal(self.rows, 4, 32)

    def needed_past_values(self):
        channels = getattr(self.config, "num_input_channels", None)
        past = getattr(self.config, "context_length", 32) + max(
            getattr(self.config, "lags_sequence", None) or [0]
        )
        return self.normal(self.rows, past, *([channels] if channels else []))

    def needed_past_values_padding(self):
        return torch.zeros_like(self.needed_past_values())

    def needed_freq(self):
        return torch.zeros(self.rows, 1, dtype=torch.long)

    def needed_past_time_features(self):
        features = self.model.config.num_time_features or 0
        return self.normal(*self.needed_past_values().shape[:2], features)

    def needed_past_observed_mask(self):
        return torch.ones_like(self.needed_past_values())

    # The matter they are made of.

    def normal(self, *shape):
        """Return noise."""
        return torch.randn(shape, generator=self.generator)

    def has_token(self, modality):
        """Say whether a kind of token stands for this modality among the text's."""
        return self.token(modality) is not None

    def token(self, modality):
        """Return the id of the token that stands for an image or a sound, or None."""
        names = (f"{modality}_token_id", f"{modality}_token_index")
        found = [getattr(self.config, name, None) for name in names]
        return next((token for token in found if token is not None), None)

    def image_size(self):
        """Return the height of an image."""
        return _first(getattr(self.vision, "image_size", None) or 32)

    def frames(self):
        """Return the number of images in a film."""
        return getattr(self.vision, "num_frames", None) or 2

    def images(self):
        """Return one image (or film) a row."""
        config = self.vision
        size = getattr(config, "image_size", None) or 32
        height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
        shape = [getattr(config, "num_channels", None) or 3, height, width]
        film = hasattr(config, "num_frames") or hasattr(config, "tubelet_size")
        pair = self.config.model_type in PAIRS_OF_IMAGES
        several = [self.frames()] if film else [2] if pair else []
        return self.normal(self.rows, *several, *shape)

    def patches(self):
        """Return images as rows of patches, four times four an image."""
        config = self.vision
        channels = (
            getattr(config, "in_channels", None) or getattr(config, "num_channels", None) or 3
        )
        size = getattr(config, "patch_size", None) or 8
        names = ("temporal_patch_size", "patch_temporal")
        depth = next((v for name in names if (v := getattr(config, name, None))), 1)
        return self.normal(16 * self.rows, _first(channels) * _first(depth) * _first(size) ** 2)

    def grid(self):
        """Return the height and width in patches of every image in patches()."""
        return torch.tensor([[1, 4, 4]] * self.rows)

    def spectrogram(self, config):
        """Return sound as features of frames."""
        names = ("feature_projection_input_dim", "input_feat_per_channel", "num_mel_bins")
        names += ("input_feat_size", "input_dim", "input_size", "mel_dim")
        mels = next((v for name in names if (v := getattr(config, name, None))), 16)
        frames = 2 * (getattr(config, "max_source_positions", None) or 32)
        if config.model_type in FRAMES_BEFORE_MELS:
            return self.normal(self.rows, frames, mels)
        return self.normal(self.rows, mels, frames)


def _with_features(maker, plain, modality):
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
            return _spliced(maker, plain, given, token, count // maker.rows)
    return None


def _image_candidates(maker):
    """Yield the forms in which models take images."""
    sizes = torch.tensor([[maker.image_size()] * 2] * maker.rows)
    yield {"pixel_values": maker.patches(), "image_grid_thw": maker.grid()}
    images = maker.images()
    yield {"pixel_values": images, "image_sizes": sizes}
    for several in (1, 3, 2, 5):
        stacked = images.unsqueeze(1).repeat(1, several, 1, 1, 1)
        yield {"pixel_values": stacked, "image_sizes": sizes}
    flat = maker.patches().reshape(maker.rows, 16, -1)
    yield {
        "pixel_values": flat,
        "pixel_attention_mask": maker.needed_pixel_attention_mask(),
        "spatial_shapes": maker.needed_spatial_shapes(),
        "image_position_ids": maker.needed_pixel_position_ids(),
    }


def _audio_candidates(maker):
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


def _no_candidates(maker):
    return ()


_CANDIDATES = {"image": _image_candidates, "audio": _audio_candidates, "video": _no_candidates}


def _feature_count(features, given):
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


def _spliced(maker, plain, given, token, count):
    """Return inputs in which every row has a run of an image's tokens among its text."""
    rows = maker.rows
    run = torch.full((rows, count), token)

    def with_run(tensor, filling):
        return torch.cat([tensor[:, :_LEAD], filling, tensor[:, _LEAD:]], dim=1)

    made = {**plain, **given, "input_ids": with_run(plain["input_ids"], run)}
    if "attention_mask" in plain:
        made["attention_mask"] = with_run(plain["attention_mask"], torch.ones_like(run))
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in maker.accepted:
            made[name] = (made["input_ids"] == token).long()
    return made


def _runs(model, made):
    """Say whether a model's forward accepts inputs."""
    try:
        with torch.no_grad():
            model(**made)
    except Exception:  # noqa: BLE001 - whatever it is, it's not these inputs
        return False
    return True


def _first(value):
    """Return a number, or the first of several."""
    return value if isinstance(value, int) else value[0]
