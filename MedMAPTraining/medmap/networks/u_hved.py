"""U-HVED: a variational U-Net that segments, and completes the missing images, from any subset of
modalities.

Dorent, Joutard, Modat, Ourselin, Vercauteren: "Hetero-Modal Variational Encoder-Decoder for Joint
Modality Completion and Segmentation", MICCAI 2019. Every modality gives a Gaussian per level; what
is present is fused by their product.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from medmap.networks.auxiliary import mean_over_present, reconstruction_errors
from medmap.networks.base import (
    Features,
    Output,
    encoded_only,
    encoded_positions,
    level_of_encoded,
    modality_taps,
    requested,
)
from medmap.networks.blocks import mask_absent
from medmap.networks.u_hemis import HemisBackbone, HemisDecoder

EPS = 1e-7


class Gaussian(NamedTuple):
    """Independent normal distributions: ``mean`` and ``log_variance``, each [B, C, *S] float32."""

    mean: Tensor
    log_variance: Tensor


STANDARD = Gaussian(torch.zeros(()), torch.zeros(()))


class UHVED(HemisBackbone):
    """U-HVED with 1.25 M parameters (1,250,560; four modalities and classes), as the released code
    has.

    Every level of an encoder gives [mu; log sigma^2] (the log clipped to +-50). Fusion:
    ``product_of_gaussians``. Training decodes a sample of it; evaluation decodes its mean, where
    the released code samples as well, so that the same scans always give the same segmentation.

    Auxiliary outputs in training: ``reconstruction``, all M images [B, 1, *S] in task order,
    present or not; and ``divergence``, one [B] per level, see ``posterior_divergence``. The
    published loss is CE + Dice + 0.1 * mean divergence + 0.1 * mean squared error of the
    reconstructions.

    Args:
        modalities: number of modalities M.
        classes: number of classes, background included.
        spatial_dims: 2 or 3.
        widths: even channel numbers at strides 1, 2, 4, ...; half of them are mu.
        reconstruct: build the image decoders, which only training uses.
    """

    def __init__(
        self,
        modalities: int = 4,
        classes: int = 4,
        spatial_dims: int = 3,
        widths: Sequence[int] = (8, 16, 32, 64),
        reconstruct: bool = True,
    ):
        # A modality's features are [mu; log sigma^2], of which only a code like mu is decoded.
        super().__init__(modalities, classes, spatial_dims, widths, outputs=widths)
        halves = [width // 2 for width in widths]
        self.decoder = HemisDecoder(spatial_dims, widths, halves, classes)
        self.image_decoders = nn.ModuleList(
            HemisDecoder(spatial_dims, widths, halves, 1)
            for _ in range(modalities if reconstruct else 0)
        )

    def decode(
        self, features: Sequence[Features | None], present: Tensor, want: Sequence[str] = ()
    ) -> Output:
        """Product of what is present and the prior, then the decoders; see ``Backbone.decode``."""
        encoded = encoded_only(features)
        positions = encoded_positions(features)
        available = present[:, positions]
        experts = []
        posteriors = []
        for level in range(len(encoded[0])):
            gaussians = [split_gaussian(feature) for feature in level_of_encoded(encoded, level)]
            experts.append(gaussians)
            posteriors.append(product_of_gaussians(gaussians, available))
        dtype = encoded[0][0].dtype
        latent = self._codes(posteriors, dtype)
        logits, decoded = self.decoder(latent)
        aux: dict[str, list[Tensor | None]] = {}
        if self.training:
            divergences: list[Tensor | None] = []
            for gaussians, posterior in zip(experts, posteriors, strict=True):
                divergences.append(posterior_divergence(gaussians, available, posterior))
            aux["reconstruction"] = [decoder(latent)[0] for decoder in self.image_decoders]
            aux["divergence"] = divergences
        taps = {
            **modality_taps(encoded),
            "bottleneck": latent[-1],
            "decoder": decoded,
        }
        return Output(logits, requested(taps, want), aux)

    def _codes(self, posteriors: Sequence[Gaussian], dtype: torch.dtype) -> list[Tensor]:
        """What is decoded at every level: a sample in training, else the mean."""
        codes = []
        for posterior in posteriors:
            code = posterior.mean
            if self.training:
                code = sample(posterior)
            codes.append(code.to(dtype))
        return codes

    def auxiliary_losses(
        self, output: Output, image: Tensor, present: Tensor, fused: Tensor
    ) -> dict[str, Tensor]:
        """``divergence``, mean over levels, and ``reconstruction``, mean squared error (Eq. 7)."""
        if not output.aux:
            return {}
        divergences = cast(list[Tensor], output.aux["divergence"])
        levels = [divergence.mean() for divergence in divergences]
        losses = {"divergence": torch.stack(levels).mean()}
        # Every image is decoded from the fused code, also those that are absent: none is None.
        reconstructions = cast(list[Tensor], output.aux["reconstruction"])
        errors = reconstruction_errors(reconstructions, image, present, power=2)
        if errors:
            losses["reconstruction"] = mean_over_present(errors, present)
        return losses


def split_gaussian(feature: Tensor) -> Gaussian:
    """[mu; log sigma^2] of [B, 2C, *S], the latter clipped to +-50 where exp is still finite in
    float32.
    """
    mean, log_variance = feature.float().chunk(2, 1)
    return Gaussian(mean, log_variance.clamp(-50, 50))


def product_of_gaussians(experts: Sequence[Gaussian], present: Tensor) -> Gaussian:
    """Product of the present experts and of a prior N(0, 1) (Dorent et al., Eq. 5).

    1 / sigma^2 = 1 + sum_m 1 / (sigma_m^2 + 1e-7); mu = sigma^2 * sum_m mu_m / (sigma_m^2 + 1e-7);
    m over the present.

    Args:
        experts: N Gaussians; absent ones are not used, whatever they hold.
        present: [B, N] bool.
    """
    # Sums of precisions start with those of the prior N(0, 1), so that no subset is empty.
    precision = torch.ones_like(experts[0].mean)
    weighted = torch.zeros_like(precision)
    for n, expert in enumerate(experts):
        available = present[:, n]
        variance = expert.log_variance.exp()
        # EPS as released: a variance of zero would make the precision infinite.
        expert_precision = 1 / (variance + EPS)
        weighted_mean = expert_precision * expert.mean
        precision = precision + mask_absent(expert_precision, available)
        weighted = weighted + mask_absent(weighted_mean, available)
    return Gaussian(weighted / precision, -precision.log())


def sample(q: Gaussian) -> Tensor:
    """Reparameterized: mu + sigma * N(0, 1), from the global random state."""
    deviation = (q.log_variance / 2).exp()
    return q.mean + deviation * torch.randn_like(q.mean)


def gaussian_divergence(p: Gaussian, q: Gaussian) -> Tensor:
    """KL(p || q), mean over all elements of a sample: [B]."""
    distance = (p.mean - q.mean).square()
    variance_p = p.log_variance.exp()
    variance_q = q.log_variance.exp()
    ratio = (variance_p + distance) / (variance_q + EPS)
    divergence = (ratio - 1 + q.log_variance - p.log_variance) / 2
    return divergence.flatten(1).mean(1)


def posterior_divergence(experts: Sequence[Gaussian], present: Tensor, q: Gaussian) -> Tensor:
    """How far the posteriors of smaller subsets are from the one in use, and all of them from the
    prior: [B].

    Over the n non-empty subsets S of what is present (15 of four modalities):
    sum KL(q || q_S) / (n - 1) + sum KL(q_S || N(0, 1)) / n; the first is zero where only one
    modality is present.

    The released code draws the subset in use from complete samples and compares it with all 15,
    absent modalities included. Here nothing absent is read, so that incomplete cohorts train by the
    same rule.

    Args:
        experts: N Gaussians.
        present: [B, N] bool.
        q: their product over ``present``.
    """
    zero = q.mean.new_zeros(len(q.mean))
    to_subset = zero
    to_prior = zero
    count = zero
    prior = Gaussian(STANDARD.mean.to(q.mean), STANDARD.log_variance.to(q.mean))
    for subset in _non_empty_subsets(len(experts)):
        available = present[:, subset]
        # Subsets are the same for the whole batch; a sample counts those that it has.
        valid = available.all(1)
        members = [experts[n] for n in subset]
        posterior = product_of_gaussians(members, available)
        from_subset = gaussian_divergence(q, posterior)
        from_prior = gaussian_divergence(posterior, prior)
        to_subset = to_subset + torch.where(valid, from_subset, zero)
        to_prior = to_prior + torch.where(valid, from_prior, zero)
        count = count + valid
    # The complete subset is among them with a divergence of zero: n - 1 others.
    smaller_subsets = (count - 1).clamp(min=1)
    return to_subset / smaller_subsets + to_prior / count.clamp(min=1)


def _non_empty_subsets(number: int) -> list[list[int]]:
    subsets = []
    for size in range(1, number + 1):
        for subset in combinations(range(number), size):
            subsets.append(list(subset))
    return subsets
