"""The tasks that the package knows by name: brain tumors of BraTS, hearts of MyoPS 2020."""

from __future__ import annotations

from dataclasses import replace

from medmap.task.definition import Code, Label, Modality, Region, Task

BRATS = Task(
    name="BraTS",
    modalities=(
        Modality("t1", "T1", ("t1n", "t1w", "t1pre")),
        Modality(
            "t1ce",
            "T1ce",
            ("t1c", "t1gd", "t1post", "t1km", "ce"),
            "Without T1ce, enhancing tumor is not visible: ET is a guess and TC is unreliable.",
        ),
        Modality("t2", "T2", ("t2w",)),
        Modality(
            "flair",
            "FLAIR",
            ("t2f", "fla", "tirm"),
            "Without FLAIR, edema is hard to tell from CSF and normal tissue: WT may be too small "
            "or too large.",
        ),
    ),
    labels=(
        Label(
            "NCR",
            "Necrosis / non-enhancing core",
            1,
            color=(216, 101, 79),
            code=Code("NCIt", "C81175", "Non-Enhancing Lesion"),
        ),
        Label(
            "ED",
            "Edema",
            2,
            color=(111, 184, 210),
            code=Code("SCT", "79654002", "Edema"),
        ),
        Label(
            "ET",
            "Enhancing tumor",
            4,
            color=(241, 214, 145),
            code=Code("NCIt", "C113842", "Enhancing Lesion"),
        ),
    ),
    regions=(
        Region("WT", "Whole tumor", ("NCR", "ED", "ET")),
        Region("TC", "Tumor core", ("NCR", "ET")),
        Region("ET", "Enhancing tumor", ("ET",), min_volume_mm3=500.0),
    ),
)
"""BraTS glioma: labels 1 NCR/NET, 2 ED, 4 ET; regions WT, TC, ET.

Label files of other releases are read through ``medmap.task.conventions``."""

_MYOPS_MODALITIES = (
    Modality("bssfp", "bSSFP", ("c0", "cine", "ssfp")),
    Modality(
        "lge",
        "LGE",
        ("de", "psir"),
        "Without LGE, scar is hard to tell from edema and muscle: scar is a guess.",
    ),
    Modality(
        "t2",
        "T2",
        ("t2w", "stir"),
        "Without T2, edema is hard to tell from muscle.",
    ),
)
_BLOOD_POOLS = (
    Label("LVB", "Left ventricle blood pool", 500, color=(216, 84, 79)),
    Label("RVB", "Right ventricle blood pool", 600, color=(90, 130, 220)),
)

MYOPS = Task(
    name="MyoPS",
    modalities=_MYOPS_MODALITIES,
    labels=(
        Label("NMYO", "Normal myocardium", 200, color=(120, 190, 120)),
        *_BLOOD_POOLS,
        Label("ED", "Edema", 1220, color=(111, 184, 210)),
        Label("SCAR", "Scar", 2221, color=(241, 214, 145)),
    ),
    regions=(
        Region("LVB", "LV blood pool", ("LVB",)),
        Region("RVB", "RV blood pool", ("RVB",)),
        Region("MYO", "LV myocardium", ("NMYO", "ED", "SCAR")),
        Region("SCAR", "Scar", ("SCAR",)),
        Region("PATH", "Scar and edema", ("ED", "SCAR")),
    ),
    organ="heart",
    target="heart",
    skull_stripped=False,
    layouts=("bids", "nnunet", "myops", "folders", "flat"),
    label_endings=("gd", "seg", "segm"),
)
"""MyoPS 2020 (Zhuang and Li, MICCAI 2020 challenge): three aligned stacks of thick slices.

Label values: 200 normal myocardium, 500 and 600 blood pools, 1220 edema, 2221 scar. Scored are the
parts of the heart, scar, and scar with edema. The labels carry no codes, because the panel writes
codes with the brain as the anatomic region."""

MYOPS_ANATOMY = Task(
    name="MyoPS-anatomy",
    modalities=tuple(replace(m, warning_if_absent="") for m in _MYOPS_MODALITIES),
    labels=(
        Label(
            "MYO",
            "Left ventricle myocardium",
            200,
            alternative_values=(1220, 2221),
            color=(120, 190, 120),
        ),
        *_BLOOD_POOLS,
    ),
    regions=tuple(r if r.name != "MYO" else replace(r, labels=("MYO",)) for r in MYOPS.regions[:3]),
    organ="heart",
    target="heart",
    skull_stripped=False,
    layouts=("bids", "nnunet", "myops", "folders", "flat"),
    label_endings=("gd", "seg", "segm"),
)
"""MyoPS 2020 with the three targets of PASSION (Shi et al., ACM MM 2024): all myocardium is one
label, scarred or not."""

TASKS = {task.name: task for task in (BRATS, MYOPS, MYOPS_ANATOMY)}
