"""A bundle: everything inference needs, in one folder, verified before a single weight is used.

``metadata.json`` (MONAI's key names, ours under ``medmap``), ``model.safetensors`` (half precision), ``README.md``
(the card, for people) and ``SHA256SUMS``. Nothing in it is code: no pickle, no expression, no import path.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from medmap.errors import BundleError, MissingInputError
from medmap.files import atomic_folder
from medmap.networks import Backbone, build_network
from medmap.postprocess import PostprocessSpec
from medmap.preprocess import PreprocessSpec
from medmap.task import Task

FORMAT = 1
NO_POSTPROCESSING = PostprocessSpec()
METADATA, WEIGHTS, CARD, SUMS = "metadata.json", "model.safetensors", "README.md", "SHA256SUMS"
_REQUIRED = (METADATA, WEIGHTS)
_LARGEST_METADATA = 4 * 2**20


@dataclass(frozen=True)
class InferenceSpec:
    """How a bundle wants to be run.

    Attributes:
        window: largest size, in working voxels, that goes through the network in one pass.
        overlap: share of a window that neighbours have in common when one pass does not suffice.
    """

    window: tuple[int, int, int] = (192, 224, 192)
    overlap: float = 0.25


@dataclass(frozen=True)
class NetworkSpec:
    """Name of a backbone and its options, as plain data."""

    name: str
    options: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """A verified, loaded bundle.

    Attributes:
        id: name and version, ``medmap-phantom-1.0.0``.
        sha256: hash of ``SHA256SUMS``, hence of every byte of the bundle.
        card: what people should know: data, training, the validated Dice per subset (``card["dice"]``).
        network: in evaluation mode, on the CPU, float32.
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


def default_bundle_path() -> Path:
    """Where the bundle that ships with MedMAP lies: ``$MEDMAP_BUNDLE``, the checkout's, or the installed extension's.

    Raises:
        MissingInputError: none of these exists.
    """
    package = Path(__file__).resolve().parent
    named = os.environ.get("MEDMAP_BUNDLE")
    places = [Path(named)] if named else []
    places += [package.parents[1] / "Resources/bundles/default", package.parent / "Resources/MedMAPBundles/default"]
    for place in places:
        if (place / METADATA).is_file():
            return place
    raise MissingInputError(
        "The default bundle was not found beside this MedMAP.", "Name a bundle with --bundle or set MEDMAP_BUNDLE."
    )


def verify_bundle(path: str | os.PathLike) -> dict[str, str]:
    """Compare every file of a bundle with ``SHA256SUMS``.

    Returns:
        SHA-256 by file name, with that of ``SHA256SUMS`` itself under its own name.

    Raises:
        MissingInputError: there is no such folder.
        BundleError: a file is missing, added or altered.
    """
    contents = _read_verified(Path(path))
    return {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}


def load_bundle(path: str | os.PathLike) -> Bundle:
    """Verify, build and strictly load a bundle.

    Raises:
        MissingInputError: there is no such folder.
        BundleError: not a bundle, altered, of an unknown format, or weights that do not fit the network.
    """
    folder = Path(path)
    contents = _read_verified(folder)
    metadata = _parse_metadata(contents[METADATA])
    own = metadata["medmap"]
    try:
        spec = NetworkSpec(str(own["network"]["name"]), dict(own["network"]["options"]))
        window = own["inference"]
        inference = InferenceSpec(tuple(int(n) for n in window["window"]), float(window["overlap"]))
        task, preprocess = Task.from_dict(own["task"]), PreprocessSpec.from_dict(own["preprocess"])
        postprocess = PostprocessSpec.from_dict(own["postprocess"])
        card, identity = dict(own["card"]), f"{metadata['name']}-{metadata['version']}"
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"The bundle {folder.name} lacks or garbles {error} in {METADATA}.", "Export it again."
        ) from error
    network = build_network(spec.name, spec.options)
    _load_weights(network, contents[WEIGHTS], folder.name)
    digest = hashlib.sha256(contents[SUMS]).hexdigest()
    return Bundle(identity, digest, task, spec, preprocess, inference, card, network.eval(), postprocess)


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
    overwrite: bool = False,
) -> Path:
    """Write a bundle, all or nothing; weights are stored in half precision.

    Raises:
        OutputError: the folder exists (and ``overwrite`` is False) or cannot be written.
    """
    weights = {name: _stored(name, value) for name, value in sorted(network.state_dict().items())}
    own = {
        "format": FORMAT,
        "task": task.to_dict(),
        "network": {"name": network_spec.name, "options": network_spec.options},
        "preprocess": preprocess.to_dict(),
        "postprocess": postprocess.to_dict(),
        "inference": {"window": list(inference.window), "overlap": inference.overlap},
        "card": dict(card),
    }
    metadata = {**_monai_metadata(name, version, task, card), "medmap": own}
    return _write(Path(path), metadata, save_tensors(weights), overwrite)


def update_card(path: str | os.PathLike, changes: Mapping) -> Path:
    """Replace entries of a bundle's card (its Dice table, say) and renew the hashes; weights stay byte for byte."""
    contents = _read_verified(Path(path))
    metadata = _parse_metadata(contents[METADATA])
    metadata["medmap"]["card"] = {**metadata["medmap"]["card"], **changes}
    return _write(Path(path), metadata, contents[WEIGHTS], overwrite=True)


def _stored(name: str, value: torch.Tensor) -> torch.Tensor:
    """Half precision for weights; running statistics and counters keep theirs, which half might not hold."""
    value = value.detach().cpu().contiguous()
    return value if "running_" in name or not value.is_floating_point() else value.half()


def _write(path: Path, metadata: dict, weights: bytes, overwrite: bool) -> Path:
    files = {
        METADATA: (json.dumps(metadata, indent=1, ensure_ascii=False) + "\n").encode(),
        WEIGHTS: weights,
        CARD: card_text(metadata).encode(),
    }
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    files[SUMS] = sums.encode()
    with atomic_folder(path, overwrite=overwrite) as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
    return path


def _read_verified(folder: Path) -> dict[str, bytes]:
    if not folder.is_dir():
        raise MissingInputError(f"There is no bundle folder {folder.name}.", "Check the path given with --bundle.")
    try:
        present = {p.name: p for p in folder.iterdir() if not p.name.startswith(".")}
        sums = present[SUMS].read_bytes() if SUMS in present else b""
        listed = _parse_sums(sums, folder.name)
        if set(present) != {*listed, SUMS}:
            odd = sorted(set(present) ^ {*listed, SUMS})
            raise BundleError(
                f"The bundle {folder.name} has files missing or added: {', '.join(odd)}.", "Copy the bundle again."
            )
        contents = {name: present[name].read_bytes() for name in listed}
    except OSError as error:
        raise BundleError(
            f"The bundle {folder.name} cannot be read: {error.strerror}.", "Check its permissions."
        ) from error
    for name, data in contents.items():
        if hashlib.sha256(data).hexdigest() != listed[name]:
            raise BundleError(
                f"{name} of the bundle {folder.name} is not the file that was published (SHA-256 differs).",
                "Copy the bundle again from its source.",
            )
    return {**contents, SUMS: sums}


def _parse_sums(data: bytes, folder: str) -> dict[str, str]:
    listed = {}
    for line in data.decode("ascii", "replace").removesuffix("\n").split("\n"):
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or set(digest) - set("0123456789abcdef") or not name or "/" in name or "\\" in name:
            raise BundleError(f"{SUMS} of the bundle {folder} is damaged.", "Copy the bundle again from its source.")
        listed[name] = digest
    if not set(_REQUIRED) <= set(listed) or SUMS in listed:
        raise BundleError(f"{folder} is not a MedMAP bundle: {SUMS} does not list its files.", "Choose another folder.")
    return listed


def _parse_metadata(data: bytes) -> dict:
    try:
        if len(data) > _LARGEST_METADATA:
            raise ValueError("too large")
        metadata = json.loads(data)
        found = metadata["medmap"]["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{METADATA} is not a bundle description ({error}).", "Export the bundle again.") from error
    if found != FORMAT:
        raise BundleError(
            f"The bundle has format {found}, this MedMAP reads format {FORMAT}.", "Use the MedMAP that it was made for."
        )
    return metadata


def _load_weights(network: Backbone, data: bytes, folder: str) -> None:
    try:
        weights = {k: v.float() if v.is_floating_point() else v for k, v in load_tensors(data).items()}
        network.load_state_dict(weights, strict=True)
    except (SafetensorError, RuntimeError, ValueError) as error:
        cause = str(error).splitlines()[0]
        raise BundleError(f"The weights of {folder} do not fit its network ({cause}).", "Export it again.") from error
    if not all(torch.isfinite(p).all() for p in network.state_dict().values()):
        raise BundleError(f"The weights of {folder} are not all finite.", "Train and export the bundle again.")


def _monai_metadata(name: str, version: str, task: Task, card: Mapping) -> dict:
    """The part of ``metadata.json`` that MONAI's model zoo also has, with its key names."""
    labels = {"0": "background", **{str(n + 1): label.name for n, label in enumerate(task.labels)}}
    return {
        "version": version,
        "changelog": {version: card.get("change", "first release")},
        "pytorch_version": torch.__version__.split("+")[0],
        "required_packages_version": {"safetensors": "", "numpy": ""},
        "name": name,
        "task": f"{task.name} segmentation with missing modalities",
        "description": card.get("description", ""),
        "authors": "MedMAP contributors",
        "copyright": "MedMAP contributors, Apache-2.0",
        "data_source": card.get("data", ""),
        "data_type": "nifti",
        "image_classes": ", ".join(m.title for m in task.modalities) + "; any non-empty subset",
        "label_classes": ", ".join(f"{label.value} {label.title}" for label in task.labels),
        "intended_use": "Research use only. Not a medical device, not for clinical use.",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": "MR",
                    "num_channels": len(task.modalities),
                    "dtype": "float32",
                    "is_patch_data": False,
                    "channel_def": {str(n): m.name for n, m in enumerate(task.modalities)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities",
                    "format": "segmentation",
                    "num_channels": task.num_classes,
                    "dtype": "float32",
                    "is_patch_data": False,
                    "channel_def": labels,
                }
            },
        },
    }


def card_text(metadata: Mapping) -> str:
    """The card as Markdown: what it is, what it has seen, and the Dice of every subset."""
    own, card = metadata["medmap"], metadata["medmap"]["card"]
    lines = [f"# {metadata['name']} {metadata['version']}", "", metadata["intended_use"], ""]
    for key in ("description", "data", "training", "limits"):
        if card.get(key):
            lines += [f"**{key.capitalize()}.** {card[key]}", ""]
    table = card.get("dice")
    if table:
        regions = [r["name"] for r in own["task"]["regions"]]
        lines += [f"**Dice, mean ± SD over {table['cases']} cases** ({table['data']})", ""]
        lines += ["| scans | " + " | ".join(regions) + " |", "|---|" + "--:|" * len(regions)]
        for subset, scores in table["subsets"].items():
            cells = [f"{scores[r]['mean']:.3f} ± {scores[r]['sd']:.3f}" for r in regions]
            lines.append(f"| {subset} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)
