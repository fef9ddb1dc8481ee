"""Networks for one set of modalities: what they read, what they need, and that they learn."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss
from Testing.medmap.small_networks import small

from medmap.errors import BundleError
from medmap.networks import build_network
from medmap.task import BRATS

STACKED = ["UNet", "VNet", "SegResNet"]
EVERY = [*STACKED, "GatedUNet"]
ALL = torch.ones(1, 4, dtype=torch.bool)


def fixed_weights(network):
    """Weights that no random number generator decides: waves, scaled as Kaiming would."""
    with torch.no_grad():
        for n, p in enumerate(network.parameters()):
            wave = torch.sin(torch.arange(p.numel(), dtype=torch.float64) * 0.7 + n).reshape(
                p.shape
            )
            p.copy_(wave * (2 / p[0].numel()) ** 0.5 if p.ndim > 1 else 1 + 0.1 * wave)
    return network


def waves(size: int = 16, modalities: int = 4) -> torch.Tensor:
    n = torch.arange(modalities * size**3, dtype=torch.float64).reshape(
        1, modalities, size, size, size
    )
    return torch.sin(n * 0.013).mul(2).float()


@pytest.mark.parametrize("name", STACKED)
def test_reads_exactly_its_inputs(name):
    network = small(name, inputs=[BRATS.index("t1ce"), BRATS.index("flair")])
    image = waves().requires_grad_()
    network(image, ALL).logits.square().sum().backward()
    read = image.grad.abs().amax((0, 2, 3, 4)) > 0
    assert read.tolist() == [False, True, False, True]


@pytest.mark.parametrize("name", STACKED)
def test_says_what_it_needs(name):
    assert small(name).needs is None, "trained for all, any subset may come"
    assert small(name, inputs=[3, 1]).needs == {1, 3}


@pytest.mark.parametrize("name", STACKED)
def test_the_order_in_which_inputs_are_named_does_not_matter(name):
    image = waves()
    with torch.inference_mode():
        one, other = (small(name, inputs=order)(image, ALL).logits for order in ([0, 3], [3, 0]))
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", STACKED)
def test_an_input_that_is_absent_is_a_zero_channel(name):
    network, image = small(name, inputs=[0, 3]), waves()
    blanked = image.clone()
    blanked[:, 3] = 0
    with torch.inference_mode():
        absent = network(image, torch.tensor([[True, True, True, False]])).logits
        assert torch.equal(absent, network(blanked, ALL).logits)
        only_others = network.decode(
            [None, [image[:, 1:2]], None, None], torch.tensor([[False, True, False, False]])
        )
        assert torch.equal(only_others.logits, network(torch.zeros_like(image), ALL).logits)


def test_no_modality_at_all_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        small("UNet").decode([None] * 4, torch.zeros(1, 4, dtype=torch.bool))


@pytest.mark.parametrize(
    "options", [{"inputs": []}, {"inputs": [4]}, {"inputs": [1, 1]}, {"replicate": 0}], ids=str
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(BundleError):
        build_network("UNet", options)


@pytest.mark.parametrize("name", STACKED)
def test_a_replicated_scan_fills_that_many_channels(name):
    network = small(name, inputs=[1], replicate=4)
    assert network.channels == 4
    image = waves()
    with torch.inference_mode():
        alone = network(image, ALL).logits
        stacked = small(name)(image[:, [1, 1, 1, 1]], ALL).logits
    assert torch.equal(alone, stacked)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", EVERY)
def test_shapes_of_logits_and_taps(name, dims):
    network = small(name, spatial_dims=dims, modalities=3, classes=5)
    shape = (6 * network.stride, 2 * network.stride, 4 * network.stride)[:dims]
    with torch.inference_mode():
        output = network(
            torch.randn(2, 3, *shape),
            torch.ones(2, 3, dtype=torch.bool),
            want=sorted(network.provides),
        )
    assert output.logits.shape == (2, 5, *shape)
    assert output.taps["decoder"].shape[2:] == shape
    assert output.taps["bottleneck"].shape[2:] == tuple(n // network.stride for n in shape)


@pytest.mark.parametrize(
    ("name", "mean", "deviation"),
    [
        ("UNet", 0.701358, 1.775375),
        ("GatedUNet", 0.718886, 1.828490),
        ("VNet", 0.018646, 18.156040),
        ("SegResNet", 1.482490, 0.473166),
    ],
)
def test_fixed_weights_give_the_numbers_they_gave(name, mean, deviation):
    network = fixed_weights(small(name)).double()
    with torch.inference_mode():
        logits = network(waves().double(), torch.tensor([[True, False, True, True]])).logits
    assert logits.mean().item() == pytest.approx(mean, abs=1e-4)
    assert logits.std().item() == pytest.approx(deviation, abs=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_thirty_steps_on_one_batch_lower_the_loss(name):
    network = small(name).train()
    torch.manual_seed(1)
    image = torch.nn.functional.interpolate(
        torch.randn(2, 4, 4, 4, 4), scale_factor=4, mode="trilinear"
    )
    label = (image[:, :1] > 0).long() + (image[:, 1:2] > 0.3).long()
    present = torch.tensor([[True, True, False, True], [True, True, True, False]])
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = loss_of(network(image, present).logits, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
