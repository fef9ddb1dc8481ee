"""Models are listed with their cards, verified, and deleted only where allowed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from Testing.segment.model_files import makeBundle, metadataOf, seal

from medmap.bundle.format import default_bundle_path, read_bundle_texts, verify_bundle
from medmap.errors import BundleError, MissingInputError, OutputError, UsageError
from medmap.task import BRATS
from MedMAPSegmentLib.expected_performance import expectedPerformance
from MedMAPSegmentLib.models import catalog as models
from MedMAPSegmentLib.models.catalog import deleteModel, listModels, modelFolder, readEntry
from MedMAPSegmentLib.models.importing import importModel


def missingDefault():
    raise MissingInputError("The default model was not found.", "Name a bundle.")


@pytest.fixture
def bundle(tmp_path):
    return makeBundle(tmp_path / "source")


@pytest.fixture
def user(tmp_path):
    return tmp_path / "data" / "MedMAP" / "models"


@pytest.fixture
def default(tmp_path):
    return makeBundle(tmp_path / "default", name="medmap-default")


def bring(source, user, **options):
    return importModel(source, user, verify=read_bundle_texts, **options)


class TestList:
    def test_the_default_comes_first_and_needs_no_user_folder(self, default, user):
        (entry,) = listModels(user, default)
        assert entry.isDefault
        assert entry.verified
        assert entry.id == "medmap-default-1.0.0"
        assert entry.title == "medmap-default-1.0.0 (default)"
        assert entry.text.startswith("tiny")
        assert entry.task == BRATS
        assert entry.sha256 == hashlib.sha256((default / "SHA256SUMS").read_bytes()).hexdigest()
        assert entry.bytes == sum(p.stat().st_size for p in default.iterdir())
        assert not user.exists()

    def test_cards_feed_the_subset_card(self, default, user):
        (entry,) = listModels(user, default)
        assert (
            expectedPerformance(entry.task, entry.card, ["flair"]).scores[0].range
            == "0.40\u20130.60"
        )

    def test_imported_models_follow_and_other_folders_do_not(self, default, user, bundle):
        bring(bundle, user)
        bring(makeBundle(bundle.parent / "b", name="another"), user)
        (user / "empty").mkdir()
        (user / ".tmp-deleted-1").mkdir()
        (user / "note.txt").write_text("x")
        keys = [entry.key for entry in listModels(user, default)]
        assert keys == ["", "another-1.0.0", "tiny-1.0.0"]

    def test_a_missing_default_is_said_in_words(self, user, monkeypatch):
        monkeypatch.setattr(models, "default_bundle_path", missingDefault)
        (entry,) = listModels(user)
        assert entry.isDefault
        assert not entry.verified
        assert "was not found beside this MedMAP" in entry.text

    @pytest.mark.parametrize(
        "name", ["metadata.json", "model.safetensors", "README.md", "SHA256SUMS"]
    )
    def test_a_changed_file_is_noticed_the_next_time(self, default, user, bundle, name):
        entry = bring(bundle, user)
        data = bytearray((entry.path / name).read_bytes())
        data[len(data) // 2] ^= 1
        (entry.path / name).write_bytes(data)
        found = listModels(user, default)[1]
        assert not found.verified
        assert found.title.endswith("(damaged)")
        assert found.task is None
        assert found.card == {}
        assert len(found.error) > 30

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (
                lambda f: (f / "model.safetensors").unlink(),
                "files missing or added: model.safetensors",
            ),
            (lambda f: (f / "evil.py").write_text("x"), "files missing or added: evil.py"),
            (lambda f: (f / "SHA256SUMS").unlink(), "has no SHA256SUMS"),
            (lambda f: (f / "SHA256SUMS").write_text("nonsense"), "is damaged"),
            (lambda f: (f / "SHA256SUMS").write_text("0" * 64 + "  ../x\n"), "is damaged"),
            (
                lambda f: (f / "SHA256SUMS").write_text("0" * 64 + "  README.md\n"),
                "does not list its files",
            ),
        ],
    )
    def test_damage_is_judged_as_the_core_judges_it(self, bundle, damage, said):
        core = pytest.importorskip("medmap.bundle.loading")
        read_bundle_texts(bundle)
        verify_bundle(bundle)
        damage(bundle)
        with pytest.raises(BundleError, match=said):
            read_bundle_texts(bundle)
        with pytest.raises(BundleError, match=said):
            verify_bundle(bundle)
        with pytest.raises(BundleError, match=said):
            core.load_bundle(bundle)

    @pytest.mark.parametrize(
        ("metadata", "said"),
        [
            (b"{", "does not describe a model"),
            (b"[]", "does not describe a model"),
            (b"[" * 100000, "does not describe a model"),
            (metadataOf(format=3), "has format 3; this version of MedMAP reads 1 and 2"),
            (metadataOf(task={}), "task description"),
            (metadataOf(card=3), "missing or invalid field"),
            (b'{"medmap": {"format": 1}}', "missing or invalid field"),
        ],
    )
    def test_metadata_that_is_not_understood_is_said_in_words(self, bundle, metadata, said):
        (bundle / "metadata.json").write_bytes(metadata)
        entry = readEntry(seal(bundle), "x")
        assert said in entry.error

    def test_the_default_is_looked_for_where_the_core_looks(self, user, default, monkeypatch):
        monkeypatch.setenv("MEDMAP_BUNDLE", str(default))
        assert listModels(user)[0].path == default_bundle_path() == default

    def test_the_folder_can_be_set_in_the_environment(self, tmp_path):
        assert modelFolder("/data/MedMAP", {}) == Path("/data/MedMAP")
        assert modelFolder("/data/MedMAP", {"MEDMAP_MODEL_DIR": " "}) == Path("/data/MedMAP")
        assert modelFolder("/data/MedMAP", {"MEDMAP_MODEL_DIR": str(tmp_path)}) == tmp_path

    def test_listing_imports_no_torch(self, repository, default, user):
        code = (
            "import sys; sys.path[:0] = sys.argv[1:3];"
            "from MedMAPSegmentLib.models.catalog import listModels;"
            "e = listModels(sys.argv[3], sys.argv[4]); assert e[0].verified, e[0].error;"
            "assert not {'torch', 'safetensors', 'slicer', 'vtk'} & set(sys.modules)"
        )
        paths = [
            str(repository / "MedMAPTraining"),
            str(repository / "MedMAPSegment"),
            str(user),
            str(default),
        ]
        subprocess.run([sys.executable, "-c", code, *paths], check=True)


class TestDelete:
    def test_an_imported_model_goes_and_the_rest_stays(self, bundle, user, default):
        entry = bring(bundle, user)
        other = bring(makeBundle(bundle.parent / "b", name="another"), user)
        deleteModel(entry, user)
        assert [e.key for e in listModels(user, default)] == ["", "another-1.0.0"]
        assert [p.name for p in user.iterdir()] == [other.path.name]
        assert bundle.exists()

    def test_a_damaged_model_can_be_deleted(self, bundle, user, default):
        entry = bring(bundle, user)
        (entry.path / "metadata.json").unlink()
        deleteModel(listModels(user, default)[1], user)
        assert list(user.iterdir()) == []

    def test_the_default_is_never_deleted(self, default, user):
        (entry,) = listModels(user, default)
        with pytest.raises(UsageError, match="cannot be deleted"):
            deleteModel(entry, user)
        with pytest.raises(UsageError, match="cannot be deleted"):
            deleteModel(entry, default.parent)
        assert read_bundle_texts(default)

    def test_nothing_outside_the_user_folder_is_deleted(self, bundle, user, tmp_path):
        bring(bundle, user)
        for path in (bundle, user, user / ".." / "models" / ".." / "x", tmp_path):
            with pytest.raises(UsageError, match="does not lie in the folder"):
                deleteModel(readEntry(path, "x"), user)
        assert bundle.exists()
        assert list(user.iterdir())

    def test_a_link_is_removed_and_not_what_it_leads_to(self, bundle, user, default):
        user.mkdir(parents=True)
        (user / "linked").symlink_to(bundle, target_is_directory=True)
        deleteModel(listModels(user, default)[1], user)
        assert list(user.iterdir()) == []
        assert read_bundle_texts(bundle)

    def test_a_model_that_is_gone_already_is_said(self, bundle, user):
        entry = bring(bundle, user)
        shutil.rmtree(entry.path)
        with pytest.raises(OutputError, match="could not be deleted"):
            deleteModel(entry, user)


def test_the_sets_that_the_networks_are_made_for_are_known_without_loading(tmp_path):
    stated = [{"name": "UNet", "options": {"inputs": inputs}} for inputs in ([1], [3, 1])]
    made = makeBundle(tmp_path / "several", format=2, networks=stated)
    assert readEntry(made, "several").subsets == (("t1ce",), ("t1ce", "flair"))
    assert readEntry(makeBundle(tmp_path / "one"), "one").subsets == (None,)


@pytest.mark.parametrize("inputs", [[9], "t1", 3, [None]])
def test_garbled_sets_are_refused(tmp_path, inputs):
    stated = {"name": "UNet", "options": {"inputs": inputs}}
    assert (
        "missing or invalid field"
        in readEntry(makeBundle(tmp_path / "bad", network=stated), "bad").error
    )
