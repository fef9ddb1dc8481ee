"""Which volume is which: from names as hospitals and data sets give them, and never by a guess."""

from __future__ import annotations

import numpy as np
import pytest

from medmap.task import BRATS, Modality, Task

pytest.importorskip("slicer")

from MedMAPSegmentLib.mrml.modality_detection import TAGS, databaseTags, detectModalities, volumesOf


@pytest.fixture
def named(mrml):
    """Function that puts volumes of these names into the scene."""

    def add(*names):
        return [mrml.volume(np.arange(8.0).reshape(2, 2, 2), name=name) for name in names]

    return add


def found(nodes, task=BRATS, tags=None):
    detection = detectModalities(nodes, task, tags)
    return {
        name: candidate.series.source.GetName() for name, candidate in detection.assigned.items()
    }, detection


CASES = {
    "BraTS 2020": ("X_t1", "X_t1ce", "X_t2", "X_flair"),
    "BraTS 2023": (
        "BraTS-GLI-00001-000-t1n",
        "BraTS-GLI-1-t1c",
        "BraTS-GLI-1-t2w",
        "BraTS-GLI-1-t2f",
    ),
    "Siemens": ("t1_se_tra", "t1_mprage_sag_KM", "t2_tse_tra", "t2_tirm_tra_dark-fluid"),
    "GE": ("3: Ax T1", "9: Ax T1 POST", "4: Ax T2 PROPELLER", "5: Ax T2 FLAIR"),
    "Philips": ("301: T1W_SE", "901: T1W_3D_TFE +C", "401: T2W_TSE", "501: FLAIR_longTR"),
    "Decathlon": ("BRATS_001_0001", "BRATS_001_0002", "BRATS_001_0003", "BRATS_001_0000"),
    "BIDS": ("sub-1_T1w", "sub-1_ce-gadolinium_T1w", "sub-1_T2w", "sub-1_FLAIR"),
    "plain": ("T1", "T1ce", "T2", "FLAIR"),
}


class TestScenes:
    @pytest.mark.parametrize("names", CASES.values(), ids=CASES.keys())
    def test_a_whole_examination_is_found(self, named, names):
        extra = named("localizer", "ADC", "SWI_Images", "Segmentation", "ep2d_diff")
        nodes = named(*names)
        slots, detection = found([extra[0], *reversed(nodes), *extra[1:]])
        assert slots == dict(zip(("t1", "t1ce", "t2", "flair"), names, strict=True))
        assert not detection.questions
        assert len(detection.rejected) == 5

    def test_the_order_of_the_nodes_makes_no_difference(self, named):
        nodes = named("Ax T1", "Sag T1", "Ax T1 POST", "Ax T2 FLAIR", "Ax T1 FLAIR")
        forward, backward = detectModalities(nodes, BRATS), detectModalities(nodes[::-1], BRATS)
        assert {n: c.series.source.GetID() for n, c in forward.assigned.items()} == {
            n: c.series.source.GetID() for n, c in backward.assigned.items()
        }
        assert (
            [q.modality for q in forward.questions]
            == [q.modality for q in backward.questions]
            == ["t1"]
        )

    def test_two_volumes_for_one_slot_are_a_question(self, named):
        slots, detection = found(named("Ax T1 POST", "MPRAGE +C", "Ax T2"))
        assert slots == {"t2": "Ax T2"}
        (question,) = detection.questions
        assert question.modality == "t1ce"
        assert question.text == "T1ce: 'Ax T1 POST' or 'MPRAGE +C'? Please choose."
        assert question.text in detection.text(BRATS)

    def test_the_same_scan_loaded_twice_is_a_question(self, named):
        slots, detection = found(named("T2", "T2_1"))
        assert slots == {}
        assert [q.modality for q in detection.questions] == ["t2"]

    def test_a_volume_that_fits_two_slots_is_a_question_for_both(self, named):
        slots, detection = found(named("Ax T1 FLAIR"))
        assert slots == {}
        assert [q.modality for q in detection.questions] == ["t1", "flair"]
        assert "may be T1 or FLAIR" in detection.questions[0].text

    def test_a_doubtful_volume_does_not_unseat_a_clear_one(self, named):
        slots, detection = found(named("Ax T1 FLAIR", "Ax T2 FLAIR"))
        assert slots == {"flair": "Ax T2 FLAIR"}
        assert [q.modality for q in detection.questions] == ["t1"]

    def test_numbers_alone_are_asked_about_because_data_sets_number_differently(self, named):
        slots, detection = found(named("case_0000", "case_0001"))
        assert slots == {}
        assert [q.modality for q in detection.questions] == ["t1", "flair"]
        assert "Decathlon" in detection.questions[1].text

    def test_an_empty_scene_and_unknown_names_are_said_so(self, named):
        assert "No volume" in detectModalities([], BRATS).text(BRATS)
        detection = detectModalities(named("Volume_1"), BRATS)
        assert not detection.assigned
        assert not detection.questions
        assert detection.rejected[0][1]

    def test_every_candidate_has_a_reason_and_a_confidence(self, named):
        _, detection = found(named(*CASES["GE"]))
        for candidate in detection.assigned.values():
            assert 0.6 <= candidate.confidence <= 1
            assert candidate.reason.startswith("the name says '")
        assert detection.assigned["t1ce"].reason == "the name says 't1' and 'post'"

    def test_nothing_in_the_scene_changes(self, named, contents):
        nodes = named(*CASES["GE"])
        before = contents()
        detectModalities(nodes, BRATS)
        assert contents() == before

    def test_label_maps_and_vector_volumes_are_no_input(self, scene):
        classes = (
            "vtkMRMLLabelMapVolumeNode",
            "vtkMRMLVectorVolumeNode",
            "vtkMRMLDiffusionWeightedVolumeNode",
        )
        nodes = [
            scene.AddNewNodeByClass(name, "T1") for name in (*classes, "vtkMRMLLinearTransformNode")
        ]
        detection = detectModalities(nodes, BRATS)
        assert not detection.assigned
        assert [why for _, why in detection.rejected] == [
            "a label map",
            "several values per voxel",
            "several values per voxel",
            "not a volume",
        ]

    def test_volumes_of_a_scene_are_those_that_the_user_sees(self, scene, named):
        seen, hidden = named("T1", "T2")
        hidden.SetHideFromEditors(True)
        assert volumesOf(scene) == [seen]


class TestDicom:
    def test_a_description_on_the_node_is_read(self, named):
        nodes = named("Series 5", "Series 7")
        nodes[0].SetAttribute("DICOM.SeriesDescription", "AX T2 FLAIR")
        slots, detection = found(nodes)
        assert slots == {"flair": "Series 5"}
        assert "series description" in detection.assigned["flair"].reason

    def test_a_description_in_the_subject_hierarchy_is_read(self, scene, named):
        import slicer

        (node,) = named("Series 5")
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        item = hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(
            hierarchy.GetSceneItemID(), node
        )
        hierarchy.SetItemAttribute(item, "DICOM.SeriesDescription", "t1_mprage_KM")
        assert found([node])[0] == {"t1ce": "Series 5"}

    def test_a_recorded_contrast_agent_makes_a_t1_a_t1ce_when_the_name_says_nothing_else(
        self, named
    ):
        (node,) = named("Ax T1")
        node.SetAttribute("DICOM.ContrastBolusAgent", "Gadovist 8 ml")
        slots, detection = found([node])
        assert slots == {"t1ce": "Ax T1"}
        assert "Gadovist 8 ml" in detection.assigned["t1ce"].reason

    def test_a_contrast_agent_recorded_for_the_whole_examination_is_a_question(self, named):
        before, after = named("Ax T1", "Ax T1 POST")
        for node in (before, after):
            node.SetAttribute("DICOM.ContrastBolusAgent", "YES")
        slots, detection = found([before, after])
        assert slots == {"t1ce": "Ax T1 POST"}
        assert [q.modality for q in detection.questions] == ["t1"]

    @pytest.mark.parametrize("value", ["", "NO", "none", "Nein", " no "])
    def test_no_agent_is_no_agent(self, named, value):
        (node,) = named("Ax T1")
        node.SetAttribute("DICOM.ContrastBolusAgent", value)
        assert found([node])[0] == {"t1": "Ax T1"}

    def test_name_and_description_that_contradict_each_other_are_a_question(self, named):
        (node,) = named("T1 pre")
        node.SetAttribute("DICOM.SeriesDescription", "T1 post gad")
        slots, detection = found([node])
        assert slots == {}
        assert [q.modality for q in detection.questions] == ["t1", "t1ce"]

    def test_a_description_makes_a_name_more_exact(self, named):
        (node,) = named("T2")
        node.SetAttribute("DICOM.SeriesDescription", "T2 FLAIR")
        assert found([node])[0] == {"flair": "T2"}

    def test_the_protocol_counts_only_when_nothing_else_says_anything(self, named):
        stale, mute = named("Ax T2", "6")
        for node in (stale, mute):
            node.SetAttribute("DICOM.ProtocolName", "t1_mprage")
        assert found([stale])[0] == {"t2": "Ax T2"}
        assert found([mute])[0] == {"t1": "6"}

    def test_other_machines_and_derived_images_are_left_out(self, named):
        scanned, derived = named("T1", "T2")
        scanned.SetAttribute("DICOM.Modality", "CT")
        derived.SetAttribute("DICOM.ImageType", "DERIVED\\PRIMARY\\DIFFUSION\\ADC")
        detection = detectModalities([scanned, derived], BRATS)
        assert not detection.assigned
        assert detection.rejected[0][1] == "DICOM says CT, not MR"

    def test_slicers_dicom_database_is_asked_for_the_first_file(self, named):
        class Database:
            def fileForInstance(self, uid):
                return f"/{uid}.dcm" if uid == "1.2" else ""

            def fileValue(self, path, tag):
                assert path == "/1.2.dcm"
                return {TAGS["SeriesDescription"]: "AX T2", TAGS["Modality"]: "MR"}.get(tag, "")

        known, unknown = named("Series 5", "Series 6")
        known.SetAttribute("DICOM.instanceUIDs", "1.2 1.3")
        unknown.SetAttribute("DICOM.instanceUIDs", "9.9")
        assert found([known, unknown], tags=databaseTags(Database()))[0] == {"t2": "Series 5"}


class TestOtherTasks:
    def test_slots_come_from_the_task(self, named):
        heart = Task(
            "heart",
            (
                Modality("c0", "bSSFP", ("bssfp",)),
                Modality("de", "LGE", ("lge",)),
                BRATS.modality("t2"),
            ),
            (),
            (),
        )
        slots, detection = found(named("myops_C0", "cardiac LGE", "myops T2", "myops T1"), heart)
        assert slots == {"c0": "myops_C0", "de": "cardiac LGE", "t2": "myops T2"}
        assert detection.rejected[0][1] == "T1, which the model does not use"

    def test_a_word_that_means_a_modality_of_the_task_excludes_nothing(self, named):
        task = Task("stroke", (Modality("dwi", "DWI"), Modality("flair", "FLAIR")), (), ())
        assert found(named("ep2d", "DWI b0", "flair"), task)[0] == {"flair": "flair"}
        assert found(named("DWI", "flair"), task)[0] == {"dwi": "DWI", "flair": "flair"}

    def test_modalities_named_otherwise_get_the_same_knowledge(self, named):
        names = ("T1w", "T1Gd", "T2w", "T2f")
        task = Task("other names", tuple(Modality(n.lower(), n) for n in names), (), ())
        slots, _ = found(named("MPRAGE", "MPRAGE +C", "t2_tse", "dark fluid"), task)
        assert slots == {"t1w": "MPRAGE", "t1gd": "MPRAGE +C", "t2w": "t2_tse", "t2f": "dark fluid"}

    def test_contrast_enhanced_scans_are_no_t1_for_a_model_without_t1ce(self, named):
        task = Task("three", tuple(BRATS.modality(n) for n in ("t1", "t2", "flair")), (), ())
        slots, _ = found(named("T1 POST", "T1", "T2"), task)
        assert slots == {"t1": "T1", "t2": "T2"}
