"""Anchors: what the latents of all modalities are drawn to, P_k, P_* and P_N of MedMAP.

Source: MedMAP (arXiv 2408.09465, Eq. 11-13) and its conference version. Each anchor has a sound
form, which is the default, and the forms that were printed, whose flaws the class names. Mean
squares are per element: with the printed sums over voxels and channels alpha = 1/8 would leave the
segmentation no say.

Latents come as one tensor a modality, by name, with the names that a sample has; what is absent has
no influence. The sound forms normalize latents before they compare them: T* can otherwise shrink
all latents at no cost, since whatever follows it normalizes, and the loss vanishes with nothing
aligned. They look at the brain only.

What to expect: with the sound or the printed P_*, the best weights for any given latents are equal
ones (setting the gradient of Eq. 13 to zero gives sum_i w_i z_i = mean z). Weights therefore say
nothing about a modality's worth, unless the network uses the mixture for its task as well (the
stem's ``mixture``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medmap.errors import UsageError
from medmap.networks.blocks import at_least_float32
from medmap.networks.stem import Mixture

EPS = 1e-5


class Anchor(nn.Module):
    """Distance of the latents from an anchor.

    Args:
        names: modalities of the task; the only ones that latents may bear.
        reduction: ``mean`` over the modalities that a sample has, or ``sum`` (the official
            fragment's).
        joint: align all modalities as a whole instead of each by itself, the alternative that
            Proposition 1 holds to be the looser bound (Eq. 10 instead of Eq. 9): of paired latents
            their mean over the modalities that a sample has, of moments those of all modalities
            together. The papers give no formula for it; this is a reading.
    """

    def __init__(self, names: Sequence[str], reduction: str = "mean", joint: bool = False):
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise UsageError(f"The reduction '{reduction}' is unknown.", "Use mean or sum.")
        self.names = tuple(names)
        self.reduction = reduction
        self.joint = joint

    def forward(
        self,
        latents: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        brain: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar >= 0 in the sound forms; zero where no sample can be aligned.

        Args:
            latents: z_j [B, C, *s] by name of the modality; others count as absent.
            present: [B] bool by name.
            brain: [B, *S] bool at any resolution, or None for everywhere.
        """
        example = next(iter(latents.values()))
        nothing = torch.zeros(example.shape[0], dtype=torch.bool, device=example.device)
        masks = []
        maps = []
        for name in self.names:
            masks.append(present[name] if name in latents else nothing)
            maps.append(at_least_float32(latents.get(name, example)))
        available = torch.stack(masks, 1)
        z = torch.stack(maps, 1).flatten(3)
        # Replaced, not multiplied: an absent modality may hold NaN, and 0 * NaN is NaN.
        is_available = available[:, :, None, None]
        z = torch.where(is_available, z, torch.zeros_like(z))
        latent_brain = foreground(brain, example)
        inside = latent_brain.flatten(1)[:, None, None]
        # Moments and products in full precision.
        with torch.autocast(example.device.type, enabled=False):
            return self.loss(z, available, inside)

    def loss(self, z: Tensor, available: Tensor, inside: Tensor) -> Tensor:
        """z [B, J, C, N] float32 or float64, zero where absent; available [B, J] bool; inside
        [B, 1, 1, N] bool -> scalar.
        """
        raise NotImplementedError

    def weights(self) -> dict[str, float]:
        """Weights worth logging, by name; most anchors have none."""
        return {}

    def _error(self, z: Tensor, anchor: Tensor, available: Tensor, inside: Tensor) -> Tensor:
        """Mean squares [B, J] of each modality from the anchor; jointly, that of their mean."""
        if self.joint:
            number = available.sum(1).clamp(min=1)
            # Absent modalities are zero: the sum has those that are there.
            mean = z.sum(1) / number[:, None, None]
            z = mean[:, None].expand_as(z)
        return _mean_square(z - anchor, inside)

    def _over_modalities(self, error: Tensor, available: Tensor, valid: Tensor) -> Tensor:
        """Errors [B, J] -> mean over the valid samples of their mean (or sum) over the modalities
        they have.
        """
        available_error = torch.where(available, error, torch.zeros_like(error))
        counted = available_error.sum(1)
        if self.reduction == "mean":
            number = available.sum(1).clamp(min=1)
            counted = counted / number
        return _mean_of_valid(counted, valid)


class PeerAnchor(Anchor):
    """P_k: one modality is the anchor of the others.

    ``sound``: mean_j MSE(n(z_j), n(z_k)) with n the normalization of every channel over the brain.
    ``eq12``, as printed: without n, over all voxels. That is scale-dependent (see the module), and
    pairs voxels, so it is feature matching rather than the matching of distributions that it is
    derived from.

    Args:
        names, reduction, joint: see ``Anchor``.
        k: the anchor's name; samples without it are not aligned. T1ce gave the best teacher in the
            conference version.
        form: ``sound`` or ``eq12``.
        detach: keep the anchor from moving toward the others; as printed it moves.
    """

    def __init__(
        self,
        names: Sequence[str],
        k: str = "t1ce",
        form: str = "sound",
        detach: bool = False,
        reduction: str = "mean",
        joint: bool = False,
    ):
        super().__init__(names, reduction, joint)
        _check_form(form, ("sound", "eq12"))
        if k not in self.names:
            raise UsageError(
                f"The anchor '{k}' is not a modality.", f"Use one of {', '.join(self.names)}."
            )
        self.k = self.names.index(k)
        self.sound = form == "sound"
        self.detach = detach

    def loss(self, z: Tensor, available: Tensor, inside: Tensor) -> Tensor:
        z, inside = _comparable(z, inside, self.sound)
        anchor = z[:, self.k : self.k + 1]
        if self.detach:
            anchor = anchor.detach()
        error = self._error(z, anchor, available, inside)
        has_several = available.sum(1) > 1
        has_peers = available[:, self.k] & has_several
        valid = has_peers & _somewhere(inside)
        return self._over_modalities(error, available, valid)


class MixtureAnchor(Anchor):
    """P_*: a learnable mixture of all modalities is the anchor.

    ``sound``: mean_j MSE(n(z_j), sum_i w_i n(z_i)), w a softmax over the modalities that the sample
    has. ``eq13``, as printed: raw weights that start at 1 for FLAIR and 0 elsewhere, no n, all
    voxels: scale-dependent, and once the weights do not add up to one even identical latents pay,
    which shrinking all latents avoids. ``conference``: sum_j w_j MSE(z_j, z_k) with free weights,
    as printed there: the loss has no lower bound (w_j goes to minus infinity and then pushes
    latents apart) and w_k receives no gradient at all, so that it ends as the largest.

    Args:
        names, reduction, joint: see ``Anchor``; the conference form knows no ``joint``.
        form: ``sound``, ``eq13`` or ``conference``.
        initial: starting values of the weights by name; the default is 2 for T1ce before the
            softmax (0.71), FLAIR 1 in ``eq13`` (journal, Section VI-D.1), 1 everywhere in
            ``conference`` (its published weights add up to about 4).
        k: the peer of the conference form.
        detach: keep the mixture from moving toward the modalities; its weights then do not learn
            here.
        mixture: weights to share with a network that uses them too.
    """

    def __init__(
        self,
        names: Sequence[str],
        form: str = "sound",
        initial: Mapping[str, float] | None = None,
        k: str = "t1ce",
        detach: bool = False,
        reduction: str = "mean",
        joint: bool = False,
        mixture: Mixture | None = None,
    ):
        super().__init__(names, reduction, joint)
        _check_form(form, ("sound", "eq13", "conference"))
        starts = {
            "sound": {"t1ce": 2.0},
            "eq13": {"flair": 1.0},
            "conference": dict.fromkeys(self.names, 1.0),
        }
        if initial is None:
            initial = {name: value for name, value in starts[form].items() if name in self.names}
        self.form = form
        self.detach = detach
        self.k = 0
        if k in self.names:
            self.k = self.names.index(k)
        if mixture is not None:
            self.mixture = mixture
        elif form == "sound":
            self.mixture = Mixture(self.names, initial, "softmax", renormalize=True)
        else:
            self.mixture = Mixture(self.names, initial, "raw", renormalize=False)

    def loss(self, z: Tensor, available: Tensor, inside: Tensor) -> Tensor:
        z, inside = _comparable(z, inside, self.form == "sound")
        weights = self.mixture(available)
        has_several = (available.sum(1) > 1) & _somewhere(inside)
        if self.form == "conference":
            # The conference paper weighs the distances from one modality, not the modalities.
            fixed_anchor = z[:, self.k : self.k + 1]
            error = _mean_square(z - fixed_anchor, inside)
            weighted = torch.where(available, weights * error, torch.zeros_like(error))
            has_anchor = has_several & available[:, self.k]
            return _mean_of_valid(weighted.sum(1), has_anchor)
        mixture = torch.einsum("bj,bjcn->bcn", weights, z)
        anchor = mixture[:, None]
        if self.detach:
            anchor = anchor.detach()
        error = self._error(z, anchor, available, inside)
        return self._over_modalities(error, available, has_several)

    def weights(self) -> dict[str, float]:
        """The mixture's weights."""
        return self.mixture.named()


class NormalAnchor(Anchor):
    """P_N: the standard normal distribution is the anchor of every modality.

    ``sound``: mean over channels and modalities of KL(N(mu, sigma²) || N(0, 1)) = (sigma² + mu² - 1
    - ln sigma²) / 2. ``printed``: 2 ln(1/v) + v² + mu²/2 - 1/2 with v the "variance". Its minimum
    lies at the same place but is 1/2, not 0, and around it v is bound far too tightly; with v the
    standard deviation (``printed-std``) the mean counts half as much as it should.

    The moments are those of the brain voxels of all samples that have the modality. The conference
    version obtains them "by learnable parameters during the training process" (Section III-B):
    with ``channels`` two 1-wide convolutions, shared by the modalities, give mean and log variance
    of each voxel, as a VAE's encoder does. These can meet the loss by themselves, without any
    alignment of the latents.

    Nothing pulls the modalities toward each other, only each toward the same moments; one modality
    alone has a loss.

    Args:
        names, reduction, joint: see ``Anchor``.
        form: ``sound``, ``printed`` or ``printed-std``.
        moments: ``measured`` or ``learned``.
        channels: of the latents; learned moments need it.
    """

    def __init__(
        self,
        names: Sequence[str],
        form: str = "sound",
        reduction: str = "mean",
        joint: bool = False,
        moments: str = "measured",
        channels: int = 0,
    ):
        super().__init__(names, reduction, joint)
        _check_form(form, ("sound", "printed", "printed-std"))
        self.form = form
        self.heads = None
        if moments == "learned" and channels:
            self.heads = nn.Linear(channels, 2 * channels)
        elif moments != "measured":
            raise UsageError(
                f"The moments of P_N cannot be '{moments}'.", "Use measured or learned."
            )

    def loss(self, z: Tensor, available: Tensor, inside: Tensor) -> Tensor:
        if self.heads is not None:
            return self._learned(z, available, inside)
        if self.joint:
            # All modalities of a sample as further voxels of one.
            z = z.transpose(1, 2).flatten(2)[:, None]
            inside_any = inside & available[:, :, None, None]
            inside = inside_any.flatten(1)[:, None, None]
            available = available.any(1, keepdim=True)
        # Moments over voxels and samples together: a patch is too small for moments of its own.
        is_counted = inside & available[:, :, None, None]
        counted = is_counted.float()
        mean, variance = _moments(z, counted)
        divergence = normal_divergence(mean, variance, self.form).mean(1)
        # Without a voxel in the batch a modality has no moments.
        valid = counted.flatten(2).any(2).any(0)
        valid_divergence = torch.where(valid, divergence, torch.zeros_like(divergence))
        total = valid_divergence.sum()
        if self.reduction == "mean":
            return total / valid.sum().clamp(min=1)
        return total

    def _learned(self, z: Tensor, available: Tensor, inside: Tensor) -> Tensor:
        """Divergence of the moments that the heads give for each voxel, mean over voxels."""
        assert self.heads is not None
        # The heads are linear layers: channels last.
        moments = self.heads(z.transpose(2, 3)).transpose(2, 3)
        mean, log_variance = moments.chunk(2, 2)
        # The heads give the logarithm: a variance must be positive.
        variance = log_variance.exp()
        divergences = normal_divergence(mean, variance, self.form)
        divergence = divergences.mean(2)
        counted = inside[:, :, 0].float()
        number = counted.sum(2).clamp(min=1)
        error = (divergence * counted).sum(2) / number
        valid = available.any(1) & _somewhere(inside)
        return self._over_modalities(error, available, valid)


ANCHORS: dict[str, type[Anchor]] = {
    "peer": PeerAnchor,
    "mixture": MixtureAnchor,
    "normal": NormalAnchor,
}
"""By name: P_k, P_*, P_N."""


def build_anchor(
    name: str, names: Sequence[str], mixture: Mixture | None = None, **options: Any
) -> Anchor:
    """An anchor from plain data, as a recipe states it. Raises UsageError for an unknown name or
    option.
    """
    if name not in ANCHORS:
        raise UsageError(f"The anchor '{name}' is unknown.", f"Use one of {', '.join(ANCHORS)}.")
    if name == "mixture" and mixture is not None:
        options["mixture"] = mixture
    try:
        return ANCHORS[name](names, **options)
    except TypeError as error:
        raise UsageError(
            f"The options of the anchor {name} do not fit ({error}).", "Correct them."
        ) from error


def normal_divergence(mean: Tensor, variance: Tensor, form: str = "sound") -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) element by element, or what was printed for it; see
    ``NormalAnchor``.
    """
    # The logarithm of 0 is infinite: a constant latent has no variance.
    variance = variance + 1e-6
    if form == "sound":
        return (variance + mean.square() - 1 - variance.log()) / 2
    v = variance
    if form != "printed":
        v = variance.sqrt()
    half_square = mean.square() / 2
    return -2 * v.log() + v.square() + half_square - 0.5


def foreground(brain: Tensor | None, latent: Tensor) -> Tensor:
    """Where a latent's voxel is mostly brain: brain [B, *S] -> [B, *s] bool, everywhere where brain
    is None.
    """
    size = latent.shape[2:]
    if brain is None:
        return torch.ones(latent.shape[0], *size, dtype=torch.bool, device=latent.device)
    if brain.shape[1:] == size:
        return brain
    pools: dict[int, Callable[..., Tensor]] = {
        2: nn.functional.adaptive_avg_pool2d,
        3: nn.functional.adaptive_avg_pool3d,
    }
    pool = pools[len(size)]
    share = pool(brain[:, None].float(), size)[:, 0]
    return share >= 0.5


def normalize(z: Tensor, inside: Tensor) -> Tensor:
    """Every channel to mean 0 and variance 1 over a sample's voxels inside; z [B, J, C, N], inside
    [B, 1, 1, N].
    """
    counted = inside.float()
    number = counted.sum(3, keepdim=True).clamp(min=1)
    mean = (z * counted).sum(3, keepdim=True) / number
    # Two passes: mean(z²) - mean(z)² would lose all digits where the mean is large.
    centered = z - mean
    counted_squares = centered.square() * counted
    variance = counted_squares.sum(3, keepdim=True) / number
    deviation = (variance + EPS).sqrt()
    return centered / deviation


def _comparable(z: Tensor, inside: Tensor, sound: bool) -> tuple[Tensor, Tensor]:
    """Latents as they are compared, and where: normalized in the brain, or as they are."""
    if sound:
        return normalize(z, inside), inside
    return z, torch.ones_like(inside)


def _mean_of_valid(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of the values [B] of the valid samples, zero where there is none."""
    counted = torch.where(valid, values, torch.zeros_like(values))
    return counted.sum() / valid.sum().clamp(min=1)


def _moments(z: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """[J, C] mean and variance of [B, J, C, N] over samples and voxels; ``counted`` is 0 or 1."""
    number = counted.sum((0, 3)).clamp(min=1)
    mean = (z * counted).sum((0, 3)) / number
    deviation = z - mean[None, :, :, None]
    squares = deviation.square()
    variance = (squares * counted).sum((0, 3)) / number
    return mean, variance


def _mean_square(difference: Tensor, inside: Tensor) -> Tensor:
    """[B, J, C, N] -> [B, J]: mean over channels and the voxels inside."""
    channels = difference.shape[2]
    counted = inside.float()
    counted_squares = difference.square() * counted
    total = counted_squares.sum((2, 3))
    voxels = counted.sum((2, 3)).clamp(min=1)
    return total / (channels * voxels)


def _somewhere(inside: Tensor) -> Tensor:
    return inside.flatten(1).any(1)


def _check_form(form: str, forms: Sequence[str]) -> None:
    if form not in forms:
        raise UsageError(
            f"The anchor's form '{form}' is unknown.", f"Use one of {', '.join(forms)}."
        )
