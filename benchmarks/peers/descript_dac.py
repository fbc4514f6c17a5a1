"""descript-audio-codec at 44.1 kHz: encode, decode, and a training step of the generator and of the whole GAN."""

from collections.abc import Callable
import functools
from typing import Any

import torch

from peers import stand_ins
from peers.measuring import RATE_HZ, decaying_tones, millions, time_and_emit

SECONDS, STEP_BATCH, STEP_SAMPLES = 5, 2, 16384
SETTINGS = {
    "encoder_dim": 64,
    "encoder_rates": [2, 4, 8, 8],
    "decoder_dim": 1536,
    "decoder_rates": [8, 8, 4, 2],
    "n_codebooks": 9,
    "codebook_size": 1024,
    "codebook_dim": 8,
    "sample_rate": RATE_HZ,
}
IMPLEMENTATION = "descript-audio-codec"


def create(**settings: Any) -> torch.nn.Module:
    """Returns a DAC with random weights."""
    stand_ins.allow_missing()
    import dac

    torch.manual_seed(0)
    return dac.DAC(**SETTINGS | settings)


def code(verb: str) -> None:
    """Measures `encode` or `decode` of 5 s at once."""
    model = create().eval()
    audio = decaying_tones(1, SECONDS * RATE_HZ, RATE_HZ)

    def encode() -> torch.Tensor:
        return model.encode(model.preprocess(audio, RATE_HZ))[1]

    with torch.inference_mode():
        codes = encode()

        def decode() -> torch.Tensor:
            return model.decode(model.quantizer.from_codes(codes)[0])

        assert abs(decode().shape[-1] - SECONDS * RATE_HZ) < 2 * 512
        time_and_emit(
            f"dac_{verb}", "x realtime", {"encode": encode, "decode": decode}[verb], amount=SECONDS, repeats=5,
            audio_s=SECONDS, codes=list(codes.shape), params_M=millions(model), impl=IMPLEMENTATION,
        )  # fmt: skip


def training_step(
    audio: torch.Tensor, *, adversarial: bool, **settings: Any
) -> tuple[Callable[[], torch.Tensor], dict[str, float]]:
    """Returns a training step, with or without the discriminator, and the sizes of the networks.

    Args:
      audio: `[B, 1, S]`, on the device to train on.
      settings: settings of the DAC that differ from the published ones.
    """
    model = create(quantizer_dropout=0.5, **settings).train().to(audio.device)
    from audiotools import AudioSignal
    from dac.model import Discriminator
    from dac.nn.loss import GANLoss, MelSpectrogramLoss

    mel_loss = MelSpectrogramLoss(
        n_mels=[5, 10, 20, 40, 80, 160, 320],
        window_lengths=[32, 64, 128, 256, 512, 1024, 2048],
        mel_fmin=[0.0] * 7,
        mel_fmax=[None] * 7,
        pow=1.0,
        clamp_eps=1e-5,
        mag_weight=0.0,
    )
    adam = {"lr": 1e-4, "betas": (0.8, 0.99)}
    optimizer = torch.optim.AdamW(model.parameters(), **adam)
    fields = {"params_M": millions(model)}
    if adversarial:
        discriminator = Discriminator(sample_rate=RATE_HZ).to(audio.device)
        discriminator_optimizer = torch.optim.AdamW(discriminator.parameters(), **adam)
        gan = GANLoss(discriminator)
        fields["discriminator_params_M"] = millions(discriminator)

    def step() -> torch.Tensor:
        real = AudioSignal(audio.clone(), RATE_HZ)
        output = model(real.audio_data, RATE_HZ)
        fake = AudioSignal(output["audio"], RATE_HZ)
        if adversarial:
            discriminator_optimizer.zero_grad()
            gan.discriminator_loss(fake, real).backward()
            torch.nn.utils.clip_grad_norm_(discriminator.parameters(), 10.0)
            discriminator_optimizer.step()
        optimizer.zero_grad()
        loss = 15.0 * mel_loss(fake, real) + 0.25 * output["vq/commitment_loss"] + output["vq/codebook_loss"]
        if adversarial:
            adversarial_loss, feature_matching = gan.generator_loss(fake, real)
            loss = loss + adversarial_loss + 2.0 * feature_matching
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e3)
        optimizer.step()
        return loss.detach()

    return step, fields


def train(adversarial: bool) -> None:
    """Measures a training step on two crops, with or without the discriminator."""
    step, fields = training_step(decaying_tones(STEP_BATCH, STEP_SAMPLES, RATE_HZ), adversarial=adversarial)
    losses = []
    time_and_emit(
        "dac_gan_step" if adversarial else "dac_generator_step", "s/step", lambda: losses.append(float(step())),
        repeats=5, batch=STEP_BATCH, samples=STEP_SAMPLES, audio_s=round(STEP_BATCH * STEP_SAMPLES / RATE_HZ, 3),
        impl=IMPLEMENTATION, **fields,
    )  # fmt: skip
    assert all(abs(loss) < 1e9 for loss in losses), losses


MEASUREMENTS = {
    "dac_encode": functools.partial(code, "encode"),
    "dac_decode": functools.partial(code, "decode"),
    "dac_generator_step": functools.partial(train, adversarial=False),
    "dac_gan_step": functools.partial(train, adversarial=True),
}
