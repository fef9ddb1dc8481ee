"""Audiovision-MNIST: digits as pictures (MNIST's files) and spoken (a Free Spoken Digit folder), paired by class.

SMIL (Ma et al., AAAI 2021) made the task and MCKD (arXiv 2405.07155) took it over: 1500 pairs, 150 a digit; recordings
of jackson, nicolas and theo, 50 a digit and speaker. Recordings 0-14 are for testing (450); of the others MCKD keeps
150 aside, taken here to be 45-49, and trains on 900.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy.fft import dct
from scipy.io import wavfile

from medmap.errors import InputDataError, MissingInputError
from medmap.task import Label, Modality, Task
from medmap.training.batch import Batch

SPEAKERS = ("jackson", "nicolas", "theo")
PARTS = {"test": range(15), "train": range(15, 45), "meta": range(45, 50)}
"""Recording numbers of each part."""
IMAGE, SOUND = 28, 20
"""Sides of the pictures and of the sounds' MFCC maps."""

AUDIOVISION = Task(
    name="Audiovision-MNIST",
    modalities=(Modality("image", "Image"), Modality("sound", "Sound")),
    labels=tuple(Label(str(digit), str(digit), digit) for digit in range(1, 10)),
    regions=(),
    organ="picture",
    target="digit",
    skull_stripped=False,
)
"""Ten classes; class 0, which a segmentation task calls background, is the digit 0."""


@dataclass(frozen=True)
class Pairs:
    """Pictures and sounds of the same digits.

    Attributes:
        image: [N, 2, 28, 28] float32: the picture, and the MFCC map [20, 20] in the corner of a picture's size.
        digit: [N] int64.
    """

    image: torch.Tensor
    digit: torch.Tensor


def read_idx(path: Path) -> np.ndarray:
    """An array in MNIST's own format, packed or not.

    Raises:
        MissingInputError: there is no such file.
        InputDataError: it is not in that format.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise MissingInputError(
            f"{path.name} cannot be read.", "Give the folder that holds MNIST's files."
        ) from error
    if data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise InputDataError(f"{path.name} is not in MNIST's format.", "Download it again.")
    shape = np.frombuffer(data, ">u4", data[3], 4).astype(int)
    if len(data) != 4 + 4 * data[3] + shape.prod():
        raise InputDataError(f"{path.name} is cut off.", "Download it again.")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def read_mnist(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [N, 28, 28] uint8 and digits [N] of whichever of MNIST's parts a folder holds (train, t10k or both)."""
    images, digits = [], []
    for part in ("train", "t10k"):
        files = [sorted(folder.glob(f"{part}-{kind}*")) for kind in ("images", "labels")]
        if all(files):
            images.append(read_idx(files[0][0]))
            digits.append(read_idx(files[1][0]))
    if not images:
        raise MissingInputError(
            f"{folder.name} holds no MNIST files.", "Expected t10k-images-idx3-ubyte.gz and so on."
        )
    return np.concatenate(images), np.concatenate(digits)


def mfcc(samples: np.ndarray, legacy: bool = True) -> np.ndarray:
    """[20, 20] cepstrum of a recording at 8 kHz, as SMIL feeds it to its network: padded with 0, then (x - .5) / .5.

    ``legacy`` is what SMIL's code computes: every third sample without a filter, declared as 8 kHz all the same, and
    librosa's defaults (2048 points, hop 512, 128 Slaney mels), so that most recordings fill 2 or 3 of 20 columns. The
    other way keeps all samples and takes 512 points, hop 200, 40 mels: about 16 columns.

    Args:
        samples: [n] in -1..1.
    """
    points, hop, bands = (2048, 512, 128) if legacy else (512, 200, 40)
    samples = samples[::3] if legacy else samples
    padded = np.pad(np.asarray(samples, np.float64), points // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, points)[::hop]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(points) / points)
    power = np.abs(np.fft.rfft(frames * window)) ** 2 @ mel_filters(8000, points, bands).T
    decibels = 10 * np.log10(np.maximum(power, 1e-10))
    decibels = np.maximum(decibels, decibels.max() - 80)
    found = dct(decibels, norm="ortho", axis=1)[:SOUND, :SOUND].T
    result = np.zeros((SOUND, SOUND))
    result[:, : found.shape[1]] = found
    return ((result - 0.5) / 0.5).astype(np.float32)


@cache
def mel_filters(rate: int, points: int, bands: int) -> np.ndarray:
    """[bands, points / 2 + 1] triangles on Slaney's mel scale, each of area 1 (Auditory Toolbox, 1998)."""
    step, log_step = (
        200 / 3,
        np.log(6.4) / 27,
    )  # linear below 1000 Hz, which is 15 mel; logarithmic above

    def to_mel(hz):
        return np.where(hz < 1000, hz / step, 15 + np.log(np.maximum(hz, 1) / 1000) / log_step)

    def to_hz(mel):
        return np.where(mel < 15, mel * step, 1000 * np.exp(log_step * (mel - 15)))

    edges = to_hz(np.linspace(0, to_mel(rate / 2), bands + 2))
    at = np.fft.rfftfreq(points, 1 / rate)
    rise = (at - edges[:-2, None]) / np.diff(edges)[:-1, None]
    fall = (edges[2:, None] - at) / np.diff(edges)[1:, None]
    return np.maximum(0, np.minimum(rise, fall)) * (2 / (edges[2:] - edges[:-2]))[:, None]


def read_sounds(folder: Path, legacy: bool = True) -> dict[tuple[int, str, int], np.ndarray]:
    """MFCC maps by digit, speaker and recording number, from ``<digit>_<speaker>_<number>.wav``.

    Raises:
        MissingInputError: a recording of the three speakers is not there.
        InputDataError: one is not mono at 8 kHz.
    """
    found = {}
    for key in ((d, s, n) for d in range(10) for s in SPEAKERS for n in range(50)):
        path = folder / f"{key[0]}_{key[1]}_{key[2]}.wav"
        try:
            rate, samples = wavfile.read(path)
        except (OSError, ValueError) as error:
            raise MissingInputError(
                f"{path.name} cannot be read.",
                "Give the folder 'recordings' of the Free Spoken Digit Dataset.",
            ) from error
        if rate != 8000 or samples.ndim != 1:
            raise InputDataError(
                f"{path.name} is not mono at 8 kHz.", "Use the recordings as published."
            )
        found[key] = mfcc(samples / 2**15, legacy)
    return found


def pair(
    images: np.ndarray,
    digits: np.ndarray,
    sounds: dict[tuple[int, str, int], np.ndarray],
    seed: int,
) -> dict[str, Pairs]:
    """Parts ``train``, ``meta`` and ``test``; the seed draws the pictures and which picture goes with which sound.

    No picture is in two pairs. Raises InputDataError when there are too few pictures of a digit.
    """
    rng = np.random.default_rng(seed)
    parts: dict[str, tuple[list, list]] = {part: ([], []) for part in PARTS}
    for digit in range(10):
        keys = [key for key in sounds if key[0] == digit]
        mine = rng.permutation(np.flatnonzero(digits == digit))
        if len(mine) < len(keys):
            raise InputDataError(
                f"There are only {len(mine)} pictures of the digit {digit}.", f"Give {len(keys)}."
            )
        for key, n in zip(keys, mine, strict=False):
            part = next(part for part, numbers in PARTS.items() if key[2] in numbers)
            both = np.zeros((2, IMAGE, IMAGE), np.float32)
            both[0] = (images[n] / 255 - 0.5) / 0.5
            both[1, :SOUND, :SOUND] = sounds[key]
            parts[part][0].append(both)
            parts[part][1].append(digit)
    return {
        part: Pairs(torch.from_numpy(np.stack(both)), torch.tensor(digit))
        for part, (both, digit) in parts.items()
    }


def synthetic(per_speaker: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray, dict]:
    """A stand-in in the shape of the real data: glyphs of a seven-segment display, and tones of one pitch a digit."""
    rng = np.random.default_rng(seed)
    segments = (
        "abcdef",
        "bc",
        "abged",
        "abgcd",
        "fgbc",
        "afgcd",
        "afgedc",
        "abc",
        "abcdefg",
        "abcdfg",
    )
    bars = {"a": (0, 0, 0, 8), "b": (0, 8, 8, 8), "c": (8, 8, 16, 8), "d": (16, 0, 16, 8)}
    bars |= {"e": (8, 0, 16, 0), "f": (0, 0, 8, 0), "g": (8, 0, 8, 8)}
    images, digits, sounds = [], [], {}
    for digit in range(10):
        for _ in range(per_speaker * len(SPEAKERS)):
            picture, (y, x) = rng.integers(0, 60, (IMAGE, IMAGE)), rng.integers(2, 8, 2)
            for bar in segments[digit]:
                top, left, bottom, right = bars[bar]
                picture[y + top : y + bottom + 2, x + left : x + right + 2] = rng.integers(150, 255)
            images.append(picture)
            digits.append(digit)
        for speaker in SPEAKERS:
            for n in rng.choice(50, per_speaker, replace=False) if per_speaker < 50 else range(50):
                time = np.arange(rng.integers(2500, 4000)) / 8000
                pitch = (300 + 150 * digit) * rng.uniform(0.97, 1.03)
                tone = np.sin(2 * np.pi * pitch * time) + 0.3 * rng.normal(size=len(time))
                sounds[digit, speaker, int(n)] = mfcc(0.3 * tone, legacy=False)
    return np.array(images, np.uint8), np.array(digits), sounds


class PairSampler:
    """Batches of pairs, each epoch in another order; a share of the pairs never shows its sound.

    Args:
        pairs: of one part.
        audio: share of the pairs that have sound, the same in every epoch.
        seed: of order and of which pairs have sound.
        batch: pairs a step, which gives the length of an epoch.
    """

    def __init__(self, pairs: Pairs, audio: float, seed: int, batch: int):
        self.pairs, self.seed, self.size = pairs, seed, batch
        count = len(pairs.digit)
        heard = np.random.default_rng([seed, 1]).permutation(count) < round(audio * count)
        self.present = torch.from_numpy(np.stack([np.ones(count, bool), heard], 1))
        self.case_ids = tuple(str(n) for n in range(count))

    def available(self, case_id: str) -> np.ndarray:
        """[2] bool: image, and whether the pair has sound."""
        return self.present[int(case_id)].numpy()

    def batch(self, step: int, size: int, patch: Sequence[int] = (), first: int = 0) -> Batch:
        """Pairs ``first`` to ``first + size - 1`` of a step."""
        count = len(self.pairs.digit)
        epoch, at = divmod(step, -(-count // self.size))
        order = np.random.default_rng([self.seed, 2, epoch]).permutation(count)
        chosen = torch.from_numpy(order[(at * self.size + first + np.arange(size)) % count])
        present = self.present[chosen]
        image = torch.where(present[..., None, None], self.pairs.image[chosen], 0.0)
        names = tuple(str(int(n)) for n in chosen)
        return Batch(
            image, present, self.pairs.digit[chosen], torch.ones(size, dtype=torch.bool), names
        )
