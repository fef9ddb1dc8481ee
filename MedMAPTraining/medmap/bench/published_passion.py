"""PASSION's students as its released code decodes them: one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from medmap.networks import Backbone, Output
from medmap.networks.base import Features
from medmap.training.objectives.self_distillation import Students


def decode_in_turn(
    network: Backbone,
    features: Sequence[Features | None],
    present: Tensor,
    students: Students,
    want: Sequence[str] = (),
    deepest: Mapping[int, int] | None = None,
) -> tuple[Output, Output]:
    """``decode_together``, one student after the other, as the released code does."""
    teacher = network.decode(features, present, want)
    outputs = []
    for sample, modality in zip(students.sample.tolist(), students.modality.tolist(), strict=True):
        available = torch.zeros_like(present[:1])
        available[0, modality] = True
        student_features = _student_features(features, sample, modality)
        lender = None
        if deepest and modality in deepest:
            lender = features[deepest[modality]]
        own_levels = student_features[modality]
        if lender is not None and own_levels is not None:
            student_features[modality] = [*own_levels[:-1], lender[-1][sample : sample + 1]]
        outputs.append(network.decode(student_features, available, want))
    if not outputs:
        return teacher, teacher
    return teacher, _joined(outputs)


def _student_features(
    features: Sequence[Features | None], sample: int, modality: int
) -> list[Features | None]:
    """One sample's features by modality and level, those of other modalities multiplied by 0."""
    student_features: list[Features | None] = []
    for m, levels in enumerate(features):
        if levels is None:
            student_features.append(None)
        else:
            scale = m == modality
            student_features.append([level[sample : sample + 1] * scale for level in levels])
    return student_features


def _joined(outputs: Sequence[Output]) -> Output:
    """The outputs of several students as one batch."""
    taps = {}
    for name in outputs[0].taps:
        taps[name] = torch.cat([output.taps[name] for output in outputs])
    auxiliary = {}
    for name in outputs[0].aux:
        tensors_of_level = zip(*(output.aux[name] for output in outputs), strict=True)
        auxiliary[name] = [_joined_level(tensors) for tensors in tensors_of_level]
    logits = torch.cat([output.logits for output in outputs])
    return Output(logits, taps, auxiliary)


def _joined_level(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """One level of every student along the batch; None where no student has it."""
    available = [tensor for tensor in tensors if tensor is not None]
    if not available:
        return None
    return torch.cat(available)
