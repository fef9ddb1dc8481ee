"""Bundles as objects: build their networks, load the weights strictly, write them.

``medmap.bundle.format`` parses the files; ``Bundle.entry_for`` alone decides which network of a
bundle some modalities get.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from medmap.bundle.card import card_text, monai_metadata
from medmap.bundle.format import (
    ANY,
    CARD,
    EARLIER_CONFIDENCE,
    METADATA,
    SUMS,
    WEIGHTS,
    InferenceSpec,
    Metadata,
    NetworkSpec,
    choose_entry,
    parse_metadata,
    read_verified,
    sums_text,
)
from medmap.bundle.training_cases import TrainingCases
from medmap.errors import BundleError
from medmap.io.atomic import atomic_folder
from medmap.networks import NETWORKS, Backbone, Ensemble, build_network
from medmap.plugins import provider_of
from medmap.postprocess.spec import (
    NO_OFFSETS,
    NO_POSTPROCESSING,
    NO_THRESHOLDS,
    ConfidenceSpec,
    OffsetSpec,
    PostprocessSpec,
)
from medmap.preprocess import PreprocessSpec
from medmap.task import Task


@dataclass(frozen=True)
class Entry:
    """One network of a bundle and the modalities that it takes.

    Attributes:
        name: the modality subset that it is made for, as ``Task.subset_key`` writes it, or ``any``.
        modalities: names in task order. In ``Bundle.entries`` the modalities that it can take; from
            ``Bundle.entry_for`` those of the available modalities that it takes.
        network: in evaluation mode, on the CPU, float32.
    """

    name: str
    modalities: tuple[str, ...]
    network_spec: NetworkSpec
    network: Backbone


@dataclass(frozen=True)
class Bundle:
    """A verified, loaded bundle.

    Attributes:
        id: name and version, ``medmap-phantom-1.0.0``.
        sha256: hash of ``SHA256SUMS``, hence of every byte of the bundle.
        card: what people should know: data, training, whom the model is made for
            (``card["population"]``), the measured Dice per subset (``card["dice"]``; on synthetic
            cases ``card["dice_synthetic"]``).
        network_spec, network: of the first entry, which is the only one of most bundles.
        further_networks: further networks, each made for one modality subset; see ``entries``.
        confidence: thresholds below which connected components are suppressed.
        offsets: what is added to the logits.
        training_cases: what the networks were trained on; None where the bundle does not say.
    """

    id: str
    sha256: str
    task: Task
    network_spec: NetworkSpec
    preprocess: PreprocessSpec
    inference: InferenceSpec
    card: dict
    network: Backbone
    postprocess: PostprocessSpec = NO_POSTPROCESSING
    further_networks: tuple[tuple[NetworkSpec, Backbone], ...] = ()
    confidence: ConfidenceSpec = NO_THRESHOLDS
    offsets: OffsetSpec = NO_OFFSETS
    training_cases: TrainingCases | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities that training has shown, in the task's order."""
        if self.training_cases is None:
            return self.task.modality_names
        trained = self.training_cases.modalities
        return tuple(name for name in self.task.modality_names if name in trained)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every network with the modalities that it can take, in the bundle's order."""
        networks = ((self.network_spec, self.network), *self.further_networks)
        return tuple(_entry(self.task, spec, net, self.modalities) for spec, net in networks)

    @property
    def stride(self) -> int:
        """Spatial sizes must be divisible by it, whichever entry runs."""
        return math.lcm(*(entry.network.stride for entry in self.entries))

    def member(self, number: int) -> Bundle:
        """The bundle with one member of its ensembles in their place.

        Raises:
            BundleError: a network is no ensemble.
        """
        members = []
        for entry in self.entries:
            if not isinstance(entry.network, Ensemble):
                raise BundleError(
                    f"The bundle {self.id} is no ensemble.", "Use a bundle of all folds."
                )
            network = entry.network.members[number]
            assert isinstance(network, Backbone)
            members.append((NetworkSpec(*network.built_from), network))
        spec, network = members[0]
        cases = self.training_cases
        return replace(
            self,
            network_spec=spec,
            network=network,
            further_networks=tuple(members[1:]),
            training_cases=None if cases is None else cases.of_member(number),
        )

    def find_entry(self, names: Iterable[str]) -> Entry | None:
        """The entry that uses the most of these modalities, the first among equals.

        A network that is made for one modality subset requires all of it and sees no other
        modality; one for any subset sees none that was never trained. None if no entry can run.
        """
        available = set(names)
        requirements: list[tuple[str, ...]] = []
        for entry in self.entries:
            required = entry.modalities
            if entry.name == ANY:
                usable = tuple(name for name in entry.modalities if name in available)
                required = usable or entry.modalities
            requirements.append(required)
        position = choose_entry(requirements, available)
        if position is None:
            return None
        entry = self.entries[position]
        used = tuple(name for name in entry.modalities if name in available)
        return replace(entry, modalities=used)

    def entry_for(self, names: Iterable[str]) -> Entry:
        """As ``find_entry``. Raises BundleError with the supported subsets if no entry can run."""
        available = set(names)
        entry = self.find_entry(available)
        if entry is not None:
            return entry
        ordered = [name for name in self.task.modality_names if name in available]
        raise self._unsupported(ordered)

    def _unsupported(self, names: Sequence[str]) -> BundleError:
        """The error for modalities with which no entry can run; it says which ones would do."""
        titles = self.task.titles
        supported = [entry.modalities for entry in self.entries]
        if any(entry.name == ANY for entry in self.entries):
            return BundleError(
                f"The bundle {self.id} was never trained with {titles(names)}, only "
                f"with {titles(self.modalities)}.",
                "Add one of these, or use another bundle.",
            )
        if len(supported) == 1:
            (required,) = supported
            missing = [name for name in required if name not in names]
            return BundleError(
                f"The bundle {self.id} requires {titles(required)}, and "
                f"{titles(missing)} is missing.",
                "Add it, or use a bundle for any modality subset.",
            )
        subsets = "; ".join(titles(modalities) for modalities in supported)
        return BundleError(
            f"The bundle {self.id} has no network for {titles(names)}: it is made for {subsets}.",
            "Add the modalities of one of these, or use a bundle for any modality subset.",
        )


def _entry(task: Task, spec: NetworkSpec, network: Backbone, modalities: tuple[str, ...]) -> Entry:
    """The entry of a network: for one modality subset, or for any of these modalities."""
    if network.needs is None:
        return Entry(ANY, modalities, spec, network)
    positions = sorted(network.needs)
    names = tuple(task.modality_names[position] for position in positions)
    return Entry(task.subset_key(names), names, spec, network)


def load_bundle(path: str | os.PathLike) -> Bundle:
    """Verify, build and strictly load a bundle.

    Raises:
        MissingInputError: there is no such folder.
        BundleError: not a bundle, altered, of an unknown format, or weights that do not fit the
            network.
    """
    folder = Path(path)
    # Read once: what is hashed is what is used, whatever happens to the files meanwhile.
    contents = read_verified(folder)
    metadata = parse_metadata(contents[METADATA])
    _require_plugins(metadata)
    networks = []
    for spec in metadata.networks:
        networks.append((spec, build_network(spec.name, spec.options).eval()))
    first_spec, first_network = networks[0]
    bundle = Bundle(
        id=metadata.id,
        sha256=hashlib.sha256(contents[SUMS]).hexdigest(),
        task=metadata.task,
        network_spec=first_spec,
        preprocess=PreprocessSpec.from_dict(metadata.preprocess),
        inference=metadata.inference,
        card=metadata.card,
        network=first_network,
        postprocess=PostprocessSpec.from_dict(metadata.postprocess),
        further_networks=tuple(networks[1:]),
        confidence=ConfidenceSpec.from_dict(metadata.confidence),
        offsets=_offsets_of(metadata),
        training_cases=metadata.training_cases,
    )
    _load_weights(bundle, contents[WEIGHTS], folder.name)
    return bundle


def _offsets_of(metadata: Metadata) -> OffsetSpec:
    """The logit offsets. Raises BundleError for a label or modality that the task lacks."""
    offsets = OffsetSpec.from_dict(metadata.offsets)
    task = metadata.task
    labels = {label.name for label in task.labels}
    for key, by_label in offsets.by_subset.items():
        strange = set(key.split("+")) - set(task.modality_names) | set(by_label) - labels
        if strange:
            raise BundleError(
                f"Invalid logit offsets in the bundle's metadata ({', '.join(sorted(strange))}).",
                "Use a newer MedMAP or export it again.",
            )
    return offsets


def _require_plugins(metadata: Metadata) -> None:
    """Raises BundleError where a network comes from a plug-in that is not loaded."""
    for network, plugin in metadata.plugins.items():
        if network not in NETWORKS:
            raise BundleError(
                f"The bundle {metadata.id} needs the plug-in {plugin}, which has its network "
                f"{network}.",
                "Load that plug-in.",
                option=f"plugin {plugin}.py",
            )


def _plugins_of(specs: Sequence[NetworkSpec]) -> list[dict[str, str]]:
    """The plug-ins that these networks, or members of ensembles, come from."""
    names: dict[str, None] = {}
    for spec in specs:
        names[spec.name] = None
        for member in spec.options.get("members", ()):
            names[member["name"]] = None
    entries = []
    for name in names:
        provider = provider_of("network", name)
        if provider is not None:
            entries.append({"part": name, **provider.to_dict()})
    return entries


def save_bundle(
    path: str | os.PathLike,
    *,
    name: str,
    version: str,
    task: Task,
    network: Backbone,
    network_spec: NetworkSpec,
    preprocess: PreprocessSpec,
    inference: InferenceSpec,
    card: Mapping,
    postprocess: PostprocessSpec = NO_POSTPROCESSING,
    further_networks: Sequence[tuple[NetworkSpec, Backbone]] = (),
    confidence: ConfidenceSpec = NO_THRESHOLDS,
    offsets: OffsetSpec = NO_OFFSETS,
    training_cases: TrainingCases | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a bundle, all or nothing; weights are stored in half precision.

    Args:
        further_networks: further networks, each made for one modality subset.
        training_cases: what the networks were trained on, if that is known.

    Raises:
        BundleError: two of the networks are made for the same subset.
        OutputError: the folder exists (and ``overwrite`` is False) or cannot be written.
    """
    networks = [(network_spec, network), *further_networks]
    specs = [spec for spec, _ in networks]
    network_sections = [{"name": spec.name, "options": spec.options} for spec in specs]
    section: dict = {"format": 2 if further_networks else 1, "task": task.to_dict()}
    if further_networks:
        section["networks"] = network_sections
    else:
        # Format 1 holds one network.
        section["network"] = network_sections[0]
    section["preprocess"] = preprocess.to_dict()
    section["postprocess"] = postprocess.to_dict()
    if confidence != NO_THRESHOLDS:
        section["confidence"] = confidence.to_dict()
    if offsets != NO_OFFSETS:
        section["logit_offsets"] = offsets.to_dict()
    section["inference"] = inference.to_dict()
    plugins = _plugins_of(specs)
    if plugins:
        section["plugins"] = plugins
    modalities = None
    if training_cases is not None:
        section["training_cases"] = training_cases.to_dict()
        modalities = training_cases.modalities
    section["card"] = dict(card)
    torch_version = torch.__version__.split("+")[0]
    monai = monai_metadata(name, version, task, card, torch_version, modalities)
    raw = {**monai, "medmap": section}
    weights = _collected_weights(task, networks)
    return _write(Path(path), raw, save_tensors(weights), overwrite)


def update_card(path: str | os.PathLike, changes: Mapping) -> Path:
    """Replace entries of a bundle's card and renew the hashes; weights stay byte for byte."""
    contents, metadata = _read_for_update(path)
    raw = metadata.raw
    card = raw["medmap"]["card"]
    raw["medmap"]["card"] = {**card, **changes}
    return _write(Path(path), raw, contents[WEIGHTS], overwrite=True)


def update_decisions(
    path: str | os.PathLike,
    *,
    version: str,
    change: str,
    confidence: ConfidenceSpec | None = None,
    offsets: OffsetSpec | None = None,
) -> Path:
    """Replace how a bundle decides, as a new version; weights stay byte for byte.

    Args:
        version: the new version; results differ from those of the old one.
        change: the new line of the bundle's changelog.
        confidence: the new thresholds; None leaves them.
        offsets: the new logit offsets; None leaves them.
    """
    contents, metadata = _read_for_update(path)
    raw = metadata.raw
    if confidence is not None:
        raw["medmap"].pop(EARLIER_CONFIDENCE, None)
        raw["medmap"]["confidence"] = confidence.to_dict()
    if offsets is not None:
        raw["medmap"]["logit_offsets"] = offsets.to_dict()
    raw["version"] = version
    raw["changelog"] = {version: change, **raw["changelog"]}
    return _write(Path(path), raw, contents[WEIGHTS], overwrite=True)


def _read_for_update(path: str | os.PathLike) -> tuple[dict[str, bytes], Metadata]:
    contents = read_verified(path)
    return contents, parse_metadata(contents[METADATA])


def _collected_weights(
    task: Task, networks: Sequence[tuple[NetworkSpec, Backbone]]
) -> dict[str, torch.Tensor]:
    """Weights of all networks by name; those of several networks begin with the entry's name."""
    weights: dict[str, torch.Tensor] = {}
    for spec, network in networks:
        entry_name = _entry(task, spec, network, task.modality_names).name
        prefix = ""
        if len(networks) > 1:
            prefix = f"{entry_name}/"
        for name, value in sorted(network.state_dict().items()):
            stored_name = prefix + name
            if stored_name in weights:
                raise BundleError(
                    f"Two networks are made for {entry_name}.", "Use one network per subset."
                )
            weights[stored_name] = _stored(name, value)
    return weights


def _stored(name: str, value: torch.Tensor) -> torch.Tensor:
    """Half precision for weights.

    Running statistics and counters keep their type: half precision may not hold them.
    """
    value = value.detach().cpu().contiguous()
    if "running_" in name or not value.is_floating_point():
        return value
    return value.half()


def _write(path: Path, raw_metadata: dict, weights: bytes, overwrite: bool) -> Path:
    metadata_text = json.dumps(raw_metadata, indent=1, ensure_ascii=False) + "\n"
    files = {
        METADATA: metadata_text.encode(),
        WEIGHTS: weights,
        CARD: card_text(raw_metadata).encode(),
    }
    files[SUMS] = sums_text(files).encode()
    with atomic_folder(path, overwrite=overwrite) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
    return path


def _load_weights(bundle: Bundle, data: bytes, folder_name: str) -> None:
    """Load strictly: every network gets all of its weights, and none is left over."""
    try:
        weights = _full_precision(load_tensors(data))
        for entry in bundle.entries:
            prefix = f"{entry.name}/" if bundle.further_networks else ""
            state = {}
            for name in [name for name in weights if name.startswith(prefix)]:
                state[name.removeprefix(prefix)] = weights.pop(name)
            entry.network.load_state_dict(state, strict=True)
        if weights:
            raise ValueError(f"{next(iter(weights))} belongs to none")
    except (SafetensorError, RuntimeError, ValueError) as error:
        cause = str(error).splitlines()[0]
        raise BundleError(
            f"The weights of {folder_name} do not fit its network ({cause}).",
            "Export the bundle again.",
        ) from error
    # NaN in one weight makes every voxel NaN, which would look like "no tumor".
    for entry in bundle.entries:
        for value in entry.network.state_dict().values():
            if not torch.isfinite(value).all():
                raise BundleError(
                    f"The weights of {folder_name} are not all finite.",
                    "Train and export the bundle again.",
                )


def _full_precision(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Floating-point tensors as float32; the others unchanged."""
    result = {}
    for name, value in weights.items():
        if value.is_floating_point():
            value = value.float()
        result[name] = value
    return result
