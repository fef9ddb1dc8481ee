"""ShaSpec: a shared and a specific encoder per modality; what is absent is filled with what the
present ones share.

Source: Wang et al., "Multi-modal Learning with Missing Modality via Shared-Specific Feature
Modeling", CVPR 2023, and the facts of its released code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from medmap.errors import BundleError
from medmap.networks.auxiliary import mean_over_present, ring_l1
from medmap.networks.base import Features, Output, level_of_each
from medmap.networks.resnet_aspp_encoder import (
    FILLS,
    ResNetASPPBackbone,
    StandardizedConv,
    fill_absent,
)


class ShaSpec(ResNetASPPBackbone):
    """One shared and M specific ResNet-50 + ASPP encoders, one decoder. Published: 187.7 M
    parameters.

    With shared features s_m and specific features p_m, a present modality gives ``f_m = s_m +
    conv3([s_m; p_m])``; the count of parameters says that one ``conv3`` (512 -> 256) serves all
    modalities. An absent one gives what the present ones share. While training, ``aux["shared"]``
    holds s_m [B, F, *s] (the paradigm adds 0.1 times the L1 between neighbors in the ring of
    modalities) and ``aux["domain"]`` the logits [B, M] of a linear classifier that tells the
    modality from pooled p_m (0.02 times its cross-entropy): one entry per modality, None where it
    was not encoded. For a sample that lacks the modality, the entry is to be left out of the loss
    (the released code includes it).

    Differences from the released code: softmax logits over ``classes`` (background included)
    instead of three sigmoid regions ET, WT, TC (``classes=3``, read through a sigmoid, is that
    head); absent bottlenecks are filled with the mean of the shared features (by account the
    paper's form, and independent of any order), where the code takes the first modality of a
    randomly ordered list (``fill="first"``, here in task order); the skips of an absent modality
    are zero instead of an encoder's answer to a zero image. Not described: which encoder gives the
    skips; the shared one here, ``skips="specific"`` is the other.

    Args:
        modalities: number of modalities M.
        classes: number of output channels, background included.
        spatial_dims: 3 as published, or 2.
        width: factor on all channels; 1 is published, 1/8 suits a CPU.
        blocks: depth of the stages; (3, 4, 6, 3) is published (ResNet-50); fewer entries leave out
            the coarsest stages.
        stem_stride: stride of the first convolution along the spatial axes; (1, 2, 2) is published,
            for crops of 80x160x160.
        fill: "mean" or "first", see above.
        skips: "shared" or "specific", see above.

    Raises:
        BundleError: an option is unknown.
    """

    def __init__(
        self,
        modalities: int = 4,
        classes: int = 4,
        spatial_dims: int = 3,
        width: float = 1.0,
        blocks: Sequence[int] = (3, 4, 6, 3),
        stem_stride: Sequence[int] | None = None,
        fill: str = "mean",
        skips: str = "shared",
    ):
        super().__init__(modalities, classes, spatial_dims, width, blocks, stem_stride)
        if fill not in FILLS or skips not in ("shared", "specific"):
            raise BundleError(
                f"ShaSpec cannot fill with {fill!r} or take its skips from {skips!r}.",
                "Give 'mean' or 'first' as 'fill' and 'shared' or 'specific' as 'skips'.",
            )
        self.fill = FILLS[fill]
        self.skips = skips
        channels = self.widths.features
        self.shared = self.encoder()
        self.specific = nn.ModuleList(self.encoder() for _ in range(modalities))
        self.compose = StandardizedConv(spatial_dims, 2 * channels, channels, 3)
        self.domain = nn.Linear(channels, modalities)

    def encode(self, image: Tensor, modality: int) -> Features:
        """[B, 1, *S] -> terms in the skips, fine to coarse, then p_m, s_m, f_m, each [B, F, *s]."""
        shared_skips, shared = self.shared(image)
        specific_skips, specific = self.specific[modality](image)
        skips = specific_skips
        if self.skips == "shared":
            skips = shared_skips
        terms = self.decoder.project(skips, modality)
        # The paper's residual fusion: what is specific only corrects what is shared.
        correction = self.compose(torch.cat([shared, specific], 1))
        return [*terms, specific, shared, shared + correction]

    def decode(
        self, features: Sequence[Features | None], present: Tensor, want: Sequence[str] = ()
    ) -> Output:
        """Fill the absent bottlenecks with what the present ones share and decode; see
        ``Backbone.decode``.
        """
        shared = level_of_each(features, -2)
        filling = self.fill(shared, present)
        composed = level_of_each(features, -1)
        filled = fill_absent(composed, filling, present)
        output = self.decode_filled(filled, features, want)
        if self.training:
            output.aux["shared"] = shared
            output.aux["domain"] = [self._classify(levels) for levels in features]
        return output

    def auxiliary_losses(
        self, output: Output, image: Tensor, present: Tensor, fused: Tensor
    ) -> dict[str, Tensor]:
        """``shared``: L1 between neighbors of the shared features; ``domain``: the classifier's
        entropy.
        """
        if not output.aux:
            return {}
        entropies: list[Tensor | None] = []
        for modality, logits in enumerate(output.aux["domain"]):
            if logits is None:
                entropies.append(None)
                continue
            target = torch.full((len(fused),), modality, device=fused.device)
            # Per sample: those that lack the modality are left out of the mean afterwards.
            entropies.append(cross_entropy(logits.float(), target, reduction="none"))
        return {
            "shared": ring_l1(output.aux["shared"], fused),
            "domain": mean_over_present(entropies, fused),
        }

    def _classify(self, features: Features | None) -> Tensor | None:
        """Logits [B, M] of which modality the specific features come from."""
        if features is None:
            return None
        pooled = features[-3].flatten(2).mean(2)
        return self.domain(pooled)
