"""Speed of the PyTorch peers on the CPU, random weights, one JSON line per measurement.

    python speed_torch.py                                  the default set, without the loader
    python speed_torch.py --audio FOLDER                   the default set
    python speed_torch.py --only dac_encode --only loader --audio FOLDER
    python speed_torch.py --list

Every measurement runs in its own process, after warm-up, in float32 and eager mode,
with the settings that the official packages ship. "value" is computed from the median
run; "low"/"high" are the smallest and the largest value of the runs. "own_cores" is the
CPU seconds of the measuring process per wall second of the timed part (waiting OpenMP
threads spin, so it shows interference when it falls, not efficiency when it is high),
"other_cores" the same of everything else on the machine, "steal" the share of the
machine's CPU time that the hypervisor withheld. A row with "other_cores" above
DISTURBED also says "disturbed": true and should be measured again. --patience makes each
measurement wait for a quiet machine first, and repeats disturbed ones (at most twice).

--malloc: PyTorch's CPU tensors come from the C library's malloc, which by default hands
every large block back to the kernel when it is freed, so that the next step pays for
page faults again. "default" leaves that as it is; "kept" sets three environment
variables of glibc so that the process keeps its memory, and adds "_kept" to the names;
"both" (the default) does both for the measurements that it changes.

Needs: torch, numpy, scipy, soundfile, librosa, transformers, vocos (with encodec,
einops), descript-audio-codec and descript-audiotools (both may be installed with
--no-deps, plus julius). Modules which those import but do not use here (torchaudio,
tensorboard, IPython, ...) are replaced by empty stand-ins when they are missing.
"""

import argparse
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
import types

SR = 44100
CROP = 65536
DISTURBED = 0.1  # cores in use by others during a measurement

# --------------------------------------------------------------------------- stand-ins

OPTIONAL = (
    "torchaudio",
    "tensorboard",
    "ffmpy",
    "IPython",
    "matplotlib",
    "markdown2",
    "randomname",
    "importlib_resources",
    "flatten_dict",
    "argbind",
    "pyloudnorm",
    "pystoi",
    "pytorch_lightning",
)


class Nothing:
    """Answers any use at import time: attribute, call, decorator."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args, **kwargs):
        if len(args) == 1 and not kwargs and isinstance(args[0], (types.FunctionType, type)):
            return args[0]
        return self


class EmptyModule(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names):
        self.names = tuple(names)

    def find_spec(self, fullname, path=None, target=None):
        if any(fullname == n or fullname.startswith(n + ".") for n in self.names):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return EmptyModule(spec.name)

    def exec_module(self, module):
        pass


def allow_missing():
    """Put stand-ins in place of the optional modules that are not installed."""
    missing = [n for n in OPTIONAL if importlib.util.find_spec(n) is None]
    if "tensorboard" in missing:
        missing.append("torch.utils.tensorboard")
    sys.meta_path.insert(0, StandIns(missing))
    return missing


# --------------------------------------------------------------------------- measuring

OPTIONS = None  # parsed command line


def machine():
    """Seconds of CPU time of the whole machine: busy, stolen, all; None without /proc/stat."""
    try:
        with open("/proc/stat") as f:
            user, nice, system, idle, iowait, irq, softirq, steal = (int(x) for x in f.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    tick = os.sysconf("SC_CLK_TCK")
    busy = user + nice + system + irq + softirq
    return busy / tick, steal / tick, (busy + steal + idle + iowait) / tick


def own_cpu():
    """CPU seconds of this process, its children that ended, and its worker processes that run."""
    import multiprocessing

    total = sum(os.times()[:4])
    for child in multiprocessing.active_children():
        try:
            with open(f"/proc/{child.pid}/stat") as f:
                fields = f.read().rsplit(")", 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            pass
    return total


class Watch:
    """Who used the CPU during a timed part."""

    def __enter__(self):
        self.machine, self.own, self.wall = machine(), own_cpu(), time.perf_counter()
        return self

    def __exit__(self, *exc):
        wall = time.perf_counter() - self.wall
        own, after = own_cpu() - self.own, machine()
        self.info = {"own_cores": round(own / wall, 2)}
        if self.machine and after:
            busy, steal, everything = (b - a for a, b in zip(self.machine, after))
            self.info["other_cores"] = round(max(0.0, busy - own) / wall, 2)
            self.info["steal"] = round(steal / everything, 3) if everything else 0.0
            # the counters tick in hundredths: say nothing about a very short part
            if wall > 0.5 and self.info["other_cores"] > DISTURBED:
                self.info["disturbed"] = True
        return False


def wait_until_quiet(patience):
    """Wait, at most `patience` seconds, for two seconds with next to nothing running."""
    end = time.perf_counter() + patience
    while time.perf_counter() < end:
        before = machine()
        if before is None:
            return
        time.sleep(2.0)
        if (machine()[0] - before[0]) / 2.0 < DISTURBED:
            return


def repeat(fn, warmup=2, runs=7):
    """Seconds of each timed call, and what the machine did meanwhile."""
    runs = OPTIONS.runs or runs
    for _ in range(warmup):
        fn()
    seconds = []
    with Watch() as watch:
        for _ in range(runs):
            start = time.perf_counter()
            fn()
            seconds.append(time.perf_counter() - start)
    return seconds, dict(watch.info, warmup=warmup)


def median(values):
    v = sorted(values)
    h = len(v) // 2
    return v[h] if len(v) % 2 else 0.5 * (v[h - 1] + v[h])


def sig(x, digits=4):
    return float(f"%.{digits}g" % x)


def emit(name, unit, amount, seconds, watch, **config):
    """amount None: the value is the seconds themselves, else amount per second."""
    rate = (lambda s: s) if amount is None else (lambda s: amount / s)
    values = [rate(s) for s in seconds]
    row = {
        "name": name + ("_kept" if OPTIONS.malloc == "kept" else ""),
        "value": sig(median(values)),
        "unit": unit,
        "low": sig(min(values)),
        "high": sig(max(values)),
        "median_s": sig(median(seconds)),
        "runs": len(seconds),
        "threads": OPTIONS.threads,
    }
    row.update(watch)
    row.update(config)
    print(json.dumps(row), flush=True)


def millions(module):
    return round(sum(p.numel() for p in module.parameters()) / 1e6, 3)


def test_signal(batch, samples, rate, seed=0):
    """A few decaying partials with noise, peak about 0.5: (batch, 1, samples)."""
    import torch

    g = torch.Generator().manual_seed(seed)
    t = torch.arange(samples) / rate
    out = torch.zeros(batch, 1, samples)
    for b in range(batch):
        for _ in range(12):
            f0, phase, rate_of_decay = torch.rand(3, generator=g).tolist()
            f = 55.0 * 2.0 ** (7.0 * f0)
            out[b, 0] += torch.sin(2 * torch.pi * (f * t + phase)) * torch.exp(-(t * 4 * rate_of_decay) % 1.0)
    out += 0.05 * torch.randn(out.shape, generator=g)
    return 0.5 * out / out.abs().amax(dim=-1, keepdim=True)


# --------------------------------------------------------------------------- DAC

DAC_44K = dict(
    encoder_dim=64,
    encoder_rates=[2, 4, 8, 8],
    decoder_dim=1536,
    decoder_rates=[8, 8, 4, 2],
    n_codebooks=9,
    codebook_size=1024,
    codebook_dim=8,
    sample_rate=SR,
)


def official_dac(**more):
    allow_missing()
    import dac
    import torch

    torch.manual_seed(0)
    return dac.DAC(**DAC_44K, **more)


def dac_codec(which):
    model = official_dac().eval()
    import torch

    audio = test_signal(1, 5 * SR, SR)
    with torch.inference_mode():
        codes = model.encode(model.preprocess(audio, SR))[1]
        if which == "encode":
            fn = lambda: model.encode(model.preprocess(audio, SR))
        else:
            fn = lambda: model.decode(model.quantizer.from_codes(codes)[0])
        seconds, watch = repeat(fn, runs=5)
        if which == "decode":
            assert abs(fn().shape[-1] - 5 * SR) < 2 * 512
    emit(
        "dac_" + which,
        "x realtime",
        5.0,
        seconds,
        watch,
        audio_s=5.0,
        codes=list(codes.shape),
        params_M=millions(model),
        impl="descript-audio-codec",
    )


def dac_hf_codec(which):
    import torch
    from transformers import DacConfig, DacModel

    torch.manual_seed(0)
    model = DacModel(DacConfig(sampling_rate=SR)).eval()
    audio = test_signal(1, 5 * SR, SR)
    audio = torch.nn.functional.pad(audio, (0, -audio.shape[-1] % 512))
    with torch.inference_mode():
        codes = model.encode(audio).audio_codes
        if which == "encode":
            fn = lambda: model.encode(audio)
        else:
            fn = lambda: model.decode(audio_codes=codes)
        seconds, watch = repeat(fn, runs=5)
    emit(
        "dac_hf_" + which,
        "x realtime",
        5.0,
        seconds,
        watch,
        audio_s=5.0,
        codes=list(codes.shape),
        params_M=millions(model),
        impl="transformers DacModel (weight norm folded)",
    )


def dac_training(adversarial):
    model = official_dac(quantizer_dropout=0.5).train()
    from audiotools import AudioSignal
    from dac.model import Discriminator
    from dac.nn.loss import GANLoss, MelSpectrogramLoss
    import torch

    samples, batch = 16384, 2
    mel = MelSpectrogramLoss(
        n_mels=[5, 10, 20, 40, 80, 160, 320],
        window_lengths=[32, 64, 128, 256, 512, 1024, 2048],
        mel_fmin=[0.0] * 7,
        mel_fmax=[None] * 7,
        pow=1.0,
        clamp_eps=1e-5,
        mag_weight=0.0,
    )
    real_audio = test_signal(batch, samples, SR)
    adam = dict(lr=1e-4, betas=(0.8, 0.99))
    opt_g = torch.optim.AdamW(model.parameters(), **adam)
    extra = {}
    if adversarial:
        disc = Discriminator(sample_rate=SR)
        opt_d = torch.optim.AdamW(disc.parameters(), **adam)
        gan = GANLoss(disc)
        extra["discriminator_params_M"] = millions(disc)
    losses = []

    def step():
        real = AudioSignal(real_audio.clone(), SR)
        out = model(real.audio_data, SR)
        fake = AudioSignal(out["audio"], SR)
        if adversarial:
            opt_d.zero_grad()
            gan.discriminator_loss(fake, real).backward()
            torch.nn.utils.clip_grad_norm_(disc.parameters(), 10.0)
            opt_d.step()
        opt_g.zero_grad()
        loss = 15.0 * mel(fake, real) + 0.25 * out["vq/commitment_loss"] + out["vq/codebook_loss"]
        if adversarial:
            fool, features = gan.generator_loss(fake, real)
            loss = loss + fool + 2.0 * features
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e3)
        opt_g.step()
        losses.append(float(loss.detach()))

    seconds, watch = repeat(step, warmup=2, runs=5)
    assert all(x == x and abs(x) < 1e9 for x in losses), losses
    emit(
        "dac_gan_step" if adversarial else "dac_generator_step",
        "s/step",
        None,
        seconds,
        watch,
        batch=batch,
        samples=samples,
        audio_s=round(batch * samples / SR, 3),
        params_M=millions(model),
        first_loss=sig(losses[0]),
        last_loss=sig(losses[-1]),
        impl="descript-audio-codec",
        **extra,
    )


# --------------------------------------------------------------------------- Vocos, EnCodec


def vocos_decode():
    allow_missing()
    import torch
    from vocos.heads import ISTFTHead
    from vocos.models import VocosBackbone

    torch.manual_seed(0)
    mels, hop = 100, 256
    model = torch.nn.Sequential(
        VocosBackbone(input_channels=mels, dim=512, intermediate_dim=1536, num_layers=8),
        ISTFTHead(dim=512, n_fft=1024, hop_length=hop, padding="center"),
    ).eval()
    features = torch.randn(1, mels, 10 * SR // hop + 1)
    with torch.inference_mode():
        audio_s = model(features).shape[-1] / SR
        seconds, watch = repeat(lambda: model(features), warmup=3, runs=21)
    emit(
        "vocos_decode",
        "x realtime",
        audio_s,
        seconds,
        watch,
        audio_s=round(audio_s, 3),
        mels=mels,
        frames=features.shape[-1],
        params_M=millions(model),
        impl="vocos",
    )


def encodec_codec(which):
    import torch
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    rate, seconds_of_audio, kbps = 24000, 5, 6.0
    model = EncodecModel(EncodecConfig()).eval()
    for layer in model.quantizer.layers:  # the code books start at zero
        layer.codebook.embed.normal_()
    audio = test_signal(1, seconds_of_audio * rate, rate)
    with torch.inference_mode():
        coded = model.encode(audio, bandwidth=kbps)
        if which == "encode":
            fn = lambda: model.encode(audio, bandwidth=kbps)
        else:
            fn = lambda: model.decode(coded.audio_codes, coded.audio_scales)
        seconds, watch = repeat(fn, warmup=3, runs=11)
    emit(
        "encodec_" + which,
        "x realtime",
        seconds_of_audio,
        seconds,
        watch,
        audio_s=seconds_of_audio,
        kbps=kbps,
        codes=list(coded.audio_codes.shape),
        params_M=millions(model),
        impl="transformers EncodecModel",
    )


# --------------------------------------------------------------------------- language model


def llama():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8194,
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )


PROMPT, NEW, TOP_K = 16, 256, 50


def llama_generate():
    import torch
    from transformers import GenerationConfig

    model = llama().eval()
    how = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=TOP_K,
        top_p=1.0,
        max_new_tokens=NEW,
        use_cache=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    for batch in (1, 8):
        prompt = torch.randint(2, 8194, (batch, PROMPT))
        mask = torch.ones_like(prompt)

        def fn():
            out = model.generate(prompt, attention_mask=mask, generation_config=how)
            assert out.shape == (batch, PROMPT + NEW), out.shape

        seconds, watch = repeat(fn, warmup=1, runs=5)
        emit(
            f"llama_generate_b{batch}",
            "tokens/s",
            batch * NEW,
            seconds,
            watch,
            batch=batch,
            prompt=PROMPT,
            new_tokens=NEW,
            top_k=TOP_K,
            params_M=millions(model),
            impl="transformers generate()",
        )


def llama_decode_loop():
    """The same work without generate(): the forward call with its cache, and top-k sampling."""
    import torch
    from transformers import DynamicCache

    model = llama().eval()
    for batch in (1, 8):
        prompt = torch.randint(2, 8194, (batch, PROMPT))

        @torch.inference_mode()
        def fn():
            cache, token = DynamicCache(config=model.config), prompt
            for _ in range(NEW):
                logits = model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
                best, index = logits[:, -1].topk(TOP_K)
                token = index.gather(1, torch.multinomial(best.softmax(-1), 1))
            assert cache.get_seq_length() == PROMPT + NEW - 1

        seconds, watch = repeat(fn, warmup=1, runs=5)
        emit(
            f"llama_decode_loop_b{batch}",
            "tokens/s",
            batch * NEW,
            seconds,
            watch,
            batch=batch,
            prompt=PROMPT,
            new_tokens=NEW,
            top_k=TOP_K,
            params_M=millions(model),
            impl="transformers forward, own loop",
        )


def llama_train():
    import torch

    model = llama().train()
    opt = torch.optim.AdamW(model.parameters(), lr=3e-4)
    batch, length = 4, 512
    tokens = torch.randint(2, 8194, (batch, length))

    def step():
        opt.zero_grad()
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        opt.step()

    seconds, watch = repeat(step, warmup=2, runs=7)
    emit(
        "llama_train",
        "tokens/s",
        batch * length,
        seconds,
        watch,
        batch=batch,
        length=length,
        params_M=millions(model),
        impl="transformers LlamaForCausalLM",
    )


# --------------------------------------------------------------------------- mel front end


def mel_frontend():
    import librosa
    import torch

    n_fft, hop, mels, audio_s = 2048, 512, 128, 60
    audio = test_signal(1, audio_s * SR, SR)[0, 0]
    bank = torch.from_numpy(librosa.filters.mel(sr=SR, n_fft=n_fft, n_mels=mels))
    window = torch.hann_window(n_fft)

    def by_torch():
        spec = torch.stft(audio, n_fft, hop, window=window, center=True, pad_mode="constant", return_complex=True)
        return bank @ (spec.real.square() + spec.imag.square())

    samples = audio.numpy()

    def by_librosa():
        return librosa.feature.melspectrogram(y=samples, sr=SR, n_fft=n_fft, hop_length=hop, n_mels=mels)

    a, b = by_torch(), torch.from_numpy(by_librosa())
    error = float((a - b).abs().max() / b.abs().max())
    assert a.shape == b.shape and error < 1e-4, (a.shape, b.shape, error)
    for name, fn in (("mel_frontend_torch", by_torch), ("mel_frontend_librosa", by_librosa)):
        seconds, watch = repeat(fn, warmup=3, runs=31)
        emit(
            name,
            "x realtime",
            audio_s,
            seconds,
            watch,
            audio_s=audio_s,
            n_fft=n_fft,
            hop=hop,
            mels=mels,
            largest_difference=sig(error, 2),
        )


# --------------------------------------------------------------------------- loader


class Crops:
    """Map-style data set: item i is a random mono crop that depends on i alone."""

    def __init__(self, files, crop=CROP):
        import soundfile

        self.files = [(f, n) for f, n in ((f, soundfile.info(f).frames) for f in files) if n > crop]
        self.crop = crop

    def __len__(self):
        return 10**9

    def __getitem__(self, i):
        import numpy
        import soundfile
        import torch

        r = numpy.random.default_rng(i)
        path, frames = self.files[r.integers(len(self.files))]
        with soundfile.SoundFile(path) as f:
            f.seek(int(r.integers(frames - self.crop + 1)))
            x = f.read(self.crop, dtype="float32", always_2d=True)
        mono = x[:, 0].copy()
        for c in range(1, x.shape[1]):
            mono += x[:, c]
        return torch.from_numpy(mono if x.shape[1] == 1 else mono / x.shape[1])


def folder_bytes(files):
    return round(sum(os.path.getsize(f) for f in files) / 1e6, 1)


def loader():
    from concurrent.futures import ThreadPoolExecutor
    import tempfile

    import soundfile
    import torch

    if not OPTIONS.audio:
        print(json.dumps({"name": "loader", "skipped": "needs --audio FOLDER"}), flush=True)
        return
    ogg = sorted(os.path.join(d, f) for d, _, fs in os.walk(OPTIONS.audio) for f in fs if f.endswith(".ogg"))
    if not ogg:
        raise SystemExit("no .ogg file under the folder given by --audio")
    workers, batch = 2, 8

    def measure(name, files, blocks, batches_per_block, **config):
        data = Crops(files)
        total = (blocks + 2) * batches_per_block
        batches = iter(
            torch.utils.data.DataLoader(
                data, batch_size=batch, sampler=range(total * batch), num_workers=workers, drop_last=True
            )
        )
        for _ in range(2 * batches_per_block):  # start of the workers, full queues
            next(batches)
        seconds = []
        with Watch() as watch:
            for _ in range(blocks):
                start = time.perf_counter()
                for _ in range(batches_per_block):
                    shape = next(batches).shape
                seconds.append(time.perf_counter() - start)
        assert tuple(shape) == (batch, CROP), shape
        emit(
            name,
            "crops/s",
            batch * batches_per_block,
            seconds,
            dict(watch.info, warmup=2),
            crop=CROP,
            batch=batch,
            workers=workers,
            files=len(data.files),
            megabytes=folder_bytes(files),
            **config,
        )

    for f in ogg:  # bring the files into the page cache
        with open(f, "rb") as h:
            while h.read(1 << 22):
                pass
    measure("loader_ogg", ogg, 7, 25)

    with tempfile.TemporaryDirectory() as folder:

        def decode(job):
            index, path = job
            x, rate = soundfile.read(path, dtype="float32", always_2d=True)
            names = [os.path.join(folder, f"{index:04d}.{kind}.wav") for kind in ("source", "mono")]
            soundfile.write(names[0], x, rate, subtype="PCM_16")
            soundfile.write(names[1], x.mean(axis=1), rate, subtype="PCM_16")
            return names + [x.shape[0] / rate]

        start = time.perf_counter()
        with ThreadPoolExecutor(workers) as pool:
            done = list(pool.map(decode, enumerate(ogg)))
        took = time.perf_counter() - start
        measure(
            "loader_wav_int16",
            [d[0] for d in done],
            7,
            100,
            channels="as in the source",
            decoded_audio_s=round(sum(d[2] for d in done), 1),
            decode_and_write_s=round(took, 1),
        )
        measure("loader_wav_int16_mono", [d[1] for d in done], 7, 250, channels="1")


# --------------------------------------------------------------------------- memory


def memory_bandwidth():
    import torch

    a = torch.ones(2**28)  # 1 GiB
    b = torch.zeros_like(a)
    seconds, watch = repeat(lambda: b.copy_(a), warmup=2, runs=15)  # noqa: F821
    emit("memory_copy_1GiB", "GB/s", 2 * a.numel() * 4 / 1e9, seconds, watch, counted="bytes read + bytes written")
    del a, b
    for name, rows, cols in (("memory_matvec_1GiB", 16384, 16384), ("memory_matvec_128MiB", 8192, 4096)):
        matrix, vector = torch.randn(rows, cols), torch.randn(cols)
        with torch.inference_mode():
            seconds, watch = repeat(lambda: torch.mv(matrix, vector), warmup=3, runs=25)
        emit(name, "GB/s", matrix.numel() * 4 / 1e9, seconds, watch, shape=[rows, cols], counted="bytes of the matrix")
    # As a batch-1 decoder does it: a chain of linear layers, each read once per token.
    # As many weight bytes as the language model above reads per token.
    layers = [torch.randn(1024, 1024) * 0.03 for _ in range(29)]
    start = torch.randn(1, 1024)

    def chain():
        x = start
        for w in layers:
            x = torch.nn.functional.linear(x, w)
        return x

    with torch.inference_mode():
        seconds, watch = repeat(chain, warmup=5, runs=51)
    emit(
        "memory_linear_chain",
        "GB/s",
        len(layers) * 2**22 / 1e9,
        seconds,
        watch,
        layers=len(layers),
        megabytes=round(len(layers) * 2**22 / 1e6, 1),
        counted="bytes of the weights",
    )


# --------------------------------------------------------------------------- versions


def versions():
    row = {
        "name": "versions",
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "threads": OPTIONS.threads,
    }
    for package in (
        "torch",
        "transformers",
        "descript-audio-codec",
        "descript-audiotools",
        "vocos",
        "librosa",
        "numpy",
        "scipy",
        "soundfile",
        "julius",
        "numba",
    ):
        try:
            row[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            row[package] = None
    import soundfile
    import torch

    row["libsndfile"] = soundfile.__libsndfile_version__
    row["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    row["mkl"] = torch.backends.mkl.is_available()
    row["onednn"] = torch.backends.mkldnn.is_available()
    print(json.dumps(row), flush=True)


MEASUREMENTS = {
    "versions": versions,
    "memory_bandwidth": memory_bandwidth,
    "mel_frontend": mel_frontend,
    "dac_encode": lambda: dac_codec("encode"),
    "dac_decode": lambda: dac_codec("decode"),
    "dac_hf_encode": lambda: dac_hf_codec("encode"),
    "dac_hf_decode": lambda: dac_hf_codec("decode"),
    "dac_generator_step": lambda: dac_training(False),
    "dac_gan_step": lambda: dac_training(True),
    "vocos_decode": vocos_decode,
    "encodec_encode": lambda: encodec_codec("encode"),
    "encodec_decode": lambda: encodec_codec("decode"),
    "llama_generate": llama_generate,
    "llama_decode_loop": llama_decode_loop,
    "llama_train": llama_train,
    "loader": loader,
}
ON_REQUEST = ("dac_hf_encode", "dac_hf_decode")  # only with --only
MALLOC_MATTERS = (
    "mel_frontend",
    "dac_encode",
    "dac_decode",
    "dac_hf_encode",
    "dac_hf_decode",
    "dac_generator_step",
    "dac_gan_step",
    "vocos_decode",
    "encodec_encode",
    "encodec_decode",
)
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 26)}


def main():
    global OPTIONS
    cores = len(os.sched_getaffinity(0))
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        choices=list(MEASUREMENTS),
        help="measure this alone (may be given again)",
    )
    p.add_argument("--threads", type=int, default=cores, metavar="N", help="compute threads (default: all cores)")
    p.add_argument("--audio", metavar="FOLDER", help="folder with .ogg files, for the loader")
    p.add_argument("--runs", type=int, metavar="N", help="timed runs, instead of each measurement's own number")
    p.add_argument("--malloc", choices=("default", "kept", "both"), default="both", help="see the head of this file")
    p.add_argument(
        "--patience",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="wait at most so long for a quiet machine before each measurement (default 0)",
    )
    p.add_argument("--list", action="store_true", help="print the names and stop")
    OPTIONS = p.parse_args()
    if OPTIONS.list:
        print("\n".join(MEASUREMENTS))
        return 0
    names = OPTIONS.only or [n for n in MEASUREMENTS if n not in ON_REQUEST]
    jobs = [
        (n, m)
        for n in names
        for m in ("default", "kept")
        if m == OPTIONS.malloc or (OPTIONS.malloc == "both" and (m == "default" or n in MALLOC_MATTERS))
    ]

    if len(jobs) > 1 or OPTIONS.malloc == "both":
        failed = 0
        for name, malloc in jobs:
            command = [
                sys.executable,
                os.path.abspath(__file__),
                "--only",
                name,
                "--malloc",
                malloc,
                "--threads",
                str(OPTIONS.threads),
            ]
            if OPTIONS.audio:
                command += ["--audio", OPTIONS.audio]
            if OPTIONS.patience:
                command += ["--patience", str(OPTIONS.patience)]
            if OPTIONS.runs:
                command += ["--runs", str(OPTIONS.runs)]
            for _ in range(3 if OPTIONS.patience else 1):
                child = subprocess.run(command, stdout=subprocess.PIPE, text=True)
                if '"disturbed": true' not in child.stdout:
                    break
            print(child.stdout, end="", flush=True)
            failed += child.returncode != 0
        return 1 if failed else 0

    if OPTIONS.malloc == "kept" and any(os.environ.get(k) != v for k, v in KEPT.items()):
        os.execve(sys.executable, [sys.executable, os.path.abspath(__file__)] + sys.argv[1:], {**os.environ, **KEPT})
    if OPTIONS.malloc == "default":
        for k in KEPT:
            if k in os.environ:
                raise SystemExit(f"{k} is set: unset it, or ask for --malloc kept")
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = str(OPTIONS.threads)  # before numpy and torch are imported
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import warnings

    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(OPTIONS.threads)
    if OPTIONS.patience and names != ["versions"]:
        wait_until_quiet(OPTIONS.patience)
    try:
        MEASUREMENTS[names[0]]()
    except Exception as e:
        import traceback

        traceback.print_exc()
        print(json.dumps({"name": names[0], "error": f"{type(e).__name__}: {e}"[:300]}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
