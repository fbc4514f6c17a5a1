"""The keys of every configuration, with their default values."""

from ml_collections import ConfigDict

CONFIG_VERSION = 1
# descript-audio-codec, conf/base.yml: window in samples and mels of each scale.
DAC_MEL_SCALES = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))


def get_config() -> ConfigDict:
    """Returns a fresh, unlocked configuration; `configs/NAME.py` fills in `task`, `model` and `loss` and locks it."""
    config = ConfigDict()
    config.config_version = CONFIG_VERSION  # of the layout of the keys; another one is refused
    config.task = ""  # module in bandtok_jax/tasks that computes a training step
    config.seed = 0  # of initial weights, order of the data and dropout
    config.dtype = "float32"  # of the computation; parameters, optimizer and statistics are always float32
    config.total_steps = 1000  # optimizer steps at which the training ends
    config.schedule_steps = 0  # steps at which the learning rates are at their final value; 0: total_steps
    config.batch_size = 16  # examples a step, of all devices together and over all accumulated micro-batches
    config.log_every = 10  # steps between two lines of training metrics
    config.evaluate_every = 200  # steps between two evaluations
    config.evaluation_batches = 4  # batches of validation data in an evaluation
    config.checkpoint_every = 200  # steps between two checkpoints
    config.keep_checkpoints = 2  # newest checkpoints that are kept, beside the best one
    config.patience = 0  # evaluations in a row without a better one after which the training ends; 0: none
    config.best_metric = "loss"  # evaluation metric whose lowest value marks the best checkpoint
    config.tokenizer = ""  # run or export folder of a tokenizer, where the task needs one
    config.tokenizer_hash = ""  # weight hash of the tokenizer; written by the run
    config.vocoder = ""  # run or export folder of a vocoder, for the audio samples of an evaluation
    config.vocoder_hash = ""  # weight hash of the vocoder; written by the run
    config.data_hash = ""  # hash of the manifests of the data; written by the run
    config.versions = ConfigDict()  # packages, Python and devices that trained last; written by the run
    config.initialized_from_export = False  # the run started from weights without a discriminator; written by the run
    config.wandb_project = ""  # also log to this project of Weights & Biases

    config.data = ConfigDict()
    config.data.sources = "synthetic"  # or folders of records with their weights: "DIR", "DIR=3,OTHER_DIR=1"
    config.data.tokens = ""  # folder of token records, for the language model
    config.data.sample_rate_hz = 44100  # rate of the audio that a batch holds
    config.data.channels = 1  # 1: the mean of a record's channels; 2: stereo, where a mono record is doubled
    config.data.clip_samples = 65536  # length of a training example
    config.data.columns = 0  # length of a training example of the language model
    config.data.draw = "seconds"  # of tokens: all "seconds" come equally often, or each "track" once in a pass
    config.data.caption_bytes = 512  # bytes of a caption that are read; a longer one is cut between two characters
    config.data.lyrics_tokens = 0  # length of the lyrics of a clip, for tasks that read them; a clip with more has none
    config.data.lyrics_model = ""  # SentencePiece model file that makes tokens of lyrics; empty: bytes
    config.data.gain_db = (-6.0, 3.0)  # range of a random gain for each example
    config.data.phase_rotation = False  # rotate the phase of each example by a random angle
    config.data.loudness_lufs = -16.0  # loudness that every example is brought to (DAC's code); None: unchanged
    config.data.balance_full_band = False  # draw full-band records as often as all others together
    config.data.balance_domains = False  # draw every domain of a source equally often
    config.data.workers = 0  # processes that prepare batches; 0: the training's own
    config.data.damaged = "fail"  # or "skip": leave out records that cannot be read, with one warning for each file

    config.model = ConfigDict()
    config.loss = ConfigDict()

    config.optimizer = optimizer()
    config.mesh = ConfigDict(
        {
            "data": -1,  # devices that split the batch; -1: all that the other axes leave
            "fsdp": 1,  # devices that split batch, parameters and optimizer state
            "tensor": 1,  # devices that split single matrix products
        }
    )
    return config


def choose(shapes: dict[str, dict], name: str, variant: str) -> dict:
    """Returns the entry of `shapes` for a variant of the configuration `name`.

    Raises:
      ValueError: the variant is unknown; the message lists the known ones.
    """
    if variant not in shapes:
        raise ValueError(f"{name} has no variant {variant!r}; choose one of {', '.join(shapes)}")
    return shapes[variant]


def waveform_discriminators(variant: str) -> ConfigDict:
    """Returns the `discriminator` group of waveforms: HiFi-GAN's multi-period and DAC's STFT discriminators."""
    group = ConfigDict(
        {
            "kind": "waveform",  # network class, see bandtok_jax/models/registry.py
            "periods": (2, 3, 5, 7, 11),
            "period_channels": (32, 128, 512, 1024, 1024),
            "rates": (),  # decimation of the multi-scale discriminators, such as (1, 2, 4)
            "stft_windows": (2048, 1024, 512),
            "stft_channels": 32,
            "stft_padding": "same",
            "normalisation": "weight",
            "feature_maps": "hidden",
            "family_weights": (),
        }
    )
    if variant == "tiny":
        # Few and narrow discriminators: XLA's convolutions are slow on CPU, and take long to compile.
        group.update(
            {
                "periods": (2, 3, 5),
                "period_channels": (4, 16, 64, 128, 128),
                "stft_windows": (1024,),
                "stft_channels": 8,
            }
        )
        group.normalisation = "none"  # too few steps to need it
    elif variant == "small":
        group.period_channels, group.stft_channels = (16, 64, 256, 512, 512), 16
    return group


def optimizer() -> ConfigDict:
    """Returns the `optimizer` group: AdamW with a linear warm-up and a cosine decay."""
    return ConfigDict(
        {
            **discriminator_optimizer(),
            "ema_decay": 0.999,  # of the EMA of the weights, which is evaluated and exported; 0 switches it off
            "accumulation_steps": 1,  # micro-batches that a batch is split into, to save memory
        }
    )


def discriminator_optimizer() -> ConfigDict:
    """Returns the `discriminator_optimizer` group, which has neither an EMA nor micro-batches of its own."""
    return ConfigDict(
        {
            "learning_rate": 3e-4,  # peak of the schedule
            "beta1": 0.9,  # decay of Adam's mean of gradients
            "beta2": 0.99,  # decay of Adam's mean of squared gradients
            "weight_decay": 0.01,  # decoupled, as a share of the learning rate
            "decay_bias_and_norm": False,  # also decay biases, gains and other vectors
            "warmup_steps": 100,  # steps of linear warm-up
            "schedule": "cosine",  # decay after the warm-up: "cosine", "linear", "constant" or "exponential"
            "final_lr_fraction": 0.1,  # share of the learning rate left at schedule_steps; above 0 if "exponential"
            "gradient_clip_norm": 1.0,  # limit of the global norm of the gradients; 0 switches it off
        }
    )
