"""Every recipe that ships: what it says is what its authors published, and `recipes` shows it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from trajmatch.cli import recipes as command
from trajmatch.cli.frame import Command, dispatch
from trajmatch.config.recipes import recipe_names, recipe_text
from trajmatch.errors import SettingError
from trajmatch.methods import MTT
from trajmatch.pipeline.recipe import Recipe, load_recipe

COMMANDS = {"recipes": Command(command.Flags, command.run, "list", "trajmatch recipes")}

# N, M, T+, lr_img, lr_lr, alpha_0, batch_syn, whitening, accuracy
PUBLISHED = {
    "cifar10-ipc1": (50, 2, 2, 100, 1e-7, 0.01, None, "zca", 46.3),
    "cifar10-ipc10": (30, 2, 20, 100, 1e-5, 0.001, None, "zca", 65.3),
    "cifar10-ipc50": (30, 2, 40, 1000, 1e-5, 0.001, None, "normalize", 71.6),
    "cifar100-ipc1": (20, 3, 20, 1000, 1e-5, 0.01, None, "zca", 24.3),
    "cifar100-ipc10": (20, 2, 20, 1000, 1e-5, 0.01, None, "normalize", 40.1),
    "cifar100-ipc50": (80, 2, 40, 1000, 1e-5, 0.01, 125, "zca", 47.7),
    "tiny-imagenet-ipc1": (10, 2, 10, 10000, 1e-4, 0.01, None, "normalize", 8.8),
    "tiny-imagenet-ipc10": (20, 2, 40, 10000, 1e-4, 0.01, 200, "normalize", 23.2),
    "tiny-imagenet-ipc50": (20, 2, 40, 10000, 1e-4, 0.01, 300, "normalize", 28.0),
}
SUBSETS = {
    "imagenette": (47.7, 63.0),
    "imagewoof": (28.6, 35.8),
    "imagefruit": (26.6, 40.3),
    "imageyellow": (45.2, 60.0),
    "imagemeow": (30.7, 40.4),
    "imagesquawk": (39.4, 52.3),
}
for subset, (one, ten) in SUBSETS.items():
    shared = (20, 2, 10, 1000, 1e-6, 0.01)
    PUBLISHED[f"{subset}-ipc1"] = (*shared, None, "normalize", one)
    PUBLISHED[f"{subset}-ipc10"] = (*shared, 20, "normalize", ten)

DEPTH = {32: 3, 64: 4, 128: 5}


def test_all_published_recipes_ship_and_two_quick_ones() -> None:
    quick = {"cifar10-ipc1-quick", "imagenette-ipc1-quick"}
    assert set(recipe_names()) == {*PUBLISHED, *quick, "digits-ipc1"}


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_sound(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.about
    assert name.startswith(f"{recipe.data.data}-ipc{recipe.distill.ipc}")
    assert (recipe.published.accuracy is None) == (not recipe.published.source)
    assert recipe.data.whitening is not None
    read = recipe.method.last_epoch
    assert recipe.experts.epochs >= read > 0
    if recipe.data.size is not None:
        assert recipe.experts.epochs == read, "no epoch beyond those is ever read"
        assert recipe.network.depth == DEPTH[recipe.data.size]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_is_its_authors(name: str) -> None:
    recipe = load_recipe(name)
    m = recipe.method
    assert isinstance(m, MTT)
    assert PUBLISHED[name] == (
        m.syn_steps, m.expert_epochs, m.max_start_epoch, m.lr_img, m.lr_lr, m.step_size,
        m.batch_syn, recipe.data.whitening, recipe.published.accuracy,
    )  # fmt: skip
    subset = name.startswith("image")
    experts = recipe.experts
    assert (experts.experts, experts.batch, experts.lr) == (100 if subset else 200, 256, 0.01)
    assert (experts.momentum, experts.weight_decay, recipe.distill.iterations) == (0, 0, 5000)
    assert (recipe.network.network, recipe.network.width) == ("convnet", 128)
    assert (recipe.evaluate.n, recipe.evaluate.epochs) == (5, 1000)


def test_the_imagenet_recipes_say_where_the_rate_of_the_images_comes_from() -> None:
    for subset in SUBSETS:
        for ipc in (1, 10):
            assert "100000" in recipe_text(f"{subset}-ipc{ipc}")


def test_the_text_of_a_recipe_can_be_saved_and_loaded(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(recipe_text("cifar10-ipc1").replace("iterations = 5000", "iterations = 3"))
    changed, recipe = load_recipe(str(own)), load_recipe("cifar10-ipc1")
    assert changed.distill.iterations == 3
    assert changed.data == recipe.data
    assert Recipe.from_dict(tomllib.loads(recipe_text("cifar10-ipc1"))) == recipe


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar10-ipc2", ["'cifar10-ipc2'", "did you mean 'cifar10-ipc", "trajmatch recipes"]),
        ("nothing", ["'nothing'", "`trajmatch recipes` lists them", "FILE.toml"]),
        ("absent.toml", ["absent.toml", "cannot read"]),
    ],
)
def test_what_is_no_recipe_is_refused(name: str, words: list[str]) -> None:
    for read in (load_recipe, recipe_text):
        with pytest.raises(SettingError) as error:
            read(name)
        assert [word for word in words if word not in str(error.value)] == []


# -- the command ---------------------------------------------------------------------------------


def test_the_list_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(COMMANDS, ["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["recipe", "data", "network", "ipc", "published", "about"]
    listed = {line.split()[0]: line for line in lines[1:] if line and not line.startswith("`")}
    assert list(listed) == recipe_names()
    for name, line in listed.items():
        recipe = load_recipe(name)
        assert line.endswith(recipe.about)
        cells = line.removesuffix(recipe.about).split()
        assert recipe.data.data in cells
        assert f"depth={recipe.network.depth}" in cells
        accuracy = recipe.published.accuracy
        last = [str(recipe.distill.ipc)] + ([] if accuracy is None else [str(accuracy)])
        assert cells[-len(last) :] == last


def test_a_named_recipe_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(COMMANDS, ["recipes", "imagenette-ipc10"]) == 0
    assert capsys.readouterr().out == recipe_text("imagenette-ipc10")
    assert dispatch(COMMANDS, ["recipes", "imagenete-ipc10"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "did you mean 'imagenette-ipc10'?" in said.err
    assert said.err.count("\n") == 1
