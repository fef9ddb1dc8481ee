"""What the core advises, as advice for a user of Slicer: no package extras, no files to edit.

The core's remedies fit the command line and Python, too. Where such a remedy is no help in Slicer,
this table has another one; a test looks for words that no user of the panel should read.
"""

from __future__ import annotations

GET_AGAIN = "Get the model again from where it came from, or choose another model."
ALIGN_ELSEWHERE = (
    "Align the scans with Slicer's module General Registration (BRAINS) and select the aligned "
    "volumes, or clear the check boxes under Align. SimpleITK is part of Slicer: if it is missing, "
    "install Slicer again."
)
STRIP_ELSEWHERE = (
    "Install HD Brain Extraction or Swiss Skull Stripper with the Extensions Manager, or select a "
    "brain mask."
)

IN_SLICER = {
    "Add it, or use a bundle for any modality subset.": (
        "Add it, or choose a model for any modality subset."
    ),
    "Add one of these, or use another bundle.": "Add one of these, or choose another model.",
    "Add the modalities of one of these, or use a bundle for any modality subset.": (
        "Add the modalities of one of these, or choose a model for any modality subset."
    ),
    "Choose another bundle, or export this one again.": GET_AGAIN,
    "Choose another bundle.": "Choose another model.",
    "Choose another name, or allow overwriting.": "Choose another name.",
    "Choose the CPU.": "Choose the processor (CPU) under Settings and model.",
    "Copy the bundle again from its source.": GET_AGAIN,
    "Decode it by class: without by_region in the post-processing.": GET_AGAIN,
    "Either {0}, use a brain mask made elsewhere, or skull-strip the scans yourself.": (
        STRIP_ELSEWHERE
    ),
    "Export the bundle again.": GET_AGAIN,
    "Export the image again, or leave it out.": (
        "Load the image again from its source, or exclude this modality."
    ),
    "Free memory on the device, or use the CPU.": (
        "Close other programs that use the device, or choose the processor (CPU) under Settings "
        "and model."
    ),
    "Install the extra medmap[clinic], align the scans yourself, or leave one of them out.": (
        ALIGN_ELSEWHERE
    ),
    "Install the extra medmap[clinic], or align the scans yourself.": ALIGN_ELSEWHERE,
    "Invalid confidence thresholds in the bundle's metadata ({0}).": (
        "The model has invalid confidence thresholds ({0})."
    ),
    "Invalid logit offsets in the bundle's metadata ({0}).": (
        "The model has invalid logit offsets ({0})."
    ),
    "Invalid post-processing in the bundle's metadata ({0}).": (
        "The model has invalid post-processing ({0})."
    ),
    "Leave this modality out.": "Clear the check box of this modality.",
    "Load that plug-in.": GET_AGAIN,
    "Name a bundle folder, or set the environment variable MEDMAP_BUNDLE.": (
        "Import a model, or install MedMAP again."
    ),
    "Register the images to each other first, and check that they are of one patient.": (
        "Align the volumes first, and check that they are of the same patient."
    ),
    "Register the images to each other first.": "Align the volumes first.",
    "Report this with the bundle's name and the device.": (
        "Please report this with the name of the model and the device."
    ),
    "Skull-strip all images first: the model knows brains only.": (
        "Extract the brain first: the model was trained on brains without skull."
    ),
    "The bundle has format {0}, this MedMAP reads {1}.": (
        "The model has format {0}; this version of MedMAP reads {1}."
    ),
    "The bundle has no network for exactly this modality subset: the one for {0} was used, and "
    "{1} was not.": (
        "The model has no network for exactly this modality subset: the one for {0} was used, and "
        "{1} was not."
    ),
    "The bundle {0} cannot be read: {1}.": "The model {0} cannot be read: {1}.",
    "The bundle {0} has files missing or added: {1}.": (
        "The model {0} has files missing or added: {1}."
    ),
    "The bundle {0} has no network for {1}: it is made for {2}.": (
        "The model {0} has no network for {1}: it is made for {2}."
    ),
    "The bundle {0} is no ensemble.": "The model {0} is no ensemble.",
    "The bundle {0} needs the plug-in {1}, which has its network {2}.": (
        "The model {0} needs the plug-in {1} for its network {2}; Slicer has no such plug-in."
    ),
    "The bundle {0} requires {1}, and {2} is missing.": (
        "The model {0} requires {1}, and {2} is missing."
    ),
    "The bundle {0} was never trained with {1}, only with {2}.": (
        "The model {0} was never trained with {1}, only with {2}."
    ),
    "The bundle's preprocessing is not understood ({0}).": (
        "The model's preprocessing is unknown to this version of MedMAP ({0})."
    ),
    "There is no bundle folder {0}.": "The folder of the model {0} is missing.",
    "To use it, {0}.": STRIP_ELSEWHERE,
    "Train and export the bundle again.": GET_AGAIN,
    "Use a bundle of all folds.": "Choose another model.",
    "Use a newer MedMAP or export it again.": "Install a newer MedMAP, or choose another model.",
    "Use one network per subset.": GET_AGAIN,
    "Use one of cpu, cuda, cuda:1, mps, auto.": "Choose a device from the list.",
    "{0} is not a MedMAP bundle: it has no {1}.": "{0} is not a MedMAP model: it has no {1}.",
    "{0} is not a MedMAP bundle: {1} does not list its files.": (
        "{0} is not a MedMAP model: {1} does not list its files."
    ),
    "{0} is not a bundle description ({1}).": "{0} does not describe a model ({1}).",
    "{0} is too large to be part of a bundle.": "{0} is too large to be part of a model.",
    "{0} of the bundle {1} is damaged.": "{0} of the model {1} is damaged.",
    "{0} of the bundle {1} is not the file that was published (SHA-256 differs).": (
        "{0} of the model {1} is not the file that was published (SHA-256 differs)."
    ),
}
"""Sentence of the core -> what the panel says instead; placeholders as in the former."""
