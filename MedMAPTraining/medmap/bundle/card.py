"""The model card: MONAI's part of a bundle's metadata, and the card as Markdown. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medmap.task import Task

NOT_STATED = "not stated"


def monai_metadata(
    name: str,
    version: str,
    task: Task,
    card: Mapping,
    torch_version: str,
    modalities: Sequence[str] | None = None,
) -> dict:
    """The part of ``metadata.json`` that MONAI's model zoo also has, with its key names.

    Args:
        name, version: of the bundle.
        task: names modalities and labels.
        card: the bundle's card; ``author`` and ``license`` are those of the bundle.
        torch_version: PyTorch with which the bundle is written, ``2.10.0``.
        modalities: names of those that training has shown; None stands for all.
    """
    labels = {"0": "background"}
    for class_index, label in enumerate(task.labels, start=1):
        labels[str(class_index)] = label.name
    channels = {}
    for position, modality in enumerate(task.modalities):
        channels[str(position)] = modality.name
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "num_channels": len(task.modalities),
        "dtype": "float32",
        "is_patch_data": False,
        "channel_def": channels,
    }
    prediction = {
        "type": "probabilities",
        "format": "segmentation",
        "num_channels": task.num_classes,
        "dtype": "float32",
        "is_patch_data": False,
        "channel_def": labels,
    }
    trained_names: Sequence[str] = task.modality_names
    if modalities is not None:
        trained_names = modalities
    titles = task.titles(trained_names)
    author = card.get("author") or NOT_STATED
    rights = [card[key] for key in ("author", "license") if card.get(key)]
    return {
        "version": version,
        "changelog": {version: card.get("change", "first release")},
        "pytorch_version": torch_version,
        "required_packages_version": {"safetensors": "", "numpy": ""},
        "name": name,
        "task": f"{task.name} segmentation with missing modalities",
        "description": card.get("description", ""),
        "authors": author,
        "copyright": ", ".join(rights) or NOT_STATED,
        "data_source": card.get("data", ""),
        "data_type": "nifti",
        "image_classes": f"{titles}; any non-empty subset",
        "label_classes": ", ".join(f"{label.value} {label.title}" for label in task.labels),
        "intended_use": "Research use only. Not a medical device, not for clinical use.",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": prediction}},
    }


def card_text(metadata: Mapping) -> str:
    """The card as Markdown: description, data, limits, and the measured Dice of every subset.

    Real cases come first. Dice of synthetic cases (``dice_synthetic``) shows what each modality
    contributes, not what to expect of a patient.

    Args:
        metadata: the whole ``metadata.json`` as plain data.
    """
    section = metadata["medmap"]
    card = section["card"]
    lines = [f"# {metadata['name']} {metadata['version']}", "", metadata["intended_use"], ""]
    for key in ("description", "population", "data", "training", "limits", "author", "license"):
        text = card.get(key)
        if text:
            lines += [f"**{key.capitalize()}.** {text}", ""]
    regions = [region["name"] for region in section["task"]["regions"]]
    # Real cases first: they say what to expect of a patient.
    for key in ("dice", "dice_synthetic"):
        summary = card.get(key)
        if summary:
            lines += [*_dice_table(summary, regions), ""]
    return "\n".join(lines)


def _dice_table(table: Mapping, regions: list[str]) -> list[str]:
    lines = [
        f"**Dice, mean ± SD over {table['cases']} cases** ({table['data']})",
        "",
        f"| modalities | {' | '.join(regions)} |",
        "|---|" + "--:|" * len(regions),
    ]
    borrowed = table.get("borrowed", {})
    for subset, scores in table["subsets"].items():
        title = subset
        if subset in borrowed:
            title = f"{subset} (network of {borrowed[subset]})"
        lines.append(_row(title, scores, regions))
    for name, scores in table.get("averages", {}).items():
        lines.append(_row(f"*mean, {name}*", scores, regions))
    return lines


def _row(title: str, scores: Mapping, regions: list[str]) -> str:
    cells = [title]
    for region in regions:
        score = scores[region]
        cells.append(f"{score['mean']:.3f} ± {score['sd']:.3f}")
    return f"| {' | '.join(cells)} |"
