"""Single training steps: methods the published way and ours, and the default model's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from gpu.setup import (
    MODALITIES,
    Row,
    Setup,
    autocast,
    default_network,
    peak_note,
    release,
    seconds_of,
)
from medmap.bench.published_passion import decode_in_turn
from medmap.networks import build_network
from medmap.task import BRATS
from medmap.training.acceleration import compile_backbone
from medmap.training.batch import Batch
from medmap.training.objectives import Context, Objective, build_objective, passion

METHODS: dict[str, dict[str, str]] = {"plain": {}, "passion": {"variant": "released"}}


def random_batch(setup: Setup, size: int, patch: Sequence[int], *, every: bool) -> Batch:
    """Noise with nested boxes for a tumor; half of the modalities present on average.

    ``every`` states all modalities, so that every encoder runs, as in released code.
    """
    draw = torch.Generator().manual_seed(1)
    present = torch.rand(size, len(MODALITIES), generator=draw) < 0.5
    present[:, 1] = True
    image = torch.randn(size, len(MODALITIES), *patch, generator=draw)
    image[~present] = 0
    label = torch.zeros(size, *patch, dtype=torch.int64)
    for index, divisor in enumerate((3, 4, 6), 1):
        box = [slice(side // 2 - side // divisor, side // 2 + side // divisor) for side in patch]
        label[(slice(None), *box)] = index
    present_modalities = present.any(0).nonzero().flatten().tolist()
    batch = Batch(
        image=image,
        present=present,
        label=label,
        brain=torch.ones(size, *patch, dtype=torch.bool),
        case_id=tuple(f"case-{n}" for n in range(size)),
        modalities=tuple(MODALITIES) if every else tuple(present_modalities),
    )
    return batch.to(setup.device)


class Trainer:
    """Objective and optimizers; one call is one training step."""

    def __init__(self, objective: Objective, precision: str, device: torch.device):
        self.objective = objective.to(device).train()
        self.precision = precision
        self.device = device
        self.optimizers = {}
        for name, group in objective.groups().items():
            self.optimizers[name] = torch.optim.AdamW(group.parameters, lr=6e-4)

    def step(self, batch: Batch) -> Tensor:
        """Every optimizer step of a batch; returns the last loss, on the device."""
        steps = self.objective.steps(batch, 0.5)
        loss = torch.zeros((), device=self.device)
        while True:
            with autocast(self.device, self.precision):
                group, losses = next(steps, (None, {}))
            if group is None:
                return loss
            optimizer = self.optimizers[group]
            optimizer.zero_grad(set_to_none=True)
            loss = torch.stack([value.float() for value in losses.values()]).sum()
            loss.backward()
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 5.0)
            optimizer.step()
            loss = loss.detach()


def method_rows(setup: Setup) -> Iterator[Row]:
    """Training steps of mmFormer: the published way beside ours, in samples per second."""
    patch = (setup.sizes.patch,) * 3
    for method, method_options in METHODS.items():
        published = 0.0
        for way, precision, size in training_ways(setup):
            release(setup.device)
            torch.manual_seed(0)
            network = build_network("mmFormer", {"window": setup.sizes.patch})
            context = Context(task=BRATS, backbone=network, cases=4, epoch_steps=10, steps=100)
            trainer = Trainer(
                build_objective(method, context, method_options), precision, setup.device
            )
            batch = random_batch(setup, size, patch, every=way == "published")
            with students_in_turn(way == "published"):
                work = partial(trainer.step, batch)
                seconds = seconds_of(work, setup.device, setup.sizes.steps)
            samples = size / seconds
            published = published or samples
            note = f"{samples / published:.1f} times published; {peak_note(setup.device)}"
            title = f"mmFormer {setup.sizes.patch}³, {method}, {way}, {precision}, batch {size}"
            yield Row("training", title, f"{samples:.2f} samples/s", note)


def training_ways(setup: Setup) -> list[tuple[str, str, int]]:
    """(way, precision, batch size), the published one first."""
    ways = [("published", "fp32", 1)]
    for size in setup.sizes.batches:
        ways.append(("ours", setup.precision, size))
    return ways


@contextlib.contextmanager
def students_in_turn(enabled: bool) -> Iterator[None]:
    """PASSION's students one after the other, as its released code decodes them."""
    together = passion.decode_together
    if enabled:
        passion.decode_together = decode_in_turn
    try:
        yield
    finally:
        passion.decode_together = together


def default_step_rows(setup: Setup) -> Iterator[Row]:
    """The default model's own training step, without data."""
    precision = setup.precision
    for compiled in (False, True):
        sizes = setup.sizes.batches
        way = "eager"
        if compiled:
            # Compiling takes half a minute for each batch size.
            sizes = sizes[-1:]
            way = "compiled"
        for size in sizes:
            release(setup.device)
            trainer = default_trainer(setup, precision, compiled=compiled)
            batch = random_batch(setup, size, setup.sizes.default_patch, every=False)
            work = partial(trainer.step, batch)
            seconds = seconds_of(work, setup.device, setup.sizes.steps)
            title = f"default network, {way}, {precision}, batch {size}"
            figure = f"{size / seconds:.1f} patches/s"
            yield Row("default training step", title, figure, peak_note(setup.device))


def default_trainer(setup: Setup, precision: str, *, compiled: bool) -> Trainer:
    """The default network with the loss of its recipe on real cases."""
    network = default_network(setup)
    if compiled:
        compile_backbone(network, backend=setup.sizes.backend)
    options = {"smooth": 100, "regions": True, "within": 0.5}
    context = Context(task=BRATS, backbone=network)
    objective = build_objective("plain", context, options)
    return Trainer(objective, precision, setup.device)
