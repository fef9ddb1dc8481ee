"""The module file, the .ui file and the resources fit together; the module opens without torch.

Slicer itself is not here: that the panel works is tested by the self test inside Slicer
(``MedMAPSegmentTest``).
"""

from __future__ import annotations

import ast
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from medmap.task import BRATS

OWN = {"MedMAPSegmentLib", "medmap"}
# ``packaging`` comes with Slicer's own pip helpers, whose documentation imports it.
BUNDLED_WITH_SLICER = {"slicer", "vtk", "qt", "ctk", "numpy", "packaging"}
KNOWN_WIDGETS = {
    "QCheckBox",
    "QScrollArea",
    "QWidget",
    "QLabel",
    "QComboBox",
    "QFrame",
    "QPlainTextEdit",
    "QTableWidget",
    "QProgressBar",
    "QPushButton",
    "ctkCollapsibleButton",
    "qMRMLNodeComboBox",
    "qMRMLWidget",
}


@pytest.fixture(scope="module")
def folder():
    from pathlib import Path

    return Path(__file__).resolve().parents[2] / "MedMAPSegment"


@pytest.fixture(scope="module")
def panel(folder):
    return ElementTree.parse(folder / "Resources/UI/MedMAPSegment.ui").getroot()


def sources(folder):
    return [folder / "MedMAPSegment.py", *sorted((folder / "MedMAPSegmentLib").rglob("*.py"))]


def panel_sources(folder):
    """The files that may use Qt."""
    return [
        path
        for path in sources(folder)
        if path.name == "MedMAPSegment.py" or path.parent.name == "sections"
    ]


def file_scope_imports(tree):
    """Top-level packages that importing the file imports (function bodies left out)."""
    todo, found = list(tree.body), set()
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
        todo.extend(ast.iter_child_nodes(node))
    return found


def test_only_what_ships_with_slicer_is_imported_at_file_scope(folder):
    for path in sources(folder):
        imported = file_scope_imports(ast.parse(path.read_text(encoding="utf-8")))
        strange = imported - set(sys.stdlib_module_names) - BUNDLED_WITH_SLICER - OWN
        assert not strange, f"{path.name} imports {strange}"


def test_only_the_module_file_and_the_sections_of_the_panel_touch_qt(folder):
    for path in sources(folder):
        imported = file_scope_imports(ast.parse(path.read_text(encoding="utf-8")))
        if path not in panel_sources(folder):
            assert not imported & {"qt", "ctk"}, path.name


def test_no_stray_python_file_lies_beside_the_module(folder):
    assert [path.name for path in folder.glob("*.py")] == ["MedMAPSegment.py"]


@pytest.mark.parametrize(
    "word", ["import imp\n", "QTextCodec", "torch.jit", 'pip_install("torch', "stylesheet", "eval("]
)
def test_what_broke_other_extensions_is_not_used(folder, word):
    for path in sources(folder):
        assert word.lower() not in path.read_text(encoding="utf-8").lower(), path.name


def test_the_four_classes_are_there_and_the_file_is_short(folder):
    text = (folder / "MedMAPSegment.py").read_text(encoding="utf-8")
    classes = {node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    assert {
        "MedMAPSegment",
        "MedMAPSegmentWidget",
        "MedMAPSegmentLogic",
        "MedMAPSegmentTest",
    } <= classes
    assert len(text.splitlines()) <= 500


def test_translated_texts_are_literals(folder):
    count = 0
    for path in panel_sources(folder):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_"
        ]
        for call in calls:
            assert len(call.args) == 1
            assert isinstance(call.args[0], ast.Constant), f"{path.name}, line {call.lineno}"
        count += len(calls)
    assert count > 60


def test_enums_are_written_as_pythonqt_has_them(folder):
    """``qt.Class.Value``: PythonQt has no ``qt.Class.Enum.Value``."""
    for path in panel_sources(folder):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
                inner = node.value.value
                deep = isinstance(inner, ast.Attribute) and getattr(inner.value, "id", "") == "qt"
                assert not deep, f"{path.name}, line {node.lineno}"


def test_signals_are_connected_by_signature(folder):
    """``connect("clicked(bool)", slot)`` works with every PythonQt; a signature names its argument
    types.
    """
    for path in panel_sources(folder):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "connect":
                assert len(node.args) == 2, f"{path.name}, line {node.lineno}"
                assert node.args[0].value.endswith(")"), f"{path.name}, line {node.lineno}"


def test_no_widget_call_happens_in_the_library_on_slicers_scene(folder):
    """The scene is passed in, so that the logic runs without the application."""
    for path in [p for p in sources(folder) if p not in panel_sources(folder)]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        used = {
            n.attr
            for n in ast.walk(tree)
            if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "slicer"
        }
        allowed = {"app"} if path.name == "dependencies.py" else set()
        assert not used & ({"mrmlScene", "modules", "app"} - allowed), path.name


def parameters(folder):
    tree = ast.parse((folder / "MedMAPSegment.py").read_text(encoding="utf-8"))
    node = next(
        n
        for n in tree.body
        if isinstance(n, ast.ClassDef) and n.name == "MedMAPSegmentParameterNode"
    )
    return {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}


def test_every_bound_widget_has_its_parameter(folder, panel):
    bound = [
        p.find("string").text
        for p in panel.iter("property")
        if p.get("name") == "SlicerParameterName"
    ]
    assert bound
    assert set(bound) <= parameters(folder)


def test_the_panel_file_names_no_modality(panel):
    """Slots come from the model's task."""
    names = {w.get("name").lower() for w in panel.iter("widget")}
    assert not [n for n in names for m in BRATS.modality_names if n.startswith(m)]


def test_no_two_mnemonics_are_the_same(panel):
    texts = [p.find("string").text or "" for p in panel.iter("property") if p.get("name") == "text"]
    keys = [text[text.index("&") + 1].lower() for text in texts if "&" in text]
    assert len(keys) == len(set(keys)), sorted(keys)


def test_every_widget_of_the_panel_is_known_and_named_once(panel):
    widgets = list(panel.iter("widget"))
    assert {w.get("class") for w in widgets} <= KNOWN_WIDGETS
    names = [w.get("name") for w in widgets]
    assert len(names) == len(set(names))
    custom = {c.find("class").text for c in panel.iter("customwidget")}
    assert {w.get("class") for w in widgets if not w.get("class").startswith("Q")} == custom


def test_every_mrml_widget_learns_about_the_scene(panel):
    top = panel.find("widget")
    assert top.get("class") == "qMRMLWidget"
    wired = {c.find("receiver").text for c in panel.iter("connection")}
    for connection in panel.iter("connection"):
        assert connection.find("sender").text == top.get("name")
        assert connection.find("signal").text == "mrmlSceneChanged(vtkMRMLScene*)"
        assert connection.find("slot").text == "setMRMLScene(vtkMRMLScene*)"
    assert wired == {
        w.get("name") for w in panel.iter("widget") if w.get("class") == "qMRMLNodeComboBox"
    }


def test_every_slot_may_stay_empty(panel):
    for widget in panel.iter("widget"):
        if widget.get("class") == "qMRMLNodeComboBox":
            values = {p.get("name"): p for p in widget.findall("property")}
            assert values["noneEnabled"].find("bool").text == "true", widget.get("name")
            assert values["showChildNodeTypes"].find("bool").text == "false", widget.get("name")


def test_every_widget_that_the_code_names_exists_and_every_one_is_used(folder, panel):
    used = set()
    for path in panel_sources(folder):
        for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(n, ast.Attribute) and "ui" in (
                getattr(n.value, "attr", ""),
                getattr(n.value, "id", ""),
            ):
                used.add(n.attr)
    widgets = {w.get("name"): w.get("class") for w in panel.iter("widget")}
    assert used <= set(widgets)
    bound = {
        w.get("name")
        for w in panel.iter("widget")
        for p in w
        if p.get("name") == "SlicerParameterName"
    }
    acting = {
        name
        for name, cls in widgets.items()
        if cls not in ("QLabel", "ctkCollapsibleButton", "qMRMLWidget")
    }
    assert acting - used - bound == set()


def test_the_research_notice_is_always_in_sight(panel):
    label = next(w for w in panel.iter("widget") if w.get("name") == "noticeLabel")
    text = next(p.find("string").text for p in label.findall("property") if p.get("name") == "text")
    assert "research" in text.lower()


def test_resources_that_the_code_names_exist(folder):
    tree = ast.parse((folder / "MedMAPSegment.py").read_text(encoding="utf-8"))
    calls = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.Call) and getattr(n.func, "attr", "") == "resourcePath"
    ]
    assert calls
    for call in calls:
        assert (folder / "Resources" / call.args[0].value).is_file()


def test_the_icon_is_a_png_of_128_pixels(folder):
    data = (folder / "Resources/Icons/MedMAPSegment.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) == (128, 128)


FAKES = """
import importlib, sys, types

class Anything(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *args: None})

for name in ("qt", "ctk", "slicer.i18n", "slicer.parameterNodeWrapper",
"slicer.ScriptedLoadableModule"):
    sys.modules[name] = Anything(name)
sys.modules["slicer.i18n"].tr = lambda text: text
sys.modules["slicer.i18n"].translate = lambda context, text: text
sys.modules["slicer.parameterNodeWrapper"].parameterNodeWrapper = lambda cls: cls
"""


def opened(folder, code, *paths):
    """Run code in a fresh interpreter that has stand-ins for what slicer-core lacks."""
    pytest.importorskip("slicer")
    head = f"{FAKES}\nsys.path[:0] = {[str(path) for path in (folder, *paths)]!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", head + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_opening_the_module_imports_neither_torch_nor_training_libraries(folder):
    code = (
        "import MedMAPSegment\n"
        "print(sorted({'torch', 'monai', 'nibabel', 'safetensors', 'torchvision', 'scipy'} & "
        "set(sys.modules)))"
    )
    assert opened(folder, code).strip() == "[]"


def test_medmap_is_found_in_a_checkout_when_it_is_nowhere_else(folder):
    code = "import MedMAPSegment, medmap; print(medmap.__file__)"
    assert opened(folder, code).strip() == str(folder.parent / "MedMAPTraining/medmap/__init__.py")


def test_a_medmap_that_can_be_imported_already_is_left_alone(folder, tmp_path):
    import shutil

    shutil.copytree(
        folder.parent / "MedMAPTraining/medmap",
        tmp_path / "medmap",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    code = (
        "before = list(sys.path); import MedMAPSegment, medmap; "
        "print(medmap.__file__, sys.path == before)"
    )
    assert opened(folder, code, tmp_path).split() == [str(tmp_path / "medmap/__init__.py"), "True"]


def test_the_logic_of_the_module_file_works_on_slicers_scene(folder):
    code = (
        "import slicer\n"
        "slicer.mrmlScene = slicer.vtkMRMLScene()\n"
        "import MedMAPSegment\n"
        "print(MedMAPSegment.MedMAPSegmentLogic().problems({}))"
    )
    assert "Select at least one volume." in opened(folder, code)
