"""KD-Net, PMKL, ProtoKD, SMU-Net, and ACN at their smallest: networks, a batch, parameters."""

from __future__ import annotations

import torch
from Testing.medmap.small_networks import SMALL

from medmap.networks import build_network
from medmap.task import BRATS
from medmap.training.batch import Batch
from medmap.training.objectives import Context, build_objective

STUDENTS = {
    "kd-net": "UNet",
    "pmkl": "UNet",
    "protokd": "VNet",
    "smu-net": "SegResNet",
    "acn": "SegResNet",
}
TEACHERS = {"kd-net": "UNet", "pmkl": "GatedUNet", "protokd": "VNet"}
OPTIONS = {"smu-net": {"discriminator_width": 4}, "acn": {"discriminator_width": 4}}
NAMES = sorted(STUDENTS)


def network_of(name, inputs=(1, 3), **options):
    own = {**SMALL[name], "modalities": 4, "classes": 4, **options}
    return build_network(name, own if name == "GatedUNet" else {**own, "inputs": list(inputs)})


def student_options(method):
    return {"style": True} if method == "smu-net" else {}


def context_of(method, seed=0, **changes):
    torch.manual_seed(seed)
    teacher = network_of(TEACHERS[method], range(4)) if method in TEACHERS else None
    student = network_of(STUDENTS[method], **student_options(method))
    return Context(
        **{"task": BRATS, "backbone": student, "teacher": teacher, "steps": 10, **changes}
    )


def objective_of(method, seed=0, **options):
    return build_objective(
        method, context_of(method, seed), {**OPTIONS.get(method, {}), **options}
    ).train()


def batch_of(size=2, present=None, seed=0):
    """Two patches with a blob of three nested classes that the images show."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, 16)] * 3, indexing="ij")
    distance = sum(axis.square() for axis in axes).sqrt()
    label = sum((distance < radius).long() for radius in (0.9, 0.6, 0.35)).repeat(size, 1, 1, 1)
    noise = torch.randn(size, 4, 16, 16, 16, generator=generator)
    image = (
        label[:, None] * torch.tensor([0.5, 1.0, -1.0, 0.8]).reshape(1, 4, 1, 1, 1) + 0.3 * noise
    )
    here = torch.ones(size, 4, dtype=torch.bool) if present is None else torch.tensor(present)
    return Batch(
        image, here, label, torch.ones_like(label).bool(), tuple(f"case{n}" for n in range(size))
    )


def groups_of(objective):
    return {
        name: [*group.parameters, *group.undecayed] for name, group in objective.groups().items()
    }  # identity of parameters is what matters
