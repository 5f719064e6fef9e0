"""The page of a comparison: the table papers print, what it takes, other networks, the images."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import re
import statistics
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from test_report import HOSTILE, Parsed, pixels_of

from trajmatch.data.whiten import Normalize
from trajmatch.report.figures.labels import Box, place
from trajmatch.report.figures.scatter import CostPoint, Scatter
from trajmatch.report.pages.across import Across
from trajmatch.report.pages.comparison import markdown_table
from trajmatch.report.pages.sheet import contact_sheet
from trajmatch.report.pages.study import write_study_report
from trajmatch.report.tables.standings import StandingsTable
from trajmatch.storage.files import write_json
from trajmatch.storage.results import Cell, Sample, StudyResult, result_from_json
from trajmatch.synthetic import SyntheticSet

pytest.importorskip("jinja2")

NETWORK = "ConvNet-D2 width 32 instance"
CLASSES = ("zero", "one", "two")


def score(mean: float, **more: Any) -> dict:
    """Of two networks, one below and one above: an sd of sqrt 2."""
    values = [mean - 1.0, mean + 1.0]
    return {
        "method": "any", "model": NETWORK, "ipc": 1, "n": 2, "mean": mean, "split": "test",
        "sd": statistics.stdev(values), "values": values, "protocol": "300 epochs", "diverged": 0,
        "lr": 0.01, "lr_origin": "",
    } | more  # fmt: skip


def cell(
    method: str,
    hard: float | None,
    *,
    seed: int = 0,
    ipc: int = 1,
    soft: float | None = None,
    ranking: tuple[float, float] | None = None,
    **more: Any,
) -> dict:
    known = {
        "variant": f"{method}-ipc{ipc}", "at": {"ipc": ipc, "method": method}, "seed": seed,
        "settings": {"distill.ipc": ipc},
    }  # fmt: skip
    if hard is None:
        return {**known, "error": "it broke"}
    scores = {"hard": score(hard), "plain": score(hard - 2.0)}
    scores["soft"] = None if soft is None else score(soft)
    return {
        **known, **score(hard), "making_seconds": 12.0, "making_bytes": 30_000_000,
        "makes": method not in ("random", "herding"), "scores": scores, "own": "hard",
        "ranking": None if ranking is None else dict(zip(("lrs", "ars"), ranking, strict=True)),
        "networks": [],
    } | more  # fmt: skip


def result_of(cells: list[dict], seeds: int = 1, full: dict | None = None) -> dict:
    study = {
        "name": "compare", "page": "comparison", "question": "Which is best?", "figure": "grid",
        "rule": "All else is alike.", "axes": {"ipc": "images per class", "method": "method"},
        "measured": "test accuracy, %", "counted": "fresh networks", "base": [],
    }  # fmt: skip
    settings = {"study": "compare", "seeds": seeds, "distill": {"ipc": 1}}
    return {
        "format": 1, "command": "study", "settings": settings, "cells": cells, "study": study,
        "data": {"name": "digits"}, "network": NETWORK, "seed": 0, "scores": [], "full": full,
    }  # fmt: skip


def study(cells: list[dict], **known: Any) -> StudyResult:
    result = result_from_json(result_of(cells, **known))
    assert isinstance(result, StudyResult)
    return result


def three_seeds() -> list[dict]:
    """random and mtt; of mtt at ten per class two seeds are left."""
    cells = []
    for seed in range(3):
        cells += [
            cell("random", 40.0 + seed, seed=seed, soft=45.0, ranking=(20.0, 26.9)),
            cell(
                "mtt", (60.0, 64.0, 68.0)[seed], seed=seed, soft=70.0 + seed,
                ranking=((30.0, 31.0, 35.0)[seed], 40.0 + seed),
                making_seconds=(10.0, 20.0, 60.0)[seed],
                making_bytes=(50_000_000, 70_000_000, 60_000_000)[seed],
            ),
            cell("random", 90.0, seed=seed, ipc=10, ranking=(50.0, 26.9)),
            cell("mtt", None if seed == 1 else 80.0 + seed, seed=seed, ipc=10),
        ]  # fmt: skip
    return cells


def page_of(result: dict, folder: Path) -> str:
    write_json(folder / "result.json", result)
    return write_study_report(folder).read_text(encoding="utf-8")


def table_of(page: str, section: str = "methods") -> list[list[str]]:
    """The words of a section's table, a row a list."""
    text = re.search(rf'<section aria-labelledby="{section}">(.*?)</section>', page, re.S)[1]
    rows = re.findall(r"<tr.*?</tr>", text, re.S)
    return [
        [Parsed(found).words.strip() for found in cells]
        for cells in (re.findall(r"<t[hd].*?</t[hd]>", row, re.S) for row in rows)
    ]


def csv_of(url: str) -> list[dict]:
    text = base64.b64decode(url.partition(",")[2]).decode()
    return list(csv.DictReader(io.StringIO(text)))


# -- the table -----------------------------------------------------------------------------------


def test_mean_and_spread_are_over_the_seeds_means(tmp_path: Path) -> None:
    page = page_of(result_of(three_seeds(), seeds=3, full=score(97.0)), tmp_path)
    heads = ["hard labels", "soft labels", "LRS", "ARS", "making time", "memory, MB"]
    assert table_of(page) == [
        ["", "1 image per class", "10 images per class"],
        ["Method", *heads, *heads],
        ["real images", ""],
        ["random", "41.0 ± 1.0", "45.0 ± 0.0", "20.0 ± 0.0", "26.9 ± 0.0", "12 s", "30",
         "90.0 ± 0.0", "–", "50.0 ± 0.0", "26.9 ± 0.0", "12 s", "30"],
        ["made images", ""],
        # stdev of 60, 64, 68 is 4; of 30, 31, 35 it is the root of (4 + 1 + 9) / 2.
        ["mtt", "64.0 ± 4.0", "71.0 ± 1.0", "32.0 ± 2.6", "41.0 ± 1.0", "30 s", "70",
         "81.0 ± 1.4 n = 2", "–", "–", "–", "12 s", "30"],
        ["experts (300 epochs)", "97.0 ± 1.4", "", "97.0 ± 1.4", ""],
    ]  # fmt: skip
    words = Parsed(page).words
    assert "over n = 3 seeds unless it is said, each the mean of 2 fresh networks." in words
    assert "The last row, experts (300 epochs), is over n = 2 networks (300 epochs)." in words
    assert re.findall(r"<strong>(\d\d\.\d)</strong>", page) == ["90.0", "64.0"]
    lead = "with 1 image per class mtt, 64.0 ± 4.0 %; with 10 images per class random, 90.0"
    assert lead in words
    assert "mtt-ipc10, seed 1: it broke" in words
    assert "LRS, the label-robust score" in words
    assert "ARS, its augmentation-robust score" in words
    assert "Soft labels give each class" in words


def test_one_seed_keeps_the_spread_of_its_networks(tmp_path: Path) -> None:
    """And columns nobody has a number for are left out, with what would explain them."""
    cells = [cell("random", 40.0), cell("dm", 50.0, making_bytes=None), cell("dd", None)]
    del cells[0]["making_bytes"]
    page = page_of(result_of(cells), tmp_path)
    assert table_of(page) == [
        ["", "1 image per class"],
        ["Method", "hard labels", "making time"],
        ["real images", ""],
        ["random", "40.0 ± 1.4", "12 s"],
        ["made images", ""],
        ["dm", "50.0 ± 1.4", "12 s"],
        ["dd", "failed", "–"],
    ]
    words = Parsed(page).words
    assert "n = 2 fresh networks of one seed." in words
    for absent in (
        "LRS",
        "ARS",
        "Soft labels",
        "Memory",
        "the mean of the seeds",
        "The last row",
        "On other networks",
    ):
        assert absent not in words
    assert 'id="images"' not in page


def test_numbers_of_the_table_as_csv(tmp_path: Path) -> None:
    page = page_of(result_of(three_seeds(), seeds=3, full=score(97.0)), tmp_path)
    links = {a["download"]: a["href"] for a in Parsed(page).all("a") if "download" in a}
    assert list(links) == ["methods.csv", "time.csv", "memory.csv", "compare.csv"]
    rows = csv_of(links["methods.csv"])
    assert [(r["method"], r["ipc"], r["hard_mean"], r["hard_n"], r["soft_mean"]) for r in rows] == [
        ("random", "1", "41", "3", "45"), ("mtt", "1", "64", "3", "71"),
        ("random", "10", "90", "3", ""), ("mtt", "10", "81", "2", ""),
        ("experts (300 epochs)", "", "97", "2", ""),
    ]  # fmt: skip
    assert rows[1]["lrs_sd"] == f"{7**0.5:.6g}"
    assert (rows[1]["making_seconds"], rows[1]["making_bytes"]) == ("30", "70000000")


def test_equals_as_they_are_written_are_both_the_best() -> None:
    cells = [cell("dm", 50.04), cell("dc", 49.96), cell("dsa", 49.94)]
    assert StandingsTable.of(study(cells)).best == {("dm", 1), ("dc", 1)}


def test_a_method_that_was_not_asked_for_everywhere(tmp_path: Path) -> None:
    page = page_of(result_of([cell("dm", 50.0), cell("dc", 60.0, ipc=10)]), tmp_path)
    assert [row[1] for row in table_of(page)[3:]] == ["50.0 ± 1.4", "–"]


def test_the_table_as_markdown() -> None:
    cells = three_seeds()
    cells += [cell("a|b<i>", 50.0, seed=seed, soft=None) for seed in range(3)]
    lines = markdown_table(study(cells, seeds=3, full=score(97.0))).splitlines()
    assert lines[0].startswith("Mean ± standard deviation over n = 3 seeds unless it is said")
    assert lines[1] == ""
    assert lines[2].startswith("| method | 1 image per class: hard labels | soft labels | LRS |")
    assert " 10 images per class: hard labels |" in lines[2]
    table = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[2:]]
    assert {len(row) for row in table} == {13}
    rows = {row[0].strip(): [text.strip() for text in row[1:]] for row in table}
    assert rows["mtt"][:4] == ["**64.0 ± 4.0**", "71.0 ± 1.0", "32.0 ± 2.6", "41.0 ± 1.0"]
    assert rows["mtt"][6] == "81.0 ± 1.4 (n = 2)"
    assert rows["*experts (300 epochs)*"][::6] == ["97.0 ± 1.4"] * 2
    assert "a\\|b&lt;i&gt;" in rows
    assert list(rows) == [
        "method", "---", "*real images*", "random", "*made images*", "mtt", "a\\|b&lt;i&gt;",
        "*experts (300 epochs)*",
    ]  # fmt: skip


# -- what it takes -------------------------------------------------------------------------------


def point(method: str, cost: float, mean: float, sd: float | None = 1.0) -> CostPoint:
    return CostPoint(method, {"ipc": 1, "method": method}, cost, Sample(mean, sd, 3))


POINTS = (point("a<b", 1.0, 40.0), point("dm", 10.0, 50.0, None), point("mtt", 100.0, 60.0))
SCATTER = Scatter(
    "time", "Accuracy < time", "cost", "making time, s",
    {"1 image": POINTS, "10 images": (point("random", 0.0, 30.0),)}, least=0.1,
)  # fmt: skip


def marks(figure: Scatter) -> list[tuple[str, float, float]]:
    """What a pointer over each point is shown, and where the point lies."""
    found = []
    for group in ElementTree.fromstring(figure.svg()).iter("g"):
        if group.get("class") == "dot":
            mark = group.find("circle")
            if mark is not None:
                place = mark.get("cx"), mark.get("cy")
            else:
                place = re.findall(r"[\d.]+", group.find("path").get("transform"))
            found.append((group.find("title").text, *map(float, place)))
    return found


def test_a_scatter_says_its_numbers_where_they_belong() -> None:
    (one, x1, y1), (_, x2, y2), (_, x3, y3), (other, x4, _) = marks(SCATTER)
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert y3 < y2 < y1
    assert x4 < x1
    assert one.replace("\N{NO-BREAK SPACE}", " ") == "a<b: 40.0 ± 1.0 % at 1 s"
    assert other.replace("\N{NO-BREAK SPACE}", " ") == "random: 30.0 ± 1.0 % at less than 0.1 s"
    root = ElementTree.fromstring(SCATTER.svg())
    said = [text.text for text in root.iter("text")]
    assert {"a<b", "dm", "mtt", "random", "1 image", "10 images", "making time, s"} <= set(said)
    assert {"≤\N{NO-BREAK SPACE}0.1", "1", "10", "100"} <= set(said)
    summary = SCATTER.summary().replace("\N{NO-BREAK SPACE}", " ")
    assert summary == (
        "1 image: highest mtt: 60.0 ± 1.0 % at 100 s, cheapest a<b: 40.0 ± 1.0 % at 1 s; "
        "10 images: highest random: 30.0 ± 1.0 % at less than 0.1 s."
    )
    assert root.get("aria-label") == f"{SCATTER.title}. {SCATTER.summary()}"
    assert SCATTER.frame()[3] == {
        "ipc": 1, "method": "random", "cost": 0.0, "mean": 30.0, "sd": 1.0, "n": 3,
    }  # fmt: skip
    assert csv_of(SCATTER.csv_url())[2]["mean"] == "60"


def test_a_scatter_of_one_point() -> None:
    alone = Scatter("t", "T", "cost", "memory, MB", {"": (point("dm", 5.0, 50.0),)})
    assert len(marks(alone)) == 1
    assert [t.text for t in ElementTree.fromstring(alone.svg()).iter("text")].count("dm") == 1
    assert alone.summary().startswith("Highest dm: 50.0")


def test_a_scatter_for_a_paper(tmp_path: Path) -> None:
    axes = SCATTER.plot().axes[0]
    assert axes.get_xscale() == "log"
    assert {text.get_text() for text in axes.texts} == {"a<b", "dm", "mtt", "random"}
    SCATTER.plot().savefig(tmp_path / "figure.png")


def test_names_beside_crowded_points_do_not_overlap() -> None:
    """Twelve points of a cluster, nearer to each other than a name is wide."""
    points = [(300.0 + 17 * (i % 4), 150.0 + 13 * (i // 4), 40.0, 10.0) for i in range(12)]
    taken = [Box(x - 3, y - 3, x + 3, y + 3) for x, y, *_ in points]
    frame = Box(0, 0, 640, 320)
    names = place(points, taken, frame, gap=6.0)
    assert names == place(points, taken, frame, gap=6.0)
    assert all(one.shared(other) == 0 for one, other in itertools.combinations(names, 2))
    assert all(name.outside(frame) == 0 for name in names)
    alone = place([(10.0, 10.0, 20.0, 10.0)], [], frame, gap=6.0)
    assert alone == [Box(16.0, 5.0, 36.0, 15.0)]


# -- other networks ------------------------------------------------------------------------------


def test_a_table_over_networks(tmp_path: Path) -> None:
    resnet = score(55.0, model="ResNet18 instance", lr=0.003, lr_origin="chosen on validation")
    soft = cell("ld", 50.0, soft=70.0, own="soft", networks=[resnet])
    other = cell("dm", 60.0, networks=[resnet | {"mean": 44.0, "n": 1, "sd": None, "diverged": 1}])
    page = page_of(result_of([soft, other, cell("dc", 61.0)]), tmp_path)
    assert table_of(page, "across") == [
        ["", f"{NETWORK} n = 2", "ResNet18 instance n = 1 to 2"],
        ["Images by", "accuracy", "lr", "accuracy", "lr"],
        ["1 image per class", ""],
        ["ld", "70.0 ± 1.4", "0.01", "55.0 ± 1.4 n = 2", "0.003*"],
        ["dm", "60.0 ± 1.4", "0.01", "44.0 n = 1, 1 diverged", "0.003*"],
    ]
    assert "* Learning rate chosen on validation." in Parsed(page).words
    (link,) = (a for a in Parsed(page).all("a") if a.get("download") == "networks.csv")
    assert [row["mean"] for row in csv_of(link["href"])] == ["70", "55", "60", "44"]
    assert Across.of([Cell.from_json(one) for one in (cell("dc", 61.0), cell("dd", None))]) is None


# -- the images ----------------------------------------------------------------------------------


def save(folder: Path, ipc: int, labels: torch.Tensor | None = None, side: int = 8) -> SyntheticSet:
    generator = torch.Generator().manual_seed(ipc)
    images = torch.rand(len(CLASSES) * ipc, 1, side, side, generator=generator)
    whitening = Normalize(torch.zeros(1), torch.ones(1))
    labels = torch.arange(len(CLASSES)).repeat_interleave(ipc) if labels is None else labels
    small = SyntheticSet(images, labels, CLASSES, whitening)
    small.save(folder)
    return small


def test_every_methods_images_side_by_side(tmp_path: Path) -> None:
    cells = [cell("dm", 50.0, ipc=ipc, seed=seed) for ipc in (1, 2) for seed in (3, 4)]
    cells += [cell("dc", 60.0, seed=3), cell("dd", 61.0, seed=3)]
    one = save(tmp_path / "dm-ipc1" / "seed3" / "best", 1)
    two = save(tmp_path / "dm-ipc2" / "seed3" / "best", 2)
    save(tmp_path / "dm-ipc1" / "seed4" / "best", 3)
    soft = torch.tensor([[0.2, 0.7, 0.1], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    odd = save(tmp_path / "dc-ipc1" / "seed3" / "best", 1, soft)
    page = page_of(result_of(cells, seeds=2), tmp_path)
    pictures = Parsed(page).all("img")
    assert [a["alt"] for a in pictures] == [
        *(f"{name}, dm, 1 image per class" for name in CLASSES),
        *(f"{name}, dc, 1 image per class" for name in CLASSES[:2]),
        *(f"{name}, dm, 2 images per class" for name in CLASSES),
    ]
    expected = [*one.pixels(), *odd.pixels()[[1, 0]], *two.pixels()[::2]]
    for attributes, pixels in zip(pictures, expected, strict=True):
        assert torch.equal(pixels_of(attributes["src"]), pixels.flatten().long())
    assert "Not saved, so not shown: dd (1 image per class)." in Parsed(page).words
    assert "--w:56px;--h:56px" in page


def test_damaged_sets_are_named_and_the_rest_shown(tmp_path: Path) -> None:
    for method in ("dm", "dc"):
        save(tmp_path / f"{method}-ipc1" / "seed0" / "best", 1)
    (tmp_path / "dm-ipc1" / "seed0" / "best" / "distilled.safetensors").write_bytes(b"short")
    page = page_of(result_of([cell("dm", 50.0), cell("dc", 60.0)]), tmp_path)
    words = Parsed(page).words
    assert re.search(r"Could not be read .*dm-ipc1/seed0/best/distilled\.safetensors", words)
    assert len(Parsed(page).all("img")) == 3


def test_large_and_many_pictures_are_made_smaller(tmp_path: Path) -> None:
    save(tmp_path / "large", 1, side=130)
    sheet = contact_sheet([("g", "large", tmp_path / "large")])
    assert (sheet.width, sheet.note) == (44, "Shown at down to 1/3 of their resolution.")
    save(tmp_path / "small", 1)
    sheet = contact_sheet([("g", "small", tmp_path / "small")], budget=3 * 16)
    assert "1/2" in sheet.note
    names = tuple(f"class {i}" for i in range(45))
    images, whitening = torch.rand(45, 3, 4, 4), Normalize(torch.zeros(3), torch.ones(3))
    SyntheticSet(images, torch.arange(45), names, whitening).save(tmp_path / "many")
    sheet = contact_sheet([("g", "many", tmp_path / "many")])
    assert len(sheet.classes) == len(sheet.groups[0][1][0].pictures) == 20
    assert sheet.note == "20 of 45 classes are shown."
    assert contact_sheet([("g", "none", tmp_path / "none")]) is None


# -- the page ------------------------------------------------------------------------------------


def everything(folder: Path) -> dict:
    save(folder / "mtt-ipc1" / "seed0" / "best", 1)
    cells = three_seeds()
    cells[1]["networks"] = [score(55.0, model="ResNet18 instance")]
    return result_of(cells, seeds=3, full=score(97.0))


def test_the_page_stands_alone_and_is_accessible(tmp_path: Path) -> None:
    page = page_of(everything(tmp_path), tmp_path)
    parsed = Parsed(page)
    for tag, attributes in parsed.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page
    assert "default-src 'none'" in page
    identifiers = [a["id"] for _, a in parsed.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    named = [a for _, a in parsed.elements if "aria-labelledby" in a]
    assert all(a["aria-labelledby"] in identifiers for a in named)
    assert all(a.get("aria-label") for a in parsed.all("svg"))
    assert all(a.get("scope") for a in parsed.all("th"))
    assert all(a["alt"] for a in parsed.all("img"))
    scrolled = [a for a in parsed.all("div") if a.get("class") == "scroll"]
    assert all(a["tabindex"] == "0" and a["role"] == "region" for a in scrolled)
    sections = [a.get("aria-labelledby") for a in parsed.all("section")]
    order = [None, "methods", "spent", "across", "images", "numbers", "origin"]
    assert sections == order
    again = write_study_report(tmp_path, tmp_path / "other.html")
    assert again.read_text(encoding="utf-8") == page


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    result = everything(tmp_path)
    network = score(50.0, model=HOSTILE, lr_origin=HOSTILE)
    cells = [
        cell(f"{HOSTILE}{i}", 50.0 + i, soft=60.0, ranking=(1.0, 2.0), networks=[network])
        for i in range(3)
    ]
    cells[2] = cell("../out", None) | {"error": HOSTILE}
    result |= {"cells": cells, "full": score(97.0, protocol=HOSTILE), "network": HOSTILE}
    result["study"] |= {"question": HOSTILE, "rule": HOSTILE}
    page = page_of(result, tmp_path)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    for found in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(found)
    assert "<script" not in markdown_table(result_from_json(result))


def test_a_variants_name_is_no_way_out_of_the_folder(tmp_path: Path) -> None:
    save(tmp_path / "secret" / "seed0" / "best", 1)
    out = tmp_path / "out"
    out.mkdir()
    result = result_of([cell("dm", 50.0) | {"variant": "../secret"}])
    assert "<img" not in page_of(result, out)


def test_other_studies_keep_their_page(tmp_path: Path) -> None:
    result = result_of([cell("random", 40.0), cell("mtt", 50.0)])
    del result["study"]["page"]
    page = page_of(result, tmp_path)
    assert 'id="methods"' not in page
    assert "The test split was looked at once a cell" in page


def test_many_lines_of_a_heat_map_are_low(tmp_path: Path) -> None:
    """Mean and spread are then side by side, and both still said."""
    cells = [cell(f"m{i}", 50.0 + i) for i in range(9)] + [cell("broken", None)]
    svg = re.search(r"<svg.*?</svg>", page_of(result_of(cells), tmp_path), re.S)[0]
    root = ElementTree.fromstring(svg)
    assert float(root.get("viewBox").split()[3]) < 10 * 30
    texts = {text.text: float(text.get("y")) for text in root.iter("text")}
    spreads = [t for t in root.iter("text") if t.text == "±\N{NO-BREAK SPACE}1.4"]
    assert float(spreads[0].get("y")) == texts["50.0"]
    assert len(spreads) == 9
    assert "failed" in texts


# -- validation ----------------------------------------------------------------------------------


def untested(method: str, validated: float) -> dict:
    """A cell whose method has better settings on validation images."""
    known = cell(method, None)
    del known["error"]
    row = score(validated, split="val")
    return {**known, "validated": row, "makes": True, "making_seconds": 3.0, "making_bytes": None}


def test_what_is_best_is_said_by_validation(tmp_path: Path) -> None:
    """On test images the other would be."""
    cells = [
        cell("dm", 50.0, validated=score(30.0, split="val")),
        cell("mtt", 45.0, validated=score(40.0, split="val")),
        untested("mtt-soft", 35.0),
    ]
    page = page_of(result_of(cells), tmp_path)
    rows = {row[0]: row[1:] for row in table_of(page)}
    assert rows["Method"][:2] == ["hard labels", "validation"]
    assert rows["dm"][:2] == ["50.0 ± 1.4", "30.0 ± 1.4"]
    assert rows["mtt-soft"] == ["not tested", "35.0 ± 1.4", "3 s", "–"]
    assert re.findall(r"<strong>([\d.]+)</strong>", page) == ["40.0"]
    lead = "Highest on validation images: with 1 image per class mtt (45.0 ± 1.4 % on test images)."
    assert lead in Parsed(page).words.replace("\u00a0", " ")
    assert "of several settings of one method, the one that was tested" in page
    assert "Failed; the same command tries again" not in page
    shown = markdown_table(study(cells))
    assert "| mtt | 45.0 ± 1.4 | **40.0 ± 1.4** |" in shown
    assert "| mtt-soft | not tested | 35.0 ± 1.4 | 3 s | – |" in shown
    frame = {row["method"]: row for row in StandingsTable.of(study(cells)).frame()}
    assert (frame["mtt-soft"]["validated_mean"], frame["mtt-soft"]["hard_mean"]) == (35.0, None)


def test_results_without_validation_are_ranked_as_they_were(tmp_path: Path) -> None:
    page = page_of(result_of([cell("dm", 50.0), cell("mtt", 45.0)]), tmp_path)
    assert re.findall(r"<strong>([\d.]+)</strong>", page) == ["50.0"]
    assert "Highest under hard labels: with 1 image per class dm" in Parsed(page).words
    assert "validation</th>" not in page
