"""Power mel spectrogram of 60 s by torch.stft and by librosa."""

import librosa
import torch

from peers.measuring import RATE_HZ, decaying_tones, time_and_emit

SECONDS, FFT_SAMPLES, HOP_SAMPLES, MELS = 60, 2048, 512, 128


def mel() -> None:
    """Measures both, after a check that they agree."""
    audio = decaying_tones(1, SECONDS * RATE_HZ, RATE_HZ)[0, 0]
    filters = torch.from_numpy(librosa.filters.mel(sr=RATE_HZ, n_fft=FFT_SAMPLES, n_mels=MELS))
    window, samples = torch.hann_window(FFT_SAMPLES), audio.numpy()

    def by_torch() -> torch.Tensor:
        spectrum = torch.stft(
            audio, FFT_SAMPLES, HOP_SAMPLES, window=window, center=True, pad_mode="constant", return_complex=True
        )
        return filters @ (spectrum.real.square() + spectrum.imag.square())

    def by_librosa() -> object:
        return librosa.feature.melspectrogram(
            y=samples, sr=RATE_HZ, n_fft=FFT_SAMPLES, hop_length=HOP_SAMPLES, n_mels=MELS
        )

    first, second = by_torch(), torch.from_numpy(by_librosa())
    error = float((first - second).abs().max() / second.abs().max())
    assert first.shape == second.shape and error < 1e-4, (first.shape, second.shape, error)
    for name, function in (("mel_frontend_torch", by_torch), ("mel_frontend_librosa", by_librosa)):
        time_and_emit(
            name, "x realtime", function, amount=SECONDS, repeats=31, audio_s=SECONDS, n_fft=FFT_SAMPLES,
            hop=HOP_SAMPLES, mels=MELS, largest_difference=float(f"{error:.2g}"),
        )  # fmt: skip


MEASUREMENTS = {"mel_frontend": mel}
