"""Each modality alone through the fused decoder, beside all of them together: PASSION's students and their teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medmap.networks import Backbone, Output
from medmap.networks.base import Features
from medmap.networks.blocks import mask_absent
from medmap.training.batch import Batch


@dataclass(frozen=True)
class Students:
    """Which modality of which sample each student is; no student for a sample with one modality: it is its teacher.

    Attributes:
        sample: [R] position in the batch.
        modality: [R] position in the task.
    """

    sample: Tensor
    modality: Tensor

    @classmethod
    def of(cls, present: Tensor) -> Students:
        """The students of a batch with these modalities, [B, M] bool."""
        several = present & (present.sum(1, keepdim=True) > 1)
        sample, modality = several.nonzero(as_tuple=True)
        return cls(sample, modality)

    def __len__(self) -> int:
        return len(self.sample)

    def table(self, values: Tensor, like: Tensor) -> Tensor:
        """[R] -> [B, M] as ``like``, zero where there is no student."""
        return torch.zeros_like(like, dtype=values.dtype).index_put(
            (self.sample, self.modality), values
        )


def encode_present(network: Backbone, batch: Batch) -> list[Features | None]:
    """Features of every modality that a sample of the batch has, zero for the samples without it."""
    features: list[Features | None] = [None] * network.modalities
    known = batch.modalities
    if known is None:  # on a CPU asking costs nothing; a GPU would have to be waited for
        on_cpu = batch.present.device.type == "cpu"
        known = (
            batch.present.any(0).nonzero().flatten().tolist()
            if on_cpu
            else range(network.modalities)
        )
    for m in known:
        here = batch.present[:, m]
        encoded = network.encode(mask_absent(batch.image[:, m : m + 1], here), m)
        features[m] = [mask_absent(level, here) for level in encoded]
    return features


def stack(
    features: Sequence[Features | None],
    present: Tensor,
    students: Students,
    deepest: Mapping[int, int] | None = None,
) -> tuple[list[Features | None], Tensor]:
    """Append to a batch of features one sample a student, which has its own modality only.

    Args:
        features, present: of B samples, as ``Backbone.decode`` takes them.
        students: R of them.
        deepest: take the last entry of a student of that modality from another one's (a slip of PASSION's code).

    Returns:
        The same with B + R samples.
    """
    owner = students.modality
    lender = owner.clone()
    for modality, other in (deepest or {}).items():
        lender[owner == modality] = other
    stacked: list[Features | None] = []
    for m, levels in enumerate(features):
        if levels is None:
            stacked.append(None)
            continue
        of = [owner] * (len(levels) - 1) + [lender]
        stacked.append(
            [
                torch.cat([level, mask_absent(level[students.sample], who == m)])
                for level, who in zip(levels, of, strict=True)
            ]
        )
    alone = torch.nn.functional.one_hot(owner, present.shape[1]).bool()
    return stacked, torch.cat([present, alone])


def decode_together(
    network: Backbone,
    features: Sequence[Features | None],
    present: Tensor,
    students: Students,
    want: Sequence[str] = (),
    deepest: Mapping[int, int] | None = None,
) -> tuple[Output, Output]:
    """Decode B samples and R students in one call: students differ from their teacher only behind the encoders.

    Returns:
        The output of the B samples and that of the students.
    """
    output = network.decode(*stack(features, present, students, deepest), want)
    number = len(present)
    return _part(output, slice(None, number)), _part(output, slice(number, None))


def _part(output: Output, rows: slice) -> Output:
    def cut(value):
        return (
            [x if x is None else x[rows] for x in value] if isinstance(value, list) else value[rows]
        )

    taps = {name: cut(value) for name, value in output.taps.items()}
    return Output(
        output.logits[rows], taps, {name: cut(value) for name, value in output.aux.items()}
    )
