"""The rows of `gpu.py` for PyTorch, with the same work and random weights. A row without a peer has no function."""

import contextlib
import functools
import sys
import warnings

from peers import descript_dac, official_vocos, transformers_llama
from peers.measuring import RATE_HZ, decaying_tones
from row_server import serve, time_and_emit
import torch

TINY = sys.argv[1:] == ["tiny"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Vocabulary, width, feed-forward, layers and heads: those of our variants without text.
LANGUAGE_MODELS = {"small": (4352, 768, 2048, 12, 12), "base": (8448, 1024, 2816, 24, 16)}
TINY_LANGUAGE_MODEL, TINY_DAC = (4352, 32, 64, 1, 2), {"encoder_dim": 4, "decoder_dim": 16, "latent_dim": 64}
LENGTH = 128 if TINY else 1728


def synchronized(function):
    """Returns a function that returns after its work on the device is done."""

    @functools.wraps(function)
    def call():
        function()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return call


@torch.inference_mode()
def vocos() -> None:
    """Measures the published Vocos on 10 s of log-mel."""
    model = official_vocos.create(*((16, 32, 1) if TINY else ())).to(DEVICE)
    frames = (1 if TINY else 10) * RATE_HZ // official_vocos.HOP_SAMPLES + 1
    for batch in (1, 16):
        features = torch.randn(batch, official_vocos.MELS, frames, device=DEVICE)
        seconds = batch * frames * official_vocos.HOP_SAMPLES / RATE_HZ
        call = synchronized(functools.partial(model, features))
        time_and_emit(f"vocos float32 batch {batch}", "x realtime", call, amount=seconds)


def decode() -> None:
    """Measures cached decoding with `generate` and top-k 50, its cache of changing and of fixed shape."""
    model = transformers_llama.create(*(TINY_LANGUAGE_MODEL if TINY else LANGUAGE_MODELS["small"]))
    model = model.to(DEVICE, torch.bfloat16 if DEVICE == "cuda" else torch.float32).eval()
    model.generation_config.pad_token_id = 0
    tokens = 64 if TINY else 512
    for batch in (1,) if TINY else (1, 8, 64):
        prompt = torch.randint(1, 4096, (batch, 16), device=DEVICE)
        options = dict(attention_mask=torch.ones_like(prompt), do_sample=True, top_k=50)
        call = functools.partial(model.generate, prompt, max_new_tokens=tokens, min_new_tokens=tokens, **options)
        name = f"language model flat decode batch {batch}"
        static = functools.partial(call, cache_implementation="static")
        for kind, function in ((name, static), (f"{name}, dynamic cache", call)):
            time_and_emit(kind, "tokens/s", synchronized(function), amount=batch * tokens)


def train_language_model(variant: str, batch: int) -> None:
    """Measures a step of AdamW with torch.compile and autocast."""
    model = transformers_llama.create(*(TINY_LANGUAGE_MODEL if TINY else LANGUAGE_MODELS[variant])).to(DEVICE).train()
    model.config.use_cache, batch = False, 2 if TINY else batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(0, 4096, (batch, LENGTH), device=DEVICE)
    compiled = model if DEVICE == "cpu" else torch.compile(model)
    narrow = torch.autocast("cuda", torch.bfloat16) if DEVICE == "cuda" else contextlib.nullcontext()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with narrow:
            loss = compiled(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    name = f"language model {variant} train batch {batch}"
    time_and_emit(name, "tokens/s", synchronized(step), amount=tokens.numel())


@torch.inference_mode()
def dac_codec() -> None:
    """Measures the published DAC on 10 s at once."""
    model = descript_dac.create(**(TINY_DAC if TINY else {})).eval().to(DEVICE)
    samples = (16 if TINY else 862) * 512
    for batch in (1, 8):
        audio = decaying_tones(batch, samples, RATE_HZ).to(DEVICE)
        codes, seconds = model.encode(audio)[1], batch * samples / RATE_HZ
        calls = {
            "encode": lambda: model.encode(audio),
            "decode": lambda: model.decode(model.quantizer.from_codes(codes)[0]),
        }
        for verb, call in calls.items():
            time_and_emit(f"dac {verb} batch {batch}", "x realtime", synchronized(call), amount=seconds)


def dac_step() -> None:
    """Measures a step of generator and discriminators."""
    batch, samples = (2, 2048) if TINY else (16, 16896)
    audio = decaying_tones(batch, samples, RATE_HZ).to(DEVICE)
    step, _ = descript_dac.training_step(audio, adversarial=True, **(TINY_DAC if TINY else {}))
    time_and_emit(f"dac:base step batch {batch}", "s/step", synchronized(step))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    serve(
        {
            "vocos": vocos,
            "lm_decode": decode,
            "lm_train": functools.partial(train_language_model, "small", 32),
            "lm_train_base": functools.partial(train_language_model, "base", 32),
            "dac_codec": dac_codec,
            "dac_step": dac_step,
        }
    )
