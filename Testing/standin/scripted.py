"""The base classes of a scripted module, from Slicer's documentation."""

from __future__ import annotations

from pathlib import Path

import slicer


class ScriptedLoadableModule:
    """Metadata of a module."""

    def __init__(self, parent):
        self.parent = parent
        self.moduleName = type(self).__name__
        parent.title, parent.categories, parent.dependencies, parent.contributors = "", [], [], []
        parent.helpText = parent.acknowledgementText = ""

    def resourcePath(self, filename):
        """Absolute path of a file below ``Resources``."""
        return str(Path(self.parent.path).parent / "Resources" / filename)


class ScriptedLoadableModuleWidget:
    """The panel of a module."""

    def __init__(self, parent=None):
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        self.parent = parent
        self.layout = parent.layout()

    def resourcePath(self, filename):
        """Absolute path of a file below ``Resources``."""
        path = getattr(slicer.modules, self.moduleName.lower()).path
        return str(Path(path).parent / "Resources" / filename)

    def setup(self):
        """Build the panel."""

    def cleanup(self):
        """The panel goes."""

    def enter(self):
        """The panel comes into sight."""

    def exit(self):
        """The panel goes out of sight."""

    def onReload(self):
        """Load the module's file again."""


class ScriptedLoadableModuleLogic:
    """What a module does without its panel."""

    def __init__(self, parent=None):
        self.moduleName = type(self).__name__.removesuffix("Logic")

    def getParameterNode(self):
        """The scene's one parameter node of this module; made when there is none."""
        scene = slicer.mrmlScene
        node = scene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node is None:
            node = scene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
            node.UnRegister(None)
            node.SetSingletonTag(self.moduleName)
            node.SetName(scene.GenerateUniqueName(self.moduleName))
            node = scene.AddNode(node)
        node.SetAttribute("ModuleName", self.moduleName)
        return node


class ScriptedLoadableModuleTest:
    """A self test inside the application."""

    def __init__(self):
        self.messageDelay = 100

    def delayDisplay(self, message, *args, **kwargs):
        """Say what is being tested."""

    def setUp(self):
        """Before each test."""

    def runTest(self):
        """All tests."""
