"""ZCA in cosines: the exact matrix when every pair is kept, and a known distance when not."""

from __future__ import annotations

import functools
import math

import pytest
import scipy.fft
import torch

from trajmatch.data import ZCA, CompactZCA, Split, fit_whitening, load_whitening
from trajmatch.data.whiten import to_float
from trajmatch.errors import DataError, FileFormatError, MismatchError, SettingError
from trajmatch.rng import stream
from trajmatch.storage.files import save_tensors

SHAPE = (3, 5, 4)
D = math.prod(SHAPE)
PAIRS = D * (D - 1) // 2


@functools.cache
def exact() -> ZCA:
    """Of a random covariance, with eigenvalues from 0.001 to 10 and eps 0.1."""
    generator = stream(0, "test", "compact")
    axes = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64, generator=generator)).Q
    variances = torch.logspace(-3, 1, D, dtype=torch.float64)
    matrix = (axes * (variances + 0.1).rsqrt()) @ axes.T
    matrix = (matrix + matrix.T) / 2
    return ZCA(torch.rand(D, generator=generator), matrix.float(), shape=SHAPE, eps=0.1)


def cosines(shape: tuple[int, int, int]) -> torch.Tensor:
    """C, by another program's transform of every pixel."""
    pixels = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    turned = scipy.fft.dctn(pixels.numpy(), axes=(1, 2, 3), norm="ortho")
    return torch.from_numpy(turned).flatten(1).T


def entries(whitening: ZCA | CompactZCA) -> torch.Tensor:
    """M of any matrix."""
    basis = cosines(whitening.shape)
    return basis @ whitening.matrix.double() @ basis.T


def test_every_pair_gives_the_exact_matrix() -> None:
    compact = CompactZCA.near(exact(), PAIRS)
    # float16 keeps 11 bits of every pair, and the diagonal is not rounded.
    rounding = 2**-11 * entries(exact()).fill_diagonal_(0).norm() + 1e-6
    assert (compact.matrix - exact().matrix).norm() < rounding
    parts = compact.tensors
    rows, columns = parts["rows"].int(), parts["columns"].int()
    values = entries(exact())[rows, columns]
    unrounded = CompactZCA(parts["mean"], parts["diagonal"], rows, columns, values, shape=SHAPE)
    torch.testing.assert_close(unrounded.matrix, exact().matrix, rtol=0, atol=1e-6)
    torch.testing.assert_close(unrounded.inverse, exact().inverse, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pairs", [0, 1, 40, 400, 1200])
def test_what_is_left_out_is_what_it_is_off_by(pairs: int) -> None:
    whole = entries(exact())
    compact = CompactZCA.near(exact(), pairs)
    kept = entries(compact)
    places = (compact.tensors["rows"].int(), compact.tensors["columns"].int())
    assert len(compact.tensors["values"]) == pairs
    assert ((kept - kept.diag().diag()).abs() > 1e-6).sum() <= 2 * pairs
    torch.testing.assert_close(kept.diag(), whole.diag(), rtol=0, atol=1e-6)
    torch.testing.assert_close(kept[places], whole[places], rtol=2**-11, atol=1e-6)
    # Cosines are orthonormal, so lengths in M are lengths in the matrix.
    left = whole.triu(1)
    left[places] = 0
    off = (compact.matrix.double() - exact().matrix.double()).norm()
    assert off == pytest.approx(math.sqrt(2) * float(left.norm()), rel=1e-3, abs=2e-3)


def test_the_pairs_that_matter_most_are_kept() -> None:
    whole, pairs = entries(exact()), 300
    inverse = torch.linalg.inv(exact().matrix.double())
    basis = cosines(SHAPE)
    variances = (basis @ (inverse @ inverse - 0.1 * torch.eye(D)) @ basis.T).diag()
    weights = (whole.square() * (variances[:, None] + variances)).triu(1)
    compact = CompactZCA.near(exact(), pairs)
    rows, columns = compact.tensors["rows"].int(), compact.tensors["columns"].int()
    least = weights[rows, columns].min()
    weights[rows, columns] = 0
    assert least > weights.max()


def test_pictures_need_few_pairs() -> None:
    # Windows on clouds: as in photographs, all scales alike and no place special.
    waves = torch.fft.fftfreq(24)
    scale = 1 / (waves.square()[:, None] + waves.square()).sqrt().clamp(min=1 / 24)
    noise = torch.randn(2000, 2, 24, 24, generator=stream(0, "clouds"))
    clouds = torch.fft.ifft2(torch.fft.fft2(noise) * scale).real[:, :, :8, :8]
    pixels = (128 + 40 * clouds).clamp(0, 255).to(torch.uint8)
    zca = fit_whitening("zca", Split(pixels, torch.zeros(2000).long()))
    assert isinstance(zca, ZCA)
    images = to_float(pixels)
    white = zca.apply(images).flatten(1)
    off = []
    for pairs in (0, 40, 400, 8128):  # of 8128
        compact = CompactZCA.near(zca, pairs).apply(images).flatten(1)
        off.append(float(((compact - white).norm(dim=1) / white.norm(dim=1)).mean()))
    assert off == sorted(off, reverse=True)
    assert all(o < most for o, most in zip(off, (0.15, 0.1, 0.07, 1e-3), strict=True))


@pytest.mark.parametrize("pairs", [0, 1, 300, PAIRS])
def test_the_inverse_is_that_of_the_stored_numbers(pairs: int) -> None:
    compact = CompactZCA.near(exact(), pairs)
    inverse = torch.linalg.inv(compact.matrix.double())
    torch.testing.assert_close(compact.inverse.double(), inverse, rtol=0, atol=1e-5)


def test_a_file_keeps_every_bit_and_what_it_is_near_to(tmp_path) -> None:
    compact = CompactZCA.near(exact(), 100)
    compact.save(tmp_path / "whitening.safetensors")
    back = load_whitening(tmp_path / "whitening.safetensors")
    assert isinstance(back, CompactZCA)
    assert back.summary() == compact.summary()
    assert back.summary()["of"] == exact().checksum
    assert back.tensors.keys() == compact.tensors.keys()
    for name, tensor in compact.tensors.items():
        assert torch.equal(back.tensors[name], tensor)
        assert back.tensors[name].dtype == tensor.dtype
    assert torch.equal(back.matrix, compact.matrix)
    assert torch.equal(back.inverse, compact.inverse)


def test_a_plain_zca_is_made_of_it() -> None:
    compact, images = CompactZCA.near(exact(), 100), torch.rand(4, *SHAPE, generator=stream(1))
    full = compact.full()
    assert (type(full), full.shape, full.eps) == (ZCA, SHAPE, 0.1)
    assert torch.equal(full.apply(images), compact.apply(images))
    torch.testing.assert_close(full.invert(images), compact.invert(images))


def test_moving_takes_the_matrix_along(tmp_path) -> None:
    CompactZCA.near(exact(), 100).save(tmp_path / "whitening.safetensors")
    compact = load_whitening(tmp_path / "whitening.safetensors")
    there = compact.to("cpu")
    assert isinstance(compact, CompactZCA)
    assert isinstance(there, CompactZCA)
    assert "matrix" in compact.__dict__
    assert there.matrix is compact.matrix
    assert there.checksum == compact.checksum
    assert compact.to("meta").tensors["values"].device.type == "meta"


def test_mistakes_are_refused() -> None:
    for pairs in (-1, PAIRS + 1):
        with pytest.raises(SettingError, match=rf"pairs is {pairs}; give 0 to 1,770 for 60 pixels"):
            CompactZCA.near(exact(), pairs)
    compact = CompactZCA.near(exact(), 10)
    with pytest.raises(MismatchError, match=r"fitted on 3x5x4 images .* these are 3x4x5"):
        compact.apply(torch.zeros(2, 3, 4, 5))
    with pytest.raises(MismatchError):
        compact.invert(torch.zeros(2, 1, 5, 4))

    def made(places: list[list[int]], d: int = 4) -> CompactZCA:
        rows, columns = torch.tensor(places).T
        return CompactZCA(
            torch.zeros(d), torch.ones(4), rows, columns, torch.zeros(len(places)), shape=(1, 2, 2)
        )

    assert made([[0, 3]]).full().matrix.trace() == pytest.approx(4)
    for place in ([1, 0], [2, 2], [-1, 2], [0, 4]):
        with pytest.raises(DataError, match=r"1 of 2 pairs are not at 0 <= row < column < 4"):
            made([[0, 1], place])
    with pytest.raises(DataError, match=r"a mean of 5 values for 1x2x2 images; give 4"):
        ZCA(torch.zeros(5), torch.eye(5), shape=(1, 2, 2))


def test_a_matrix_that_cannot_be_inverted_is_refused() -> None:
    basis = cosines((1, 1, 3))
    strong = torch.tensor([[1, 0.9, 0.9], [0.9, 1, 0.85], [0.9, 0.85, 1]], dtype=torch.float64)
    zca = ZCA(torch.zeros(3), (basis.T @ strong @ basis).float(), shape=(1, 1, 3))
    assert CompactZCA.near(zca, 3).inverse.isfinite().all()
    with pytest.raises(SettingError, match="with 2 pairs the matrix cannot be inverted; keep more"):
        CompactZCA.near(zca, 2)


def test_a_file_that_is_none_is_refused(tmp_path) -> None:
    path = tmp_path / "whitening.safetensors"
    compact = CompactZCA.near(exact(), 10)
    metadata = {"name": compact.name, **compact.settings()}
    for name in compact.tensors:
        fewer = {other: tensor for other, tensor in compact.tensors.items() if other != name}
        save_tensors(path, fewer, kind="whitening", version=1, metadata=metadata)
        with pytest.raises(FileFormatError, match="is not a whitening"):
            load_whitening(path)
    swapped = {
        **compact.tensors,
        "rows": compact.tensors["columns"],
        "columns": compact.tensors["rows"],
    }
    save_tensors(path, swapped, kind="whitening", version=1, metadata=metadata)
    with pytest.raises(FileFormatError, match="10 of 10 pairs are not at"):
        load_whitening(path)


def test_colors_and_gray_are_turned_alike() -> None:
    generator = stream(0, "gray")
    for channels in (1, 2, 3):
        pixels = torch.randint(0, 256, (200, channels, 4, 6), generator=generator)
        zca = fit_whitening("zca", Split(pixels.to(torch.uint8), torch.zeros(200).long()))
        assert isinstance(zca, ZCA)
        compact = CompactZCA.near(zca, 0)
        torch.testing.assert_close(entries(compact), entries(zca).diag().diag(), rtol=0, atol=1e-5)
