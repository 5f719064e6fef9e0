"""What a run will cost: the counting by hand, the probe against what runs really take."""

from __future__ import annotations

import dataclasses
import importlib
import math
from pathlib import Path

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
    RunConfig,
)
from trajmatch.data.sources import SOURCES
from trajmatch.errors import SettingError
from trajmatch.evaluation import protocol
from trajmatch.experts import train
from trajmatch.methods import METHODS, Method, SyntheticParameters, method_class
from trajmatch.methods import unrolled as walking
from trajmatch.methods.dm import DM
from trajmatch.networks import NetworkSpec
from trajmatch.pipeline.cost import compile_speedup as gain
from trajmatch.pipeline.cost import microbenchmark as trial
from trajmatch.pipeline.cost import probe
from trajmatch.pipeline.cost.compile_speedup import GAIN
from trajmatch.pipeline.cost.estimate import PROCESS_BYTES, Cost, Room, Shape, done_in, estimate
from trajmatch.pipeline.cost.microbenchmark import Trial, iteration
from trajmatch.pipeline.cost.probe import Speed, measure
from trajmatch.runtime.compiling import Work
from trajmatch.runtime.memory import peak_bytes

unroll = importlib.import_module("trajmatch.unroll.unroll")

SHAPE = Shape(channels=3, size=32, classes=10, train=900, val=100, test=300)
SPEED = Speed(
    image=0.01, step=0.5, judging=0.02, record=100 * 10**6, piece=10**6, keep=20
)  # fmt: skip
RUN = RunConfig(
    network=tiny.NETWORK,
    experts=ExpertConfig(experts=5, epochs=4),
    distill=DistillConfig(iterations=250, syn_steps=20, eval_every=100, eval_networks=3),
    evaluate=EvaluateConfig(n=5, epochs=100, workers=2),
)
TINY = RunConfig(
    data=DataConfig(whitening="normalize"),
    network=tiny.NETWORK,
    experts=tiny.EXPERTS,
    distill=tiny.DISTILL,
    evaluate=tiny.EVALUATE,
)


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk would take most of the time, and is for what no test here does."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def cost(config: RunConfig = RUN, speed: Speed = SPEED, **known: object) -> Cost:
    return estimate(config, SHAPE, probe=lambda *given: speed, **{"workers": 2, **known})


def changed(part: str, **changes: object) -> RunConfig:
    return dataclasses.replace(
        RUN, **{part: dataclasses.replace(getattr(RUN, part), **changes)}
    )  # fmt: skip


# -- room on the disk ----------------------------------------------------------------------------


def test_experts_that_do_not_fit_on_the_disk_are_told() -> None:
    needed = cost().disk
    for free in (needed, needed - 1):
        found = cost(room=Room("runs/x", stored=0, free=free))
        assert bool(found.shortage) == (free < needed)
        assert found.lines()[:-1] == cost().lines() or not found.shortage
    assert cost(room=Room("runs/x", stored=0, free=0)).shortage == (
        f"the experts need {needed / 1e6:.2g} MB of disk and 0 MB are free in runs/x"
    )
    assert cost(room=Room("runs/x", stored=0, free=0)).lines()[-1] == (
        f"  warning: the experts need {needed / 1e6:.2g} MB of disk and 0 MB are free in runs/x"
    )


def test_only_what_is_still_to_be_written_has_to_fit() -> None:
    needed = cost().disk
    assert "need" in cost(room=Room("x", stored=needed // 2, free=needed // 2 - 9)).shortage
    assert not cost(room=Room("x", stored=needed // 2, free=needed // 2 + 9)).shortage
    assert not cost(room=Room("x", stored=2 * needed, free=0)).shortage
    assert not cost(room=Room("x", stored=0, free=0), trained=5).shortage
    assert not cost().shortage  # not looked at


def test_room_is_that_of_the_folder_a_run_will_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def disk_usage(path: Path) -> tuple[int, int, int]:
        asked.append(path)
        return (100, 60, 40)

    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    assert Room.of(tmp_path / "no" / "such") == Room(str(tmp_path / "no" / "such"), 0, 40)
    assert asked == [tmp_path]
    experts = tmp_path / "experts"
    experts.mkdir()
    for name, count in (("expert_00000.safetensors", 7), ("expert_00001.partial.safetensors", 5)):
        (experts / name).write_bytes(bytes(count))
    (experts / "whitening.safetensors").write_bytes(bytes(100))
    assert Room.of(tmp_path) == Room(str(tmp_path), 12, 40)
    assert asked[1:] == [experts]  # which may be a link to another disk


def test_a_disk_that_tells_nothing_is_no_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: (0, 0, 0))
    assert Room.of(tmp_path).free is None
    assert not cost(room=Room.of(tmp_path)).shortage


# -- counting ------------------------------------------------------------------------------------


def test_experts_take_turns() -> None:
    found = cost()
    assert found.epoch == pytest.approx(9.0)
    # Five experts by two workers are three turns; each is judged on 400 images, forward only.
    assert found.expert_seconds == pytest.approx(3 * (4 * 9 + 400 * 0.01 / 3))
    assert cost(workers=1).expert_seconds == pytest.approx(5 * (4 * 9 + 400 * 0.01 / 3))
    assert cost(workers=8).workers == 5


def test_iterations_are_walks() -> None:
    found = cost()
    assert (found.iterations, found.iteration) == (250, pytest.approx(10.0))
    assert found.distill_seconds == pytest.approx(2500)
    assert cost(changed("distill", segments=2)).iteration == pytest.approx(20.0)


def test_judges_are_counted() -> None:
    # Iterations 100, 200 and the last; then the made set, random and herding with five each.
    found = cost()
    assert found.networks == 3 * 3 + 3 * 5
    training = 100 * 0.02
    assert found.network == pytest.approx(training + 300 * 0.01 / 3)
    assert found.evaluate_seconds == pytest.approx(
        3 * 2 * (training + 100 * 0.01 / 3) + 8 * found.network
    )
    # 1,000 images are four steps of 256.
    many = cost(changed("distill", ipc=100))
    assert many.network == pytest.approx(4 * training + 1)
    assert found.seconds == pytest.approx(
        found.expert_seconds + found.distill_seconds + found.evaluate_seconds
    )


def test_what_is_there_costs_nothing() -> None:
    found = cost(trained=4, iterated=200)
    assert (found.experts, found.workers, found.iterations) == (1, 1, 50)
    assert found.expert_seconds == pytest.approx(4 * 9 + 400 * 0.01 / 3)
    assert found.networks == 3 + 3 * 5
    assert "what is left (4 experts and 200 iterations are there)" in found.lines()[0]
    done = cost(trained=7, iterated=250)
    assert (done.experts, done.expert_seconds, done.distill_seconds) == (0, 0, 0)
    assert done.networks == 3 * 5


def test_nothing_costs_nothing_and_is_not_measured() -> None:
    def probe(*given: object) -> Speed:
        raise AssertionError("measured")

    known = {"trained": 5, "iterated": 250, "judged": 5}
    found = estimate(RUN, SHAPE, workers=2, probe=probe, **known)
    words = ["nothing is left to do: 5 experts, 250 iterations and the test are there"]
    assert (found.seconds, found.lines()) == (0, words)
    assert cost(**{**known, "judged": 3}).networks == 3 * 2
    for name in known:
        assert cost(**{**known, name: 0}).lines() != words


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_method_without_experts_costs_what_its_own_iteration_does(device: str) -> None:
    trial = Trial(seconds=7.0, peak=5 * 10**9, share=1.0)
    speed = Speed(image=0.01, judging=0.02, trial=trial)
    config = changed("distill", method="dm", segments=3)
    found = cost(config, speed, device=device)
    assert (found.iteration, found.distill_seconds) == (7.0, 250 * 7.0)
    assert "250 iterations, 7 s each; dm's own, timed on noise" in found.lines()[2]
    pixels = 1300 * 3 * 32 * 32
    assert found.memory == trial.peak + (
        PROCESS_BYTES + 5 * pixels if device == "cpu" else 4 * pixels
    )
    assert found.expert_seconds == cost(device=device).expert_seconds
    part = dataclasses.replace(speed, trial=dataclasses.replace(trial, share=0.04))
    assert cost(config, part).walk == "dm's own, timed on noise, 4 % of one"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "dc", "ipc": 3}, "published loops"),
        ({"method": "dm", "soft_labels": True}, "not learned by dm"),
        ({"method": "dsa", "augment": "none"}, "use --method dc"),
    ],
)
def test_what_a_method_refuses_is_refused_before_anything_is_measured(
    settings: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=words):
        cost(changed("distill", **settings))
    config = dataclasses.replace(TINY, distill=dataclasses.replace(tiny.DISTILL, **settings))
    with pytest.raises(SettingError, match=words):
        pipeline.run(config, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_disk_and_memory() -> None:
    spec = NetworkSpec("convnet", 3, 10, 32, RUN.network.options())
    assert cost().disk == 5 * 5 * spec.parameters() * 4
    assert cost(changed("experts", storage="bf16")).disk == 5 * 5 * spec.parameters() * 2
    assert cost(trained=5).disk == cost().disk
    pixels = 1300 * 3 * 32 * 32
    vectors = 4 * 4 * spec.parameters()
    assert cost().memory == PROCESS_BYTES + 5 * pixels + 20 * SPEED.record + vectors
    reverse = dataclasses.replace(SPEED, keep=0)
    assert cost(speed=reverse).memory == PROCESS_BYTES * 3 + 5 * pixels, "workers need more"
    assert (
        cost(speed=reverse, device="cuda:0").memory
        == 4 * pixels + 24 * 4 * spec.parameters() + SPEED.piece
    )


def test_lines_are_for_a_person() -> None:
    heading, *rows = cost().lines()
    assert heading == "estimated cost on this machine (cpu):"  # too little work for the compiler
    assert [row.split()[0] for row in rows] == ["experts", "distillation", "evaluation", "in"]
    assert "1 min 52 s  5 experts x 4 epochs, 9 s each, 2 at a time" in rows[0]
    assert "41 min 40 s  250 iterations, 10 s each; keeping 20 of 20 step records" in rows[1]
    assert "24 networks, 3 s each" in rows[2]
    assert "2.4 GB of memory" in rows[3]


def compiling(*parts: str, choice: str = "yes", network: NetworkConfig = RUN.network) -> RunConfig:
    """RUN, whose `parts` are compiled and no other."""
    chosen = {
        part: dataclasses.replace(getattr(RUN, part), compile=choice if part in parts else "no")
        for part in ("experts", "distill", "evaluate")
    }
    return dataclasses.replace(RUN, network=network, **chosen)


def test_what_is_compiled_is_taken_to_be_faster_and_that_is_told() -> None:
    assert cost(compiling()) == dataclasses.replace(cost(), heading=cost(compiling()).heading)
    some = cost(compiling("experts", "evaluate"))
    assert some.epoch == pytest.approx(cost().epoch / GAIN)
    assert some.iteration == cost().iteration
    # Test images are classified by what experts are trained by.
    assert some.evaluate_seconds == pytest.approx(cost().evaluate_seconds / GAIN)
    assert some.heading == (
        "estimated cost on this machine (cpu), experts and evaluation taken to be 1.5 times as "
        "fast compiled as they are without the compiler:"
    )
    assert cost(compiling("distill")).iteration == pytest.approx(cost().iteration / GAIN)
    # Other methods' walks are compiled like the student's, and nothing else of them is.
    for method, gain_of in (("dd", GAIN), ("dm", 1)):
        distill = dataclasses.replace(compiling("distill").distill, method=method)
        config = dataclasses.replace(compiling("distill"), distill=distill)
        tried = Speed(image=0.01, judging=0.02, trial=Trial(seconds=3.0, peak=1, share=1.0))
        assert cost(config, tried).iteration == pytest.approx(3.0 / gain_of)
        assert ("distillation taken" in cost(config, tried).heading) == (gain_of > 1)
    every = cost(compiling("experts", "distill", "evaluate"))
    assert "experts, distillation and evaluation taken to be" in every.heading


def test_the_compiler_is_counted_on_only_where_its_gain_is_known() -> None:
    """On a GPU, and with other networks, it was not measured."""
    parts = ("experts", "distill", "evaluate")
    other = NetworkConfig(network="mlp")
    for known, config in (
        ({"device": "cuda:0"}, compiling(*parts)),
        ({}, compiling(*parts, network=other)),
    ):
        found = cost(config, **known)
        plain = cost(dataclasses.replace(compiling(), network=config.network), **known)
        assert (found.seconds, "without the compiler" in found.heading) == (plain.seconds, True)
        assert "compiler" not in plain.heading


@pytest.mark.usefixtures("hasty")
def test_as_much_is_compiled_as_the_run_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers of passes and operations, by which "auto" decides."""
    asked: list[Work] = []

    def spy(choice: str, work: Work) -> bool:
        asked.append(work)
        return False

    for module in (gain, protocol, walking, train):
        monkeypatch.setattr(module, "wanted", spy)
    estimate(TINY, Shape.of(tiny.digits()), probe=lambda *given: SPEED, workers=1)
    expected = list(asked)
    assert len(expected) == 3
    pipeline.run(TINY, tmp_path, workers=1)
    assert all(work in asked[3:] for work in expected)


# -- data sets that are not there ----------------------------------------------------------------


def test_well_known_data_need_not_be_there() -> None:
    cifar = Shape.known(DataConfig(data="cifar10", size=32))
    assert cifar == Shape(3, 32, 10, 45_000, 5_000, 10_000)
    assert Shape.known(DataConfig(data="imagenette", size=64)).size == 64
    few = Shape.known(DataConfig(data="cifar100", classes="apple,bear", val_fraction=0.5))
    assert few == Shape(3, 32, 2, 500, 500, 200)
    assert Shape.known(DataConfig(data="photos")) is None


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_data_set_by_name_is_well_known(name: str) -> None:
    known = Shape.known(DataConfig(data=name, classes="a,b" if name == "imagenet" else None))
    if name == "digits":  # always there
        assert known is None
    else:
        assert known.train + known.val > known.test >= 100


def test_the_shape_of_data_that_are_there() -> None:
    data = tiny.digits()
    assert Shape.of(data) == Shape(
        1, 8, 10, len(data.train), len(data.val), len(data.test)
    )  # fmt: skip
    assert Shape.of(data).pixels == 64 * (len(data.train) + len(data.val) + len(data.test))


# -- the probe -----------------------------------------------------------------------------------

SPEC = NetworkSpec("convnet", 1, 10, 8, tiny.NETWORK.options())


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PROBE_SECONDS", 0.01)


@pytest.mark.usefixtures("hasty")
def test_the_probe_measures_every_kind_of_work() -> None:
    config = dataclasses.replace(
        TINY, distill=dataclasses.replace(tiny.DISTILL, soft_labels=True, ipc=3, batch_syn=20)
    )
    speed = measure(SPEC, config, "cpu", None)
    for seconds in (speed.image, speed.step, speed.judging):
        assert 0 < seconds < 5
    assert speed.keep == 3
    assert speed.record == speed.piece > 20 * 64 * 4
    # An image costs what a student step does without its way back, and a batch has 20.
    assert speed.image < speed.step


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(("method", "keep"), [("stored", 3), ("reverse", 0)])
def test_the_probe_walks_as_the_run_will(method: str, keep: int) -> None:
    config = dataclasses.replace(TINY, distill=dataclasses.replace(tiny.DISTILL, gradient=method))
    assert measure(SPEC, config, "cpu", 1).keep == keep


@pytest.mark.usefixtures("hasty")
def test_the_probe_takes_a_few_pieces_for_a_large_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured on the first pieces stands for the batch."""
    whole = measure(SPEC, dataclasses.replace(TINY, distill=DistillConfig(ipc=8)), "cpu", 1)
    monkeypatch.setattr(probe, "PROBE_IMAGES", 20)
    part = measure(SPEC, dataclasses.replace(TINY, distill=DistillConfig(ipc=8)), "cpu", 1)
    assert part.record == pytest.approx(whole.record, rel=0.1)


@pytest.mark.usefixtures("hasty")
def test_as_many_records_are_kept_as_the_run_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = measure(SPEC, TINY, "cpu", 1).record
    for module in (probe, unroll):
        monkeypatch.setattr(module, "available_bytes", lambda device: int(2 * 2.5 * record))
    outcome = pipeline.distill(
        tiny.digits(),
        tiny.library(),
        tmp_path,
        config=dataclasses.replace(tiny.DISTILL, compile="no", iterations=1),
        evaluation=tiny.EVALUATE,
    )
    assert measure(SPEC, TINY, "cpu", 1).keep == outcome.decisions["keep"] == 2


@pytest.mark.usefixtures("hasty")
def test_a_run_takes_the_disk_it_was_said_to_take_and_is_found_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert done_in(out) == (0, 0)
    pipeline.run(TINY, out, workers=1)
    assert done_in(out) == (2, 4)
    found = estimate(TINY, Shape.of(tiny.digits()), workers=1)
    files = sum(path.stat().st_size for path in (out / "experts").glob("expert_*.safetensors"))
    # Headers and checksums are a larger share of so small a network.
    assert found.disk < files < 1.3 * found.disk
    assert math.isfinite(found.seconds)
    assert found.seconds > 0


# -- one iteration of a method that matches no experts -------------------------------------------

CPU = torch.device("cpu")
WITHOUT_EXPERTS = sorted(name for name, maker in METHODS.items() if not maker.needs_experts)


def asked(method: str, **settings: object) -> DistillConfig:
    settings = {"batch_real": 24, "outer_loop": 2, "inner_loop": 2, **settings}
    return dataclasses.replace(tiny.DISTILL, method=method, **settings)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "TIMED_SECONDS", 0.0)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Notes classes and real images of what is tried, which takes its work in seconds."""
    noted: list[tuple[int, int]] = []

    def tried(spec: NetworkSpec, config: DistillConfig, *given: object) -> tuple[float, int]:
        noted.append((spec.classes, config.batch_real))
        maker = method_class(config.method)
        return float(maker.work(spec, config)), 1000 * maker.held(spec, config)

    monkeypatch.setattr(trial, "_tried", tried)
    return noted


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("method", WITHOUT_EXPERTS)
def test_an_iteration_of_every_method_is_tried_whole_where_it_is_short(method: str) -> None:
    found = iteration(SPEC, asked(method), CPU, threads=1)
    assert (found.share, 0 < found.seconds < 5) == (1.0, True)
    # At least the images and their gradient; the small network's graphs are some megabytes.
    assert 2 * 10 * 64 * 4 < found.peak < 10**8


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("method", WITHOUT_EXPERTS)
def test_a_long_iteration_is_tried_in_its_least_part(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "TRIAL_SECONDS", 0.0)
    found = iteration(SPEC, asked(method, ipc=2, syn_steps=9), CPU, threads=1)
    assert 0 < found.share < 0.3
    assert found.seconds > 0


def test_as_much_is_tried_as_time_allows(
    sizes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, config = dataclasses.replace(SPEC, classes=100), asked("dm", batch_real=256)
    for limit, seen in ((1e9, [(2, 256), (100, 256)]), (10.0, [(2, 256), (7, 256)])):
        monkeypatch.setattr(trial, "TRIAL_SECONDS", limit)
        sizes.clear()
        found = iteration(spec, config, CPU)
        assert sizes == seen
        # Whatever part was tried, what is told is the whole's.
        assert found.seconds == pytest.approx(100)
        assert found.peak == 1000
        assert found.share == pytest.approx(seen[-1][0] / 100)


def test_steps_are_left_out_before_images_are(
    sizes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "TRIAL_SECONDS", 10.0 * 12 * 10 + 3 * 24)
    found = iteration(SPEC, asked("dd", syn_steps=40, gradient="stored"), CPU)
    assert sizes[-1] == (10, 24)
    assert found.share == pytest.approx((120 * 10 + 72) / (120 * 40 + 72))
    assert found.peak == pytest.approx(1000 * (3 * 400 + 24), rel=1e-6)


def test_records_that_do_not_fit_are_not_counted(
    sizes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "TRIAL_SECONDS", 0.0)
    monkeypatch.setattr(trial, "available_bytes", lambda device: 10**6)
    assert iteration(SPEC, asked("dd", syn_steps=400), CPU).peak == 5 * 10**5
    assert iteration(SPEC, asked("dd", syn_steps=400, gradient="stored"), CPU).peak > 10**6


@pytest.mark.usefixtures("at_once")
def test_a_method_is_tried_on_the_shapes_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, tuple[int, ...]]] = []

    class Spy(DM):
        def estimate(self, learned: SyntheticParameters, iteration: int) -> object:
            draw = torch.Generator().manual_seed(0)
            real = [len(self.ground.of_class(c, self.config.batch_real, draw)) for c in range(2)]
            seen.append((iteration, min(real), tuple(learned.images.shape)))
            return super().estimate(learned, iteration)

    makers: dict[str, type[Method]] = {**METHODS, "dm": Spy}
    monkeypatch.setattr("trajmatch.methods.registry.METHODS", makers)
    config = asked("dm", ipc=3, batch_real=256)
    iteration(SPEC, config, CPU, of_class=100, threads=1)
    assert seen[-2:] == [(0, 100, (30, 1, 8, 8)), (1, 100, (30, 1, 8, 8))]
    run = dataclasses.replace(TINY, distill=config)
    assert measure(SPEC, run, "cpu", 1, 1000).trial is not None
    assert seen[-1] == (1, 100, (30, 1, 8, 8))


@pytest.mark.usefixtures("hasty", "at_once")
def test_the_probe_tries_the_method_of_the_run(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, distill=asked("kip"))
    found = estimate(config, Shape.of(tiny.digits()), workers=1)
    assert found.walk == "kip's own, timed on noise"
    assert 0 < found.iteration < 5
    assert measure(SPEC, TINY, "cpu", 1).trial is None


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
