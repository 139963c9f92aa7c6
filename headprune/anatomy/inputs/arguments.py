"""The arguments of a model's forward, by their names: a method makes each."""

import inspect
from typing import Any

import torch

from headprune.anatomy.inputs.matter import Matter, first
from headprune.anatomy.inputs.tables import (
    BOXES_OF_FRACTIONS,
    READS_IMAGES,
    WAVES_WITH_CHANNELS,
)

FIRST_TEXT_TOKEN = 20  # lower ids are special tokens of a small copy
_MOST_TOKENS = 5000
SAMPLES = 1600


class Maker(Matter):
    """The arguments of one call: a method for each, liked if it is given whenever it is accepted."""

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that the model needs, and those that it likes to have."""
        made = {}
        for name, parameter in self.accepted.items():
            needed = name == self.main or parameter.default is inspect.Parameter.empty
            make = getattr(self, f"_liked_{name}", None)
            if make is None and needed:
                make = getattr(self, f"_needed_{name}", None)
            value = make() if make else None
            if value is not None:
                made[name] = value
        return made

    # What is always given.

    def _liked_input_ids(self) -> Any:
        vocabulary = getattr(self.config.get_text_config(), "vocab_size", None) or 64
        low, high = min(FIRST_TEXT_TOKEN, vocabulary // 2), min(vocabulary, _MOST_TOKENS)
        return torch.randint(low, high, (self.rows, self.length), generator=self.generator)

    def _liked_decoder_input_ids(self) -> Any:
        ids = self._liked_input_ids()
        books = getattr(getattr(self.config, "decoder", None), "num_codebooks", 1)
        return ids.repeat_interleave(books, dim=0)

    def _liked_attention_mask(self) -> Any:
        if "input_ids" not in self.accepted:
            return None
        mask = torch.ones(self.rows, self.length, dtype=torch.long)
        mask[-1, -3:] = 0
        return mask

    def _liked_pixel_values(self) -> Any:
        alone = self.main == "pixel_values" or not self.has_token("image")
        towers = hasattr(self.config, "vision_config") or self.main == "pixel_values"
        required = self.accepted["pixel_values"].default is inspect.Parameter.empty
        wanted = "aspect_ratio_ids" in self.accepted
        wanted |= required or (alone and towers) or self.config.model_type in READS_IMAGES
        if not wanted:
            return None
        if "spatial_shapes" in self.accepted or "pixel_position_ids" in self.accepted:
            return self.patches().reshape(self.rows, 16, -1)
        if "grid_thw" in self.accepted:
            return self.patches()
        images = self.images()
        return images[:, None, None] if "aspect_ratio_ids" in self.accepted else images

    def _liked_aspect_ratio_ids(self) -> Any:
        return torch.ones(self.rows, 1, dtype=torch.long)

    def _liked_aspect_ratio_mask(self) -> Any:
        return torch.ones(self.rows, 1, 1, dtype=torch.long)

    def _liked_cross_attention_mask(self) -> Any:
        if "aspect_ratio_ids" not in self.accepted:
            return None
        return torch.ones(self.rows, self.length, 1, 1, dtype=torch.long)

    def _liked_image_attention_mask(self) -> Any:
        return torch.ones(self.rows, self.length, self.frames(), dtype=torch.long)

    def _liked_bbox(self) -> Any:
        corners = torch.randint(0, 30, (self.rows, self.length, 2), generator=self.generator)
        boxes = torch.cat([corners, corners + 10], dim=-1)
        return boxes / 50 if self.config.model_type in BOXES_OF_FRACTIONS else boxes

    def _liked_encoder_hidden_states(self) -> Any:
        if not getattr(self.config, "add_cross_attention", False):
            return None
        return self.normal(self.rows, 8, self.config.hidden_size)

    def _liked_global_attention_mask(self) -> Any:
        mask = torch.zeros(self.rows, self.length, dtype=torch.long)
        mask[:, 0] = 1
        return mask

    def _liked_flattened_patches(self) -> Any:
        if "image_embeds_position_mask" in self.accepted:  # kosmos-2.5 runs on text alone
            return None
        patches = self.normal(self.rows, 16, 2 + 3 * 16**2)
        patches[..., :2] = torch.arange(16).unsqueeze(-1) + 1
        return patches

    def _liked_visual_feats(self) -> Any:
        return self.normal(self.rows, 8, self.config.visual_feat_dim)

    def _liked_visual_pos(self) -> Any:
        return torch.rand(self.rows, 8, 4, generator=self.generator)

    def _liked_states(self) -> Any:
        return self.normal(self.rows, self.length, self.config.state_dim)

    def _liked_actions(self) -> Any:
        return self.normal(self.rows, self.length, self.config.act_dim)

    def _liked_rewards(self) -> Any:
        return self.normal(self.rows, self.length, 1)

    _liked_returns_to_go = _liked_rewards

    def _liked_timesteps(self) -> Any:
        return torch.arange(self.length).expand(self.rows, -1).clone()

    def _liked_inputs(self) -> Any:
        if self.config.model_type != "perceiver":
            return None
        return self.normal(self.rows, self.length, self.config.d_model)

    def _liked_image_embeds_position_mask(self) -> Any:
        if "flattened_patches" in self.accepted:
            return None
        mask = torch.zeros(self.rows, self.length, dtype=torch.bool)
        mask[:, 1 : 1 + self.config.latent_query_num] = True
        return mask

    def _needed_prompt_pixel_values(self) -> Any:
        return self.images()

    def _needed_prompt_masks(self) -> Any:
        return self.images()

    def _needed_audio_mel(self) -> Any:
        return self.normal(self.rows, 64, self.config.input_feat_size)

    def _needed_audio_mel_mask(self) -> Any:
        return torch.zeros(self.rows, 64, dtype=torch.bool)

    def _needed_task_inputs(self) -> Any:
        return torch.randint(0, 77, (self.rows, 77), generator=self.generator)

    def _liked_noise(self) -> Any:
        patches = self.image_size() // first(getattr(self.config, "patch_size", 8))
        return torch.rand(self.rows, patches**2, generator=self.generator)

    def _liked_use_cache(self) -> Any:
        return False

    # What is given where there is no default, or where it is the main input.

    def _needed_input_values(self) -> Any:
        if self.config.model_type in WAVES_WITH_CHANNELS:
            return self.normal(self.rows, 1, SAMPLES)
        if hasattr(self.config, "num_mel_bins") and hasattr(self.config, "max_length"):
            return self.normal(self.rows, self.config.max_length, self.config.num_mel_bins)
        return self.normal(self.rows, SAMPLES)

    def _needed_input_features(self) -> Any:
        return self.spectrogram(self.config)

    def _needed_input_features_mask(self) -> Any:
        return torch.ones(self.spectrogram(self.config).shape[:2], dtype=torch.long)

    def _needed_hidden_states(self) -> Any:
        return self.patches() if "grid_thw" in self.accepted else None

    def _needed_grid_thw(self) -> Any:
        return self.grid()

    def _needed_image_grid_thw(self) -> Any:
        return self.grid()

    def _needed_merge_sizes(self) -> Any:
        return torch.ones(self.rows, dtype=torch.long)

    def _needed_pixel_values_videos(self) -> Any:
        images = self.images()
        return images if images.dim() == 5 else images.unsqueeze(1).repeat(1, 2, 1, 1, 1)

    def _needed_query_embeds(self) -> Any:
        return self.normal(self.rows, 8, self.config.hidden_size)

    def _needed_inputs_embeds(self) -> Any:
        return self.normal(self.rows, self.length, self.config.hidden_size)

    def _needed_qformer_input_ids(self) -> Any:
        return self._liked_input_ids()

    def _needed_pixel_attention_mask(self) -> Any:
        return torch.ones(self.rows, 16, dtype=torch.long)

    def _liked_pixel_attention_mask(self) -> Any:
        if "spatial_shapes" not in self.accepted or self.has_token("image"):
            return None
        return self._needed_pixel_attention_mask()

    def _liked_spatial_shapes(self) -> Any:
        return None if self.has_token("image") else self._needed_spatial_shapes()

    def _needed_spatial_shapes(self) -> Any:
        return torch.full((self.rows, 2), 4)

    def _needed_pixel_position_ids(self) -> Any:
        steps = torch.arange(16)
        return torch.stack([steps % 4, steps // 4], dim=-1).expand(self.rows, -1, -1).clone()

    def _needed_action_embeds(self) -> Any:
        return self.normal(self.rows, 4, 32)

    def _needed_past_values(self) -> Any:
        channels = getattr(self.config, "num_input_channels", None)
        past = getattr(self.config, "context_length", 32) + max(
            getattr(self.config, "lags_sequence", None) or [0]
        )
        return self.normal(self.rows, past, *([channels] if channels else []))

    def _needed_past_values_padding(self) -> Any:
        return torch.zeros_like(self._needed_past_values())

    def _needed_freq(self) -> Any:
        return torch.zeros(self.rows, 1, dtype=torch.long)

    def _needed_past_time_features(self) -> Any:
        features = self.model.config.num_time_features or 0
        return self.normal(*self._needed_past_values().shape[:2], features)

    def _needed_past_observed_mask(self) -> Any:
        return torch.ones_like(self._needed_past_values())
