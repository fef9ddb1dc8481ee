"""T*: MedMAP's map of every modality into one latent space, as a part of the backbone that is
trained and deployed.

Source: MedMAP (arXiv 2408.09465, Fig. 3) and its conference version, which call T* "a simple
convolution" and do not say more; the places and forms here are readings, each named. What all of
them share: T* is applied to each modality *separately*. A convolution over the stacked modalities
(the official fragment's first version has one) shows an absent modality to everything behind it,
and leaves no latent per modality that could be aligned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from medmap.errors import BundleError
from medmap.networks.base import Backbone, Features, Output, encoded_only, levels_between
from medmap.networks.blocks import CONV, NORM, at_least_float32, per_sample

LOCATIONS = ("input", "mod_bottleneck")
SHARINGS = ("shared", "per-modality")
COMBINES = ("concat", "mean")


class InputMap(nn.Module):
    """Reading R1, for the teacher of distillation: a 3-wide convolution 1 -> c on the scan; [B, 1,
    *S] -> [B, c, *S].

    Without bias, so that the zero background stays zero.
    """

    def __init__(self, dims: int, channels: int):
        super().__init__()
        self.conv = CONV[dims](1, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ResidualMap(nn.Module):
    """For networks with one encoder per modality: ``x + norm(1-wide(3-wide(x)))`` by way of
    ``hidden`` channels.

    The gain of the norm starts at zero, so the backbone starts unchanged. With ``hidden`` = M * C
    one shared map has as many 3-wide weights as M separate ones with ``hidden`` = C: the "equal
    weights" of the paper's encoder ablation.
    """

    def __init__(self, dims: int, channels: int, hidden: int):
        super().__init__()
        norm = NORM[dims](channels, affine=True)
        self.layers = nn.Sequential(
            CONV[dims](channels, hidden, 3, padding=1, bias=False),
            CONV[dims](hidden, channels, 1, bias=False),
            norm,
        )
        nn.init.zeros_(norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Mixture(nn.Module):
    """Weights of P_*, one per modality, by name.

    Args:
        names: modalities in task order.
        initial: starting values by name, 0 where not named; before the softmax in the form
            ``softmax``.
        form: ``softmax``, or ``raw`` as printed: any real numbers. Raw weights that do not add up
            to one cost (sum - 1)² times the latents' energy even where all modalities are
            identical.
        renormalize: over the modalities that a sample has, so that absent ones weigh nothing and
            the others add up to one. Without it (as printed) only what is absent is left out.

    Raises:
        BundleError: a name or the form is unknown.
    """

    def __init__(
        self,
        names: Sequence[str],
        initial: Mapping[str, float] | None = None,
        form: str = "softmax",
        renormalize: bool = True,
    ):
        super().__init__()
        initial = initial or {}
        if form not in ("softmax", "raw") or set(initial) - set(names):
            raise BundleError(
                f"The mixture weights cannot start from {dict(initial)} in the form '{form}'.",
                f"Name modalities of {', '.join(names)}, and the form softmax or raw.",
            )
        self.names = tuple(names)
        self.form = form
        self.renormalize = renormalize
        values = [float(initial.get(name, 0.0)) for name in names]
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, present: Tensor) -> Tensor:
        """present [B, M] bool -> weights [B, M] float32 or float64, zero where absent."""
        values = at_least_float32(self.values).expand(present.shape)
        if self.form == "softmax":
            # A sample without any modality would be a softmax of -inf: 0, not NaN.
            return values.masked_fill(~present, -torch.inf).softmax(1).nan_to_num(0.0)
        weights = torch.where(present, values, torch.zeros_like(values))
        if self.renormalize:
            return weights / weights.sum(1, keepdim=True)
        return weights

    def named(self) -> dict[str, float]:
        """The weights where every modality is present, by name."""
        device = self.values.device
        all_present = torch.ones(1, len(self.names), dtype=torch.bool, device=device)
        weights = self(all_present)[0]
        return dict(zip(self.names, weights.tolist(), strict=True))


class Stemmed(Backbone):
    """A backbone with T*; it meets the same contract, so bundles, inference and objectives need to
    know nothing more.

    The latents z_j, which anchors align, are ``latent(features, "stem")`` for T* at the input and
    ``latent(features, "mod_bottleneck")`` for T* there.

    Args:
        base: the network behind, or around, T*.
        modalities: number of modalities M of the task.
        maps: one T* for all, or one per modality.
        location: ``input`` or ``mod_bottleneck``.
        combine: at the input: ``concat`` hands every latent to the base as that modality; ``mean``
            hands it their mean as the only one (reading R2: J*c channels per modality keep the
            weights equal).
        mixture: at the input, with ``concat``: the base sees the mixture of what is present as one
            modality more, so that the task has a say in its weights. The alignment loss alone has
            none: its optimum is uniform.
    """

    provides: frozenset[str] = frozenset({"stem"})

    def __init__(
        self,
        base: Backbone,
        modalities: int,
        maps: Sequence[nn.Module],
        location: str,
        combine: str = "concat",
        mixture: Mixture | None = None,
    ):
        super().__init__()
        self.base = base
        self.maps = nn.ModuleList(maps)
        self.mixture = mixture
        self.modalities = modalities
        self.classes = base.classes
        self.spatial_dims = base.spatial_dims
        self.stride = base.stride
        self.location = location
        self.combine = combine
        self.needs = None
        if base.needs is not None:
            # The mixture, when the base sees it, is one position more than the task has.
            self.needs = frozenset(m for m in base.needs if m < modalities)
        taps = base.provides
        if combine == "mean":
            taps = taps - {"stem"}
        if location == "input":
            taps = taps | {"stem"}
        self.provides = taps

    @property
    def skip(self) -> frozenset[str]:
        """See ``Backbone``: the base's."""
        return self.base.skip

    @skip.setter
    def skip(self, names: frozenset[str]) -> None:
        self.base.skip = names

    def map(self, x: Tensor, modality: int) -> Tensor:
        """T* of one modality."""
        # One map serves all modalities where they share it.
        position = modality % len(self.maps)
        return self.maps[position](x)

    def encode(self, image: Tensor, modality: int) -> Features:
        """At the input: z_j, then the base's features of it; elsewhere the base's features with z_j
        in their place.
        """
        if self.location != "input":
            levels = list(self.base.extract(image, modality))
            levels[-1] = self.map(levels[-1], modality)
            return self.base.refine(levels, modality)
        latent = self.map(image, modality)
        if self.combine == "mean":
            # The base sees only the mean of the latents, which needs all modalities: ``decode``.
            return [latent]
        base_features = self.base.encode(latent, modality)
        return [latent, *base_features]

    def latent(self, features: Features, tap: str) -> Tensor:
        """A modality's own tap; see ``Backbone.latent``."""
        if self.location != "input":
            return self.base.latent(features, tap)
        if tap == "stem":
            return features[0]
        return self.base.latent(features[1:], tap)

    def separately(self, features: Sequence[Features | None]) -> list[Tensor | None]:
        """Segmentations from each modality alone; see ``Backbone.separately``."""
        if self.location == "input":
            if self.combine == "mean":
                return []
            features = levels_between(features, 1, None)
        return self.base.separately(features)

    def decode(
        self, features: Sequence[Features | None], present: Tensor, want: Sequence[str] = ()
    ) -> Output:
        """Fuse what is present and decode; see ``Backbone.decode``."""
        if self.location != "input":
            return self.base.decode(features, present, want)
        base_taps = [name for name in want if name != "stem"]
        if self.combine == "mean":
            output = self._decode_mean(features, present, base_taps)
        else:
            output = self._decode_all(features, present, base_taps)
        if "stem" in want:
            output.taps["stem"] = [levels[0] for levels in encoded_only(features)]
        return output

    def auxiliary_losses(
        self, output: Output, image: Tensor, present: Tensor, fused: Tensor
    ) -> dict[str, Tensor]:
        """Those of the base."""
        return self.base.auxiliary_losses(output, image, present, fused)

    def _decode_all(
        self, features: Sequence[Features | None], present: Tensor, want: Sequence[str]
    ) -> Output:
        """Every latent as its modality, and the mixture, if there is one, as one modality more."""
        base_features = levels_between(features, 1, None)
        if self.mixture is not None:
            weights = self.mixture(present)
            mixed = self._mixed(features, weights)
            base_features.append(self.base.encode(mixed, self.modalities))
            # The mixture is one modality more, and every sample has it.
            always = present.new_ones(len(present), 1)
            present = torch.cat([present, always], 1)
        return self.base.decode(base_features, present, want)

    def _decode_mean(
        self, features: Sequence[Features | None], present: Tensor, want: Sequence[str]
    ) -> Output:
        """The mean of the present latents as the base's only modality."""
        number = present.sum(1, keepdim=True).clamp(min=1)
        share = present.float() / number
        mean = self._mixed(features, share)
        base_features = self.base.encode(mean, 0)
        any_present = present.any(1, keepdim=True)
        return self.base.decode([base_features], any_present, want)

    def _mixed(self, features: Sequence[Features | None], weights: Tensor) -> Tensor:
        """sum_j w_j z_j; weights [B, M] -> [B, c, *S]. Absent latents are zero."""
        total: Tensor | None = None
        for modality, levels in enumerate(features):
            if levels is None:
                continue
            latent = levels[0]
            weight = per_sample(weights[:, modality], latent).to(latent.dtype)
            term = weight * latent
            total = term if total is None else total + term
        if total is None:
            raise ValueError("at least one modality is needed")
        return total


def with_stem(build: type[Backbone], options: Mapping, stem: Mapping) -> Stemmed:
    """A network of class ``build`` with T*, from plain data.

    Args:
        build: class of the base.
        options: of the base, as without a stem.
        stem: ``at`` (one of ``LOCATIONS``), ``sharing`` (one of ``SHARINGS``); at the input
            ``channels`` (c, 4), ``combine`` (one of ``COMBINES``) and ``mixture`` (``names`` and
            further arguments of ``Mixture``).

    Raises:
        BundleError: an option is unknown, or the base has no such place.
    """
    stem = dict(stem)
    options = dict(options)
    location = stem.pop("at", "mod_bottleneck")
    sharing = stem.pop("sharing", "shared")
    if location not in LOCATIONS or sharing not in SHARINGS:
        raise BundleError(
            f"T* cannot be '{sharing}' at '{location}'.",
            f"Use {' or '.join(SHARINGS)}, at {' or '.join(LOCATIONS)}.",
        )
    modalities = options.get("modalities", 4)
    count = 1 if sharing == "shared" else modalities
    if location == "input":
        return _at_input(build, options, modalities, count, **stem)
    if stem:
        raise BundleError(
            f"T* at {location} has no option {', '.join(sorted(stem))}.", "Leave it out."
        )
    return _at_bottleneck(build, options, modalities, count)


def naming_modalities(options: Mapping, names: Sequence[str]) -> dict:
    """Options of a network, with the modalities' names for its stem's mixture, if any, so that a
    bundle knows them.
    """
    stem = options.get("stem") or {}
    mixture = stem.get("mixture")
    if not mixture:
        return dict(options)
    named_mixture = {"names": list(names), **mixture}
    named_stem = {**stem, "mixture": named_mixture}
    return {**options, "stem": named_stem}


def _at_bottleneck(build: type[Backbone], options: Mapping, modalities: int, count: int) -> Stemmed:
    """The base with ``count`` maps behind its encoders: one for all modalities, or one of each."""
    location = "mod_bottleneck"
    base = build(**options)
    if location not in base.provides:
        raise BundleError(
            f"{build.__name__} has no latent of one modality at '{location}'.",
            "Put the stem at the input.",
        )
    channels = _channels(base)
    hidden = channels
    if count == 1:
        # As many weights as separate maps have together: the paper's encoder ablation.
        hidden = channels * modalities
    maps = [ResidualMap(base.spatial_dims, channels, hidden) for _ in range(count)]
    return Stemmed(base, modalities, maps, location)


def _at_input(
    build: type[Backbone],
    options: dict,
    modalities: int,
    count: int,
    channels: int = 4,
    combine: str = "concat",
    mixture: Mapping | None = None,
) -> Stemmed:
    """The base behind ``count`` maps at its input; options as of ``with_stem``."""
    if combine not in COMBINES or (combine == "mean" and mixture):
        raise BundleError(
            f"The stem's combine is '{combine}'.",
            f"Use {' or '.join(COMBINES)}; a mixture needs concat.",
        )
    needs = options.get("inputs")
    if combine == "mean":
        options.pop("inputs", None)
        options["modalities"] = 1
    elif mixture:
        options["modalities"] = modalities + 1
        if needs is not None:
            options["inputs"] = [*needs, modalities]
    if channels != 1:
        options["modality_channels"] = channels
    base = build(**options)
    maps = [InputMap(base.spatial_dims, channels) for _ in range(count)]
    weights = None
    if mixture:
        weights = Mixture(**mixture)
    network = Stemmed(base, modalities, maps, "input", combine, weights)
    if combine == "mean" and needs is not None:
        # The base sees one channel; which modalities it was made for only the stem knows.
        network.needs = frozenset(needs)
    return network


@torch.no_grad()
def _channels(base: Backbone) -> int:
    """Channels of the base's latents, by one pass over an empty window."""
    training = base.training
    side = max(16, 2 * base.stride)
    size = (side,) * base.spatial_dims
    empty = torch.zeros(1, 1, *size)
    levels = base.eval().extract(empty, 0)
    base.train(training)
    deepest = levels[-1]
    return deepest.shape[1]
