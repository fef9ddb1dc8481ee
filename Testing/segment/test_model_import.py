"""Models are imported from folders and archives complete and verified, or not at all."""

from __future__ import annotations

import stat
import sys
import zipfile
from pathlib import Path

import pytest
from Testing.segment.model_files import CARD, makeBundle, seal

from medmap.bundle.format import read_bundle_texts
from medmap.errors import BundleError, MissingInputError, OutputError, UsageError
from medmap.task import BRATS
from MedMAPSegmentLib.models import importing as model_import
from MedMAPSegmentLib.models.catalog import loaderOf, readEntry
from MedMAPSegmentLib.models.importing import importModel


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


def zipped(folder: Path, path: Path, prefix="") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, prefix + file.name)
    return path


def everything(folder: Path) -> dict:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class TestImport:
    def test_a_folder_is_copied_and_stays_as_it_is(self, bundle, user):
        before = everything(bundle)
        entry = bring(bundle, user)
        assert entry.verified
        assert entry.key == entry.path.name == "tiny-1.0.0"
        assert everything(entry.path) == before == everything(bundle)

    @pytest.mark.parametrize("prefix", ["", "tiny/"])
    def test_a_zip_with_or_without_a_folder_inside(self, bundle, user, tmp_path, prefix):
        entry = bring(zipped(bundle, tmp_path / "m.zip", prefix), user)
        assert everything(entry.path) == everything(bundle)

    def test_what_file_managers_add_is_left_out(self, bundle, user, tmp_path):
        path = zipped(bundle, tmp_path / "m.zip", "tiny/")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("tiny/.DS_Store", "x")
            archive.writestr("__MACOSX/tiny/._metadata.json", "x")
            archive.writestr("tiny/", "")
        (bundle / ".DS_Store").write_text("x")
        assert set(everything(bring(path, user).path)) == {
            "metadata.json",
            "model.safetensors",
            "README.md",
            "SHA256SUMS",
        }
        assert bring(bundle, user).verified

    @pytest.mark.parametrize(
        "name",
        [
            "../evil.py",
            "tiny/../../evil.py",
            "/etc/evil",
            "a/b/metadata.json",
            "..\\evil.py",
            "C:\\evil.py",
            "C:evil",
            "tiny/con.txt",
            "tiny/a b",
            "tiny/metadata.json ",
            "tiny/ümlaut",
            "tiny/METADATA.JSON",
        ],
    )
    def test_an_archive_with_a_name_that_no_model_has_is_refused(
        self, bundle, user, tmp_path, name
    ):
        path = zipped(bundle, tmp_path / "m.zip", "tiny/")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, "x")
        before = everything(tmp_path)
        with pytest.raises(BundleError):
            bring(path, user)
        assert everything(tmp_path) == before

    def test_links_are_refused(self, bundle, user, tmp_path):
        path = zipped(bundle, tmp_path / "m.zip")
        with zipfile.ZipFile(path, "a") as archive:
            link = zipfile.ZipInfo("link")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, "/etc/passwd")
        with pytest.raises(BundleError, match="'link'"):
            bring(path, user)
        (bundle / "more").symlink_to("/etc/hostname")
        with pytest.raises(BundleError, match="more in source is not a plain file"):
            bring(bundle, user)

    def test_sizes_are_limited_as_stated_and_as_found(self, bundle, user, tmp_path, monkeypatch):
        monkeypatch.setattr(model_import, "LARGEST_WEIGHTS", 600)
        with pytest.raises(BundleError, match="too large for a model"):
            bring(bundle, user)
        path = zipped(bundle, tmp_path / "m.zip")
        with pytest.raises(BundleError, match="too large for a model"):
            bring(path, user)
        monkeypatch.setattr(
            model_import, "_refuseLarge", _only_when_copied(model_import._refuseLarge)
        )
        with pytest.raises(BundleError, match="too large for a model"):
            bring(path, user)
        assert not user.exists() or not list(user.iterdir())

    def test_a_bomb_stops_at_the_limit(self, bundle, user, tmp_path, monkeypatch):
        monkeypatch.setattr(model_import, "LARGEST_TEXT", 1 << 20)
        path = zipped(bundle, tmp_path / "m.zip")
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("bomb.txt", b"\0" * (50 << 20))
        with pytest.raises(BundleError, match=r"bomb\.txt is 50 MiB"):
            bring(path, user)

    def test_too_many_files_are_refused(self, bundle, user):
        for n in range(20):
            (bundle / f"more{n}").write_text("x")
        with pytest.raises(BundleError, match="24 files"):
            bring(seal(bundle), user)

    @pytest.mark.parametrize("name", ["metadata.json", "model.safetensors", "SHA256SUMS"])
    def test_what_is_no_bundle_is_refused_by_what_is_missing(self, bundle, user, tmp_path, name):
        (bundle / name).unlink()
        for source in (bundle, zipped(bundle, tmp_path / "m.zip")):
            with pytest.raises(BundleError, match=f"{name} missing"):
                bring(source, user)

    @pytest.mark.parametrize("form", ["folder", "zip"])
    def test_a_damaged_model_is_never_published(self, bundle, user, tmp_path, form):
        (bundle / "model.safetensors").write_bytes(b"other")
        source = bundle if form == "folder" else zipped(bundle, tmp_path / "m.zip")
        with pytest.raises(BundleError, match="SHA-256 differs") as caught:
            bring(source, user)
        assert source.name in str(caught.value)
        assert ".tmp" not in str(caught.value)
        assert list(user.iterdir()) == []

    def test_a_broken_archive_is_refused_in_words(self, bundle, user, tmp_path):
        path = zipped(bundle, tmp_path / "m.zip")
        data = bytearray(path.read_bytes())
        data[len(data) // 4] ^= 0xFF
        path.write_bytes(data)
        with pytest.raises(BundleError):
            bring(path, user)
        path.write_bytes(data[:100])
        with pytest.raises(UsageError, match=r"neither a folder nor a \.zip"):
            bring(path, user)

    def test_files_that_are_not_there_or_something_else_are_refused(self, user, tmp_path):
        with pytest.raises(MissingInputError, match=r"x\.zip does not exist"):
            bring(tmp_path / "x.zip", user)
        (tmp_path / "model.pt").write_bytes(b"PK")
        with pytest.raises(UsageError, match=r"neither a folder nor a \.zip"):
            bring(tmp_path / "model.pt", user)

    @pytest.mark.parametrize("name", ["../../up", "a/b", "", ".hidden", "x" * 200, "a b", "a\nb"])
    def test_a_model_whose_own_name_is_a_path_is_refused(self, tmp_path, user, name):
        with pytest.raises(BundleError, match="no model can have"):
            bring(makeBundle(tmp_path / "odd", name=name, version=""), user)
        assert not user.exists() or not list(user.iterdir())

    def test_the_same_model_again_is_the_entry_that_is_there(self, bundle, user, tmp_path):
        first = bring(bundle, user)
        assert bring(zipped(bundle, tmp_path / "m.zip"), user) == first

    def test_another_model_of_that_name_is_not_replaced_unless_asked(self, bundle, user, tmp_path):
        first = bring(bundle, user)
        other = makeBundle(tmp_path / "other", weights=b"other")
        with pytest.raises(OutputError, match=r"another model of that name already: tiny-1\.0\.0"):
            bring(other, user)
        assert everything(first.path) == everything(bundle)
        second = bring(other, user, overwrite=True)
        assert second.sha256 != first.sha256
        assert [p.name for p in user.iterdir()] == ["tiny-1.0.0"]

    def test_a_damaged_copy_is_said_and_can_be_replaced(self, bundle, user):
        entry = bring(bundle, user)
        (entry.path / "model.safetensors").unlink()
        with pytest.raises(OutputError, match="a damaged copy"):
            bring(bundle, user)
        assert bring(bundle, user, overwrite=True).verified

    def test_a_failing_replacement_keeps_the_old_model(self, bundle, user, tmp_path):
        entry = bring(bundle, user)
        other = makeBundle(tmp_path / "other", weights=b"other")
        (other / "README.md").write_text("altered")
        with pytest.raises(BundleError):
            bring(other, user, overwrite=True)
        assert everything(entry.path) == everything(bundle)
        assert readEntry(entry.path, entry.key).verified

    def test_weights_that_no_network_takes_are_refused_where_torch_is(self, bundle, user):
        pytest.importorskip("medmap.bundle.loading")
        with pytest.raises(BundleError, match="source"):
            importModel(bundle, user)
        assert list(user.iterdir()) == []


def _only_when_copied(check):
    """The size check without what it knows beforehand: as for an archive that lies about sizes."""

    def later(name, size):
        if sys._getframe(1).f_code.co_name == "_copy":
            check(name, size)

    return later


def test_a_real_bundle_is_imported_with_its_network_and_loads(tmp_path, user):
    torch = pytest.importorskip("torch")
    from medmap.bundle.format import InferenceSpec, NetworkSpec
    from medmap.bundle.loading import save_bundle
    from medmap.networks import build_network
    from medmap.preprocess import PreprocessSpec

    torch.manual_seed(0)
    spec = NetworkSpec("SubsetUNet", {"widths": [4, 8, 8]})
    folder = save_bundle(
        tmp_path / "real",
        name="real",
        version="2.0",
        task=BRATS,
        network=build_network(spec.name, spec.options),
        network_spec=spec,
        preprocess=PreprocessSpec(),
        inference=InferenceSpec(),
        card=CARD,
    )
    entry = importModel(zipped(folder, tmp_path / "real.zip", "real/"), user)
    loaded = loaderOf(entry)()
    assert (entry.id, entry.sha256, entry.task) == (loaded.id, loaded.sha256, loaded.task)
    assert entry.card == loaded.card
    assert "Dice, mean ± SD" in entry.readme
