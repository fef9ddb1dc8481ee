"""Audiovision-MNIST: pictures (MNIST) and recordings (Free Spoken Digit), paired by digit.

SMIL (Ma et al., AAAI 2021) defined the task and MCKD (arXiv 2405.07155) uses it: 1500 pairs, 150
per digit; recordings of jackson, nicolas and theo, 50 per digit and speaker. Recordings 0-14 are
for testing (450); of the others MCKD keeps 150 for its meta step (here 45-49) and trains on 900.
"""

from __future__ import annotations

import gzip
import itertools
import math
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
IMAGE = 28
SOUND = 20
"""Sides of the pictures and of the sounds' MFCC maps, in pixels."""

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
        image: [N, 2, 28, 28] float32: the picture, and the MFCC map [20, 20] in a corner.
        digit: [N] int64.
    """

    image: torch.Tensor
    digit: torch.Tensor


def read_idx(path: Path) -> np.ndarray:
    """An array in MNIST's format (IDX), compressed or not.

    Raises:
        MissingInputError: there is no such file.
        InputDataError: it is not in that format.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError) as error:
        raise MissingInputError(
            f"{path.name} cannot be read.", "Give the folder that holds MNIST's files."
        ) from error
    # The format: two zeros, 8 for bytes, the number of axes; then a size for each axis.
    is_idx = data[:3] == b"\0\0\x08" and len(data) > 3
    if not is_idx or len(data) < 4 + 4 * data[3]:
        raise InputDataError(f"{path.name} is not in MNIST's format.", "Download it again.")
    axes = data[3]
    header = 4 + 4 * axes
    shape = np.frombuffer(data, ">u4", axes, 4).astype(int)
    if len(data) != header + shape.prod():
        raise InputDataError(f"{path.name} is cut off.", "Download it again.")
    values = np.frombuffer(data, np.uint8, offset=header)
    return values.reshape(shape)


def read_mnist(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [N, 28, 28] uint8 and digits [N] of the parts (train, t10k) that a folder holds."""
    images = []
    digits = []
    for part in ("train", "t10k"):
        image_files = sorted(folder.glob(f"{part}-images*"))
        label_files = sorted(folder.glob(f"{part}-labels*"))
        if image_files and label_files:
            images.append(read_idx(image_files[0]))
            digits.append(read_idx(label_files[0]))
    if not images:
        raise MissingInputError(
            f"{folder.name} holds no MNIST files.", "Expected t10k-images-idx3-ubyte.gz and so on."
        )
    return np.concatenate(images), np.concatenate(digits)


def mfcc(samples: np.ndarray, legacy: bool = True) -> np.ndarray:
    """Cepstrum [20, 20] of a recording at 8 kHz, as SMIL's network gets it.

    Padded with 0, then (x - .5) / .5.

    Args:
        samples: [n] in -1..1.
        legacy: as SMIL's code computes it: every third sample without a filter, though declared as
            8 kHz, and librosa's defaults (2048 points, hop 512, 128 Slaney mels), so that most
            recordings fill 2 or 3 of 20 columns. Otherwise all samples, 512 points, hop 200, 40
            mels: about 16 columns.
    """
    points = 512
    hop = 200
    bands = 40
    if legacy:
        points = 2048
        hop = 512
        bands = 128
        samples = samples[::3]
    padded = np.pad(np.asarray(samples, np.float64), points // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, points)
    frames = windows[::hop]
    # A Hann window: cut frames would otherwise leak into all frequencies.
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(points) / points)
    spectrum = np.fft.rfft(frames * hann)
    filters = mel_filters(8000, points, bands)
    power = np.abs(spectrum) ** 2 @ filters.T
    decibels = 10 * np.log10(np.maximum(power, 1e-10))
    # As librosa: at most 80 dB below the loudest.
    decibels = np.maximum(decibels, decibels.max() - 80)
    coefficients = dct(decibels, norm="ortho", axis=1)
    cepstrum = coefficients[:SOUND, :SOUND].T
    result = np.zeros((SOUND, SOUND))
    result[:, : cepstrum.shape[1]] = cepstrum
    normalized = (result - 0.5) / 0.5
    return normalized.astype(np.float32)


@cache
def mel_filters(rate: int, points: int, bands: int) -> np.ndarray:
    """Triangles [bands, points / 2 + 1] on Slaney's mel scale, each of area 1.

    Source: Slaney, Auditory Toolbox, 1998.
    """
    # Linear below 1000 Hz, which is 15 mel; logarithmic above.
    step = 200 / 3
    log_step = np.log(6.4) / 27

    def to_mel(hz: np.ndarray | float) -> np.ndarray:
        linear = hz / step
        # The smallest argument only keeps the unused branch finite.
        logarithmic = 15 + np.log(np.maximum(hz, 1) / 1000) / log_step
        return np.where(hz < 1000, linear, logarithmic)

    def to_hz(mel: np.ndarray) -> np.ndarray:
        linear = mel * step
        exponential = 1000 * np.exp(log_step * (mel - 15))
        return np.where(mel < 15, linear, exponential)

    # Up to half the sampling rate: there is nothing above (Nyquist).
    highest = to_mel(rate / 2)
    mels = np.linspace(0, highest, bands + 2)
    edges = to_hz(mels)
    frequencies = np.fft.rfftfreq(points, 1 / rate)
    # Each triangle rises between its first two edges and falls between its last two.
    widths = np.diff(edges)
    rise = (frequencies - edges[:-2, None]) / widths[:-1, None]
    fall = (edges[2:, None] - frequencies) / widths[1:, None]
    triangles = np.maximum(0, np.minimum(rise, fall))
    heights = 2 / (edges[2:] - edges[:-2])
    return triangles * heights[:, None]


def read_sounds(folder: Path, legacy: bool = True) -> dict[tuple[int, str, int], np.ndarray]:
    """MFCC maps by digit, speaker and recording number, from ``<digit>_<speaker>_<number>.wav``.

    Raises:
        MissingInputError: a recording of the three speakers is missing.
        InputDataError: one is not mono at 8 kHz.
    """
    sounds = {}
    for digit, speaker, number in itertools.product(range(10), SPEAKERS, range(50)):
        path = folder / f"{digit}_{speaker}_{number}.wav"
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
        sounds[digit, speaker, number] = mfcc(samples / 2**15, legacy)
    return sounds


def pair(
    images: np.ndarray,
    digits: np.ndarray,
    sounds: dict[tuple[int, str, int], np.ndarray],
    seed: int,
) -> dict[str, Pairs]:
    """Parts ``train``, ``meta`` and ``test``; the seed draws a picture for every sound.

    No picture is in two pairs.

    Raises:
        InputDataError: there are too few pictures of a digit.
    """
    rng = np.random.default_rng(seed)
    images_of: dict[str, list[np.ndarray]] = {part: [] for part in PARTS}
    digits_of: dict[str, list[int]] = {part: [] for part in PARTS}
    for digit in range(10):
        keys = [key for key in sounds if key[0] == digit]
        candidates = rng.permutation(np.flatnonzero(digits == digit))
        if len(candidates) < len(keys):
            raise InputDataError(
                f"There are only {len(candidates)} pictures of the digit {digit}.",
                f"Give {len(keys)}.",
            )
        for key, picture in zip(keys, candidates, strict=False):
            _, _, take = key
            part = _part_of(take)
            # Channel 0 is the picture, channel 1 the smaller cepstrum in its corner.
            channels = np.zeros((2, IMAGE, IMAGE), np.float32)
            channels[0] = (images[picture] / 255 - 0.5) / 0.5
            channels[1, :SOUND, :SOUND] = sounds[key]
            images_of[part].append(channels)
            digits_of[part].append(digit)
    pairs = {}
    for part in PARTS:
        image = torch.from_numpy(np.stack(images_of[part]))
        pairs[part] = Pairs(image, torch.tensor(digits_of[part]))
    return pairs


def _part_of(recording: int) -> str:
    for part, numbers in PARTS.items():
        if recording in numbers:
            return part
    raise ValueError(f"recording {recording} is in no part")


def synthetic(per_speaker: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray, dict]:
    """A substitute in the form of the real data: seven-segment digits, and tones of ten pitches."""
    rng = np.random.default_rng(seed)
    images = []
    digits = []
    sounds = {}
    for digit in range(10):
        for _ in range(per_speaker * len(SPEAKERS)):
            images.append(_glyph(digit, rng))
            digits.append(digit)
        for speaker in SPEAKERS:
            numbers: Sequence[int] = range(50)
            if per_speaker < 50:
                numbers = rng.choice(50, per_speaker, replace=False).tolist()
            for number in numbers:
                tone = _tone(digit, rng)
                sounds[digit, speaker, int(number)] = mfcc(tone, legacy=False)
    return np.array(images, np.uint8), np.array(digits), sounds


SEGMENTS = (
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
"""Segments of a seven-segment display, by digit."""
BARS = {
    "a": (0, 0, 0, 8),
    "b": (0, 8, 8, 8),
    "c": (8, 8, 16, 8),
    "d": (16, 0, 16, 8),
    "e": (8, 0, 16, 0),
    "f": (0, 0, 8, 0),
    "g": (8, 0, 8, 8),
}
"""First row and column, last row and column of a segment, in pixels."""


def _glyph(digit: int, rng: np.random.Generator) -> np.ndarray:
    """[28, 28] picture of a digit on noise."""
    picture = rng.integers(0, 60, (IMAGE, IMAGE))
    y, x = rng.integers(2, 8, 2)
    for segment in SEGMENTS[digit]:
        top, first, bottom, last = BARS[segment]
        brightness = rng.integers(150, 255)
        rows = slice(y + top, y + bottom + 2)
        columns = slice(x + first, x + last + 2)
        picture[rows, columns] = brightness
    return picture


def _tone(digit: int, rng: np.random.Generator) -> np.ndarray:
    """[n] samples at 8 kHz of a noisy tone."""
    count = rng.integers(2500, 4000)
    seconds = np.arange(count) / 8000
    # In Hz; neighboring digits are 150 Hz apart.
    pitch = (300 + 150 * digit) * rng.uniform(0.97, 1.03)
    noise = rng.normal(size=len(seconds))
    tone = np.sin(2 * np.pi * pitch * seconds) + 0.3 * noise
    return 0.3 * tone


class PairSampler:
    """Batches of pairs, each epoch in another order; some pairs never have one of their halves.

    Args:
        pairs: of one part.
        rate: share of the pairs that have both halves, the same in every epoch.
        seed: of order and of which pairs have both.
        batch: pairs per step, which gives the length of an epoch.
        missing: the half that the others lack, ``sound`` (Table 2a) or ``image`` (Table 2b).
    """

    def __init__(self, pairs: Pairs, rate: float, seed: int, batch: int, missing: str = "sound"):
        self.pairs = pairs
        self.seed = seed
        self.size = batch
        count = len(pairs.digit)
        complete_count = round(rate * count)
        order = np.random.default_rng([seed, 1]).permutation(count)
        present = np.ones((count, 2), bool)
        present[:, AUDIOVISION.index(missing)] = order < complete_count
        self.present = torch.from_numpy(present)
        self.case_ids = tuple(str(number) for number in range(count))

    def available(self, case_id: str) -> np.ndarray:
        """[2] bool: whether the pair has its image, and its sound."""
        return self.present[int(case_id)].numpy()

    def complete_pairs(self) -> Pairs:
        """Those that have both halves."""
        complete = self.present.all(1)
        return Pairs(self.pairs.image[complete], self.pairs.digit[complete])

    def batch(self, step: int, size: int, patch: Sequence[int] = (), first: int = 0) -> Batch:
        """Pairs ``first`` to ``first + size - 1`` of a step."""
        count = len(self.pairs.digit)
        steps_per_epoch = math.ceil(count / self.size)
        epoch, step_in_epoch = divmod(step, steps_per_epoch)
        # A function of seed and epoch alone: a resumed training draws the same order.
        order = np.random.default_rng([self.seed, 2, epoch]).permutation(count)
        positions = step_in_epoch * self.size + first + np.arange(size)
        # The last step of an epoch is filled up with pairs from its beginning.
        chosen = torch.from_numpy(order[positions % count])
        present = self.present[chosen]
        image = torch.where(present[..., None, None], self.pairs.image[chosen], 0.0)
        names = tuple(str(int(number)) for number in chosen)
        digits = self.pairs.digit[chosen]
        brain = torch.ones(size, dtype=torch.bool)
        return Batch(image, present, digits, brain, names)
