"""The contract of every backbone, and the one forward pass that they share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from medmap.errors import UsageError
from medmap.networks.blocks import mask_absent

Features = list[Tensor]
"""What one encoder gives for one modality: [B, C_l, *S_l] per level, fine to coarse."""


@dataclass
class Output:
    """What a backbone returns.

    Attributes:
        logits: [B, classes, *S].
        taps: inner tensors that were asked for, by the fixed names of ``Backbone.provides``; a
            list of tensors where a tap has one per encoded modality (``stem``) or level (``deep``).
        aux: further predictions that only training uses: ``deep`` (deep supervision, finest first,
            each [B, classes, *S_l]), ``separate`` (one per modality, in task order, [B, classes,
            *S], None where it was not encoded; meaningless for samples without it), and what else a
            paper's losses need: ``reconstruction`` (one per modality, [B, 1, *S]), ``divergence``
            ([B] each), ``domain`` ([B, M] each), ``shared`` (one per modality).
    """

    logits: Tensor
    taps: dict[str, Any] = field(default_factory=dict)
    aux: dict[str, list[Tensor | None]] = field(default_factory=dict)


class Backbone(nn.Module):
    """A network for M modalities of which any non-empty subset may be present.

    A subclass gives ``encode`` (one modality) and ``decode`` (what is present). Inference encodes
    only what is there, once, and decodes per subset; training calls ``forward`` with a mask that
    differs between samples. Both give the same numbers.

    Attributes:
        stride: spatial sizes must be divisible by it.
        provides: names of the taps that ``want`` may ask for.
        needs: positions of the modalities without which the network means nothing, or None when any
            subset will do.
        skip: names of ``Output.aux`` that training need not compute, set by an objective that does
            not use them.
        modalities, classes: numbers of the task's modalities, and of its classes with background.
        spatial_dims: 2 or 3.
        built_from: name and options with which ``build_network`` made it; what a bundle stores.
    """

    stride: int = 1
    provides: frozenset[str] = frozenset()
    needs: frozenset[int] | None = None
    skip: frozenset[str] = frozenset()
    built_from: tuple[str, dict] = ("", {})
    _recorded: dict[int, Features] | None = None
    modalities: int
    classes: int
    spatial_dims: int

    def encode(self, image: Tensor, modality: int) -> Features:
        """Features of one modality; image [B, 1, *S], modality = its position in the task."""
        raise NotImplementedError

    def extract(self, image: Tensor, modality: int) -> Features:
        """``encode`` up to the tap ``mod_bottleneck``, which is its last entry; ``refine`` does the
        rest.
        """
        return self.encode(image, modality)

    def refine(self, features: Features, modality: int) -> Features:
        """What ``encode`` makes of ``extract``'s answer: more entries, where a network goes on
        after its levels.
        """
        return features

    def latent(self, features: Features, tap: str) -> Tensor:
        """One modality's own ``stem`` or ``mod_bottleneck`` [B, C, *s], from what ``encode`` gave.

        Raises:
            UsageError: the network has no such tap per modality.
        """
        if tap not in ("stem", "mod_bottleneck") or tap not in self.provides:
            raise UsageError(
                f"{type(self).__name__} has no '{tap}' of every modality.",
                "Give it a stem, or choose another tap.",
            )
        return features[0 if tap == "stem" else -1]

    def separately(self, features: Sequence[Features | None]) -> list[Tensor | None]:
        """Segmentations from each modality alone (``Output.aux["separate"]``), where the network
        has such a decoder.
        """
        return []

    def auxiliary_losses(
        self, output: Output, image: Tensor, present: Tensor, fused: Tensor
    ) -> dict[str, Tensor]:
        """The losses that the network's paper has for its auxiliary outputs, unweighted, by name.

        Most networks have none.

        Args:
            output: of this network in training.
            image: [B, M, *S] that it was given; absent channels may hold anything.
            present: [B, M] bool, the modalities of every sample.
            fused: [B, M] bool, those of them that the fusion was shown.
        """
        return {}

    def decode(
        self, features: Sequence[Features | None], present: Tensor, want: Sequence[str] = ()
    ) -> Output:
        """Fuse and decode.

        Args:
            features: one entry per modality, in task order; None where no sample of the batch has
                it, and zero for those samples that do not.
            present: [B, M] bool, True = present.
            want: names of taps to return.
        """
        raise NotImplementedError

    def forward(
        self,
        image: Tensor,
        present: Tensor,
        want: Sequence[str] = (),
        known: Sequence[int] | None = None,
    ) -> Output:
        """Segment a batch whose samples may have different modalities.

        Args:
            image: [B, M, *S]; the content of absent channels is never used, whatever it is.
            present: [B, M] bool.
            want: names of taps to return.
            known: positions of the modalities that some sample has, where the caller knows them
                without asking the device; the other encoders are then not run. The result is the
                same.
        """
        features = self.encode_present(image, present, known)
        return self.decode(features, present, want)

    def encode_present(
        self, image: Tensor, present: Tensor, known: Sequence[int] | None = None
    ) -> list[Features | None]:
        """Features of every modality, zero for the samples without it.

        Args:
            image: [B, M, *S]; the content of absent channels is never used, whatever it is.
            present: [B, M] bool.
            known: positions of the modalities to encode, see ``forward``; None entries stand for
                the others.
        """
        positions: Sequence[int] = range(self.modalities)
        if known is not None:
            positions = known
        features: list[Features | None] = [None] * self.modalities
        for modality in positions:
            available = present[:, modality]
            channel = image[:, modality : modality + 1]
            visible = mask_absent(channel, available)
            levels = self.encode(visible, modality)
            self._record(levels, modality)
            # The encoder's biases make zeros something else, so features are masked as well.
            features[modality] = [mask_absent(level, available) for level in levels]
        return features

    @contextmanager
    def recorded_features(self) -> Iterator[dict[int, Features]]:
        """A dict that fills, while the block lasts, with what ``encode_present`` first encodes.

        By position of the modality. Only features that gradients reach are recorded: what an
        objective computes beside its step (a frozen teacher, a meta pass) is not aligned.
        """
        self._recorded = {}
        try:
            yield self._recorded
        finally:
            self._recorded = None

    def computes_separate(self, want: Sequence[str]) -> bool:
        """Whether a forward pass needs the segmentation from each modality alone."""
        if "mod_logits" in want:
            return True
        return self.training and "separate" not in self.skip

    def _record(self, levels: Features, modality: int) -> None:
        if self._recorded is None or not levels[0].requires_grad:
            return
        # Only the first pass of a step: a later one (a second view, a meta pass) is not aligned.
        self._recorded.setdefault(modality, levels)


def encoded_only(features: Sequence[Features | None]) -> list[Features]:
    """The features of the modalities that were encoded, in task order."""
    return [levels for levels in features if levels is not None]


def encoded_positions(features: Sequence[Features | None]) -> list[int]:
    """Positions of the modalities that were encoded, in task order."""
    positions = []
    for modality, levels in enumerate(features):
        if levels is not None:
            positions.append(modality)
    return positions


def level_of_encoded(encoded: Sequence[Features], level: int) -> list[Tensor]:
    """One level of the modalities that were encoded, in task order."""
    return [levels[level] for levels in encoded]


def level_of_each(features: Sequence[Features | None], level: int) -> list[Tensor | None]:
    """One level of every modality, None where it was not encoded."""
    maps: list[Tensor | None] = []
    for levels in features:
        if levels is None:
            maps.append(None)
        else:
            maps.append(levels[level])
    return maps


def levels_between(
    features: Sequence[Features | None], start: int | None, stop: int | None
) -> list[Features | None]:
    """A slice of every modality's levels, None where it was not encoded."""
    slices: list[Features | None] = []
    for levels in features:
        if levels is None:
            slices.append(None)
        else:
            slices.append(levels[start:stop])
    return slices


def level_logits(heads: nn.ModuleList, levels: Sequence[Tensor]) -> list[Tensor]:
    """Logits of every level by a head of its own: what deep supervision compares with labels."""
    logits = []
    for head, level in zip(heads, levels, strict=True):
        logits.append(head(level))
    return logits


def modality_taps(encoded: Sequence[Features], bottleneck: int = -1) -> dict[str, Any]:
    """The taps that hold one tensor per encoded modality: ``stem`` and ``mod_bottleneck``.

    Args:
        encoded: features of the modalities that were encoded; the finest level comes first.
        bottleneck: position of the deepest level among the features.
    """
    return {
        "stem": level_of_encoded(encoded, 0),
        "mod_bottleneck": level_of_encoded(encoded, bottleneck),
    }


def requested(taps: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The taps that were asked for."""
    return {name: taps[name] for name in names}
