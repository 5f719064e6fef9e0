"""The benchmarks run, compare like with like, and say what they measured."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are run from there, not installed

from benchmarks import (
    convolutions,
    evaluate,
    experts,
    gpu_run,
    grouped,
    harness,
    library,
    limit,
    machine,
    precision,
    scaling,
    summary,
    tiles,
    twin,
    unroll,
    walks,
)

from trajmatch import pipeline
from trajmatch.config import ExpertConfig, NetworkConfig
from trajmatch.data import load_data
from trajmatch.runtime.resources import Resources
from trajmatch.unroll import native

CPU = torch.device("cpu")
SHORT = ["--quick", "--repeats", "1", "--warmup", "1"]
FLOAT32 = ["--precision", "float32"]  # by default bf16 too, where the processor has it
RUNS = {
    "unroll": (
        unroll,
        ["--cases", "digits", "--methods", "auto", "reverse", "--compile", "no", *FLOAT32],
    ),
    "experts": (experts, FLOAT32),
    "library": (library, []),
    "evaluate": (evaluate, ["--cases", "digits"]),
}


def ran(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    """What a timing benchmark writes at tiny sizes, after the checks that all share."""
    module, flags = RUNS[name]
    out = folder / f"{name}.json"
    module.main([*SHORT, "--no-memory", *flags, "--out", str(out)])
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["benchmark"] == name
    assert found["quick"]
    assert found["machine"]["threads"] == 1
    assert torch.__version__ in printed
    assert found["times"]
    for row in found["times"]:
        assert len(row["all_ours_s"]) == len(row["all_twin_s"]) == row["pairs"] >= 1
        assert 0 < row["ratio"]["median"] < math.inf
        assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
        assert f"{row['ratio']['median']:.3f}" in printed
    return found


@pytest.mark.parametrize("name", ["library", "evaluate"])
def test_a_benchmark_prints_a_table_and_writes_finite_ratios(name, tmp_path, capsys):
    ran(name, tmp_path, capsys)


@pytest.mark.slow
def test_an_iteration_says_where_its_time_goes(tmp_path, capsys):
    rows = ran("unroll", tmp_path, capsys)["times"]
    assert [row["method"] for row in rows] == ["auto", "reverse"]
    for row in rows:
        profile = row["profile"]
        assert 0 < profile["convolution_share"] < 1
        assert sum(profile["groups"].values()) == pytest.approx(profile["seconds"], rel=0.02)
        assert 0 < profile["gflops"] < row["machine_gflops"]["best"]
        assert row["cosine_to_twin"] > 0.999
    # Building every step's graph again takes twelve passes over the network instead of nine.
    assert rows[1]["profile"]["tflop"] / rows[0]["profile"]["tflop"] == pytest.approx(12 / 9, 0.05)


def test_ours_and_the_twin_compute_the_same():
    assert max(walks.agreement().values()) < 1e-12
    assert experts.agreement() < 1e-12
    assert evaluate.agreement() < 1e-12


def test_nothing_is_timed_when_the_twin_computes_something_else(monkeypatch):
    monkeypatch.setattr(twin, "augment", lambda images, draw, dsa: images)
    for benchmark in (walks, experts, evaluate):
        with pytest.raises(RuntimeError, match="nothing is timed"):
            benchmark.agreement()


def test_a_library_and_its_pickles_are_compared_to_the_bit(tmp_path):
    spec = experts.network(8, 4)
    library.write_both(tmp_path, spec, experts=3, epochs=4, twins=2)
    chosen = library.draws(3, 4, 20)
    assert {start for _, start in chosen} == {0, 1, 2}
    assert library.agreement(tmp_path, chosen) == sum(expert < 2 for expert, _ in chosen)
    (first,) = library.twin_files(tmp_path)
    rows = torch.load(first)
    rows[0][2][0].view(-1)[0] += 1
    torch.save(rows, first)
    with pytest.raises(RuntimeError, match="differ"):
        library.agreement(tmp_path, [(0, 2)])


def test_a_library_that_does_not_fit_is_refused_or_scaled(tmp_path, monkeypatch):
    disk = SimpleNamespace(free=1000)
    monkeypatch.setattr(library.shutil, "disk_usage", lambda _: disk)
    assert library.fitting(experts=400, each=1, folder=tmp_path) == 300  # 70 % of the disk, less
    with pytest.raises(SystemExit, match="no room for 400 experts"):
        library.fitting(experts=400, each=2, folder=tmp_path)
    # 70 % of the memory: ours in the system's cache, and the twin there and in lists.
    monkeypatch.setattr(machine, "free_bytes", lambda: 1000)
    assert library.fitting(experts=400, each=1, folder=tmp_path) == 150
    monkeypatch.setattr(machine, "free_bytes", lambda: 100)
    assert library.fitting(experts=400, each=1, folder=tmp_path) == 1


def test_contenders_take_turns_and_warm_up_is_not_counted(monkeypatch):
    monkeypatch.setattr(harness.gc, "collect", lambda: None)  # of a test process it takes long
    calls = []
    pairs = harness.alternate(
        lambda n: calls.append(f"a{n}"), lambda n: calls.append(f"b{n}"),
        repeats=2, warmup=2, device=CPU,
    )  # fmt: skip
    assert calls == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"]
    assert len(pairs.ours) == len(pairs.twin) == 2
    assert pairs.first_ours is not None
    assert pairs.ratios == [a / b for a, b in zip(pairs.ours, pairs.twin, strict=True)]
    longer = harness.alternate(int, int, repeats=2, warmup=1, device=CPU, least=9)
    assert len(longer.ours) == 20  # ten times as often is the most


def test_a_spread_of_one_number_and_of_many():
    assert harness.Spread.of([2.0]) == harness.Spread(2.0, 2.0, 2.0, 2.0, 2.0)
    assert harness.Spread.of([3.0, 1.0, 2.0, 5.0, 4.0]) == harness.Spread(3.0, 2.0, 4.0, 1.0, 5.0)


def test_the_peak_of_some_work_is_taken_above_its_base(tmp_path, monkeypatch):
    (tmp_path / "eater.py").write_text(
        "import torch\n"
        "def job(kept, eaten):\n"
        "    inputs = torch.ones(kept, 2**18)\n"
        "    return lambda: (inputs, torch.ones(eaten, 2**18))[1].sum()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = harness.peak_of("eater:job", kept=100, eaten=64)
    assert found.base_mb > 100
    assert 63 < found.above_mb < 80


def test_operations_of_convolutions_are_counted_forth_and_back():
    images, weight = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3, requires_grad=True)
    once = 2 * 2 * 64 * 5 * 27
    assert convolutions.convolution_flop(lambda: F.conv2d(images, weight, padding=1)) == once

    def both():
        torch.autograd.grad(F.conv2d(images, weight, padding=1).square().sum(), weight)

    assert convolutions.convolution_flop(both) == 2 * once
    found = convolutions.shares(both, 2 * once, CPU)
    assert 0 < found.groups[convolutions.CONVOLUTIONS] < found.seconds
    assert found.gflops == pytest.approx(2e-9 * once / found.groups[convolutions.CONVOLUTIONS])


def test_how_cost_grows_is_drawn(tmp_path):
    out, plot = tmp_path / "scaling.json", tmp_path / "scaling.png"
    scaling.main([*SHORT, "--no-memory", "--out", str(out), "--plot", str(plot)])
    found = json.loads(out.read_text())
    for axis, values in scaling.TINY.items():
        assert [row["sizes"][axis] for row in scaling.along(found, axis)] == list(values)
    assert plot.read_bytes().startswith(b"\x89PNG")
    found["quick"] = False
    text = summary.section({"scaling": found})
    assert "scaling.png" in text
    text = text[text.index("scaling.png") :]
    assert text.count("\n| N ") == len(found["rows"])


def test_the_gradient_of_each_precision_is_compared_with_float64(tmp_path):
    out = tmp_path / "precision.json"
    found = precision.main([*SHORT, "--force", "--out", str(out)])
    exact, rounded = found["rows"]
    assert exact["precision"] == "float32"
    assert exact["cosine"]["low"] > 1 - 1e-9
    assert exact["norm_ratio"]["median"] == pytest.approx(1, abs=1e-5)
    assert rounded["precision"] == "bf16"
    assert 0.99 < rounded["cosine"]["low"] < 1 - 1e-9
    assert "bf16" in summary.section({"precision": found})


def test_precision_over_a_library_is_a_result_beside_the_digits(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    made = pipeline.train_experts(
        load_data("digits", val_fraction=0.3),
        tmp_path / "library",
        network=NetworkConfig(width=4),
        config=ExpertConfig(experts=2, epochs=1, batch=512),
        resources=Resources(workers=1),
    )
    flags = [*FLOAT32, "--segments", "1", "--steps", "2", "--max-start-epoch", "1"]
    flags += ["--expert-epochs", "1"]
    precision.main([*flags, "--width", "4"])
    before = (tmp_path / "precision.json").read_bytes()
    flags += ["--experts", str(made.path), "--segments", "3"]
    with pytest.raises(SystemExit, match="val_fraction="):
        precision.main(flags)
    found = precision.main([*flags, "--val-fraction", "0.3"])
    assert found["segments"] == 2, "it has no third"
    assert found["origin"] == "2 experts of digits (normalize), 1 epochs"
    assert (tmp_path / "precision.json").read_bytes() == before
    assert str(tmp_path) not in (tmp_path / "precision-digits.json").read_text()
    results = summary.read_results(tmp_path)
    assert list(results) == ["precision", "precision-digits"]
    text = summary.section(results)
    of = "of 1 epochs that start before epoch 1;"
    first = text.index(f"1 segments {of} 1 experts of the digits, 1 epochs.")
    assert first < text.index(f"2 segments {of} 2 experts of digits (normalize), 1 epochs.")
    assert text.count("| float32, eager | 1.000000 |") == 2


def test_the_readme_is_written_from_the_results(tmp_path, capsys):
    found = ran("experts", tmp_path, capsys)
    readme = tmp_path / "README.md"
    text = summary.README.read_text()
    readme.write_text(text)
    rewrite = ["--results", str(tmp_path), "--readme", str(readme)]
    summary.main(rewrite)
    assert summary.read_results(tmp_path) == {}, "a run with --quick is not a result"
    for goal in summary.GOALS:
        asked = f"| {goal.work} | at most {goal.limit:g}{goal.unit} | not yet measured |"
        assert asked in readme.read_text()
    found["quick"] = False
    found["times"][0]["ratio"]["median"] = 0.8
    (tmp_path / "experts.json").write_text(json.dumps(found))
    summary.main(rewrite)
    after = readme.read_text()
    assert after.split(summary.BEGIN)[0] == text.split(summary.BEGIN)[0]
    assert "| expert epoch, float32: time | at most 0.75x | 0.8x | **not met** |" in after
    assert "| expert epoch, bf16: time | at most 0.4x | not measured on this machine |" in after
    assert "images, float32 |" in after
    found["times"][0]["ratio"]["median"] = 0.7
    (tmp_path / "experts.json").write_text(json.dumps(found))
    summary.main(rewrite)
    assert readme.read_text() == after.replace("| 0.8x | **not met** |", "| 0.7x | met |").replace(
        "| 0.800 |", "| 0.700 |"
    )


def test_a_readme_without_markers_is_left_alone(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("mine")
    with pytest.raises(SystemExit, match="markers"):
        summary.main(["--results", str(tmp_path), "--readme", str(readme)])
    assert readme.read_text() == "mine"


def test_a_device_that_is_not_there_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit, match="--device cpu"):
        unroll.main([*SHORT, "--device", "cuda", "--out", str(tmp_path / "x.json")])


# -- gpu.sh --------------------------------------------------------------------------------------


def test_published_sizes_are_measured_in_batches_and_written_row_by_row(tmp_path, monkeypatch):
    out = tmp_path / "unroll.json"
    seen = []
    show = unroll.show
    monkeypatch.setattr(
        unroll, "show", lambda found: [seen.append(out.read_text()), show(found)][1]
    )
    flags = ["--cases", "ipc10", "--methods", "reverse", "--compile", "no", *FLOAT32]
    flags += ["--no-memory", "--no-profile", "--out", str(out)]
    found = unroll.main([*SHORT, *flags])
    (row,) = found["times"]
    assert row["sizes"]["batch_syn"] == 4 < row["sizes"]["images"]
    assert row["cosine_to_twin"] > 0.999
    before = json.loads(seen[0])
    assert before["partial"]
    assert before["times"] == found["times"]
    assert "partial" not in json.loads(out.read_text())
    with pytest.raises(SystemExit):
        unroll.main([*SHORT, "--no-profile"])
    one, ten = walks.PUBLISHED_SIZES.values()
    assert (one.steps, ten.steps, ten.batch_syn) == (50, 30, 50)
    assert ten.words() == "N 30, 100 images 32x32x3, D3 width 128, batch 50"


def test_the_steps_of_gpu_sh_are_summed_up(tmp_path, capsys):
    out = ["--out", str(tmp_path)]
    here = ["--device", "cpu", "--work", str(tmp_path), "--quick"]
    assert gpu_run.main(["check", *out, *here]) == 0
    gpu_run.main(
        ["record", *out, "--step", "a", "--exit", "0", "--seconds", "2", "--", "run", "-x"]
    )
    assert gpu_run.main(["show", *out]) == 0
    gpu_run.main(["record", *out, "--step", "b", "--exit", "124", "--seconds", "9", "--", "run"])
    gpu_run.main(["record", *out, "--step", "c", "--reason", "no time is left"])
    assert gpu_run.main(["show", *out]) == 1
    printed = capsys.readouterr().out
    assert "ended: out of time" in printed
    assert "not run: no time is left" in printed
    summed = json.loads((tmp_path / "summary.json").read_text())
    assert summed["quick"]
    assert [step["command"] for step in summed["steps"]] == ["run -x", "run", ""]


def test_a_missing_package_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu_run, "NEEDED", ("torch", "no_such_package"))
    assert gpu_run.main(["check", "--out", str(tmp_path), "--work", str(tmp_path)]) == 1
    assert "missing: no_such_package" in capsys.readouterr().out


def test_cifar_10_is_found_in_its_published_files_and_as_pictures(tmp_path):
    root = tmp_path / "published"
    batches, archive = root / "cifar-10-batches-py", root / "cifar-10-python.tar.gz"
    batches.mkdir(parents=True)
    archive.touch()
    for path in (root, batches, archive):
        assert gpu_run.data_words(path) == {"data": "cifar10", "data_root": str(root)}
    for path in (tmp_path / "pictures.zip", root / "pictures"):
        assert gpu_run.data_words(path) == {"data": str(path)}


def test_networks_as_groups_are_compared_with_one_after_another(capsys):
    rows = grouped.main(["--quick", "--repeats", "1", "--warmup", "1"])["times"]
    assert {row["over"] for row in rows} == {"operators", "torch"}
    assert all(0 < row["ratio"]["median"] < math.inf for row in rows)


def test_tiles_are_compared_with_torchs_own(capsys):
    rows = tiles.main(["--quick", "--repeats", "1"])
    assert {row["function"] for row in rows} == set(native.FUNCTIONS)
    assert all(0 < row["ratio"] < math.inf for row in rows)
    assert "3 -> 32, 8 px, 2 images" in capsys.readouterr().out


@pytest.mark.slow
def test_work_is_measured_over_its_convolutions(tmp_path):
    out = tmp_path / "limit.json"
    flags = ["--quick", "--repeats", "1", "--warmup", "1", "--precision", "float32"]
    # Not in this process, whose shape checks the compiler cannot follow.
    command = [sys.executable, "-m", "benchmarks.limit", *flags, "--out", str(out)]
    subprocess.run(command, check=True, cwd=machine.ROOT)
    rows = json.loads(out.read_text())["rows"]
    assert [row["work"] for row in rows] == list(limit.WORKS)
    for row in rows:
        flop, rate = row["tflop"] * 1e12, row["probe_gflops"]["median"] * 1e9
        wanted = row["operators_s"]["median"] * rate / flop
        assert row["limit"]["median"] == pytest.approx(wanted)
        assert row["before"]["median"] > 0
    results = {"limit": {**json.loads(out.read_text()), "quick": False}}
    assert "fresh networks" in summary.section(results)


@pytest.mark.slow
def test_memory_of_each_in_its_own_process(tmp_path):
    flags = ["--cases", "iteration", "long", "--methods", "reverse", "--compile", "no"]
    flags += FLOAT32
    found = unroll.main([*SHORT, *flags, "--out", str(tmp_path / "unroll.json")])
    one, long = found["memory"]
    assert one["case"] == "iteration"
    assert long["case"] == "long"
    assert 0 < long["ours_mb"] < long["twin_mb"]
    assert 0 < long["ratio_to_short"] < 2
    results = {"unroll": {**found, "quick": False}}
    assert "N 50, 100 images" in summary.section(results)


@pytest.mark.slow
def test_a_compiled_iteration_agrees_and_is_profiled(tmp_path):
    out = tmp_path / "unroll.json"
    flags = ["--cases", "digits", "--methods", "auto", "--compile", "yes", "--no-memory"]
    flags += FLOAT32
    # Not in this process, whose shape checks the compiler cannot follow.
    command = [sys.executable, "-m", "benchmarks.unroll", *SHORT, *flags, "--out", str(out)]
    subprocess.run(command, check=True, cwd=machine.ROOT)
    (row,) = json.loads(out.read_text())["times"]
    assert row["compile"]
    assert row["cosine_to_twin"] > 0.999
    assert row["first_ours_s"] > row["ours_s"]["median"]
    assert row["profile"]["groups"][convolutions.GENERATED] > 0
