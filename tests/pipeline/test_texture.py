"""Textures: crops of canvases that wrap around, their exact gradient, and the set made of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from reference import plain_loss
from trajmatch import cli, pipeline
from trajmatch.config import DSA_STRATEGY as EVERY_CHANGE
from trajmatch.data.augment import Augmentation
from trajmatch.data.canvas import Crops, CropSampler
from trajmatch.data.dataset import Split
from trajmatch.data.whiten import fit_whitening
from trajmatch.errors import DataError, MismatchError, SettingError
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import MTT, Conditions, Problem, SyntheticParameters
from trajmatch.networks import build_network
from trajmatch.networks.functional import parameter_vector
from trajmatch.networks.spec import network_for
from trajmatch.rng import stream
from trajmatch.storage import read_result
from trajmatch.synthetic import SyntheticSet
from trajmatch.synthetic import formats as export
from trajmatch.unroll import Schedule, SegmentDistance, Student
from trajmatch.unroll.gradient import gradient_fn
from trajmatch.unroll.unroll import unroll

TEXTURE = dataclasses.replace(tiny.METHOD, texture=True, samples=2)
CONFIG = dataclasses.replace(tiny.DISTILL, init="noise")


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk would take most of the time, and is for what no test here does."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def library() -> ExpertLibrary:
    return tiny.library()


@pytest.fixture(scope="module")
def ran(library: ExpertLibrary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Not to be written to."""
    out = tmp_path_factory.mktemp("texture") / "run"
    distill(out, library)
    return out


def distill(
    out: Path, library: ExpertLibrary, *, method: MTT = TEXTURE, **changes: object
) -> pipeline.Outcome:
    return pipeline.distill(
        tiny.digits(),
        method,
        library,
        out,
        config=dataclasses.replace(CONFIG, **changes),
        evaluation=tiny.EVALUATE,
    )


def begun(library: ExpertLibrary, method: MTT, **changes: object) -> SyntheticParameters:
    config = dataclasses.replace(CONFIG, **changes)
    return pipeline.initial_parameters(tiny.digits(), library.whitening, method, config, seed=0)


def problem_of(library: ExpertLibrary, *, seed: int) -> Problem:
    return Problem.of(tiny.digits(), library, torch.device("cpu"), seed=seed)


def gray(path: Path) -> torch.Tensor:
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=stream(seed, "random"), dtype=torch.float64)


def plain_crops(canvases: torch.Tensor, crops: Crops) -> torch.Tensor:
    """One after another: the canvas rolled until the crop lies in its upper left corner."""
    found = []
    for rows, columns in zip(crops.rows.tolist(), crops.columns.tolist(), strict=True):
        for canvas, row, column in zip(canvases, rows, columns, strict=True):
            rolled = torch.roll(canvas, (-row, -column), (1, 2))
            found.append(rolled[:, : crops.height, : crops.width])
    return torch.stack(found)


# -- the crop ------------------------------------------------------------------------------------

WINDOWS = [(CropSampler(3, 4, 2), 5, 7), (CropSampler(4, 4, 3), 8, 8), (CropSampler(5, 5), 5, 5)]


@pytest.mark.parametrize(("window", "tall", "wide"), WINDOWS)
def test_a_crop_wraps_around(window: CropSampler, tall: int, wide: int) -> None:
    canvases = random(4, 2, tall, wide)
    crops = window.draw(stream(0, "crops"), 4, tall, wide)
    found = crops.apply(canvases)
    assert found.shape == (4 * window.samples, 2, window.height, window.width)
    assert torch.equal(found, plain_crops(canvases, crops))


def test_a_crop_goes_back_to_where_it_was_taken() -> None:
    """The derivative is the adjoint: every pixel of a crop is added to its own on the canvas."""
    window = CropSampler(3, 4, 3)
    canvases = random(4, 2, 5, 7).requires_grad_()
    crops = window.draw(stream(0, "crops"), 4, 5, 7)
    behind = random(12, 2, 3, 4, seed=1)
    (back,) = torch.autograd.grad(crops.apply(canvases), canvases, behind)
    wanted = torch.zeros(4, 2, 5, 7, dtype=torch.float64)
    for s in range(3):
        for i in range(4):
            for y in range(3):
                for x in range(4):
                    row, column = int(crops.rows[s, i]) + y, int(crops.columns[s, i]) + x
                    wanted[i, :, row % 5, column % 7] += behind[4 * s + i, :, y, x]
    assert torch.allclose(back, wanted, rtol=1e-12, atol=1e-12)


def test_labels_follow_their_canvases() -> None:
    canvases = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 6, 6)
    crops = CropSampler(2, 2, 4).draw(stream(0, "crops"), 3, 6, 6)
    assert torch.equal(crops.apply(canvases)[:, 0, 0, 0], crops.repeat(torch.arange(3.0)))
    soft = random(3, 5)
    assert torch.equal(crops.repeat(soft), torch.cat([soft] * 4))


def test_crops_are_anywhere_and_each_its_own() -> None:
    crops = CropSampler(4, 4, 2).draw(stream(1, "crops"), 3000, 5, 7)
    rows, columns = crops.rows.flatten(), crops.columns.flatten()
    counts = torch.bincount(rows * 7 + columns, minlength=35)
    expected = 6000 / 35
    assert ((counts - expected) ** 2 / expected).sum() < 56  # 99 % of 34 degrees of freedom
    assert not torch.equal(crops.rows[0], crops.rows[1])


@pytest.mark.parametrize(
    ("window", "tall", "wide", "count"),
    [
        (CropSampler(8, 8), 16, 16, 4),
        (CropSampler(8, 8, 5), 20, 8, 3),
        (CropSampler(3, 4), 5, 7, 4),
    ],
)
def test_a_cover_shows_every_pixel(window: CropSampler, tall: int, wide: int, count: int) -> None:
    cover = window.cover(stream(0, "cover"), 6, tall, wide)
    assert len(cover.rows) == count
    canvases = torch.zeros(6, 1, tall, wide, requires_grad=True)
    (shown,) = torch.autograd.grad(cover.apply(canvases).sum(), canvases)
    assert shown.min() >= 1
    assert len({*zip(cover.rows[0].tolist(), cover.columns[0].tolist(), strict=True)}) > 1


def test_canvases_are_laid_with_images_and_cut() -> None:
    window, images = CropSampler(2, 3), random(8, 2, 2, 3)
    tiled = window.tile(images, 3, 5)
    assert tiled.shape == (2, 2, 3, 5)
    for k in range(2):
        a, b, c, d = images[4 * k : 4 * k + 4]
        whole = torch.cat([torch.cat([a, b], 2), torch.cat([c, d], 2)], 1)
        assert torch.equal(tiled[k], whole[:, :3, :5])
    assert torch.equal(window.tile(images, 2, 3), images)


# -- the unroll ----------------------------------------------------------------------------------


def close(found: torch.Tensor, wanted: torch.Tensor, rel: float = 1e-9) -> None:
    assert wanted.norm() > 0
    assert (found - wanted).norm() <= rel * wanted.norm()


def plain_match(module, start, target, canvases, labels, step_size, schedule, augment):
    """Loss and gradients by back-propagation through the whole unroll, crops and all."""
    leaves = [canvases.clone().requires_grad_(), step_size.clone().requires_grad_()]
    if labels.is_floating_point():
        labels = labels.clone().requires_grad_()
        leaves.append(labels)
    vector = start.clone().requires_grad_()
    for n in range(schedule.steps):
        chosen = slice(None) if schedule.indices is None else schedule.indices[n]
        crops = schedule.crops[n]
        batch = plain_crops(leaves[0][chosen], crops)
        if augment is not None:
            batch = augment.apply(batch, schedule.draws[n])
        loss = plain_loss(module, vector, batch, torch.cat([labels[chosen]] * len(crops.rows)))
        (gradient,) = torch.autograd.grad(loss, vector, create_graph=True)
        vector = vector - leaves[1] * gradient
    loss = (vector - target).pow(2).sum() / (start - target).pow(2).sum()
    return loss.detach(), *torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize(("keep", "micro_batch"), [(0, 0), (0, 3), (2, 3), (5, 0)])
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "soft"])
@pytest.mark.parametrize("batch_syn", [None, 4], ids=["whole", "batches"])
@pytest.mark.parametrize("augment", [None, Augmentation()], ids=["plain", "dsa"])
def test_gradients_equal_plain_backpropagation(keep, micro_batch, soft, batch_syn, augment) -> None:
    module = build_network(
        "convnet", channels=2, classes=3, size=8, depth=2, width=4, activation="sigmoid", seed=0
    ).double()
    start = parameter_vector(module)
    target = start + 0.1 * random(len(start), seed=1)
    canvases, labels = random(5, 2, 12, 11, seed=2), torch.arange(5) % 3
    if soft:
        labels = random(5, 3, seed=3).softmax(1)
    step_size = torch.tensor(0.3, dtype=torch.float64)
    schedule = Schedule.make(
        canvases,
        steps=5,
        batch_syn=batch_syn,
        augment=augment,
        sampler=CropSampler(8, 8, 2),
        seed=3,
    )
    student = Student(gradient_fn(module), canvases, labels, augment, schedule, micro_batch)
    got = unroll(student, start, step_size, SegmentDistance(start, target), keep=keep)
    loss, at_canvases, at_step_size, *at_labels = plain_match(
        module, start, target, canvases, labels, step_size, schedule, augment
    )
    close(got.loss, loss)
    close(got.grad_images, at_canvases)
    close(got.grad_step_size, at_step_size)
    if soft:
        close(got.grad_labels, at_labels[0])
    else:
        assert got.grad_labels is None


def test_every_step_has_crops_of_its_own_and_batches_stay_the_same() -> None:
    canvases, made = torch.zeros(6, 1, 12, 12), {}
    for window in (None, CropSampler(8, 8, 3)):
        made[window] = Schedule.make(
            canvases, steps=4, batch_syn=4, augment=Augmentation(), sampler=window, seed=0
        )
    plain, texture = made.values()
    assert plain.crops is None
    assert torch.equal(torch.cat(plain.indices), torch.cat(texture.indices))
    assert [crops.rows.shape for crops in texture.crops] == [(3, 4)] * 4
    assert len({str(crops.rows.tolist()) for crops in texture.crops}) == 4
    assert {len(next(iter(draw.values.values()))) for draw in texture.draws} == {12}


# -- distilling ----------------------------------------------------------------------------------


@pytest.mark.parametrize("soft_labels", [False, True])
def test_an_estimate_is_of_the_canvases(library: ExpertLibrary, soft_labels: bool) -> None:
    method = dataclasses.replace(
        TEXTURE, soft_labels=soft_labels, batch_syn=4, augment=EVERY_CHANGE, canvas=13
    )
    learned = begun(library, method)
    problem = problem_of(library, seed=4)
    found = method.estimate(problem, learned, 7)
    schedule = Schedule.make(
        learned.images, steps=method.syn_steps, batch_syn=4, augment=Augmentation(),
        sampler=CropSampler(8, 8, 2), seed=4, names=("distill", "walk", 7, 0),
    )  # fmt: skip
    start, target = library.segment(*method.segment_at(problem, 7, 0), method.expert_epochs)
    loss, images, step_size, *labels = plain_match(
        library.spec.build(seed=0), start, target, learned.images, learned.labels,
        learned.step_size, schedule, Augmentation(),
    )  # fmt: skip
    assert found.images.shape == (10, 1, 13, 13)
    close(found.loss, loss, 1e-5)
    close(found.images, images, 1e-4)
    close(found.step_size, step_size, 1e-4)
    if soft_labels:
        close(found.labels, labels[0], 1e-4)


def test_canvases_begin_as_noise_or_laid_with_training_images(library: ExpertLibrary) -> None:
    noise = begun(library, TEXTURE, ipc=2)
    assert noise.images.shape == (20, 1, 16, 16)
    assert noise.images.std() == pytest.approx(1, abs=0.05)
    real = begun(library, dataclasses.replace(TEXTURE, canvas=12), ipc=2, init="real")
    assert real.images.shape == (20, 1, 12, 12)
    assert real.classes.tolist() == [k for k in range(10) for _ in range(2)]
    train = tiny.digits().train
    known = library.whitening.apply_split(train)
    corners = {}
    for canvas, label in zip(real.images, real.classes, strict=True):
        (places,) = (known == canvas[:, :8, :8]).flatten(1).all(1).nonzero(as_tuple=True)
        assert label in train.labels[places]
        corners[places[0].item()] = label
    assert len(corners) == 20


@pytest.mark.slow
def test_the_loss_falls(library: ExpertLibrary, tmp_path: Path) -> None:
    """On segments and crops that no update was made for."""
    method = dataclasses.replace(
        TEXTURE, syn_steps=5, step_size=0.1, lr_img=100.0, max_start_epoch=1
    )
    outcome = distill(
        tmp_path / "run", library, method=method, iterations=30, eval_every=30, checkpoint_every=30
    )
    canvases = outcome.last.canvases
    assert canvases is not None
    first = begun(library, method)
    problem = problem_of(library, seed=0)
    before, after = (
        sum(method.estimate(problem, learned, i).loss.item() for i in range(1000, 1010)) / 10
        for learned in (first, dataclasses.replace(first, images=canvases))
    )
    assert after < 0.9 * before


def test_a_set_holds_canvases_and_crops_that_cover_them(ran: Path, library: ExpertLibrary) -> None:
    made = SyntheticSet.load(ran / "last")
    assert made.canvases is not None
    assert made.canvases.shape == (10, 1, 16, 16)
    assert made.images.shape == (40, 1, 8, 8)
    assert made.ipc == 4
    assert made.labels.tolist() == list(range(10)) * 4
    assert made.info["texture"] == {"canvas": [16, 16], "samples": 2}
    cover = CropSampler(8, 8).cover(stream(0, "texture", "cover"), 10, 16, 16)
    assert torch.equal(made.images, plain_crops(made.canvases, cover))
    assert not torch.equal(made.canvases, begun(library, TEXTURE).images)


def test_a_tile_is_drawn_and_nine_of_it_side_by_side(ran: Path) -> None:
    made = SyntheticSet.load(ran / "best")
    tiles = made.tiles()
    assert tiles is not None
    for label in range(10):
        folder = ran / "best" / "textures" / str(label)
        assert sorted(path.name for path in folder.iterdir()) == ["tile.png", "tiling.png"]
        tile, tiling = gray(folder / "tile.png"), gray(folder / "tiling.png")
        assert torch.equal(tile, tiles[label, 0])
        assert tiling.shape == (48, 48)
        for y in (0, 16, 32):
            for x in (0, 16, 32):
                assert torch.equal(tiling[y : y + 16, x : x + 16], tile)


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    ran: Path, library: ExpertLibrary, tmp_path: Path
) -> None:
    distill(tmp_path / "run", library, iterations=2)
    distill(tmp_path / "run", library)
    for name in ("best", "last"):
        one, other = SyntheticSet.load(ran / name), SyntheticSet.load(tmp_path / "run" / name)
        assert torch.equal(one.canvases, other.canvases)
        assert torch.equal(one.images, other.images)


@pytest.mark.parametrize(
    "changes", [{"samples": 1}, {"canvas": 24}, {"texture": False, "samples": 1}]
)
def test_a_run_of_other_canvases_is_not_continued(
    ran: Path, library: ExpertLibrary, changes: dict[str, object]
) -> None:
    said = r"a run with ipc=1 \(canvases of 16x16, 2 crops a step\), this one has ipc=1"
    with pytest.raises(MismatchError, match=said):
        distill(ran, library, method=dataclasses.replace(TEXTURE, **changes))


def test_a_run_of_images_is_not_continued_as_a_texture(
    library: ExpertLibrary, tmp_path: Path
) -> None:
    distill(tmp_path / "run", library, method=tiny.METHOD)
    with pytest.raises(MismatchError, match=r"a run with ipc=1, this one has ipc=1 \(canv"):
        distill(tmp_path / "run", library)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"canvas": 7}, "canvas is 7 and the images are 8x8 pixels; use at least 8"),
        ({"canvas": 160}, "1 canvases of 160x160 are as large as 400 images and class '8' has"),
        ({"ipc": 40}, "40 canvases of 16x16 are as large as 160 images"),
    ],
)
def test_canvases_that_do_not_fit_are_refused(
    library: ExpertLibrary, tmp_path: Path, changes: dict[str, int], said: str
) -> None:
    own = {name: value for name, value in changes.items() if name == "canvas"}
    method = dataclasses.replace(TEXTURE, **own)
    with pytest.raises(SettingError, match=said):
        distill(tmp_path / "run", library, method=method, ipc=changes.get("ipc", 1), init="real")
    assert not (tmp_path / "run").exists()


def test_zca_is_refused() -> None:
    spec = network_for(tiny.digits(), tiny.NETWORK)
    whitened, plain = (
        Conditions(spec, ipc=1, expert_epochs=3, whitening=name) for name in ("zca", "normalize")
    )
    with pytest.raises(SettingError, match=r"'zca'.*whitening='normalize'"):
        TEXTURE.check(whitened)
    tiny.METHOD.check(whitened)
    TEXTURE.check(plain)


@pytest.mark.parametrize("alone", [{"canvas": 16}, {"samples": 2}])
def test_settings_of_textures_alone_are_refused(alone: dict[str, int]) -> None:
    with pytest.raises(SettingError, match="without texture="):
        MTT(**alone)
    MTT(texture=True, **alone)


def test_the_command_makes_textures(
    library: ExpertLibrary, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = (
        f"distill --device cpu {tiny.DISTILL_WORDS} {tiny.SCORE_WORDS} --experts {library.path} "
        f"--out {out} --texture --canvas 12 --samples 3"
    )
    assert cli.main(words.split()) == 0
    assert f"the textures are in {out / 'best' / 'textures'}" in capsys.readouterr().out
    assert {s["method"]: s["ipc"] for s in read_result(out)["scores"]} == {
        "mtt": 4, "random": 4, "herding": 4, "experts": None,
    }  # fmt: skip
    assert SyntheticSet.load(out / "best").canvases.shape == (10, 1, 12, 12)


# -- the set on disk -----------------------------------------------------------------------------


def a_set(*, texture: bool = True, ipc: int = 2) -> SyntheticSet:
    pixels = torch.randint(0, 256, (8, 3, 4, 4), generator=stream(0, "x"), dtype=torch.uint8)
    whitening = fit_whitening("normalize", Split(pixels, torch.arange(8) % 2))
    canvases = random(2 * ipc, 3, 8, 6).float()
    cover = CropSampler(4, 4).cover(stream(0, "cover"), 2 * ipc, 8, 6)
    labels = torch.arange(2).repeat_interleave(ipc)
    return SyntheticSet(
        images=cover.apply(canvases),
        labels=cover.repeat(labels),
        classes=("cat", "dog/wolf"),
        whitening=whitening,
        canvases=canvases if texture else None,
    )


def test_a_saved_texture_comes_back(tmp_path: Path) -> None:
    before = a_set()
    before.save(tmp_path / "set")
    after = SyntheticSet.load(tmp_path / "set")
    assert torch.equal(after.canvases, before.canvases)
    assert torch.equal(after.tiles(), before.tiles())
    assert sorted(p.relative_to(tmp_path / "set").as_posix() for p in tmp_path.rglob("tile*")) == [
        "textures/cat/tile-1.png", "textures/cat/tile.png",
        "textures/dog_wolf/tile-1.png", "textures/dog_wolf/tile.png",
    ]  # fmt: skip
    with Image.open(tmp_path / "set" / "textures" / "dog_wolf" / "tiling-1.png") as tiling:
        assert tiling.size == (18, 24)


def test_a_texture_goes_out_whole(tmp_path: Path) -> None:
    made = a_set()
    export.write_npz(made, tmp_path)
    back = export.read_npz(tmp_path / "distilled.npz")
    assert torch.equal(back.canvases, made.canvases)
    assert torch.equal(back.images, made.images)
    assert "textures" in export.export_set(made, "hub", tmp_path / "hub")["files"]
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "| Textures | 4 canvases of 3x8x6 that wrap around: `textures/<class>/` |" in card
    assert torch.equal(SyntheticSet.load(tmp_path / "hub").canvases, made.canvases)


@pytest.mark.parametrize("joins", [False, True], ids=["alone", "beside other files"])
def test_a_plain_set_leaves_no_textures_behind(tmp_path: Path, joins: bool) -> None:
    a_set().save(tmp_path / "set")
    if joins:
        (tmp_path / "set" / "notes.txt").write_text("mine")
        (tmp_path / "set" / "distilled.json").unlink()
    a_set(texture=False).save(tmp_path / "set")
    assert SyntheticSet.load(tmp_path / "set").canvases is None
    assert not (tmp_path / "set" / "textures").exists()
    assert (tmp_path / "set" / "notes.txt").exists() == joins
    a_set().save(tmp_path / "set")
    assert (tmp_path / "set" / "textures" / "cat" / "tiling.png").exists()
    assert (tmp_path / "set" / "notes.txt").exists() == joins


def test_textures_of_somebody_else_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "textures").mkdir()
    (tmp_path / "textures" / "mine.png").write_text("mine")
    with pytest.raises(DataError, match="textures is not a distilled set's"):
        a_set().save(tmp_path)
    assert (tmp_path / "textures" / "mine.png").exists()


def test_crops_that_are_not_of_all_canvases_are_refused() -> None:
    made = a_set()
    with pytest.raises(DataError, match="15 images of 4 canvases"):
        dataclasses.replace(made, images=made.images[1:], labels=made.labels[1:])
