"""Pictures of a scene as Slicer's views show it: real slice logics and displayable managers,
rendered offscreen.

Needs EGL or OSMesa; without either VTK ends the process, so ask ``can_render`` first.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

SLICES = ("vtkMRMLSegmentationsDisplayableManager2D",)
SOLIDS = ("vtkMRMLSegmentationsDisplayableManager3D",)


def can_render() -> bool:
    """True when an offscreen window can be drawn; asked in a process of its own."""
    code = "import vtk; w = vtk.vtkRenderWindow(); w.SetOffScreenRendering(1); w.Render()"
    return (
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode
        == 0
    )


def slice_view(application, logic, position, size=(320, 320)) -> np.ndarray:
    """[H, W, 3] uint8: one slice view with its background, foreground and segmentations.

    Args:
        application: vtkSlicerApplicationLogic.
        logic: vtkMRMLSliceLogic of the view.
        position: world RAS in mm that the slice goes through.
        size: width and height in pixels.
    """
    node = logic.GetSliceNode()
    node.SetDimensions(*size, 1)
    logic.FitSliceToBackground(*size)
    node.JumpSliceByOffsetting(*position)
    logic.UpdatePipeline()
    window, renderer = _window(size)
    mapper = vtk.vtkImageMapper()
    mapper.SetInputConnection(logic.GetImageDataConnection())
    mapper.SetColorWindow(255)
    mapper.SetColorLevel(127.5)
    actor = vtk.vtkActor2D()
    actor.SetMapper(mapper)
    actor.GetProperty().SetDisplayLocationToBackground()
    renderer.AddActor2D(actor)
    factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
    group = _managers(application, factory, SLICES, renderer, node)
    picture = _drawn(window)
    del group
    return picture


def solid_view(application, scene, size=(320, 320), azimuth=-60.0, elevation=15.0) -> np.ndarray:
    """[H, W, 3] uint8: the surfaces of the scene's visible segmentations."""
    node = scene.GetFirstNodeByClass("vtkMRMLViewNode") or scene.AddNewNodeByClass(
        "vtkMRMLViewNode", "View1"
    )
    window, renderer = _window(size)
    renderer.SetBackground(0.75, 0.76, 0.91)
    renderer.SetBackground2(0.45, 0.47, 0.75)
    renderer.GradientBackgroundOn()
    factory = slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance()
    group = _managers(application, factory, SOLIDS, renderer, node)
    camera = renderer.GetActiveCamera()
    camera.SetPosition(0, 500, 0)
    camera.SetViewUp(0, 0, 1)
    camera.Azimuth(azimuth)
    camera.Elevation(elevation)
    renderer.ResetCamera()
    picture = _drawn(window)
    del group
    return picture


def four_views(application, scene, logics, position, side) -> np.ndarray:
    """[2 side, 2 side, 3] uint8: axial, 3D, coronal and sagittal, as Slicer's Four-Up layout shows
    them.
    """
    red, green, yellow = (
        slice_view(application, logic, position, (side, side)) for logic in logics
    )
    return np.vstack(
        [np.hstack([red, solid_view(application, scene, (side, side))]), np.hstack([green, yellow])]
    )


def _window(size):
    window = vtk.vtkRenderWindow()
    window.SetOffScreenRendering(1)
    window.SetMultiSamples(0)
    window.SetSize(*size)
    renderer = vtk.vtkRenderer()
    window.AddRenderer(renderer)
    interactor = vtk.vtkRenderWindowInteractor()  # displayable managers ask for one
    interactor.SetRenderWindow(window)
    return window, renderer


def _managers(application, factory, names, renderer, node):
    """The displayable managers of a view; they live as long as the group that is returned."""
    factory.SetMRMLApplicationLogic(application)
    for name in names:
        if not factory.IsDisplayableManagerRegistered(name):
            factory.RegisterDisplayableManager(name)
    group = slicer.vtkMRMLDisplayableManagerGroup()
    group.Initialize(factory, renderer)
    group.SetMRMLDisplayableNode(node)
    return group


def _drawn(window) -> np.ndarray:
    window.Render()
    grab = vtk.vtkWindowToImageFilter()
    grab.SetInput(window)
    grab.ReadFrontBufferOff()
    grab.Update()
    image = grab.GetOutput()
    width, height, _ = image.GetDimensions()
    return (
        vtk_to_numpy(image.GetPointData().GetScalars())
        .reshape(height, width, -1)[::-1, :, :3]
        .copy()
    )
