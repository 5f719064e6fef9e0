"""Differentiable siamese augmentation: its slow twin, distributions and derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference_augment
from trajmatch.data.augment import CHANGES, Augmentation, Draw
from trajmatch.errors import SettingError
from trajmatch.rng import stream


def drawn(name, batch, height, width, seed=0):
    return Augmentation(name).draw(stream(seed, "test", name), batch, height, width)


def pictures(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=stream(seed, "pictures"), dtype=dtype)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("shape", [(12, 3, 8, 8), (9, 1, 7, 7), (9, 2, 6, 11), (4, 3, 2, 3)])
def test_equals_the_slow_twin(name, shape):
    images = pictures(*shape)
    for seed in range(3):
        draw = drawn(name, shape[0], *shape[2:], seed=seed)
        expected = reference_augment.augment(Augmentation(name), images, draw)
        torch.testing.assert_close(
            Augmentation(name).apply(images, draw), expected, rtol=0, atol=1e-12
        )


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(CHANGES),
    height=st.integers(2, 12),
    width=st.integers(2, 12),
    channels=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_equals_the_slow_twin_at_any_size(name, height, width, channels, seed):
    images = pictures(2, channels, height, width, seed=seed)
    draw = drawn(name, 2, height, width, seed=seed)
    expected = reference_augment.augment(Augmentation(name), images, draw)
    torch.testing.assert_close(Augmentation(name).apply(images, draw), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CHANGES)
def test_a_draw_can_be_replayed_and_a_seed_gives_the_same_draw(name):
    images, draw = pictures(16, 3, 8, 8), drawn(name, 16, 8, 8)
    assert draw == drawn(name, 16, 8, 8)
    assert draw != drawn(name, 16, 8, 8, seed=1)
    assert draw.to("cpu") == draw
    before = images.clone()
    assert torch.equal(
        Augmentation(name).apply(images, draw), Augmentation(name).apply(images, draw)
    )
    assert torch.equal(images, before)
    assert not torch.equal(Augmentation(name).apply(images, draw), images)


@pytest.mark.parametrize("name", CHANGES)
def test_images_of_a_batch_do_not_meet(name):
    images, draw = pictures(6, 3, 8, 8), drawn(name, 6, 8, 8)
    alone = Draw(name, {key: value[4:5] for key, value in draw.values.items()})
    torch.testing.assert_close(
        Augmentation(name).apply(images, draw)[4:5], Augmentation(name).apply(images[4:5], alone)
    )


@pytest.mark.parametrize("name", CHANGES)
def test_first_and_second_derivatives(name):
    images, draw = pictures(3, 2, 5, 4), drawn(name, 3, 5, 4)

    def curved(x):  # augmentation is linear in the images: curve it, or second derivatives are 0
        return Augmentation(name).apply(x.sin(), draw)

    images.requires_grad_()
    assert torch.autograd.gradcheck(curved, images)
    assert torch.autograd.gradgradcheck(curved, images)


@pytest.mark.parametrize("name", CHANGES)
def test_torch_func_agrees_with_autograd_through_a_gradient(name):
    images, draw = pictures(3, 1, 6, 6), drawn(name, 3, 6, 6)
    weight = pictures(3, 1, 6, 6, seed=1)

    def inner(w, x):
        return (Augmentation(name).apply(x, draw) * w).pow(3).sum()

    def outer(x):
        return torch.func.grad(inner)(weight, x).pow(2).sum()

    def outer_images(x):  # the inner gradient itself goes through the augmentation
        return torch.func.grad(inner, argnums=1)(weight, x).pow(2).sum()

    w, x = weight.clone().requires_grad_(), images.clone().requires_grad_()
    gradient_w, gradient_x = torch.autograd.grad(inner(w, x), (w, x), create_graph=True)
    (plain,) = torch.autograd.grad(gradient_w.pow(2).sum(), x, retain_graph=True)
    (plain_images,) = torch.autograd.grad(gradient_x.pow(2).sum(), x)
    torch.testing.assert_close(torch.func.grad(outer)(images), plain)
    torch.testing.assert_close(torch.func.grad(outer_images)(images), plain_images)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_follows_the_images(name, dtype):
    images, draw = pictures(8, 3, 16, 16), drawn(name, 8, 16, 16)
    result = Augmentation(name).apply(images.to(dtype), draw)
    assert result.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 6e-2}[dtype]
    exact = Augmentation(name).apply(images.to(dtype).double(), draw)
    torch.testing.assert_close(result.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CHANGES)
def test_device_follows_the_images(name):
    draw = drawn(name, 4, 8, 8)
    result = Augmentation(name).apply(torch.zeros(4, 3, 8, 8, device="meta"), draw)
    assert (result.device.type, result.shape) == ("meta", (4, 3, 8, 8))
    assert all(value.device.type == "meta" for value in draw.to("meta").values.values())


def test_one_of_the_six_is_picked_and_all_are():
    generator = stream(0, "pick")
    names = [Augmentation().draw(generator, 1, 8, 8).name for _ in range(600)]
    counts = {name: names.count(name) for name in CHANGES}
    assert sum(counts.values()) == 600
    assert all(60 < count < 140 for count in counts.values()), counts  # 100 +- 4.4 sd
    picked = {Augmentation("flip_crop").draw(generator, 1, 8, 8).name for _ in range(50)}
    assert picked == {"flip", "crop"}


def test_parameters_fill_their_ranges_and_stay_inside():
    n, side = 20_000, 32
    color = drawn("color", n, side, side).values
    fills(color["brightness"], -0.5, 0.5)
    fills(color["saturation"], 0, 2)
    fills(color["contrast"], 0.5, 1.5)
    scale = drawn("scale", n, side, side).values
    fills(scale["horizontal"], 1 / 1.2, 1.2)
    fills(scale["vertical"], 1 / 1.2, 1.2)
    assert torch.corrcoef(torch.stack(list(scale.values())))[0, 1].abs() < 0.03
    fills(drawn("rotate", n, side, side).values["angle"], -math.radians(15), math.radians(15))
    for side, shift in ((32, 4), (8, 1), (28, 4), (128, 16)):
        crop = drawn("crop", n, side, side).values
        for value in crop.values():
            assert set(value.tolist()) == set(range(-shift, shift + 1))


def fills(values, low, high):
    assert values.dtype == torch.float64
    assert low <= values.min() < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < values.max() <= high
    assert abs(values.mean() - (low + high) / 2) < 0.02 * (high - low)


def test_half_of_the_images_are_flipped():
    flipped = drawn("flip", 10_000, 8, 8).values["flipped"]
    assert abs(flipped.double().mean() - 0.5) < 0.02  # 4 sd
    assert not Augmentation("flip", flip=0.0).draw(stream(0), 1000, 8, 8).values["flipped"].any()


@pytest.mark.parametrize(("side", "square"), [(32, 16), (8, 4), (7, 4), (6, 3), (5, 3)])
def test_cutout_clears_a_square_whose_middle_is_anywhere(side, square):
    draw = drawn("cutout", 5000, side, side)
    kept = Augmentation("cutout").apply(torch.ones(5000, 1, side, side), draw)[:, 0]
    rows = (kept == 0).any(dim=2).sum(dim=1)
    columns = (kept == 0).any(dim=1).sum(dim=1)
    assert (rows.max(), columns.max()) == (square, square)
    # Squares hang over the border by up to half of themselves (an odd one keeps its middle in).
    assert (rows.min(), columns.min()) == ((square + 1) // 2, (square + 1) // 2)
    assert torch.equal((kept == 0).sum(dim=(1, 2)), rows * columns)
    # The released code's range: one more place for an even square, whose middle is between pixels.
    places = set(range(-(square // 2), side - square % 2 - square // 2 + 1))
    assert set(draw.values["top"].tolist()) == set(draw.values["left"].tolist()) == places
    assert {0, side - 1} <= set((kept == 0).nonzero()[:, 1].tolist())


def test_what_is_cropped_away_or_cut_out_leaves_no_trace():
    images = torch.ones(2, 1, 4, 4)
    images[:, :, 0] = math.inf
    down = Draw("crop", {"rows": torch.tensor([1, 1]), "columns": torch.tensor([0, 1])})
    assert Augmentation("crop").apply(images, down).isfinite().all()


def test_bad_strategies_are_refused():
    for strategy, hint in (
        ("colour_crop", "did you mean 'color'"),
        ("none", "pass None"),
        ("", "pass None"),
        ("flip_flip", "twice"),
    ):
        with pytest.raises(SettingError, match=hint):
            Augmentation(strategy)


def test_a_draw_for_another_batch_is_refused():
    with pytest.raises(SettingError, match=r"5 images was applied to 4; draw with batch=4"):
        Augmentation("flip").apply(pictures(4, 3, 8, 8), drawn("flip", 5, 8, 8))
