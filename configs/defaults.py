"""The keys that every experiment has, with the values it has unless its own file says otherwise."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """A fresh, unlocked configuration; `configs/NAME.py` fills in `task`, `model` and `loss` and locks it."""
    config = ConfigDict()
    config.task = ""
    config.seed = 0
    config.dtype = "float32"  # of the computation; parameters, optimizer and statistics are always float32
    config.total_steps = 1000
    config.batch_size = 16  # of all devices together, over all accumulated micro-batches
    config.log_every = 10
    config.evaluate_every = 200
    config.evaluation_batches = 4
    config.checkpoint_every = 200
    config.keep_checkpoints = 2
    config.best_metric = "loss"  # of the evaluation; the checkpoint with its lowest value is kept
    config.tokenizer = ""  # run or export folder of an earlier stage, where the task needs one
    config.tokenizer_hash = ""  # of its weights; written by the run
    config.vocoder = ""  # of a tokenizer: what its samples are played by
    config.vocoder_hash = ""
    config.data_hash = ""  # of the manifests of the data; written by the run
    config.wandb_project = ""  # set: also log to Weights & Biases

    config.data = ConfigDict()
    config.data.sources = "synthetic"  # or "DIR", "DIR=3,OTHER_DIR=1"
    config.data.tokens = ""  # a folder of token records, for the language model
    config.data.sample_rate_hz = 44100
    config.data.clip_samples = 65536
    config.data.columns = 0  # length of a crop of tokens, for the language model
    config.data.gain_db = (-6.0, 3.0)
    config.data.phase_rotation = False
    config.data.loudness_lufs = -16.0  # DAC's code; None leaves the loudness as it is
    config.data.balance_full_band = False
    config.data.balance_domains = False  # of a source: each the same share of the examples
    config.data.workers = 0
    config.data.damaged = "fail"  # or "skip": leave out records that cannot be read, and warn of every file once

    config.model = ConfigDict()
    config.loss = ConfigDict()

    config.optimizer = optimizer()
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # -1: all the devices that are left
    return config


def choose(shapes: dict, name: str, variant: str):
    """What `shapes` has for a variant of the configuration `name`; a ValueError lists those that there are."""
    if variant not in shapes:
        raise ValueError(f"{name} has no variant {variant!r}; choose one of {', '.join(shapes)}")
    return shapes[variant]


def sound_critics(variant: str) -> ConfigDict:
    """The `discriminator` group of what is judged by its sound: HiFi-GAN's period critics and DAC's STFT critics."""
    critics = ConfigDict(
        {
            "periods": (2, 3, 5, 7, 11),
            "period_channels": (32, 128, 512, 1024, 1024),
            "rates": (),  # of multi-scale critics, such as (1, 2, 4)
            "windows": (2048, 1024, 512),
            "spectrum_channels": 32,
            "normalisation": "weight",
        }
    )
    if variant == "tiny":
        # Few and narrow critics: XLA's convolutions are slow on CPU, and take long to compile.
        critics.update(
            {"periods": (2, 3, 5), "period_channels": (4, 16, 64, 128, 128), "windows": (1024,), "spectrum_channels": 8}
        )
        critics.normalisation = "none"  # too few steps to need it
    elif variant == "small":
        critics.period_channels, critics.spectrum_channels = (16, 64, 256, 512, 512), 16
    return critics


def optimizer() -> ConfigDict:
    """AdamW with a linear warm-up and a cosine decay."""
    return ConfigDict(
        {
            "learning_rate": 3e-4,
            "beta1": 0.9,
            "beta2": 0.99,
            "weight_decay": 0.01,
            "decay_all": False,  # of biases, gains and other vectors, too
            "warmup_steps": 100,
            "schedule": "cosine",  # "cosine", "constant" or "exponential"
            "final_fraction": 0.1,  # of the learning rate, reached at total_steps; above 0 if "exponential"
            "gradient_clip_norm": 1.0,  # of all gradients together; 0 switches it off
            "average_decay": 0.999,  # of the average of the weights that is evaluated and exported; 0 switches it off
            "accumulation_steps": 1,
        }
    )
