"""What a run will cost: counted by hand from given speeds, and iterations measured on noise."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import tiny
from trajmatch import pipeline
from trajmatch.config import (
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    ExpertConfig,
    NetworkConfig,
)
from trajmatch.data.sources import SOURCES
from trajmatch.errors import SettingError
from trajmatch.methods import (
    DC,
    DD,
    DM,
    DSA,
    METHODS,
    MTT,
    Estimate,
    Method,
    Problem,
    SyntheticParameters,
)
from trajmatch.networks import NetworkSpec
from trajmatch.pipeline.cost.done import Done, Room
from trajmatch.pipeline.cost.estimate import (
    COMPILER_SPEEDUP,
    FIT_MATRICES,
    HERDING_BATCH,
    PROCESS_BYTES,
    RESIDENT,
    Cost,
    compiled_stages,
    estimate,
)
from trajmatch.pipeline.cost.iteration import (
    LIMIT_SECONDS,
    Iteration,
    extrapolated,
    measure_iteration,
)
from trajmatch.pipeline.cost.measure import Speeds, measure
from trajmatch.pipeline.cost.shape import Shape
from trajmatch.pipeline.recipe import Recipe
from trajmatch.runtime.memory import peak_bytes
from trajmatch.runtime.resources import Resources
from trajmatch.storage import read_result
from trajmatch.storage.files import write_json

CPU = torch.device("cpu")
SHAPE = Shape(channels=3, size=32, classes=10, train=900, val=100, test=300)
TIMED = Iteration(seconds=10.0, peak=2 * 10**9, reads_images=False, measured="mtt's own")
SPEEDS = Speeds(image=0.01, evaluation=0.02, iteration=TIMED, embedding=10**6)
RUN = Recipe(
    network=tiny.NETWORK,
    experts=ExpertConfig(experts=5, epochs=4),
    distill=DistillConfig(iterations=250, eval_every=100, eval_networks=3),
    method=MTT(syn_steps=20),
    evaluate=EvaluateConfig(n=5, epochs=100, workers=2),
)
TINY = Recipe(
    data=DataConfig(whitening="normalize"),
    network=tiny.NETWORK,
    experts=tiny.EXPERTS,
    distill=tiny.DISTILL,
    method=tiny.METHOD,
    evaluate=tiny.EVALUATE,
)
NONE = Done()
ONE_THREAD = Resources(workers=1, threads=1)


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk would take most of the time, and is for what no test here does."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def cost(
    recipe: Recipe = RUN, speeds: Speeds = SPEEDS, done: Done = NONE, **resources: object
) -> Cost:
    return estimate(
        recipe,
        SHAPE,
        done=done,
        resources=Resources(**{"workers": 2, **resources}),
        measure=lambda *given: speeds,
    )


def changed(part: str, **changes: object) -> Recipe:
    return dataclasses.replace(RUN, **{part: dataclasses.replace(getattr(RUN, part), **changes)})


# -- room on the disk ----------------------------------------------------------------------------


def test_experts_that_do_not_fit_on_the_disk_are_reported() -> None:
    needed = cost().disk
    for free in (needed, needed - 1):
        found = cost(done=Done(room=Room("runs/x", stored=0, free=free)))
        assert bool(found.shortage) == (free < needed)
        assert found.lines()[:-1] == cost().lines() or not found.shortage
    full = cost(done=Done(room=Room("runs/x", stored=0, free=0)))
    assert full.shortage == (
        f"the experts need {needed / 1e6:.2g} MB of disk and 0 MB are free in runs/x"
    )
    assert full.lines()[-1] == f"  warning: {full.shortage}"
    with pytest.raises(SettingError, match="give another out= or fewer"):
        full.require_room()


def test_only_what_is_still_to_be_written_has_to_fit() -> None:
    needed = cost().disk
    for stored, free, fits in (
        (needed // 2, needed // 2 - 9, False),
        (needed // 2, needed // 2 + 9, True),
        (2 * needed, 0, True),
    ):
        found = cost(done=Done(room=Room("x", stored, free)))
        assert bool(found.shortage) != fits
    assert not cost(done=Done(experts=5, room=Room("x", 0, 0))).shortage
    assert not cost().shortage  # not checked


def test_room_is_that_of_the_folder_a_run_will_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []

    def disk_usage(path: Path) -> tuple[int, int, int]:
        checked.append(path)
        return (100, 60, 40)

    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    assert Room.of(tmp_path / "no" / "such") == Room(str(tmp_path / "no" / "such"), 0, 40)
    assert checked == [tmp_path]
    experts = tmp_path / "experts"
    experts.mkdir()
    for name, count in (("expert_00000.safetensors", 7), ("expert_00001.partial.safetensors", 5)):
        (experts / name).write_bytes(bytes(count))
    (experts / "whitening.safetensors").write_bytes(bytes(100))
    assert Room.of(tmp_path) == Room(str(tmp_path), 12, 40)
    assert checked[1:] == [experts]  # which may be a link to another disk


def test_a_disk_that_reports_nothing_is_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: (0, 0, 0))
    assert Room.of(tmp_path).free is None
    assert not cost(done=Done(room=Room.of(tmp_path))).shortage


# -- counting ------------------------------------------------------------------------------------


def test_experts_take_turns() -> None:
    experts = cost().experts
    assert experts.each == pytest.approx(9.0)
    # Five experts by two workers are three turns; each is tested on 400 images, forward only.
    one = 4 * 9 + 400 * 0.01 / 3
    assert experts.seconds == pytest.approx(3 * one)
    assert cost(workers=1).experts.seconds == pytest.approx(5 * one)
    assert "5 at a time" in cost(workers=8).experts.words


def test_iterations_and_networks_are_counted() -> None:
    found = cost()
    assert (found.distillation.count, found.distillation.seconds) == (250, 2500.0)
    # Iterations 0, 100, 200 and the last; then the distilled set, random and herding, five each.
    assert found.evaluation.count == 4 * 3 + 3 * 5
    training = 100 * 0.02
    assert found.evaluation.each == pytest.approx(training + 300 * 0.01 / 3)
    assert found.evaluation.seconds == pytest.approx(
        4 * 2 * (training + 100 * 0.01 / 3) + 8 * found.evaluation.each
    )
    # 1,000 images are four steps of 256.
    assert cost(changed("distill", ipc=100)).evaluation.each == pytest.approx(4 * training + 1)
    assert found.seconds == pytest.approx(sum(stage.seconds for stage in found.stages))


def test_what_exists_costs_nothing() -> None:
    found = cost(done=Done(experts=4, iterations=200))
    assert (found.experts.count, found.distillation.count) == (1, 50)
    assert found.experts.seconds == pytest.approx(4 * 9 + 400 * 0.01 / 3)
    assert found.evaluation.count == 3 + 3 * 5
    assert "what is left (4 experts and 200 iterations are there)" in found.lines()[0]
    found = cost(done=Done(experts=7, iterations=250))
    assert (found.experts.seconds, found.distillation.seconds) == (0, 0)
    assert found.evaluation.count == 3 * 5


def test_a_finished_run_costs_nothing_and_nothing_is_measured() -> None:
    def measure(*given: object) -> Speeds:
        raise AssertionError("measured")

    done = Done(experts=5, iterations=250, networks=5)
    found = estimate(RUN, SHAPE, done=done, measure=measure)
    words = ["nothing is left to do: 5 experts, 250 iterations and the test are there"]
    assert (found.seconds, found.lines()) == (0, words)
    assert cost(done=dataclasses.replace(done, networks=3)).evaluation.count == 3 * 2
    for name in ("experts", "iterations", "networks"):
        assert cost(done=dataclasses.replace(done, **{name: 0})).lines() != words


@pytest.mark.parametrize(
    ("method", "ipc", "words"),
    [
        (DC(), 3, "published loops"),
        (DSA(augment="none"), 1, "use method='dc'"),
        (MTT(syn_steps=5, batch_syn=11), 1, "batch_syn is 11"),
    ],
)
def test_what_a_method_refuses_is_refused_before_anything_is_measured(
    method: Method, ipc: int, words: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=words):
        estimate(dataclasses.replace(changed("distill", ipc=ipc), method=method), SHAPE)
    recipe = dataclasses.replace(
        TINY, distill=dataclasses.replace(tiny.DISTILL, ipc=ipc), method=method
    )
    with pytest.raises(SettingError, match=words):
        pipeline.run(recipe, tmp_path / "out", resources=ONE_THREAD)
    assert not (tmp_path / "out").exists()


def test_disk() -> None:
    parameters = NetworkSpec("convnet", 3, 10, 32, RUN.network.options()).parameters()
    assert cost().disk == 5 * 5 * parameters * 4
    assert cost(changed("experts", storage="bf16")).disk == 5 * 5 * parameters * 2
    assert cost(done=Done(experts=5)).disk == cost().disk


def test_memory_is_that_of_the_largest_stage() -> None:
    d = 3 * 32 * 32
    pixels, train, val = 1300 * d, 4 * 900 * d, 4 * 100 * d
    always = PROCESS_BYTES + pixels
    alone = dataclasses.replace(RUN, evaluate=dataclasses.replace(RUN.evaluate, workers=1))

    def memory(recipe: Recipe, peak: int, embedding: int = 0, **more: object) -> int:
        reads = bool(more.pop("reads_images", False))
        iteration = dataclasses.replace(TIMED, peak=peak, reads_images=reads)
        speeds = dataclasses.replace(SPEEDS, iteration=iteration, embedding=embedding)
        return cost(recipe, speeds, **{"workers": 1, **more}).memory

    large, resident = 2 * 10**9, round(RESIDENT * 2 * 10**9)
    # Herding whitens the training images; what iterations used is not given back before that.
    assert memory(alone, large, 10**6) == always + resident + train + HERDING_BATCH * 10**6
    assert memory(alone, large, reads_images=True) == always + resident + train + val
    assert memory(RUN, large) == always + resident + 4 * 300 * d + 2 * PROCESS_BYTES
    assert memory(alone, 0, workers=3) == always + 4 * pixels + 3 * PROCESS_BYTES
    zca = dataclasses.replace(alone, data=DataConfig(whitening="zca"))
    matrices = 2 * 4 * d**2
    assert memory(zca, large) == always + matrices + resident + train
    assert memory(zca, 0) == always + matrices + FIT_MATRICES * 8 * d**2
    assert memory(alone, large, device="cuda:0") == large + val


def test_lines_are_for_a_person() -> None:
    heading, *rows = cost().lines()
    assert heading == "estimated cost on this machine (cpu):"  # too little work for the compiler
    assert [row.split()[0] for row in rows] == ["experts", "distillation", "evaluation", "in"]
    assert "1 min 52 s  5 experts x 4 epochs, 9 s each, 2 at a time" in rows[0]
    assert "41 min 40 s  250 iterations, 10 s each; mtt's own" in rows[1]
    assert "27 networks, 3 s each" in rows[2]
    assert "4.4 GB of memory" in rows[3]


# -- the compiler --------------------------------------------------------------------------------


def compiling(*parts: str, recipe: Recipe = RUN) -> Recipe:
    """The recipe, of which these parts are compiled and no other."""
    chosen = {
        part: dataclasses.replace(getattr(recipe, part), compile="yes" if part in parts else "no")
        for part in ("experts", "distill", "evaluate")
    }
    return dataclasses.replace(recipe, **chosen)


def test_what_is_compiled_is_taken_to_be_faster_and_the_heading_says_so() -> None:
    assert cost(compiling()) == dataclasses.replace(cost(), heading=cost(compiling()).heading)
    some = cost(compiling("experts", "evaluate"))
    assert some.experts.each == pytest.approx(cost().experts.each / COMPILER_SPEEDUP)
    assert some.distillation.each == cost().distillation.each
    # Test images are classified by what experts are trained by.
    assert some.evaluation.seconds == pytest.approx(cost().evaluation.seconds / COMPILER_SPEEDUP)
    assert some.heading == (
        "estimated cost on this machine (cpu), experts and evaluation taken to be 1.5 times as "
        "fast compiled as they are without the compiler:"
    )
    every = cost(compiling("experts", "distill", "evaluate"))
    assert "experts, distillation and evaluation taken to be" in every.heading


@pytest.mark.parametrize(
    ("method", "gain"), [(MTT(), COMPILER_SPEEDUP), (DD(), COMPILER_SPEEDUP), (DM(), 1)]
)
def test_unrolled_students_are_compiled(method: Method, gain: float) -> None:
    recipe = dataclasses.replace(compiling("distill"), method=method)
    assert cost(recipe).distillation.each == pytest.approx(10.0 / gain)
    assert ("distillation taken" in cost(recipe).heading) == (gain > 1)


def test_the_compiler_counts_only_where_its_gain_is_known() -> None:
    """On a GPU, and with other networks, it was not measured."""
    recipe = compiling("experts", "distill", "evaluate")
    other = dataclasses.replace(recipe, network=NetworkConfig(network="mlp"))
    for one, device in ((recipe, "cuda:0"), (other, "cpu")):
        found = cost(one, device=device)
        plain = cost(compiling(recipe=one), device=device)
        assert (found.seconds, "without the compiler" in found.heading) == (plain.seconds, True)
        assert "compiler" not in plain.heading


def test_long_work_is_compiled_as_the_run_decides() -> None:
    spec = SHAPE.network(RUN.network)
    for iterations, stages in ((250, []), (10**7, ["distillation"])):
        recipe = changed("distill", iterations=iterations)
        assert compiled_stages(recipe, spec, SHAPE.train, Resources()) == stages
        problem = Problem(tiny.digits(), spec, tiny.library().whitening, CPU, iterations=iterations)
        images = torch.zeros(10, 3, 32, 32)
        parameters = SyntheticParameters.begin(images, torch.arange(10), step_size=0.01)
        RUN.method.student(problem, parameters, 0, 0)
        assert problem.resolved["compile"] == bool(stages)


# -- data sets without their files ---------------------------------------------------------------


def test_well_known_data_need_no_files() -> None:
    cifar = Shape.known(DataConfig(data="cifar10", size=32))
    assert cifar == Shape(3, 32, 10, 45_000, 5_000, 10_000)
    assert Shape.known(DataConfig(data="imagenette", size=64)).size == 64
    few = Shape.known(DataConfig(data="cifar100", classes="apple,bear", val_fraction=0.5))
    assert few == Shape(3, 32, 2, 500, 500, 200)
    assert Shape.known(DataConfig(data="photos")) is None


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_data_set_by_name_is_well_known(name: str) -> None:
    known = Shape.known(DataConfig(data=name, classes="a,b" if name == "imagenet" else None))
    if name == "digits":  # ships with scikit-learn
        assert known is None
    else:
        assert known.train + known.val > known.test >= 100


def test_the_shape_of_data() -> None:
    data = tiny.digits()
    shape = Shape.of(data)
    assert shape == Shape(1, 8, 10, len(data.train), len(data.val), len(data.test))
    assert shape.image_pixels == 64
    assert shape.pixels == 64 * (len(data.train) + len(data.val) + len(data.test))


# -- measuring -----------------------------------------------------------------------------------

SPEC = NetworkSpec("convnet", 1, 10, 8, tiny.NETWORK.options())
DIGITS = Shape(1, 8, 10, 1000, 100, 300)


class FakeClock:
    """Seconds that pass only where a method says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = FakeClock()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proportional(Method):
    """Takes `fixed` seconds, and `each` for each image and part of its loop."""

    name: ClassVar[str] = "proportional"
    title: ClassVar[str] = "proportional"
    objective: ClassVar[str] = "nothing"

    each: float
    fixed: float = 0.0
    parts: int = 1
    power: int = 1

    def estimate(
        self, problem: Problem, parameters: SyntheticParameters, iteration: int
    ) -> Estimate:
        images = len(parameters.images)
        CLOCK.now += self.fixed + self.each * images**self.power * self.parts
        memory = torch.empty(1000 * images * self.parts, dtype=torch.uint8)
        return Estimate(memory[0].float(), None)

    def scaled_down(self, images: int) -> tuple[Method, float]:
        fewer = max(1, self.parts // 2)
        return dataclasses.replace(self, parts=fewer), self.parts / fewer


def timed_with(method: Method, ipc: int = 1, classes: int = 10) -> Iteration:
    recipe = dataclasses.replace(TINY, method=method, distill=DistillConfig(ipc=ipc))
    spec = dataclasses.replace(SPEC, classes=classes)
    shape = dataclasses.replace(DIGITS, classes=classes)
    return measure_iteration(recipe, spec, shape, ONE_THREAD, CLOCK)


@pytest.mark.parametrize("each", [1e-3, 0.05, 0.5, 5.0])
def test_a_part_of_an_iteration_predicts_the_whole(each: float) -> None:
    found = timed_with(Proportional(each=each, parts=8), ipc=2)
    assert found.seconds == pytest.approx(each * 20 * 8)
    assert found.peak == pytest.approx(1000 * 20 * 8, rel=0.01)
    assert (" % of one" in found.measured) == (found.seconds > LIMIT_SECONDS)


def test_a_part_that_every_iteration_has_is_not_multiplied() -> None:
    found = timed_with(Proportional(each=0.01, fixed=0.5, parts=64))
    assert "of one" in found.measured
    assert found.seconds == pytest.approx(0.5 + 0.01 * 10 * 64)


def test_work_that_grows_with_the_square_of_the_classes() -> None:
    found = timed_with(Proportional(each=0.01, power=2), classes=100)
    assert "of one" in found.measured
    assert found.seconds == pytest.approx(0.01 * 100**2)


def test_extrapolation_by_hand() -> None:
    assert extrapolated([(0.5, 2.0)], 1.0) == pytest.approx(4.0)
    assert extrapolated([(9.9, 9.9), (0.25, 2.0), (0.5, 3.0)], 1.0) == pytest.approx(5.0)
    assert extrapolated([(0.25, 2.0), (0.5, 1.9)], 1.0) == pytest.approx(1.9), "noise"
    assert extrapolated([(0.25, 1.0), (0.5, 4.0)], 1.0) == pytest.approx(16.0)


def test_an_unroll_is_cut_by_segments_steps_and_batch() -> None:
    method, factors = MTT(syn_steps=5, segments=3, batch_syn=50), []
    while (smaller := method.scaled_down(40))[1] > 1:
        method = smaller[0]
        factors.append(smaller[1])
    assert (method.segments, method.syn_steps, method.batch_syn) == (1, 1, 10)
    assert factors == pytest.approx([3, 5 / 3, 3 / 2, 2, 2, 2])
    # With truncated back-propagation steps differ in cost: the whole unroll is measured.
    assert DD(syn_steps=9, bptt_steps=3).scaled_down(10)[1] == 1


@pytest.mark.parametrize("name", sorted(METHODS))
def test_an_iteration_of_every_method_is_measured(name: str) -> None:
    values = {"syn_steps": 3, "batch_real": 24, "outer_loop": 2, "inner_loop": 2}
    known = {field.name for field in dataclasses.fields(METHODS[name])}
    method = METHODS[name](**{key: values[key] for key in known & values.keys()})
    ticks = itertools.count(0.0)
    recipe = dataclasses.replace(TINY, method=method)
    found = measure_iteration(recipe, SPEC, DIGITS, ONE_THREAD, lambda: next(ticks))
    assert found.seconds == pytest.approx(1.0), "one tick of this clock for every iteration"
    assert "of one" not in found.measured
    # At least the images and their gradient; the small network's graphs are some megabytes.
    assert 2 * 10 * 64 * 4 < found.peak < 10**8
    assert found.reads_images == (name != "mtt")
    assert ("keeping 3 of 3 steps" in found.measured) == ("syn_steps" in known)


@pytest.mark.slow
@pytest.mark.parametrize(("gradient", "keep"), [("stored", 8), ("reverse", 0)])
def test_memory_of_a_cut_unroll_is_that_of_a_whole_one(gradient: str, keep: int) -> None:
    """The engine says what is kept of the steps that were not timed."""
    method = MTT(syn_steps=8, gradient=gradient)
    recipe = dataclasses.replace(TINY, method=method, distill=DistillConfig(ipc=3))

    def peak(seconds: float) -> int:
        """With a clock by which everything takes so long: a long iteration is cut."""
        ticks = itertools.count(0.0, seconds)
        found = measure_iteration(recipe, SPEC, DIGITS, ONE_THREAD, lambda: next(ticks))
        assert f"keeping {keep} of 8 steps" in found.measured
        assert ("of one" in found.measured) == (seconds > LIMIT_SECONDS)
        return found.peak

    assert peak(100.0) == pytest.approx(peak(0.1), rel=0.25)


def test_every_kind_of_work_is_measured() -> None:
    ticks = itertools.count(0.0)
    recipe = dataclasses.replace(TINY, evaluate=dataclasses.replace(tiny.EVALUATE, batch=4))
    speeds = measure(recipe, SPEC, DIGITS, ONE_THREAD, clock=lambda: next(ticks))
    # Every timed call takes one tick: of 128 images, and of fifty epochs of four images.
    assert speeds.image == pytest.approx(1 / 128)
    assert speeds.evaluation == pytest.approx(1 / 50)
    assert speeds.iteration.seconds == pytest.approx(1.0)
    assert speeds.embedding > 64 * 4 * 4, "at least the first layer's activations"


def test_a_run_takes_the_disk_of_its_estimate_and_is_recognized(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert Done.of(out, TINY) == Done(room=Room.of(out))
    pipeline.run(TINY, out, resources=ONE_THREAD)
    done = Done.of(out, TINY)
    assert (done.experts, done.iterations, done.networks) == (2, 4, 2)
    found = estimate(TINY, Shape.of(tiny.digits()), done=done, measure=lambda *given: SPEEDS)
    assert found.lines()[0].startswith("nothing is left to do")
    # Headers and checksums are a larger share of so small a network.
    assert found.disk < done.room.stored < 1.3 * found.disk
    # Other settings of the method are another run; other numbers of networks are not.
    assert Done.of(out, TINY.with_method(lr_img=3.0)).networks == 0
    more = dataclasses.replace(TINY, evaluate=dataclasses.replace(TINY.evaluate, n=9, workers=2))
    assert Done.of(out, more).networks == 2


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cost") / "ran"
    pipeline.run(TINY, out, resources=ONE_THREAD)
    return out


def in_version_0_1(result: dict) -> None:
    """[distill] as version 0.1 wrote it: with settings of all methods, without newer ones."""
    settings = result["settings"]["distill"]
    del settings["optimizer"], settings["schedule"]
    settings |= {"window": None, "batch_real": 256, "outer_loop": None}


def without_settings(result: dict) -> None:
    result["settings"] = {}


def with_texts_for_numbers(result: dict) -> None:
    result["settings"]["evaluate"]["n"] = "<script>alert(1)</script>"


def with_a_text_for_a_table(result: dict) -> None:
    result["settings"]["distill"] = "mtt"


@pytest.mark.parametrize(
    ("change", "networks"),
    [
        (in_version_0_1, 2),
        (without_settings, 0),
        (with_texts_for_numbers, 0),
        (with_a_text_for_a_table, 0),
    ],
)
def test_results_of_other_versions_are_read(
    change: Callable[[dict], None], networks: int, ran: Path, tmp_path: Path
) -> None:
    shutil.copy(ran / "result.json", tmp_path)
    shutil.copy(ran / "checkpoint.safetensors", tmp_path)
    result = json.loads(json.dumps(read_result(tmp_path)))
    change(result)
    write_json(tmp_path / "result.json", result)
    assert Done.of(tmp_path, TINY).networks == networks


def test_the_peak_of_memory_is_counted_to_the_byte() -> None:
    def work() -> None:
        one = torch.empty(1000, dtype=torch.float64)
        two = torch.empty(3000, dtype=torch.uint8)
        view = one.view(10, 100)[2:]
        del one, two
        three = torch.empty(500)
        view.add_(1)
        del view
        torch.empty(9000, dtype=torch.uint8)
        del three

    given = torch.zeros(10**6)
    assert peak_bytes(lambda: given.add_(1), CPU) == 0, "what was there before"
    assert peak_bytes(work, CPU) == 8000 + 3000
    assert peak_bytes(lambda: (given + 1).square(), CPU) == 8 * 10**6

    def graph() -> None:
        leaf = torch.zeros(1000, requires_grad=True)
        leaf.sin().cos().sum().backward()

    # The leaf, its sine, their cosine and its sum; then gradients take the place of the last two.
    assert 12_000 < peak_bytes(graph, CPU) <= 20_100
