"""What a bundle says of itself: MONAI's part of the metadata, and the card as Markdown."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from medmap.task import Task


def monai_metadata(name: str, version: str, task: Task, card: Mapping) -> dict:
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
        for name, scores in table.get("averages", {}).items():
            cells = [f"{scores[r]['mean']:.3f} ± {scores[r]['sd']:.3f}" for r in regions]
            lines.append(f"| *mean, {name}* | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)
