"""Whitening: exact statistics, exact inverses, files that keep every bit."""

from __future__ import annotations

import json

import pytest
import torch

from trajmatch.data import (
    ZCA,
    CompactZCA,
    Normalize,
    Split,
    fit_whitening,
    load_data,
    load_whitening,
    to_float,
)
from trajmatch.data.whiten import WHITENINGS
from trajmatch.errors import DataError, FileFormatError, MismatchError, SettingError
from trajmatch.rng import stream
from trajmatch.storage.files import save_tensors


def split(n=600, channels=3, height=6, width=5, seed=0):
    """Smooth colored pictures, so that pixels are correlated."""
    generator = stream(seed, "test", "whiten")
    coarse = torch.randn(n, channels, 2, 2, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    noise = torch.randn(n, channels, height, width, generator=generator)
    pixels = (120 + 60 * smooth + 10 * noise).clamp(0, 255).to(torch.uint8)
    return Split(pixels, torch.zeros(n, dtype=torch.long))


KINDS = tuple(WHITENINGS)


def fitted(name, data):
    """A whitening of any kind; the compact one with far fewer pairs than there are."""
    if name == "zca-compact":
        return CompactZCA.near(fit_whitening("zca", data), 40)
    return fit_whitening(name, data)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits").train


@pytest.mark.parametrize("name", KINDS)
def test_the_inverse_gives_the_images_back(name, digits):
    for data in (digits, split()):
        images = to_float(data.images)
        whitening = fitted(name, data)
        back = whitening.invert(whitening.apply(images))
        torch.testing.assert_close(back, images, rtol=0, atol=1e-5)
        # ... and the other way, for images that were never pictures
        made = torch.randn(images[:20].shape, generator=stream(0, "made"))
        there = whitening.transform(whitening.invert(made))
        torch.testing.assert_close(there, made, rtol=0, atol=1e-5)


def test_normalize_gives_mean_zero_and_deviation_one():
    data = split()
    whitened = fit_whitening("normalize", data).apply(to_float(data.images)).double()
    assert whitened.mean(dim=(0, 2, 3)).abs().max() < 1e-6
    assert (whitened.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-6


def test_a_channel_of_one_level_is_centered_only():
    data = Split(torch.full((5, 1, 2, 2), 51, dtype=torch.uint8), torch.zeros(5, dtype=torch.long))
    whitening = fit_whitening("normalize", data)
    assert whitening.apply(to_float(data.images)).abs().max() < 1e-7
    assert whitening.settings()["mean"] == [pytest.approx(0.2)]


def test_zca_is_the_textbook_formula(digits):
    for data in (digits, split(n=700), split(n=40)):  # the last: fewer images than pixels
        whitening = fit_whitening("zca", data)
        pixels = data.images.flatten(1).double() / 255
        covariance = pixels.T.cov()
        eigenvalues, axes = torch.linalg.eigh(covariance)
        power = (axes * (eigenvalues.clamp(min=0) + 0.1).rsqrt()) @ axes.T
        root = (axes * (eigenvalues.clamp(min=0) + 0.1).sqrt()) @ axes.T
        torch.testing.assert_close(whitening.tensors["matrix"].double(), power, rtol=0, atol=1e-6)
        torch.testing.assert_close(whitening.inverse.double(), root, rtol=0, atol=1e-6)
        torch.testing.assert_close(whitening.tensors["mean"].double(), pixels.mean(0))


def test_zca_removes_correlations_up_to_eps():
    data = split(n=700)
    whitening = fit_whitening("zca", data)
    whitened = whitening.apply(to_float(data.images)).flatten(1).double()
    # Along each axis the variance s becomes s / (s + eps), hence below 1; nothing is rotated.
    eigenvalues = torch.linalg.eigvalsh((data.images.flatten(1).double() / 255).T.cov())
    after = torch.linalg.eigvalsh(whitened.T.cov())
    expected = eigenvalues / (eigenvalues + 0.1)
    torch.testing.assert_close(after, expected.sort().values, rtol=0, atol=1e-5)
    assert torch.equal(whitening.tensors["matrix"], whitening.tensors["matrix"].T)


def test_fitting_is_exact_whatever_precision_products_are_taken_in():
    data = split(n=2100)
    matrix = fit_whitening("zca", data).tensors["matrix"]
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(fit_whitening("zca", data).tensors["matrix"], matrix)
    finally:
        torch.set_float32_matmul_precision(before)
    # The order of the images does not matter either, to the bit.
    shuffled = data.take(torch.randperm(2100, generator=stream(0, "shuffle")))
    assert torch.equal(fit_whitening("zca", shuffled).tensors["matrix"], matrix)


@pytest.mark.parametrize("name", KINDS)
def test_a_saved_whitening_is_the_same(name, tmp_path):
    whitening, path = fitted(name, split()), tmp_path / "deep" / "whitening.safetensors"
    whitening.save(path)
    loaded = load_whitening(path)
    assert type(loaded) is type(whitening)
    assert loaded.checksum == whitening.checksum
    assert loaded.summary() == whitening.summary() == json.loads(json.dumps(whitening.summary()))
    images = to_float(split(seed=1).images)
    assert torch.equal(loaded.apply(images), whitening.apply(images))
    assert torch.equal(loaded.invert(images), whitening.invert(images))


@pytest.mark.parametrize("name", KINDS)
def test_checksum_and_summary_tell_whitenings_apart(name):
    one, other = fitted(name, split()), fitted(name, split(seed=1))
    assert one.summary()["name"] == name
    assert len(one.checksum) == 16
    assert one.checksum == fitted(name, split()).checksum
    assert one.checksum != other.checksum
    assert one.summary()["checksum"] == one.checksum


@pytest.mark.parametrize("name", KINDS)
def test_a_split_is_whitened_in_chunks(name):
    data = split(n=2500)
    whitening = fitted(name, data)
    whole = whitening.apply(to_float(data.images))
    torch.testing.assert_close(whitening.apply_split(data), whole, rtol=0, atol=1e-6)
    assert whitening.apply_split(data, device="meta").device.type == "meta"


@pytest.mark.parametrize("name", KINDS)
def test_dtype_follows_and_gradients_pass(name):
    data = split(n=50, height=2, width=2)
    whitening = fitted(name, data)
    images = to_float(data.images[:3]).double().requires_grad_()
    assert whitening.transform(images).dtype == whitening.invert(images).dtype == torch.float64
    assert torch.autograd.gradcheck(whitening.transform, images)
    assert torch.autograd.gradcheck(whitening.invert, images)


def test_moving_keeps_what_was_computed():
    whitening = fit_whitening("zca", split(n=50, height=2, width=2))
    inverse = whitening.inverse
    assert whitening.to("cpu").inverse is inverse
    assert whitening.to("meta").tensors["matrix"].device.type == "meta"
    assert whitening.to("meta").inverse.device.type == "meta"


def test_to_float_is_exact_at_the_ends():
    levels = to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert levels.dtype == torch.float32
    assert levels.tolist() == [0.0, pytest.approx(0.2), 1.0]


def test_mistakes_are_refused():
    with pytest.raises(SettingError, match=r"unknown whitening 'zcaa'; did you mean 'zca'\?"):
        fit_whitening("zcaa", split())
    large = Split(torch.zeros(2, 3, 66, 66, dtype=torch.uint8), torch.tensor([0, 0]))
    with pytest.raises(SettingError, match=r"13,068 x 13,068 matrices of 1\.4 GB .*'normalize'"):
        fit_whitening("zca", large)
    for name in WHITENINGS:
        with pytest.raises(DataError, match="at least 2 images, not 1"):
            fit_whitening(name, split(n=1))
    zca = fit_whitening("zca", split(n=50))
    for wrong in (torch.zeros(2, 3, 5, 6), torch.zeros(2, 1, 6, 5)):
        with pytest.raises(MismatchError, match=r"fitted on 3x6x5 images .* these are"):
            zca.apply(wrong)
        with pytest.raises(MismatchError):
            zca.invert(wrong)
    with pytest.raises(MismatchError, match=r"fitted on 3 channels and these images have 1"):
        fit_whitening("normalize", split()).apply(torch.zeros(2, 1, 6, 5))


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "whitening.safetensors"
    with pytest.raises(FileFormatError, match=str(path)):
        load_whitening(path)
    tensors = {"mean": torch.zeros(3)}
    for metadata, message in (
        ({"name": "pca"}, "unknown whitening 'pca'"),
        ({"name": "os:system"}, "unknown whitening 'os:system'; it belongs to another package"),
        ({"name": "normalize"}, "is not a whitening"),
        ({"name": "zca", "shape": [3]}, "is not a whitening"),
        ({}, "is not a whitening"),
    ):
        save_tensors(path, tensors, kind="whitening", version=1, metadata=metadata)
        with pytest.raises(FileFormatError, match=message):
            load_whitening(path)
    save_tensors(path, tensors, kind="trajectory", version=1)
    with pytest.raises(FileFormatError, match="trajectory"):
        load_whitening(path)


def test_they_can_be_made_by_hand():
    identity = ZCA(torch.zeros(4), torch.eye(4), shape=(1, 2, 2), eps=0.0)
    images = torch.rand(3, 1, 2, 2, generator=stream(0))
    assert torch.equal(identity.invert(identity.apply(images)), images)
    halved = Normalize(torch.tensor([0.5]), torch.tensor([2.0]))
    assert torch.equal(halved.apply(images), (images - 0.5) / 2)
    assert repr(halved) == "Normalize(mean 1, std 1)"
    assert repr(identity) == "ZCA(mean 4, matrix 4x4)"


@pytest.mark.parametrize("name", KINDS)
def test_images_of_every_kind_become_the_same_inputs(name):
    data = split(n=50)
    whitening = fitted(name, data)
    inputs = whitening.transform(to_float(data.images))
    floats = to_float(data.images)
    assert torch.equal(inputs, whitening.apply_split(data))
    for images in (data.images, floats, data.images.numpy(), floats.numpy()):
        assert torch.equal(whitening.apply(images), inputs)
    assert whitening.apply(floats.double().numpy()).dtype == torch.float32  # as networks take it
    torch.testing.assert_close(whitening.apply(floats + 1e-6), inputs, rtol=0, atol=1e-3)
    torch.testing.assert_close(whitening.apply(data.images[3]), inputs[3])
    assert whitening.apply(data.images[:0]).shape == (0, 3, 6, 5)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((2, 3, 6, 5), 255.0), r"floats from 255 to 255; give floats in \[0, 1\] .*255"),
        (torch.full((2, 3, 6, 5), -0.1), r"floats from -0\.1 to -0\.1; .* or uint8"),
        (torch.full((2, 3, 6, 5), torch.nan), "floats from nan to nan"),
        (
            torch.zeros(2, 3, 6, 5, dtype=torch.int64),
            "images are torch.int64; give uint8 in 0..255",
        ),
        (torch.zeros(2, 3, 6, 5, dtype=torch.bool), "images are torch.bool"),
        (torch.zeros(6, 5), r"shape \(6, 5\); give \[n, c, h, w\], or one as \[c, h, w\]"),
        (torch.zeros(1, 2, 3, 6, 5), r"shape \(1, 2, 3, 6, 5\)"),
        ([["a"]], "not a numeric array"),
    ],
)
def test_images_that_are_no_pixels_are_refused(name, images, message):
    with pytest.raises(DataError, match=message):
        fitted(name, split(n=50)).apply(images)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, 0.0, -1.0])
def test_numbers_that_cannot_whiten_are_refused(wrong):
    good, bad = torch.ones(2), torch.tensor([1.0, wrong])
    what = "holds NaN or infinity; give finite" if wrong not in (0, -1) else "give numbers above 0"
    with pytest.raises(DataError, match=rf"^std .*{what}"):
        Normalize(good, bad)
    what = what if wrong not in (0, -1) else rf"positive definite.* \({wrong:.3g} on its diagonal"
    with pytest.raises(DataError, match=what):
        ZCA(torch.ones(2), torch.diag(bad), shape=(2, 1, 1))
    none = torch.zeros(0, dtype=torch.int16)
    with pytest.raises(DataError, match=what):
        CompactZCA(torch.ones(2), bad, none, none, none.half(), shape=(2, 1, 1))
    if wrong not in (0, -1):
        with pytest.raises(DataError, match=r"^mean of the whitening holds NaN"):
            Normalize(bad, good)
        with pytest.raises(DataError, match=r"^mean of the whitening holds NaN"):
            ZCA(bad, torch.eye(2), shape=(2, 1, 1))
        with pytest.raises(DataError, match=f"eps of the whitening is {wrong}"):
            ZCA(good, torch.eye(2), shape=(2, 1, 1), eps=wrong)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match=r"mean has shape \[2\] and std \[3\]; give one number per"):
        Normalize(torch.ones(2), torch.ones(3))
    with pytest.raises(DataError, match=r"a mean of 2 values for 3x1x1 images; give 3"):
        ZCA(torch.ones(2), torch.eye(2), shape=(3, 1, 1))
    with pytest.raises(DataError, match=r"a matrix of 3x2 for 2 pixels; give 2x2"):
        ZCA(torch.ones(2), torch.ones(3, 2), shape=(2, 1, 1))


def test_a_singular_matrix_is_refused_where_it_is_inverted():
    singular = ZCA(torch.zeros(2), torch.ones(2, 2), shape=(2, 1, 1))
    with pytest.raises(DataError, match="not positive definite, so nothing undoes it; give"):
        singular.invert(torch.zeros(1, 2, 1, 1))
    row, column = torch.tensor([[0], [1]])
    compact = CompactZCA(
        torch.zeros(2), torch.ones(2), row, column, torch.full((1,), 2.0), shape=(2, 1, 1)
    )
    with pytest.raises(DataError, match="not positive definite"):
        compact.invert(torch.zeros(1, 2, 1, 1))


def test_a_file_of_numbers_that_cannot_whiten_is_refused(tmp_path):
    path = tmp_path / "whitening.safetensors"
    tensors = {"mean": torch.zeros(3), "std": torch.tensor([1.0, 0.0, 1.0])}
    save_tensors(path, tensors, kind="whitening", version=1, metadata={"name": "normalize"})
    with pytest.raises(FileFormatError, match=r"std is \[1\.0, 0\.0, 1\.0\]; give numbers above 0"):
        load_whitening(path)
