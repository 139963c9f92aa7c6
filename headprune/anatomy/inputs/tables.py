"""Which model types take their inputs in a form that their configs don't tell."""

BOXES_OF_FRACTIONS = ("udop",)
# Films, though nothing in their configs says so.
FILMS = (
    "idefics",
    "instructblipvideo",
)
PAIRS_OF_IMAGES = (
    "superglue",
    "lightglue",
    "efficientloftr",
)
# Images beside their text though their configs have no tower for them.
READS_IMAGES = (
    "vilt",
    "kosmos-2",
    "siglip2",
    "idefics",
)
# Sound as (rows, channels, samples) instead of (rows, samples).
WAVES_WITH_CHANNELS = (
    "dac",
    "encodec",
    "mimi",
    "mimi_encoder",
    "neucodec",
    "xcodec",
    "xcodec2",
    "pe_audio",
    "pe_audio_encoder",
    "pocket_tts_audio_tokenizer",
    "pocket_tts_audio_tokenizer_encoder",
    "vibevoice_acoustic_tokenizer",
    "higgs_audio_v2_tokenizer",
)
# Features of sound as (rows, frames, features) instead of (rows, features, frames).
FRAMES_BEFORE_MELS = (
    "speech_to_text",
    "wav2vec2-bert",
    "seamless_m4t",
    "seamless_m4t_v2",
    "parakeet_encoder",
    "nemotron_asr_streaming",
    "nemotron_asr_streaming_encoder",
    "nemotron3_5_asr",
    "nemotron3_diarization",
    "nemotron3_diarization_audio",
    "nemotron3_5_transcribe_audio",
    "nemotron3_5_transcribe_asr_audio",
    "gemma4_audio",
    "fun_asr_nano_encoder",
    "lasr_encoder",
    "lasr_ctc",
    "parakeet_ctc",
    "parakeet_rnnt",
    "parakeet_tdt",
    "canary",
    "cohere_asr",
    "univnet",
)
