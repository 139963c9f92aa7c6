"""The arguments of a model's forward, by their names: a method makes each."""

import inspect

import torch
from zoo_matter import Matter, first
from zoo_tables import (
    BOXES_OF_FRACTIONS,
    FIRST_TEXT_TOKEN,
    READS_IMAGES,
    VOCAB,
    WAVES_WITH_CHANNELS,
)

SAMPLES = 1600


class Maker(Matter):
    """The arguments of one call: a method for each, liked if it is given whenever it is accepted."""

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

    def liked_aspect_ratio_ids(self):
        return torch.ones(self.rows, 1, dtype=torch.long)

    def liked_aspect_ratio_mask(self):
        return torch.ones(self.rows, 1, 1, dtype=torch.long)

    def liked_cross_attention_mask(self):
        if "aspect_ratio_ids" not in self.accepted:
            return None
        return torch.ones(self.rows, self.length, 1, 1, dtype=torch.long)

    def liked_image_attention_mask(self):
        return torch.ones(self.rows, self.length, self.frames(), dtype=torch.long)

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
        if "image_embeds_position_mask" in self.accepted:  # kosmos-2.5 runs on text alone
            return None
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
        if "flattened_patches" in self.accepted:
            return None
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
        patches = self.image_size() // first(getattr(self.config, "patch_size", 8))
        return torch.rand(self.rows, patches**2, generator=self.generator)

    def liked_use_cache(self):
        return False

    # What is given where there is no default, or where it is the main input.

    def needed_input_values(self):
        if self.config.model_type in WAVES_WITH_CHANNELS:
            return self.normal(self.rows, 1, SAMPLES)
        if hasattr(self.config, "num_mel_bins") and hasattr(self.config, "max_length"):
            return self.normal(self.rows, self.config.max_length, self.config.num_mel_bins)
        return self.normal(self.rows, SAMPLES)

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
