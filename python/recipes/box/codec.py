"""Training of the codec: a narrow Mimi.

As in the Moshi paper (https://arxiv.org/abs/2410.00037, section 3.3) the first codebook is
semantic. Where the paper distils a self-supervised model, this recipe knows what is said in its
synthetic speech: a linear head on the first codebook predicts phones, frame by frame where the
synthesizer tells their times (flite) and by connectionist temporal classification where it does
not. The loss on the waveform compares spectra.
"""

from __future__ import annotations

import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from moshi.models import loaders
from torch import nn
from torch.nn import functional

import augment
import corpus
import shapes
from schedule import learning_rate

PHONES = (
    "aa ae ah ao aw ax ay b ch d dh eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh t th uh uw "
    "v w y z zh"
).split()
# Times at which the head says which phone is spoken, in a frame of 80 ms; 0 stands for none.
SUBFRAMES = 2
SEGMENT_FRAMES = 20
# Parts of the training: phones with the encoder alone; all without codebooks; all with them.
PHONES_UNTIL, UNQUANTISED_UNTIL = 0.48, 0.6
# Magnitudes of about -35 dB below those of speech: what is quieter hardly counts in the loss.
LOG_FLOOR = 1.5e-3
# Of speech, over all times and frequencies: brings the linear part of the loss near 1.
TYPICAL_MAGNITUDE = 1e-2


def new_codec() -> nn.Module:
    """A Mimi of the box's sizes with random weights."""
    codec = loaders.get_mimi(None, shapes.CODEC, num_codebooks=shapes.CODEBOOKS)
    assert isinstance(codec, nn.Module)
    return codec


class SpectralLoss(nn.Module):
    """Distance of two waveforms: log-mel and linear magnitudes at five resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = ((128, 12), (256, 24), (512, 40), (1024, 64), (2048, 80))
        for size, bands in self.scales:
            self.register_buffer(f"window_{size}", torch.hann_window(size))
            self.register_buffer(f"mel_{size}", mel_bands(size, bands))

    def forward(self, made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Both `[batch, samples]`; one number for each of the batch."""
        total = torch.zeros(len(made))
        for size, _ in self.scales:
            window, mel = getattr(self, f"window_{size}"), getattr(self, f"mel_{size}")
            a, b = (
                torch.stft(x, size, size // 4, window=window, return_complex=True).abs()
                / window.norm()
                for x in (made, wanted)
            )
            linear = (a - b).abs().mean((1, 2)) / TYPICAL_MAGNITUDE
            a, b = (torch.log(mel @ x + LOG_FLOOR) for x in (a, b))
            total = total + linear + (a - b).abs().mean((1, 2))
        return total / len(self.scales)


def mel_bands(size: int, bands: int) -> torch.Tensor:
    """Averaging triangles `[bands, size / 2 + 1]`, evenly spaced in mel up to 12 kHz."""
    top = 2595 * math.log10(1 + 12000 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2) / 2595) - 1)
    frequency = torch.linspace(0, shapes.SAMPLE_RATE / 2, size // 2 + 1)
    step = shapes.SAMPLE_RATE / size
    rows = []
    for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False):
        rising = (frequency - low) / torch.clamp(centre - low, min=step)
        falling = (high - frequency) / torch.clamp(high - centre, min=step)
        row = torch.clamp(torch.minimum(rising, falling), min=0)
        if row.sum() == 0:
            row[(frequency - centre).abs().argmin()] = 1
        rows.append(row / row.sum())
    return torch.stack(rows)


class Segments:
    """Draws batches of segments: two of the box's own voice to four of the users'."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.own, self.users = corpus.load(folder / "own.npz"), corpus.load(folder / "users.npz")
        self.random = np.random.default_rng(seed)
        self.own_share = 0.34

    def draw(self) -> tuple[np.ndarray, np.ndarray | None, list[int]]:
        """Samples, labels of sub-frames (where known), phones (where the whole utterance fits)."""
        is_own = self.random.random() < self.own_share
        pool = self.own if is_own else self.users
        utterance = pool[self.random.integers(len(pool))]
        samples, factor = utterance.samples, 1.0
        if not is_own:
            if self.random.random() < 0.5:
                factor = self.random.uniform(0.88, 1.14)
                samples = augment.warp(samples, factor)
            samples = augment.as_heard(samples, self.random)
        else:
            samples = samples * augment.decibels(self.random.uniform(-3, 3))
        length = SEGMENT_FRAMES * shapes.FRAME_SIZE
        start = int(self.random.integers(-abs(length - len(samples)), 1))
        segment = np.zeros(length, np.float32)
        if len(samples) <= length:
            segment[-start : -start + len(samples)] = samples
        else:
            segment[:] = samples[-start : -start + length]
        offset = -start if len(samples) <= length else start
        labels, phones = None, [PHONES.index(p) + 1 for p in utterance.phones if p != "pau"]
        if utterance.ends:
            middles = (np.arange(SEGMENT_FRAMES * SUBFRAMES) + 0.5) * shapes.FRAME_SIZE / SUBFRAMES
            places = np.searchsorted(
                np.array(utterance.ends),
                (middles - offset) / shapes.SAMPLE_RATE * factor,
                side="right",
            )
            ids = np.array(
                [PHONES.index(p) + 1 if p != "pau" else 0 for p in utterance.phones] + [0]
            )
            labels = np.where(middles < offset, 0, ids[places])
        if len(samples) > length:
            phones = []
        kind = self.random.random()
        if is_own:
            if kind < 0.3:
                segment += augment.room(length, self.random) * 0.3
        elif kind < 0.6:
            segment += augment.noise(length, self.random) * augment.decibels(
                self.random.uniform(-65, -36)
            )
        elif kind < 0.66:
            segment, labels, phones = (
                augment.room(length, self.random),
                np.zeros(SEGMENT_FRAMES * SUBFRAMES, int),
                [],
            )
        return segment, labels, phones

    def batch(self, size: int) -> tuple[torch.Tensor, list[np.ndarray | None], list[list[int]]]:
        """Samples `[size, 1, samples]` with what `draw` tells of each."""
        drawn = [self.draw() for _ in range(size)]
        return (
            torch.from_numpy(np.stack([d[0] for d in drawn]))[:, None],
            [d[1] for d in drawn],
            [d[2] for d in drawn],
        )


def encode_latent(codec: nn.Module, samples: torch.Tensor) -> torch.Tensor:
    """The latent before the quantisers, `[batch, dim, frames]`."""
    (hidden,) = codec.encoder_transformer(codec.encoder(samples))
    return codec._to_framerate(hidden)


def decode_latent(codec: nn.Module, latent: torch.Tensor) -> torch.Tensor:
    """Samples from the latent after the quantisers."""
    (hidden,) = codec.decoder_transformer(codec._to_encoder_framerate(latent))
    return codec.decoder(hidden)


def unquantised(codec: nn.Module, samples: torch.Tensor) -> torch.Tensor:
    """The codec without its codebooks."""
    latent, quantizer = encode_latent(codec, samples), codec.quantizer
    semantic, acoustic = (
        quantizer.rvq_first.input_proj(latent),
        quantizer.rvq_rest.input_proj(latent),
    )
    return decode_latent(
        codec, quantizer.rvq_first.output_proj(semantic) + quantizer.rvq_rest.output_proj(acoustic)
    )


def start_weights(codec: nn.Module, samples: torch.Tensor) -> None:
    """Starts the convolutions at scales that keep a signal's size on its way from end to end.

    The usual start shrinks it at every layer, and training then settles on a constant latent. As in
    layer-sequential unit-variance initialisation (https://arxiv.org/abs/1511.06422), by measuring.
    """
    order: list[tuple[str, nn.Module]] = []
    named = [
        (name, module)
        for name, module in codec.named_modules()
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d)
    ]
    hooks = [
        module.register_forward_hook(lambda m, _i, _o, name=name: order.append((name, m)))
        for name, module in named
    ]
    with torch.no_grad():
        unquantised(codec, samples)
        for hook in hooks:
            hook.remove()
        for name, module in order:
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            spreads: list[torch.Tensor] = []
            hook = module.register_forward_hook(
                lambda _m, _i, out, spreads=spreads: spreads.append(out.std())
            )
            unquantised(codec, samples)
            hook.remove()
            wanted = 0.3 if ".block.3." in name else 1.0
            if module is order[-1][1]:
                wanted = 0.05
            module.weight.mul_(wanted / spreads[0])


def phone_loss(
    logits: torch.Tensor, labels: list[np.ndarray | None], phones: list[list[int]]
) -> tuple[torch.Tensor, float]:
    """Loss of the phones from logits `[batch, sub-frames, phones]`.

    With it the share of the labelled phones that are right.
    """
    losses, right, counted = [], 0, 0
    for row, known, said in zip(logits, labels, phones, strict=True):
        if known is not None:
            target = torch.from_numpy(known)
            losses.append(functional.cross_entropy(row, target))
            spoken = target > 0
            right += int((row.argmax(-1) == target)[spoken].sum())
            counted += int(spoken.sum())
        elif said:
            target = torch.tensor(said)
            loss = functional.ctc_loss(
                row.log_softmax(-1)[:, None],
                target[None],
                (len(row),),
                (len(said),),
                zero_infinity=True,
            )
            losses.append(loss)
    return torch.stack(losses).mean() if losses else logits.sum() * 0, right / max(counted, 1)


def start_codebooks(codec: nn.Module, segments: Segments, batches: int = 60) -> None:
    """Starts every codebook by k-means on latents of the trained encoder."""
    with torch.no_grad():
        latents = [encode_latent(codec, segments.batch(8)[0]) for _ in range(batches)]
        for branch in (codec.quantizer.rvq_first, codec.quantizer.rvq_rest):
            residual = (
                torch.cat([branch.input_proj(latent) for latent in latents])
                .transpose(1, 2)
                .flatten(0, 1)
            )
            for layer in branch.vq.layers:
                book = layer._codebook
                book._init_embedding(residual)
                # The averages are of batches, not of this pool.
                scale = len(latents[0]) * SEGMENT_FRAMES / book.cluster_usage.sum()
                book.cluster_usage.mul_(scale)
                book.embedding_sum.mul_(scale)
                book.register_buffer("_embedding", None, persistent=False)
                residual = residual - book.decode(book.encode(residual))


def train(folder: Path, steps: int, seed: int, batch: int = 5, rate: float = 8e-4) -> None:
    """Trains to `codec.pt` in the folder; a run that was stopped goes on."""
    torch.manual_seed(seed)
    random.seed(seed)
    segments = Segments(folder, seed)
    codec = new_codec().train()
    head = nn.Linear(64, SUBFRAMES * (len(PHONES) + 1))
    spectral = SpectralLoss()
    parameters = [*codec.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, rate, betas=(0.9, 0.99), weight_decay=1e-3)
    path, first = folder / "codec.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=False)
        if state["steps"] != steps:
            # The phases begin at parts of the whole.
            raise ValueError(
                f"{path} is of a run of {state['steps']} steps: resume it with as many"
            )
        codec.load_state_dict(state["codec"])
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        segments.random = np.random.default_rng([seed, first])
    else:
        start_weights(codec, segments.batch(4)[0])
    joint_from, quantise_from = int(PHONES_UNTIL * steps), int(UNQUANTISED_UNTIL * steps)
    began, shown = time.time(), torch.zeros(4)
    quantizer = codec.quantizer
    for step in range(first, steps):
        if step == quantise_from:
            start_codebooks(codec, segments)
        # Phones alone cost less: more of them in a batch.
        size = batch if step >= joint_from else 2 * batch
        segments.own_share = 0.34 if step >= joint_from else 0.1
        part = max(0.0, (step - joint_from) / (steps - joint_from))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(rate, step, 100, part)
        wanted, labels, phones = segments.batch(size)
        if step < joint_from // 5:
            # Phones whose times are known come first; without them the others are hard to find.
            phones = [[] for _ in phones]
        dither = (
            1e-3
            * torch.rand(size, 1, 1)
            * torch.randn_like(wanted)
            * (torch.rand(size, 1, 1) < 0.7)
        )
        latent = encode_latent(codec, wanted + dither)
        semantic, acoustic = (
            quantizer.rvq_first.input_proj(latent),
            quantizer.rvq_rest.input_proj(latent),
        )
        penalty = torch.zeros(())
        if step >= quantise_from:
            semantic, _, first_penalty, _ = quantizer.rvq_first.vq(semantic)
            acoustic, _, rest_penalty, _ = quantizer.rvq_rest.vq(acoustic)
            penalty = first_penalty.mean() + rest_penalty.mean()
        logits = head(semantic.transpose(1, 2)).view(size, SEGMENT_FRAMES * SUBFRAMES, -1)
        spoken, right = phone_loss(logits, labels, phones)
        loss = spoken
        spectra = torch.zeros(())
        if step >= joint_from:
            # The first codebook is left to the phones: the waveform takes of it what there is.
            summed = quantizer.rvq_first.output_proj(
                semantic.detach()
            ) + quantizer.rvq_rest.output_proj(acoustic)
            spectra = spectral(decode_latent(codec, summed)[:, 0], wanted[:, 0]).mean()
            loss = spectra + 0.5 * spoken + 0.25 * penalty
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 2.0)
        optimizer.step()
        shown += torch.tensor([spectra.item(), spoken.item(), float(penalty), right])
        if (step + 1) % 50 == 0:
            spectra_, spoken_, penalty_, right_ = (shown / 50).tolist()
            shown.zero_()
            print(
                f"codec {step + 1}/{steps} spectra {spectra_:.3f} phones {spoken_:.3f} "
                f"({right_:.0%} right) penalty {penalty_:.4f} "
                f"{(time.time() - began) / (step + 1 - first):.3f} s/step",
                flush=True,
            )
        if (step + 1) % 250 == 0 or step + 1 == steps:
            partial = path.with_suffix(".partial")
            torch.save(
                {
                    "codec": codec.state_dict(),
                    "head": head.state_dict(),
                    "steps": steps,
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                },
                partial,
            )
            partial.rename(path)


def decoding_parameters(codec: nn.Module) -> list[nn.Parameter]:
    """What turns codes into sound: all of it can change while the codes stay as they are."""
    return [
        parameter
        for name, parameter in codec.named_parameters()
        if name.startswith(("decoder", "upsample")) or "output_proj" in name
    ]


def polish(
    folder: Path, source: Path, steps: int, seed: int, batch: int = 6, rate: float = 4e-4
) -> None:
    """Trains the decoder of an exported codec alone, mostly on the box's own voice.

    It is written to `decoder.pt`. The encoder and the codebooks stay, so that conversations and
    language models made with them stay valid.
    """
    torch.manual_seed(seed)
    segments = Segments(folder, seed)
    segments.own_share = 0.85
    for path in sorted(folder.glob("answers.npz")):
        # What it will say in the end counts most.
        segments.own += corpus.load(path) * 8
    codec = loaders.get_mimi(source, shapes.CODEC, num_codebooks=shapes.CODEBOOKS).eval()
    assert isinstance(codec, nn.Module)
    codec.requires_grad_(False)
    parameters = decoding_parameters(codec)
    for parameter in parameters:
        parameter.requires_grad_(True)
    spectral = SpectralLoss()
    optimizer = torch.optim.AdamW(parameters, rate, betas=(0.9, 0.99), weight_decay=1e-3)
    path, first = folder / "decoder.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=False)
        codec.load_state_dict(state["codec"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        segments.random = np.random.default_rng([seed, first])
    began, shown = time.time(), 0.0
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(rate, step, 100, step / steps)
        wanted, _, _ = segments.batch(batch)
        with torch.no_grad():
            codes = codec.encode(wanted)
        made = decode_latent(codec, codec.quantizer.decode(codes))
        loss = spectral(made[:, 0], wanted[:, 0]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 2.0)
        optimizer.step()
        shown += loss.item()
        if (step + 1) % 50 == 0:
            pace = (time.time() - began) / (step + 1 - first)
            print(
                f"decoder {step + 1}/{steps} spectra {shown / 50:.3f} {pace:.3f} s/step", flush=True
            )
            shown = 0.0
        if (step + 1) % 250 == 0 or step + 1 == steps:
            partial = path.with_suffix(".partial")
            torch.save(
                {
                    "codec": codec.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                },
                partial,
            )
            partial.rename(path)


def trained(path: Path) -> nn.Module:
    """The codec of a run's file."""
    codec = new_codec()
    codec.load_state_dict(torch.load(path, weights_only=False)["codec"])
    return codec.eval()
