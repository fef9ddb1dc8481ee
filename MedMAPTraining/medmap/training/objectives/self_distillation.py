"""Each modality alone through the fused decoder, beside all of them together: PASSION's students
and their teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from medmap.networks import Backbone, Output
from medmap.networks.base import Features
from medmap.networks.blocks import mask_absent
from medmap.training.batch import Batch


@dataclass(frozen=True)
class Students:
    """Which modality of which sample each student is; no student for a sample with one modality: it
    is its teacher.

    Attributes:
        sample: [R] position in the batch.
        modality: [R] position in the task.
        modalities: M of the task.
    """

    sample: Tensor
    modality: Tensor
    modalities: int

    @classmethod
    def of(cls, present: Tensor) -> Students:
        """The students of a batch with these modalities, [B, M] bool."""
        # A single modality has nothing more to learn from: student and teacher would be one.
        has_several = present.sum(1, keepdim=True) > 1
        is_student = present & has_several
        sample, modality = is_student.nonzero(as_tuple=True)
        return cls(sample, modality, present.shape[1])

    def __len__(self) -> int:
        return len(self.sample)

    def table(self, values: Tensor, like: Tensor) -> Tensor:
        """[R] -> [B, M] as ``like``, zero where there is no student."""
        return torch.zeros_like(like, dtype=values.dtype).index_put(
            (self.sample, self.modality), values
        )


def encode_batch(network: Backbone, batch: Batch) -> list[Features | None]:
    """Features of every modality that some sample has, zero for the samples without it."""
    positions: Sequence[int] | None = batch.modalities
    # On a CPU asking which ones costs nothing; a GPU would have to be waited for.
    if positions is None and batch.present.device.type == "cpu":
        positions = batch.present.any(0).nonzero().flatten().tolist()
    return network.encode_present(batch.image, batch.present, positions)


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
        deepest: take the last entry of a student of that modality from another one's (a slip of
            PASSION's code).

    Returns:
        The same with B + R samples.
    """
    owner = students.modality
    lender = owner.clone()
    for modality, other in (deepest or {}).items():
        lender[owner == modality] = other
    stacked: list[Features | None] = []
    for modality, levels in enumerate(features):
        if levels is None:
            stacked.append(None)
            continue
        rows = []
        deepest_position = len(levels) - 1
        for position, level in enumerate(levels):
            source = owner
            if position == deepest_position:
                source = lender
            # The sample's features, zero for the students of other modalities.
            is_own = source == modality
            student_level = mask_absent(level[students.sample], is_own)
            rows.append(torch.cat([level, student_level]))
        stacked.append(rows)
    single = one_hot(owner, present.shape[1]).bool()
    return stacked, torch.cat([present, single])


def decode_together(
    network: Backbone,
    features: Sequence[Features | None],
    present: Tensor,
    students: Students,
    want: Sequence[str] = (),
    deepest: Mapping[int, int] | None = None,
) -> tuple[Output, Output]:
    """Decode B samples and R students in one call: students differ from their teacher only behind
    the encoders.

    Returns:
        The output of the B samples and that of the students.
    """
    stacked, subsets = stack(features, present, students, deepest)
    output = network.decode(stacked, subsets, want)
    number = len(present)
    teachers = _part(output, slice(None, number))
    student_part = _part(output, slice(number, None))
    return teachers, student_part


def _part(output: Output, rows: slice) -> Output:
    """The output of some samples of a batch."""
    taps = {name: _rows(value, rows) for name, value in output.taps.items()}
    aux = {name: _rows(value, rows) for name, value in output.aux.items()}
    return Output(output.logits[rows], taps, aux)


def _rows(value: Tensor | list[Tensor | None], rows: slice) -> Any:
    if not isinstance(value, list):
        return value[rows]
    parts: list[Tensor | None] = []
    for tensor in value:
        if tensor is None:
            parts.append(None)
        else:
            parts.append(tensor[rows])
    return parts
