"""Distillation that starts from an existing set."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

import tiny
from trajmatch import pipeline
from trajmatch.config import DistillConfig
from trajmatch.data.whiten import fit_whitening
from trajmatch.errors import FileFormatError, MismatchError, SettingError
from trajmatch.methods import DM, MTT, Method, SyntheticParameters
from trajmatch.synthetic import SyntheticSet, rewhiten

DSA = DM(batch_real=16)


@pytest.fixture(scope="module")
def start() -> SyntheticSet:
    """Two images of each digit, the classes mixed."""
    chosen = pipeline.select_coreset("random", tiny.digits(), 2, seed=7)
    order = torch.arange(20).reshape(10, 2).T.flatten()
    return dataclasses.replace(chosen, images=chosen.images[order], labels=chosen.labels[order])


@pytest.fixture
def folder(start: SyntheticSet, tmp_path: Path) -> Path:
    start.save(tmp_path / "start")
    return tmp_path / "start"


def begun(folder: Path, method: Method = tiny.METHOD, ipc: int = 2) -> SyntheticParameters:
    config = dataclasses.replace(tiny.DISTILL, init=str(folder), ipc=ipc)
    whitening = tiny.library().whitening
    return pipeline.initial_parameters(tiny.digits(), whitening, method, config, seed=0)


def test_the_images_are_the_sets_class_by_class(start: SyntheticSet, folder: Path) -> None:
    first = begun(folder)
    order = start.labels.argsort(stable=True)
    assert torch.equal(first.images, start.images[order])
    assert first.classes.tolist() == [label for label in range(10) for _ in range(2)]
    assert first.label_logits is None
    assert float(first.step_size) == pytest.approx(tiny.METHOD.step_size)


def test_another_whitening_is_undone(start: SyntheticSet, tmp_path: Path) -> None:
    zca = fit_whitening("zca", tiny.digits().train)
    rewhiten(start, zca).save(tmp_path / "zca")
    expected = start.images[start.labels.argsort(stable=True)]
    torch.testing.assert_close(begun(tmp_path / "zca").images, expected, rtol=0, atol=1e-4)


def test_soft_labels_are_taken_where_labels_are_learned(
    start: SyntheticSet, tmp_path: Path
) -> None:
    labels = torch.eye(10)[start.labels] * 0.7
    labels[:, 3] += 0.3  # of the others 0
    dataclasses.replace(start, labels=labels).save(tmp_path / "soft")
    soft = dataclasses.replace(tiny.METHOD, soft_labels=True)
    first = begun(tmp_path / "soft", soft)
    order = start.labels.argsort(stable=True)
    torch.testing.assert_close(first.labels, labels[order], rtol=0, atol=1e-5)
    assert torch.equal(begun(tmp_path / "soft").labels, start.labels[order])
    # Hard labels begin one-hot, as from real images.
    start.save(tmp_path / "hard")
    torch.testing.assert_close(
        begun(tmp_path / "hard", soft).labels, torch.eye(10)[start.labels[order]] * 0.9 + 0.01
    )


def test_a_texture_starts_from_canvases(tmp_path: Path) -> None:
    method = MTT(
        syn_steps=2, expert_epochs=1, max_start_epoch=2, texture=True, canvas=16, lr_img=1.0
    )
    made = tiny.distill(tmp_path / "run", method, tiny.library(), iterations=2).last
    first = begun(tmp_path / "run" / "last", method, ipc=1)
    assert torch.equal(first.images, made.canvases)
    with pytest.raises(
        MismatchError, match=r"canvases of the set .* 1x16x16 and .* 1x12x12 .*canv"
    ):
        begun(tmp_path / "run" / "last", dataclasses.replace(method, canvas=12), ipc=1)


def test_a_run_records_the_set_and_resumes_to_the_same_bits(
    start: SyntheticSet, folder: Path, tmp_path: Path
) -> None:
    settings = {"ipc": 2, "init": str(folder)}
    once = tiny.distill(tmp_path / "once", DSA, **settings)
    assert once.last.info["settings"]["init"] == f"set {start.fingerprint}"
    with pytest.raises(KeyboardInterrupt):
        tiny.distill(tmp_path / "twice", DSA, stop=2, **settings)
    # The set may lie elsewhere by now, but must be the same.
    moved = {**settings, "init": str(shutil.copytree(folder, tmp_path / "moved"))}
    again = tiny.distill(tmp_path / "twice", DSA, **moved)
    assert again.last.fingerprint == once.last.fingerprint
    assert not torch.equal(again.last.images, start.images[start.labels.argsort(stable=True)])
    dataclasses.replace(start, images=start.images * 2).save(folder)
    with pytest.raises(MismatchError, match=rf"init=set {start.fingerprint}"):
        tiny.distill(tmp_path / "twice", DSA, iterations=6, **settings)


def test_sets_that_do_not_fit_are_refused_before_anything_starts(
    start: SyntheticSet, folder: Path, tmp_path: Path
) -> None:
    renamed, wide = tmp_path / "renamed", tmp_path / "wide"
    dataclasses.replace(start, classes=tuple("abcdefghij")).save(renamed)
    dataclasses.replace(start, images=torch.zeros(20, 1, 8, 9)).save(wide)
    texture = MTT(texture=True, lr_img=1.0)
    refusals = [
        (folder, tiny.METHOD, 1, SettingError, r"ipc is 1 and .* 2 images .* '0'; give ipc=2"),
        (renamed, tiny.METHOD, 2, MismatchError, r"has classes a, b, c, d, .* and the data 0, 1"),
        (wide, tiny.METHOD, 2, MismatchError, r"images of the set .* 1x8x9 and .* 1x8x8 .*size="),
        (folder, texture, 2, MismatchError, r"canvases of the set in .* are none and .* 1x16x16"),
        ("reel", tiny.METHOD, 2, SettingError, r"init is 'reel'; give real, noise, or the folder"),
        (tmp_path, tiny.METHOD, 2, FileFormatError, r"is not a distilled set"),
    ]  # fmt: skip
    for init, method, ipc, kind, said in refusals:
        with pytest.raises(kind, match=said):
            tiny.distill(tmp_path / "out", method, tiny.library(), init=str(init), ipc=ipc)
    place = tmp_path / "place"
    start.save(place / "best")
    (place / ".trajmatch.json").write_text(json.dumps({"command": "distill"}))
    with pytest.raises(
        SettingError, match=r"inside of the output folder .*, where this run writes its own"
    ):
        tiny.distill(place, DSA, init=str(place / "best"), ipc=2)
    assert not (tmp_path / "out").exists()
    with pytest.raises(SettingError, match=r"init is ; it must be real, noise, or the folder of"):
        DistillConfig(init="")
    loop = DistillConfig(init=str(folder), ipc=3)
    recipe = pipeline.Recipe(distill=loop, experts=tiny.EXPERTS)
    with pytest.raises(SettingError, match=r"ipc is 3 and the set"):
        pipeline.run(recipe, tmp_path / "out", data=tiny.digits())
    assert not (tmp_path / "out").exists()
