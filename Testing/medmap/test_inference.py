"""One patient through the whole of inference, with a small untrained bundle."""

from __future__ import annotations

import socket
import weakref
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from medmap.bundle.format import InferenceSpec
from medmap.devices import inference_precision
from medmap.errors import (
    BundleError,
    Cancelled,
    InputDataError,
    InternalError,
    MedMAPError,
    UnavailableError,
    UsageError,
)
from medmap.inference import segment, segment_subsets
from medmap.networks import Backbone, Output, build_network
from medmap.preprocess import prepare
from medmap.resampling import resample_linear, resample_nearest
from medmap.sliding_window import SlidingWindow, gaussian_weight, window_boxes
from medmap.task import BRATS
from medmap.volume import Grid, Volume

NAMES = BRATS.modality_names
SUBSETS = [s for n in range(1, 5) for s in combinations(NAMES, n)]


def turned(volume: Volume) -> Volume:
    """The same voxels at the same places, stored with axes S, L, A."""
    array = np.ascontiguousarray(volume.array.transpose(2, 0, 1)[:, ::-1])
    change = np.array(
        [[0, -1, 0, volume.array.shape[0] - 1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]]
    )
    return Volume(array, volume.affine @ change, volume.name)


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_any_subset_gives_labels_on_the_reference_grid(volumes, tiny_bundle, subset):
    chosen = {name: volumes[name] for name in subset}
    result = segment(chosen, tiny_bundle)
    assert result.labels.shape == volumes["t1"].array.shape
    assert set(np.unique(result.labels)) <= {0, 1, 2, 4}
    assert np.array_equal(result.grid.affine, volumes["t1"].affine)
    assert result.provenance.missing == tuple(n for n in NAMES if n not in subset)
    assert (result.labels[volumes["t1"].array == 0] == 0).all()


def test_scans_that_nobody_else_holds_are_gone_before_the_network_runs(volumes, tiny_bundle):
    references = []

    def copies() -> dict[str, Volume]:
        scans = {name: replace(volume) for name, volume in volumes.items()}
        references.extend(weakref.ref(scan) for scan in scans.values())
        return scans

    alive = []

    def count(fraction: float, text: str) -> None:
        alive.append(sum(reference() is not None for reference in references))

    segment(copies(), tiny_bundle, progress=count)
    # The checks and the preparation look at the scans; encoders and decoder do not.
    assert alive[:2] == [4, 4]
    assert set(alive[2:]) == {0}


@pytest.mark.parametrize("subset", SUBSETS[:-1], ids="+".join)
@pytest.mark.parametrize("content", ["noise", "nan", "huge"])
def test_what_absent_scans_hold_changes_no_logit_no_crop_and_no_normalization(
    volumes, tiny_bundle, network_logits, subset, content
):
    present = {name: volumes[name] for name in subset}
    expected = prepare(present, BRATS, tiny_bundle.preprocess, multiple=8)
    (logits,) = network_logits(tiny_bundle, expected, [subset])
    filled = expected.image.clone()
    absent = ~expected.present
    noise = torch.randn(filled[absent].shape, generator=torch.Generator().manual_seed(0))
    filled[absent] = {
        "noise": noise,
        "nan": torch.full_like(noise, float("nan")),
        "huge": noise * 1e6,
    }[content]
    with torch.inference_mode():
        leaked = tiny_bundle.network(filled[None], expected.present[None]).logits[0]
    assert torch.equal(leaked, logits)


def test_the_order_of_the_scans_changes_nothing(volumes, tiny_bundle):
    backwards = {name: volumes[name] for name in reversed(NAMES)}
    assert np.array_equal(
        segment(backwards, tiny_bundle).labels, segment(volumes, tiny_bundle).labels
    )


def test_another_stored_orientation_gives_the_same_labels_at_the_same_places(volumes, tiny_bundle):
    expected = segment(volumes, tiny_bundle).labels
    result = segment({name: turned(v) for name, v in volumes.items()}, tiny_bundle)
    back = turned(Volume(expected.astype(np.float32), volumes["t1"].affine)).array
    assert (result.labels == back).mean() > 0.9999


class Threshold(Backbone):
    """Judges each voxel by its own mean intensity: only geometry can make two results differ."""

    modalities = classes = 4

    def encode(self, image, modality):
        return [image]

    def decode(self, features, present, want=()):
        mean = torch.stack([f[0] for f in features if f is not None]).mean(0)
        return Output(
            torch.cat([torch.zeros_like(mean), mean - 2.5, 4 * (mean - 1.2), 9 * (mean - 1.8)], 1)
        )


@pytest.mark.parametrize("degrees", [7, 20, 45])
@pytest.mark.parametrize("spacing", [(2, 2, 2), (1.6, 1.6, 3.0)], ids=str)
def test_a_rotated_sampling_gives_the_same_segmentation_up_to_interpolation(
    make_case, tiny_bundle, degrees, spacing
):
    volumes = {name: v for name, v in make_case(noise=0).items() if name in ("t1ce", "flair")}
    bundle = replace(tiny_bundle, network=Threshold())
    source = volumes["t1ce"].grid
    angle = np.deg2rad(degrees)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[:3, :3] = affine[:3, :3] @ np.diag(spacing)
    shape = tuple(int(130 / s) for s in spacing)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    oblique = {name: resampled(volume, Grid(shape, affine)) for name, volume in volumes.items()}
    straight, rotated = segment(volumes, bundle), segment(oblique, bundle)
    back = resample_nearest(rotated.labels, rotated.grid, source)
    assert rotated.labels.shape == shape
    for value in (2, 4):
        overlap = 2 * ((back == value) & (straight.labels == value)).sum()
        total = (back == value).sum() + (straight.labels == value).sum()
        assert straight.volumes_ml["ET"] > 1
        assert overlap / total > 0.8, f"label {value}"


def resampled(volume: Volume, grid: Grid) -> Volume:
    """A skull-stripped scan on another grid, with a sharp edge of the head."""
    array = resample_linear(torch.from_numpy(volume.array)[None], volume.grid, grid)[0]
    inside = (
        resample_linear(
            torch.from_numpy((volume.array != 0).astype(np.float32))[None], volume.grid, grid
        )[0]
        > 0.5
    )
    return Volume(
        torch.where(inside, array / inside, 0).nan_to_num(0).numpy(), grid.affine, volume.name
    )


def test_scans_on_different_grids_meet_on_the_reference(make_case, tiny_bundle):
    fine, coarse = make_case(), make_case(shape=(30, 36, 14), spacing=2.7)
    result = segment({"t1ce": fine["t1ce"], "flair": coarse["flair"]}, tiny_bundle)
    assert result.labels.shape == fine["t1ce"].array.shape
    assert any(f.check == "grids" for f in result.findings)
    chosen = segment(
        {"t1ce": fine["t1ce"], "flair": coarse["flair"]}, tiny_bundle, reference="flair"
    )
    assert chosen.labels.shape == coarse["flair"].array.shape


def test_all_subsets_at_once_equal_each_alone(volumes, tiny_bundle):
    together = segment_subsets(volumes, tiny_bundle, SUBSETS, reference="t1ce")
    for subset in (("t1ce",), ("t1", "t1ce"), ("t1ce", "t2", "flair")):
        alone = segment({n: volumes[n] for n in subset}, tiny_bundle).labels
        assert np.array_equal(together[BRATS.subset_key(subset)], alone)


def test_windows_are_encoded_once_a_modality_and_decoded_once_a_subset(
    volumes, tiny_bundle, monkeypatch
):
    calls = []
    network = tiny_bundle.network
    encode, decode = network.encode, network.decode
    monkeypatch.setattr(network, "encode", lambda *a: calls.append("e") or encode(*a))
    monkeypatch.setattr(network, "decode", lambda *a: calls.append("d") or decode(*a))
    segment_subsets(volumes, tiny_bundle, SUBSETS)
    assert calls.count("e") == 4
    assert calls.count("d") == 15
    calls.clear()
    segment({"t2": volumes["t2"]}, tiny_bundle)
    assert calls == ["e", "d"]


def test_windows_cover_everything_and_the_weights_leave_a_constant_alone():
    boxes = window_boxes((96, 80, 64), (32, 48, 64), 0.25, 16)
    covered = torch.zeros(96, 80, 64)
    for box in boxes:
        covered[box] += 1
    assert covered.min() >= 1
    assert gaussian_weight((8, 8, 8)).min() > 0


def test_uniform_windows_are_a_plain_mean_that_steps_by_half_a_window(tiny_bundle, volumes):
    """The published rule, against windows cut by hand; the stride does not move their starts."""
    network = tiny_bundle.network
    prepared = prepare(volumes, BRATS, tiny_bundle.preprocess, multiple=network.stride)
    spec = InferenceSpec((24, 24, 24), 0.5, weighting="uniform")
    windows = SlidingWindow(BRATS, spec, network.stride, torch.device("cpu"))
    (logits,) = windows.logits(network, prepared, [BRATS.modality_names])
    boxes = window_boxes(prepared.grid.shape, (24, 24, 24), 0.5, 1)
    assert 12 in {box[0].start for box in boxes}
    total = torch.zeros_like(logits)
    count = torch.zeros(prepared.grid.shape)
    present = torch.ones(1, 4, dtype=torch.bool)
    with torch.inference_mode():
        for box in boxes:
            total[(slice(None), *box)] += network(
                prepared.image[(slice(None), *box)][None], present
            ).logits[0]
            count[box] += 1
    assert count.min() >= 1
    torch.testing.assert_close(logits, total / count, rtol=1e-4, atol=1e-4)


def test_sliding_windows_equal_monais_at_the_same_windows(volumes, tiny_bundle):
    from monai.inferers import sliding_window_inference

    bundle = replace(tiny_bundle, inference=InferenceSpec((32, 32, 24), 0.25))
    prepared = prepare(volumes, BRATS, bundle.preprocess, multiple=8)
    windows = SlidingWindow(BRATS, bundle.inference, bundle.stride, torch.device("cpu"))
    (ours,) = windows.logits(bundle.network, prepared, [NAMES])
    present = prepared.present[None]
    with torch.inference_mode():
        theirs = sliding_window_inference(
            prepared.image[None],
            (32, 32, 24),
            1,
            lambda x: bundle.network(x, present).logits,
            overlap=0.25,
            mode="gaussian",
            sigma_scale=0.125,
        )[0]
    assert windows.window == (32, 32, 24)
    agree = (ours.argmax(0) == theirs.argmax(0))[prepared.brain].float().mean()
    assert agree > 0.97


def test_cancelling_stops_between_steps(volumes, tiny_bundle):
    told = []
    with pytest.raises(Cancelled):
        segment(
            volumes, tiny_bundle, progress=lambda f, t: told.append(f), cancel=lambda: len(told) > 3
        )
    assert max(told) < 0.9


def test_progress_rises_to_one(volumes, tiny_bundle):
    told = []
    segment(volumes, tiny_bundle, progress=lambda fraction, text: told.append(fraction))
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_progress_names_the_encoded_modality_and_counts_windows_only_where_there_are_several(
    volumes, tiny_bundle
):
    chosen = {name: volumes[name] for name in ("t1", "flair")}
    texts: list[str] = []
    segment(chosen, tiny_bundle, progress=lambda fraction, text: texts.append(text))
    assert texts[2:5] == ["encoding T1", "encoding FLAIR", "segmenting from T1 + FLAIR"]
    texts.clear()
    small = replace(tiny_bundle, inference=InferenceSpec(window=(32, 32, 32)))
    segment(chosen, small, progress=lambda fraction, text: texts.append(text))
    assert "window 2 of " in " ".join(texts)
    assert texts[2].endswith(": encoding T1")


def test_out_of_memory_shrinks_the_window_and_says_so(volumes, tiny_bundle, monkeypatch):
    encode = tiny_bundle.network.encode

    def scarce(image, m):
        if image.shape[2] > 32:
            raise torch.OutOfMemoryError("injected")
        return encode(image, m)

    monkeypatch.setattr(tiny_bundle.network, "encode", scarce)
    result = segment({"t1": volumes["t1"]}, tiny_bundle)
    assert max(result.provenance.run.window) <= 32
    assert any("window" in f.message for f in result.findings)
    assert result.labels.any()


def test_memory_that_never_suffices_is_said_in_words(volumes, tiny_bundle, monkeypatch):
    def never(image, m):
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(tiny_bundle.network, "encode", never)
    with pytest.raises(UnavailableError, match="memory"):
        segment({"t1": volumes["t1"]}, tiny_bundle)


def test_answers_that_are_not_finite_are_never_shown(volumes, tiny_bundle, monkeypatch):
    encode = tiny_bundle.network.encode
    monkeypatch.setattr(
        tiny_bundle.network, "encode", lambda x, m: [f * float("nan") for f in encode(x, m)]
    )
    with pytest.raises(InternalError, match="finite"):
        segment({"t1": volumes["t1"]}, tiny_bundle)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda v: {}, UsageError),
        (lambda v: {"pd": v["t1"]}, UsageError),
        (
            lambda v: {"t1": v["t1"], "t2": Volume(v["t1"].array.copy(), v["t1"].affine, "copy")},
            MedMAPError,
        ),
        (
            lambda v: {"t1": Volume(np.zeros_like(v["t1"].array), v["t1"].affine, "zero")},
            InputDataError,
        ),
        (
            lambda v: {
                "t1": v["t1"],
                "t2": Volume(
                    v["t2"].array,
                    v["t2"].affine
                    + np.eye(4)[:, [3, 0, 1, 2]] * 0
                    + np.array([[0, 0, 0, 500.0], [0] * 4, [0] * 4, [0] * 4]),
                    "far",
                ),
            },
            InputDataError,
        ),
    ],
    ids=["none", "unknown modality", "same image twice", "empty", "apart"],
)
def test_inputs_that_cannot_be_used_are_refused(volumes, tiny_bundle, change, error):
    with pytest.raises(error):
        segment(change(volumes), tiny_bundle)


def test_an_unknown_device_is_refused(volumes, tiny_bundle):
    with pytest.raises(UsageError, match="'gpu9' is not a device"):
        segment({"t1": volumes["t1"]}, tiny_bundle, device="gpu9")


def test_a_device_that_lists_itself_but_computes_nothing_is_refused_with_the_reason(
    volumes, tiny_bundle, monkeypatch
):
    """A card that is too new for this PyTorch: found, but no kernel runs."""

    def fail(*args):
        raise RuntimeError(
            "CUDA error: no kernel image is available for execution on the device\nCompile with ..."
        )

    monkeypatch.setattr(torch.nn.functional, "conv3d", fail)
    with pytest.raises(UnavailableError, match=r"no kernel image .* device\)\. Choose the CPU"):
        segment({"t1": volumes["t1"]}, tiny_bundle, device="cpu:0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device")
def test_automatic_falls_back_when_a_card_is_there_but_fails(volumes, tiny_bundle, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert segment({"t1": volumes["t1"]}, tiny_bundle, device="auto").provenance.run.device == "cpu"


def test_no_socket_is_opened(volumes, tiny_bundle, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("inference opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    segment({"t1": volumes["t1"]}, tiny_bundle)


def test_absent_scans_are_named_on_the_result(volumes, tiny_bundle):
    messages = " ".join(f.message for f in segment({"t1": volumes["t1"]}, tiny_bundle).findings)
    assert "T1ce" in messages
    assert "FLAIR" in messages


def test_bf16_gives_nearly_the_labels_of_fp32_and_says_so(volumes, tiny_bundle):
    full = segment(volumes, tiny_bundle, precision="fp32")
    half = segment(volumes, tiny_bundle, precision="bf16")
    assert full.provenance.run.precision == "fp32"
    assert half.provenance.run.to_dict()["precision"] == "bf16"
    # The tiny network is untrained: its classes are nearly equally probable everywhere.
    assert (half.labels == full.labels).mean() > 0.95


@pytest.mark.parametrize(
    ("capabilities", "deepest_grid", "precision"),
    [({"avx512_bf16": True}, 6, "bf16"), ({"avx512_bf16": True}, 2, "fp32"), ({}, 6, "fp32")],
)
def test_automatic_precision_is_bf16_where_the_processor_computes_it(
    monkeypatch, capabilities, deepest_grid, precision
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert inference_precision("auto", torch.device("cpu"), deepest_grid) == precision


def test_an_unknown_precision_is_refused(volumes, tiny_bundle):
    with pytest.raises(UsageError, match="int4"):
        segment(volumes, tiny_bundle, precision="int4")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_labels_of_the_cpu(volumes, tiny_bundle):
    cpu = segment(volumes, tiny_bundle, precision="fp32").labels
    gpu = segment(volumes, tiny_bundle, device="cuda", precision="fp32").labels
    assert (cpu == gpu).mean() > 0.999


def test_a_network_for_one_fixed_set_refuses_to_do_without_a_scan_of_it(volumes, tiny_bundle):
    bundle = replace(
        tiny_bundle, network=build_network("UNet", {"inputs": [1, 3], "widths": [4, 6, 8]}).eval()
    )
    with pytest.raises(BundleError, match="T1ce, FLAIR, and FLAIR is missing"):
        segment({"t1ce": volumes["t1ce"], "t2": volumes["t2"]}, bundle)
    assert segment({"t1ce": volumes["t1ce"], "flair": volumes["flair"]}, bundle).labels.shape == (
        40,
        48,
        36,
    )
