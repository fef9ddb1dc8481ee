"""Names are read as hospitals and data sets give them: whole words, in any case and language."""

from __future__ import annotations

import locale

import pytest

from medmap.detection.series_names import read_series_names
from medmap.detection.series_words import split_words

# Name -> slot; "?" when it leaves several open, "-" when it says nothing or speaks against.
NAMES = """
t1 : BraTS20_Training_001_t1
t1ce : BraTS20_Training_001_t1ce
t2 : BraTS20_Training_001_t2.nii.gz
flair : BraTS20_Training_001_flair.nii
- : BraTS20_Training_001_seg
t1 : BraTS-GLI-00001-000-t1n
t1ce : BraTS-GLI-00001-000-t1c
t2 : BraTS-GLI-00001-000-t2w
flair : BraTS-GLI-00001-000-t2f
t1ce : VSD.Brain.XX.O.MR_T1c.36354
flair : VSD.Brain.XX.O.MR_Flair.684
- : VSD.Brain_3more.XX.O.OT.54195
t1ce : BRATS_HG0001_T1C
t1ce : UPENN-GBM-00001_11_T1GD
flair : UPENN-GBM-00001_11_FLAIR
t1ce : UCSF-PDGM-0004_T1c_bias
- : UCSF-PDGM-0004_tumor_segmentation
- : UCSF-PDGM-0004_ADC
- : UCSF-PDGM-0004_ASL
t1ce : CT1.nii.gz
t1ce : cT1
t1ce : TCGA-02-0006_t1Gd
t1 : sub-01_ses-pre_T1w
t1 : sub-01_ses-post_T1w
t1ce : sub-01_ses-01_ce-gadolinium_T1w
flair : sub-strokecase0001_ses-0001_FLAIR
t2 : sub-01_run-2_T2w
t1ce : sub-patient_acq-post_T1w
t1 : 3: AX T1
t1 : 301: T1W_3D_TFE
t1 : 4: Ax T1 FSE
t1 : AX T1 PRE
t1 : T1 pre contrast
t1 : T1 precontrast
t1 : AX T1 W/O CONTRAST
t1 : T1 without contrast
t1 : T1 non-contrast
t1 : t1_se_tra_nativ
t1 : T1 ohne KM
t1 : T1 sans gado
t1 : T1 senza mdc
t1 : T1 SIN CONTRASTE
t1 : T1 C-
t1 : T1平扫
t1 : MPRAGE
t1 : t1_mprage_sag_p2_iso
t1 : t1_vibe_tra
t1 : Sag 3D MP-RAGE
t1 : Sag FSPGR BRAVO
t1 : MRBrainT1
t1 : AxT1
t1 : Ｔ１
t1ce : 12: AX T1 POST
t1ce : AX T1 POST GAD
t1ce : T1 +C
t1ce : T1+
t1ce : T1W_3D_TFE +C
t1ce : AX BRAVO C+
t1ce : Ax FSPGR 3D +C
t1ce : MPRAGE + Gd
t1ce : mprage+c
t1ce : MPRAGE_GAD
t1ce : t1_mprage_tra_p2_iso_KM
t1ce : T1 mit Kontrastmittel
t1ce : T1 CON CONTRASTE
t1ce : T1 avec gadolinium
t1ce : T1 с контрастом
t1ce : T1增强
t1ce : AxT1Post
t1ce : t1post
t1ce : T1_CE
t1ce : T1 c
t1ce : t1_vibe_fs_tra_dotarem
t1ce : Post contrast T1 weighted
t2 : 5: AX T2
t2 : T2W_TSE
t2 : t2_blade_tra_5mm
t2 : t2_space_sag_p2_iso
t2 : Ax T2 PROPELLER
t2 : Ax T2 FRFSE
t2 : Cube T2
t2 : AX T2 FS POST
t2 : t2_tse_tra_320
flair : AX T2 FLAIR
flair : AxT2FLAIR
flair : T2FLAIR
flair : Sag CUBE T2 FLAIR
flair : FLAIR_longTR
flair : 3D_Brain_VIEW_FLAIR
flair : vFLAIR
flair : flair
flair : FLAİR
flair : t2_tirm_tra_dark-fluid
flair : t2_tirm_tra
flair : t2_space_da-fl_sag_p2_iso
flair : T2 Dark Fluid
flair : 3D FLAIR POST GAD
? : Ax T1 FLAIR
? : T1 FLAIR +C
? : patient01_T1_FLAIR
? : T1_T2
? : T1 PRE POST
? : T1 W/WO CONTRAST
? : T1 with and without gadolinium
? : AX T1 +/- C
- : T2* GRE
- : t2star
- : t2_fl2d_tra_hemo
- : Ax T2 GRE
- : T2W_FFE
- : T1 mapping
- : T1_map
- : t2map
- : T1rho
- : ep2d_diff_3scan_trace_p2
- : AX DWI b1000
- : ADC (10^-6 mm2/s)
- : b1000
- : DTI_64dir
- : SWI_Images
- : SWAN
- : mIP_Images(SW)
- : ep2d_perf
- : DSC rCBV
- : TOF_3D_multi-slab
- : localizer
- : localiser
- : 3-plane loc
- : Survey
- : AAHScout
- : STIR COR
- : AX PD T2
- : T2 c-spine
- : T1 FS orbits POST
- : T1 subtraction
- : T1 sub post
- : Screen Save screenshot
- : T1-segmentation
- : flair_mask
- : FLAIR label
- : brainmask_T1
- : T1 tumor ROI
- : pt12
- : PT1
- : pT2
- : set1
- : MRT1
- : t10
- : Volume_1
- : MRHead
- : CTChest
- : CT post contrast
- : BraTS2021_00002
- : contrast
- : post
t1ce : MedMAP phantom T1ce
- : MedMAP phantom truth
flair : synthetic flair
t1 : T1 post-op
t1 : T1 post surgery
t1 : T1 pre-op
t1ce : T1 post-op post gad
t1ce : postop T1 KM
"""
ROWS = [tuple(part.strip() for part in line.split(":", 1)) for line in NAMES.strip().splitlines()]


def slot(name: str) -> str:
    scores = read_series_names([name]).scores
    if not scores:
        return "-"
    return "?" if len(scores) > 1 else next(iter(scores))


@pytest.mark.parametrize(("expected", "name"), ROWS, ids=[name for _, name in ROWS])
def test_a_name_is_read_as_a_radiologist_reads_it(expected, name):
    assert slot(name) == expected


SAY_SOMETHING_BY_CASE = ("pT2", "AxT1", "AxT1Post", "AxT2FLAIR", "MRBrainT1", "vFLAIR", "FLAİR")
WORDS_APART = [row for row in ROWS if row[1] not in SAY_SOMETHING_BY_CASE]


@pytest.mark.parametrize(("expected", "name"), WORDS_APART, ids=[name for _, name in WORDS_APART])
def test_upper_and_lower_case_make_no_difference_where_words_stand_apart(expected, name):
    assert slot(name.upper()) == slot(name.lower()) == expected


def test_the_table_is_large_and_has_negatives():
    assert len(ROWS) >= 120
    assert sum(expected in "-?" for expected, _ in ROWS) >= 40
    assert len({name for _, name in ROWS}) == len(ROWS)


@pytest.mark.parametrize("word", ["t1", "t2", "t1ce", "t1c", "t2f"])
@pytest.mark.parametrize("around", ["p{}", "{}2", "x{}", "{}q", "ca{}se"])
def test_a_word_inside_another_word_says_nothing(word, around):
    assert slot(around.format(word)) == "-"


def test_the_turkish_locale_changes_nothing():
    before = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(
            locale.LC_ALL, next(n for n in ("tr_TR.UTF-8", "C.UTF-8", "C") if _exists(n))
        )
        assert [slot(name) for _, name in ROWS] == [expected for expected, _ in ROWS]
    finally:
        locale.setlocale(locale.LC_ALL, before)


def _exists(name):
    try:
        locale.setlocale(locale.LC_ALL, name)
    except locale.Error:
        return False
    return True


def test_hostile_names_cost_no_time():
    for name in ("t1" * 5000, "+" * 20000, "_" * 20000, "a1" * 10000, "\x00\n\t", "💀" * 1000):
        assert slot(name) in "-?"
    assert split_words("") == []
