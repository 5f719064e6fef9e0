"""The page about a run: complete, self-contained, honest about what is missing, safe."""

from __future__ import annotations

import base64
import builtins
import csv
import io
import json
import math
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from trajmatch import rng
from trajmatch.data.whiten import Normalize
from trajmatch.errors import DataError, FileFormatError, MissingExtraError
from trajmatch.report import Curve, ScorePlot, write_report
from trajmatch.report.figures.pictures import gallery, png, timeline
from trajmatch.report.figures.theme import VARIABLES, ticks
from trajmatch.report.tables.classes import ClassRow, ClassTable
from trajmatch.storage import JsonlTracker, write_result
from trajmatch.storage.files import save_tensors
from trajmatch.storage.results import Sample, Score
from trajmatch.synthetic import SyntheticSet
from trajmatch.units import number

HOSTILE = "<script>alert('x')</script>\"&"


def score(method: str, mean: float, sd: float | None, n: int = 5, **more) -> dict:
    spread = [mean + (sd or 0) * x for x in (-1.2, -0.5, 0.1, 0.6, 1.0)][:n]
    return {
        "method": method, "model": "ConvNet-D2 width 32 instance", "ipc": 1, "n": n, "mean": mean,
        "sd": sd, "split": "test", "values": spread,
        "protocol": "SGD lr 0.0107, momentum 0.9, weight decay 0.0005, 1000 epochs, lr x0.1 at the "
        "middle, batch 256, DSA, normalized",
    } | more  # fmt: skip


def fake_run(
    out: Path,
    *,
    channels: int = 1,
    side: int = 8,
    ipc: int = 1,
    classes: tuple[str, ...] = tuple("0123456789"),
    soft: bool = False,
    iterations: int = 300,
    snapshots: int = 7,
    finished: bool = True,
    scores: list[dict] | None = None,
    name: str = "digits",
) -> Path:
    """A folder as `distill` leaves it, with numbers and pictures like real ones."""
    generator = rng.stream(0, "fake run")
    n = len(classes) * ipc
    labels = torch.arange(len(classes)).repeat_interleave(ipc)
    if channels == 1 and side == 8:
        digits = load_digits()
        found = [digits.images[digits.target == k % 10][:ipc] for k in range(len(classes))]
        real = torch.cat([torch.tensor(f) for f in found]).float()[:, None] / 16
    else:
        coarse = torch.rand(n, channels, 5, 5, generator=generator)
        real = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    noise = 0.22 * torch.randn(real.shape, generator=generator)
    whitening = Normalize(torch.full((channels,), 0.4), torch.full((channels,), 0.3))
    kept = labels
    if soft:
        kept = torch.nn.functional.one_hot(labels, len(classes)) * 3.0
        kept = (kept + torch.randn(kept.shape, generator=generator)).softmax(1)
    best = min(200, iterations)
    for place in ("best", "last") if finished else ("last",):
        images = whitening.transform(real + noise)
        info = {"method": "mtt", "seed": 0}
        SyntheticSet(images, kept, classes, whitening, 0.0107, info).save(out / place)
    for index in range(snapshots):
        share = index / max(1, snapshots - 1)
        pixels = ((real + share * noise).clamp(0, 1) * 255).round().to(torch.uint8)
        iteration = round(share * iterations)
        save_tensors(
            out / "snapshots" / f"{iteration:06d}.safetensors",
            {"images": pixels, "labels": kept},
            kind="snapshot",
            version=1,
            metadata={"iteration": iteration},
        )
    tracker = JsonlTracker(out / "log.jsonl")
    draws = torch.randn(iterations, generator=generator).tolist()
    for step, draw in enumerate(draws, 1):
        loss = 0.62 + 0.5 * math.exp(-step / (iterations / 6)) + 0.04 * draw
        skip = step % 67 == 0
        values = {
            "loss": 1.4 if skip else loss,
            "step_size": 0.01 * (1 + 0.07 * step / iterations + 0.01 * math.sin(step / 20)),
            "grad_norm": 0.3, "skipped": int(skip), "seconds": 0.31 + 0.01 * draw,
        }  # fmt: skip
        tracker.log(step, values)
        if step % max(1, iterations // 6) == 0:
            mean = 90 - 22 * math.exp(-step / (iterations / 5)) - 3 * (step > best)
            tracker.log(step, {"val_mean": mean, "val_sd": abs(0.9 + 0.3 * draw), "val_n": 2})
    tracker.close()
    if finished:
        if scores is None:
            scores = [
                score("mtt", 88.7, 1.2, ipc=ipc),
                score("random", 68.7, 3.1, ipc=ipc),
                score("herding", 74.4, 1.6, ipc=ipc),
                score("full data", 98.0, 0.3, 10, ipc=None, values=[97.6, 98.0, 98.3]),
            ]
        settings = {
            "name": name, "seed": 0,
            "data": {"data": name, "size": None, "val_fraction": 0.1, "whitening": "normalize"},
            "network": {"network": "convnet", "depth": 2, "width": 32},
            "distill": {"ipc": ipc, "iterations": iterations, "lr_lr": 1e-6, "soft_labels": soft},
        }  # fmt: skip
        write_result(
            out,
            command="run",
            settings=settings,
            seed=0,
            scores=scores,
            data={
                "name": name, "train": 1293, "val": 144, "test": 360, "channels": channels,
                "size": side, "classes": list(classes), "fingerprint": "51fe0d1bb6a3c2d4",
            },
            seconds=127.4,
            extra={
                "library": {"path": "runs/digits/experts", "experts": 10, "epochs": 20,
                            "accuracy_mean": 98.0, "accuracy_sd": 0.3, "n": 10},
                "network": "ConvNet-D2 width 32 instance",
                "best_iteration": best, "last_iteration": iterations,
            },
        )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """One finished run, shared by the tests that only read it."""
    return fake_run(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="module")
def page(run) -> str:
    return write_report(run).read_text(encoding="utf-8")


class Parsed(HTMLParser):
    """Elements with their attributes; raises when tags do not nest."""

    VOID = {"meta", "link", "img", "input", "path", "circle", "br"}

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


def pixels_of(url: str) -> torch.Tensor:
    content = base64.b64decode(url.removeprefix("data:image/png;base64,"), validate=True)
    return torch.tensor(list(Image.open(io.BytesIO(content)).convert("L").tobytes()))


def test_page_says_what_was_reached_beside_what(page):
    words = Parsed(page).words
    assert re.search(r"88\.7 ± 1\.2 % test accuracy of 5 fresh networks", words)
    assert "these 10 synthetic images alone" in words
    assert "at random reach 68.7 ± 3.1 % (n = 5)" in words
    assert "by herding reach 74.4 ± 1.6 % (n = 5)" in words
    assert "the experts, on all 1,293 training images, reach 98.0 ± 0.3 % (n = 10)" in words
    assert "14.3 ± 2.0 points above herding." in words  # the root of 1.2^2 + 1.6^2
    # Experts are no ceiling: they stop after the few epochs that distillation reads.
    assert "of that accuracy" not in words
    assert "Not on this page" not in words


def test_page_holds_cost_origin_and_every_setting(page, run):
    words = Parsed(page).words
    result = json.loads((run / "result.json").read_text())
    for text in (
        "2 min 7 s", "51fe0d1bb6a3c2d4", "1,293 train, 144 val, 360 test", "10 of 20 epochs",
        "0.0107", result["versions"]["torch"], f"load_distilled({str(run / 'best')!r})",
        "1000 epochs, lr x0.1 at the middle", "Chosen iteration 200", "lr_lr 1e-06",
    ):  # fmt: skip
        assert text in words, text
    for table in result["settings"].values():
        for name in table if isinstance(table, dict) else ():
            assert name in words, name


def test_page_stands_alone_and_is_accessible(page):
    parsed = Parsed(page)
    for tag, attributes in parsed.elements:
        for name in ("src", "href", "srcset", "poster", "action", "data", "xlink:href"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    assert "@import" not in page
    assert not re.search(r"url\((?!data:)", page)
    assert "default-src 'none'" in page
    identifiers = [a["id"] for _, a in parsed.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    pictures = parsed.all("img")
    assert len(pictures) == 10
    assert all(a["alt"].startswith("Image for ") for a in pictures)
    assert all(a.get("aria-label") for a in parsed.all("svg") + parsed.all("canvas"))
    for attributes in parsed.all("section"):
        assert attributes.get("aria-label") or attributes["aria-labelledby"] in identifiers
    assert all(a.get("scope") for a in parsed.all("th"))
    assert "prefers-color-scheme: dark" in page
    assert "prefers-reduced-motion" in page


def test_text_has_enough_contrast_in_light_and_dark(page):
    """WCAG AA: 4.5 to 1 for text on both grounds."""
    light, dark = re.findall(r":root \{(.*?)\}", page, re.S)

    def luminance(color: str) -> float:
        color = color if len(color) == 6 else "".join(2 * c for c in color)
        parts = [int(color[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for rules in (light, dark):
        colors = dict(re.findall(r"--(\w+): #([0-9a-f]+);", rules))
        for ground in ("ground", "sheet"):
            for text in ("ink", "soft", "accent", "warm"):
                pair = sorted((luminance(colors[ground]), luminance(colors[text])))
                assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (text, ground, colors)


def test_pictures_are_the_sets_own(page, run):
    expected = SyntheticSet.load(run / "best").pixels()
    shown = [pixels_of(a["src"]) for a in Parsed(page).all("img")]
    assert torch.equal(torch.stack(shown), expected.flatten(1).long())


def test_timeline_holds_the_snapshots(page, run):
    text = re.search(r'id="timeline-data">(.*?)</script>', page, re.S)[1]
    data = json.loads(text)
    assert data["iterations"] == [0, 50, 100, 150, 200, 250, 300]
    columns, (width, height) = data["columns"], data["side"]
    sprite = pixels_of(data["urls"][3]).reshape(-1, columns * width)
    from safetensors.torch import load_file

    images = load_file(run / "snapshots" / "000150.safetensors")["images"]
    for i, image in enumerate(images):
        y, x = i // columns * height, i % columns * width
        assert torch.equal(sprite[y : y + height, x : x + width], image[0].long())


def test_same_run_same_bytes_and_nothing_left_beside(run, tmp_path):
    first = write_report(run, tmp_path / "a.html")
    second = write_report(run, tmp_path)
    assert second == tmp_path / "report.html"
    assert first.read_bytes() == second.read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"a.html", "report.html"}


def test_digits_page_is_small(page):
    assert len(page.encode()) < 120_000


def test_color_page_keeps_its_budgets(tmp_path):
    names = ("airplane", "automobile", "bird", "cat", "deer")
    fake_run(tmp_path, channels=3, side=32, ipc=2, classes=names, snapshots=45, iterations=2600)
    page = write_report(tmp_path).read_text()
    parsed, words = Parsed(page), Parsed(page).words
    assert len(parsed.all("img")) == 10
    assert all(name in words for name in names)
    strip = json.loads(re.search(r'id="timeline-data">(.*?)</script>', page, re.S)[1])
    assert len(strip["urls"]) <= 40
    assert strip["iterations"][0] == 0
    assert strip["iterations"][-1] == 2600
    assert sum(map(len, strip["urls"])) < 700_000
    assert "of 45 snapshots" in words
    assert "colors reduced to 256" in words
    assert "1 iteration in 2; all are in log.jsonl" in words


def test_a_run_that_was_never_better_than_its_beginning_says_so(tmp_path):
    folder, words = fake_run(tmp_path / "run"), "never better than where it began"
    page = write_report(folder).read_text(encoding="utf-8")
    assert "Taken from iteration 200, the best on the validation split. " in page
    assert words not in page
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"best_iteration": 0}))
    page = write_report(folder).read_text(encoding="utf-8")
    assert f"the best on the validation split: the run was {words}. " in page


def test_soft_labels_are_said(tmp_path):
    fake_run(tmp_path, soft=True, iterations=12)
    words = Parsed(write_report(tmp_path).read_text()).words
    small = SyntheticSet.load(tmp_path / "best")
    value, index = small.labels[0].max(0)
    assert f"{small.classes[index]}: {100 * value:.0f} %," in words
    assert "labels were learned too" in words
    assert "probabilities [10, 10]" in words


def test_names_of_users_stay_text(tmp_path):
    names = (HOSTILE, "</script><img src=x onerror=alert(1)>", "'{{ 7 * 7 }}", "d")
    scores = [score(HOSTILE, 50.0, 1.0), score("random", 40.0, None, 1, model=HOSTILE)]
    fake_run(
        tmp_path / "a<b>&'c", classes=names, side=9, iterations=12, name=HOSTILE, scores=scores
    )
    page = write_report(tmp_path / "a<b>&'c").read_text()
    parsed = Parsed(page)
    assert [a.get("type") for a in parsed.all("script")] == ["application/json", None]
    assert "<script>alert" not in page
    assert not any("onerror" in attributes for _, attributes in parsed.elements)
    assert parsed.all("img")[0]["alt"] == f"Image for {HOSTILE}"
    assert parsed.words.count(re.sub(r"\s+", " ", HOSTILE)) >= 4
    assert "{{ 7 * 7 }}" in parsed.words


def test_text_that_utf8_cannot_hold_is_replaced(tmp_path):
    """Half a surrogate pair, as a path of other bytes has, and control characters."""
    fake_run(tmp_path, iterations=12, scores=[score("mtt\0\ud800", 50.0, 1.0, model="\x1b[31m")])
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for found in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(found)
    assert bars(page) == ["distilled by mtt" + 2 * "\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"scores": [{"method": "mtt", "n": 5, "mean": HOSTILE}]}, r"scores\[0\]\.mean"),
        ({"library": {"experts": HOSTILE}}, r"library\.experts"),
        ({"data": {"train": [1]}}, r"data\.train"),
        ({"best_iteration": "12"}, "best_iteration"),
        ({"settings": [HOSTILE]}, "settings"),
    ],
)
def test_a_damaged_result_is_refused_in_one_line(tmp_path, change, place):
    out = fake_run(tmp_path / "run", iterations=12) / "result.json"
    out.write_text(json.dumps(json.loads(out.read_text()) | change))
    with pytest.raises(FileFormatError, match=rf"result\.json: {place} is .* where") as refused:
        write_report(tmp_path / "run")
    assert "\n" not in str(refused.value)


def test_unfinished_run_is_shown_as_far_as_it_got(tmp_path):
    fake_run(tmp_path, finished=False, snapshots=1)
    words = Parsed(write_report(tmp_path).read_text()).words
    assert "has not finished" in words
    assert "the images are the latest ones" in words
    assert "There is one snapshot" in words
    assert re.search(r"89\.2 ± 0\.\d % validation accuracy of 2 fresh networks", words)
    assert "Test accuracy has not been measured" in words
    assert "10 images of 8 × 8 pixels" in words


def test_only_a_log_is_enough(tmp_path):
    tracker = JsonlTracker(tmp_path / "log.jsonl")
    tracker.log(1, {"loss": float("nan"), "step_size": 0.01, "skipped": 1, "seconds": 0.1})
    tracker.event("resumed", step_from=1)
    tracker.close()
    words = Parsed(write_report(tmp_path).read_text()).words
    assert "No accuracy has been measured" in words
    assert "There is no set of images yet" in words
    assert "There are no snapshots" in words
    assert "No evaluation on the validation split" in words
    assert "Every update was skipped or its loss not finite" in words
    assert "Learned step size" in words


def other_run(out: Path, command: str, settings: dict, method: str) -> Parsed:
    data = {"name": "digits", "train": 1293, "val": 144, "test": 360, "fingerprint": "51fe"}
    scores = [score(method, 74.4, 1.6)]
    write_result(
        out, command=command, settings=settings, seed=3, scores=scores, data=data, seconds=4.0
    )
    return Parsed(write_report(out).read_text())


def logged_run(out: Path, method: str, **changes: object) -> str:
    """The page of a finished run of `method` whose log holds 20 losses around 1."""
    tracker = JsonlTracker(out / "log.jsonl")
    for step in range(1, 21):
        line = {"loss": 1 + 0.1 * math.sin(step), "skipped": 0, **changes}
        tracker.log(step, line)
    tracker.close()
    settings = {"distill": {"method": method, "lr_lr": 0.0}, "methods": {"other": {"lr_img": 7.5}}}
    write_result(
        out, command="run", settings=settings, seed=0, scores=[score(method, 74.4, 1.6)],
        data=None, seconds=1.0, extra={"library": {"experts": 10, "epochs": 20}},
    )  # fmt: skip
    return write_report(out).read_text()


@pytest.mark.parametrize(
    ("method", "loss"),
    [
        ("mtt", "Loss: distance left to the expert"),
        ("dm", "Loss: squared distance of mean embeddings, all classes"),
        ("dc", "Loss: distance of the gradients, all classes"),
        ("dsa", "Loss: distance of the gradients, all classes"),
        ("dd", "Loss: cross-entropy of real images after the unroll"),
        ("kip", "Loss: squared error of the kernel’s regression"),
        ("another", "Loss"),
    ],
)
def test_the_loss_is_called_what_it_is(tmp_path, method, loss):
    page = logged_run(tmp_path, method)
    assert f"<h3>{loss}</h3>" in page
    # The matching loss alone is 1 where the student has come no nearer.
    assert ("as far as at the start" in page) == (method == "mtt")
    assert "step size" not in page
    assert ("Experts (not matched)" in page) == (method not in ("mtt", "another"))
    name = "another" if method == "another" else method.upper()
    assert f"distilled by {name}" in page
    assert "7.5" not in page, "what the recipe says of other methods"


def test_a_loss_is_not_the_experts_where_nothing_tells_the_method(tmp_path):
    tracker = JsonlTracker(tmp_path / "log.jsonl")
    for step in range(1, 9):
        tracker.log(step, {"loss": 15.0 / step, "skipped": 0})
    tracker.close()
    page = write_report(tmp_path).read_text()
    assert "<h3>Loss</h3>" in page
    assert "MTT" not in page


def test_a_step_size_that_is_held_fixed_is_no_curve(tmp_path):
    assert "Learned step size" not in logged_run(tmp_path, "dd", step_size=0.1)


def test_page_of_learned_labels_says_that_the_images_stay(tmp_path):
    scores = [score("ld", 72.3, 1.7), score("random", 69.7, 2.7)]
    out = fake_run(tmp_path / "ld", scores=scores, soft=True)
    first, *others = sorted((out / "snapshots").iterdir())
    for other in others:
        other.write_bytes(first.read_bytes())
    words = Parsed(write_report(out).read_text()).words
    assert "each trained on these 10 real images alone, with learned labels" in words
    assert "The labels were learned, and the images stay as they were: under each" in words
    assert "How they changed" not in words


@pytest.mark.parametrize("method", ["herding", "k-center", "forgetting"])
def test_page_of_select(tmp_path, run, method):
    SyntheticSet.load(run / "best").save(tmp_path / "best")
    parsed = other_run(tmp_path, "select", {"ipc": 1}, method)
    assert f"real images, {method}" in parsed.words
    assert "distilled by" not in parsed.words
    assert "74.4 ± 1.6 % test accuracy of 5 fresh networks, each trained on these 10 real" in (
        parsed.words
    )
    assert len(parsed.all("img")) == 10
    assert "Not on this page" not in parsed.words


def test_page_of_evaluate_shows_the_set_judged(tmp_path, run):
    settings = {"set": str(run / "best"), "seed": 3}
    parsed = other_run(tmp_path / "a", "evaluate", settings, "mtt")
    assert "each trained on these 10 synthetic images" in parsed.words
    assert "Not measured in this run: random, herding, experts" in parsed.words
    assert f"Read from {run / 'best'} as it is now" in parsed.words
    assert len(parsed.all("img")) == 10
    assert "snapshot" not in parsed.words
    gone = other_run(tmp_path / "b", "evaluate", {"set": str(tmp_path / "gone")}, "random")
    assert "each trained on the real images alone" in gone.words
    assert "Could not be read" not in gone.words


def bars(page: str) -> list[str]:
    """The names in the figure of the scores, whose texts stand at its left edge."""
    (figure,) = re.findall(r'<svg[^>]*aria-label="[^"]*accuracy, %\. [^"]*".*?</svg>', page)[:1]
    root = ElementTree.fromstring(figure)
    return [t.text for t in root.iter("text") if t.get("x") == "12" and t.text != "0"]


@pytest.mark.parametrize(
    ("scores", "names"),
    [
        (
            [score("mtt", 88.7, 1.2), score("mtt", 80.1, 2.0, model="ResNet18 instance")],
            ["ConvNet-D2 width 32 instance", "ResNet18 instance"],
        ),
        (
            [score("mtt", 88.7, 1.2), score("random", 60.0, 2.0, model="MLP width 128")],
            ["real images, random → MLP width 128", "distilled by MTT"],
        ),
        (
            [score("mtt", 88.7, 1.2), score("mtt", 88.0, 1.2, split="val", model=None)],
            ["ConvNet-D2 width 32 instance", "distilled by MTT"],
        ),
        ([score("mtt", 88.7, 1.2)], ["distilled by MTT"]),
    ],
    ids=["one set, two networks", "two sets", "unknown network", "one score"],
)
def test_bars_are_named_by_what_differs(tmp_path, scores, names):
    """By the network where one set is judged by several, else by what networks trained on."""
    write_result(
        tmp_path, command="evaluate", settings={}, seed=0, scores=scores, data=None, seconds=1.0
    )
    assert bars(write_report(tmp_path).read_text()) == names


PROTOCOL = "1000 epochs, lr {}, momentum 0.9, wd 0.0005, batch 256, DSA"
CHOSEN = "chosen on validation from 5"


def across(model: str, lr: float, mean: float, parameters: int, **more) -> dict:
    """A score as `evaluate` writes it: at a chosen rate unless `lr_origin` says otherwise."""
    found = {"lr_origin": CHOSEN, **more}
    words = f"{lr:.3g} {found['lr_origin']}".strip()
    known = {"model": model, "lr": lr, "parameters": parameters, "protocol": PROTOCOL.format(words)}
    return score("mtt", mean, 1.5, **{**known, **found})


OWN = across("ConvNet-D2 width 32 instance", 0.0107, 88.7, 13066, lr_origin="")
RESNET = across("ResNet18 instance", 0.003, 61.2, 11173962, n=3, diverged=1)
VGG = across("VGG11 instance", 0.0003, 55.0, 9231114)


def evaluation(out: Path, judged: Path, scores: list[dict], **changes) -> Path:
    """A folder as `evaluate` leaves it."""
    known = {
        "command": "evaluate", "settings": {"set": str(judged)}, "seed": 0, "scores": scores,
        "data": {"name": "digits"}, "seconds": 4.0,
        "extra": {"set": {"fingerprint": SyntheticSet.load(judged).fingerprint}},
    }  # fmt: skip
    write_result(out, **{**known, **changes})
    return out


def tables(page: str) -> list[tuple[str, list[list[str]]]]:
    """Caption and rows of every table across networks."""
    found = []
    for table in re.findall(r'<table class="networks">(.*?)</table>', page, re.S):
        caption = Parsed(re.search(r"<caption>.*?</caption>", table, re.S)[0]).words.strip()
        rows = re.findall(r"<tr.*?</tr>", table, re.S)
        cells = [re.findall(r"<(?:th|td)[^>]*>(.*?)</(?:th|td)>", row, re.S) for row in rows]
        plain = [[cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in cells]
        found.append((caption, plain))
    return found


HEAD = ["Network", "Parameters", "Learning rate", "Accuracy", "n"]
ROWS = [
    ["ConvNet-D2 width 32 instance", "13,066", "0.0107†", "88.7 ± 1.5", "5"],
    ["ResNet18 instance", "11,173,962", "0.003*", "61.2 ± 1.5", "3 (1 diverged)"],
    ["VGG11 instance", "9,231,114", "0.0003*", "55.0 ± 1.5", "5"],
]


def test_page_of_evaluate_has_one_table_over_the_networks(tmp_path, run):
    out = evaluation(tmp_path / "evaluated", run / "best", [OWN, RESNET, VGG])
    page = write_report(out).read_text()
    ((caption, rows),) = tables(page)
    assert rows == [HEAD, *ROWS]
    assert caption.startswith(
        "Images distilled by MTT, 1 per class: test accuracy in percent, mean and standard "
        "deviation over n. 1000 epochs, momentum 0.9, wd 0.0005, batch 256, DSA. "
        "* Learning rate chosen on validation from 5. † The step size learned with the images."
    )
    assert "Tested after the run" not in caption
    assert "as it is now" not in page
    (link,) = (a for a in Parsed(page).all("a") if a.get("download") == "networks.csv")
    text = base64.b64decode(link["href"].removeprefix("data:text/csv;base64,")).decode()
    found = list(csv.DictReader(io.StringIO(text)))
    assert [row["model"] for row in found] == [row[0] for row in ROWS]
    assert [row["protocol"] for row in found] == [s["protocol"] for s in (OWN, RESNET, VGG)]


def test_page_of_a_run_has_what_was_found_out_about_its_set_later(tmp_path):
    """In one table with the run's own network; what another command left is no evaluation."""
    fake_run(tmp_path, iterations=12, scores=[OWN, score("random", 68.7, 3.1)])
    assert tables(write_report(tmp_path).read_text()) == []
    evaluation(tmp_path / "evaluated", tmp_path / "best", [RESNET])
    evaluation(tmp_path / "more", tmp_path / "best", [VGG])
    evaluation(tmp_path / "other", tmp_path / "best", [OWN | {"model": "MLP"}], command="select")
    page = write_report(tmp_path).read_text()
    ((caption, rows),) = tables(page)
    assert rows == [HEAD, *ROWS]
    assert "Tested after the run, in evaluated, more." in caption
    assert page.count('<tr class="main">') == 1
    assert bars(page) == ["real images, random", "distilled by MTT"]
    assert "another set" not in page


def test_the_same_network_tested_twice_is_one_row_of_more_networks(tmp_path):
    fake_run(tmp_path, iterations=12, scores=[OWN])
    more = OWN | {"n": 9, "mean": 88.0}
    evaluation(tmp_path / "a", tmp_path / "best", [RESNET, OWN | {"mean": 1.0}])
    evaluation(tmp_path / "b", tmp_path / "best", [more, RESNET | {"mean": 1.0}])
    ((_, rows),) = tables(write_report(tmp_path).read_text())
    assert rows == [HEAD, [*ROWS[0][:3], "88.0 ± 1.5", "9"], ROWS[1]]


def test_networks_trained_by_two_protocols_do_not_share_a_table(tmp_path):
    fake_run(tmp_path, iterations=12, scores=[OWN])
    short = across("ResNet18 instance", 0.0107, 61.2, 11173962)  # by chance the set's step size
    short["protocol"] = short["protocol"].replace("1000", "300")
    evaluation(tmp_path / "a", tmp_path / "best", [short, VGG | {"split": "val"}])
    found = tables(write_report(tmp_path).read_text())
    assert [[row[0] for row in rows[1:]] for _, rows in found] == [[ROWS[1][0]], [ROWS[2][0]]]
    assert ". 300 epochs, momentum" in found[0][0]
    assert "1 per class: val accuracy" in found[1][0]
    assert "†" not in str(found)


def test_an_evaluation_of_another_set_is_named_and_not_shown(tmp_path, run):
    fake_run(tmp_path, iterations=12, soft=True, scores=[OWN])
    evaluation(tmp_path / "a", run / "best", [OWN, RESNET])
    evaluation(tmp_path / "b", tmp_path / "best", [OWN, RESNET], extra={})
    evaluation(tmp_path / "c", tmp_path / "best", [OWN, RESNET])
    (tmp_path / "c" / "result.json").write_text("{")
    page = write_report(tmp_path).read_text()
    assert tables(page) == []
    words = Parsed(page).words
    for place in "ab":
        assert f"What {place} holds was found out about another set" in words
        assert f"trajmatch evaluate {tmp_path} --out {tmp_path / place} tests this one" in words
    assert re.search(r"Could not be read .*c/result\.json", words)


def test_a_set_that_has_changed_since_it_was_tested(tmp_path, run):
    out = evaluation(tmp_path / "out", run / "best", [OWN], extra={"set": {"fingerprint": "ab"}})
    words = Parsed(write_report(out).read_text()).words
    assert f"Read from {run / 'best'}, which has changed since it was tested." in words


def test_a_run_without_a_test_of_its_own_shows_the_later_one(tmp_path):
    fake_run(tmp_path, iterations=12, scores=[])
    evaluation(tmp_path / "evaluated", tmp_path / "best", [OWN, RESNET])
    page = write_report(tmp_path).read_text()
    words = Parsed(page).words
    assert "88.7 ± 1.5 % test accuracy of 5 fresh networks" in words
    assert "No accuracy has been measured" not in words
    assert [rows for _, rows in tables(page)] == [[HEAD, *ROWS[:2]]]


def test_page_of_experts(tmp_path):
    tracker = JsonlTracker(tmp_path / "log.jsonl")
    tracker.log(1, {"loss": 2.3})
    tracker.close()
    parsed = other_run(tmp_path, "experts", {"epochs": 20}, "full data")
    assert "5 fresh networks, each trained on all 1,293 training images" in parsed.words
    assert "distance left" not in parsed.words
    assert "Not on this page" not in parsed.words


def test_single_network_has_no_spread(tmp_path):
    fake_run(tmp_path, iterations=12, snapshots=2, scores=[score("mtt", 61.0, None, 1)])
    words = Parsed(write_report(tmp_path).read_text()).words
    assert "61.0 % test accuracy of one fresh network" in words
    assert "no spread: one network" in words


def test_damage_is_reported_and_the_rest_shown(tmp_path, run):
    fake_run(tmp_path, iterations=60)
    bad = tmp_path / "snapshots" / "000030.safetensors"
    content = bytearray(bad.read_bytes())
    content[-3] ^= 1
    bad.write_bytes(content)
    (tmp_path / "best" / "distilled.safetensors").write_bytes(b"short")
    page = write_report(tmp_path).read_text()
    words = Parsed(page).words
    assert "Could not be read" in words
    assert "000030.safetensors" in words
    assert "distilled.safetensors" in words
    assert len(Parsed(page).all("img")) == 10  # from last/
    assert json.loads(re.search(r'timeline-data">(.*?)</script>', page, re.S)[1])["iterations"] == [
        0,
        10,
        20,
        40,
        50,
        60,
    ]
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(FileFormatError, match=r"result\.json"):
        write_report(tmp_path)


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"not a run folder: .*; pass the out= of a distill"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="not a run folder"):
        write_report(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_missing_extra_says_what_to_install(run, tmp_path, monkeypatch, missing):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == missing:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    out = tmp_path / "page.html"
    if missing == "jinja2":
        with pytest.raises(MissingExtraError, match=r"report needs .*trajmatch\[report\]"):
            write_report(run, out)
        assert not out.exists()
    else:
        with pytest.raises(MissingExtraError, match=r"figure needs .*trajmatch\[report\]"):
            write_report(run, out)
        assert not out.exists()
        curve = Curve("loss", "Loss", (1,), (0.5,))
        with pytest.raises(MissingExtraError, match=r"trajmatch\[report\]"):
            curve.plot()
        assert curve.frame() == [{"iteration": 1, "loss": 0.5}]


CURVES = [
    Curve("loss", "Loss", (1, 2, 3, 4), (1.0, math.nan, 7.0, 0.7), skipped=(3,), noisy=True),
    Curve("one", "One point", (5,), (0.25,)),
    Curve("flat", "Flat", (1, 2), (0.0, 0.0), chosen=2),
    Curve("tiny", "Tiny", (0, 10), (1e-7, 3e-7)),
    Curve("val", "Val < & >", (1, 2), (50.0, 60.0), sd=(None, 1.5), n=2, unit=" %", chosen=1),
    ScorePlot.of(
        ("a<b $x$ \0 \ud800", "all"),
        [Score.from_json(one) for one in (score("mtt", 2.0, 1.0), score("full data", 99.0, None))],
        main=0,
    ),
]


def svg_of(figure) -> Element:
    return ElementTree.fromstring(figure.svg())


def texts(root: Element) -> list[str]:
    return [node.text for node in root.iter("text")]


def titles(root: Element, kind: str) -> list[str]:
    """What a pointer over the marks of a kind is shown."""
    return [g.find("title").text for g in root.iter("g") if g.get("class") == kind]


@pytest.mark.parametrize("figure", CURVES, ids=lambda f: f.name)
def test_every_figure_draws_its_frame(figure):
    rows = figure.frame()
    assert len(rows) == len(getattr(figure, "steps", None) or figure.samples)
    root = svg_of(figure)
    assert root.get("aria-label").startswith(figure.title)
    coordinates = [
        float(number)
        for element in root.iter()
        for name in ("d", "x", "y", "cx", "cy")
        for number in re.findall(r"-?[\d.]+", element.get(name) or "")
        if element.get("transform") is None
    ]
    assert coordinates
    assert all(0 <= number <= 360 for number in coordinates)
    assert "nan" not in figure.svg()
    assert figure.plot().axes[0].get_title(loc="left") == figure.title
    assert figure.summary().endswith(".")
    assert figure.svg() == figure.svg()


@pytest.mark.parametrize("figure", CURVES, ids=lambda f: f.name)
def test_a_figure_on_the_page_takes_its_colors_from_the_page(figure):
    """And has no ids, which two figures of a page could share, no fonts and no scripts."""
    root = svg_of(figure)
    assert {element.tag for element in root.iter()} <= {
        "svg", "g", "title", "path", "text", "circle",
    }  # fmt: skip
    assert not any("id" in element.attrib for element in root.iter())
    styles = " ".join(element.get("style", "") for element in root.iter())
    assert set(re.findall(r"var\((--\w+)\)", styles)) <= set(VARIABLES.values())
    assert "var(--soft)" in styles
    assert "#" not in styles
    assert "font-family" not in styles
    assert all("fill:var(--" in text.get("style") for text in root.iter("text"))


def test_a_figure_is_drawn_into_axes_of_a_notebook():
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas()
    one, two = canvas.subplots(1, 2)
    assert CURVES[4].plot(one) is canvas
    assert CURVES[5].plot(two) is canvas
    assert [text.get_text() for text in two.texts if "all" in text.get_text()] == ["all"]


def test_the_users_matplotlib_settings_change_no_page():
    import matplotlib

    plain = CURVES[4].svg()
    with matplotlib.rc_context({"axes.grid": True, "font.size": 30, "svg.fonttype": "path"}):
        assert CURVES[4].svg() == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_a_score_plot_says_its_numbers():
    plot = CURVES[5]
    assert [(row["method"], row["n"], row["mean"], row["sd"]) for row in plot.frame()] == [
        ("mtt", 5, 2.0, 1.0), ("experts", 5, 99.0, None),
    ]  # fmt: skip
    root = svg_of(plot)
    assert texts(root)[-4:] == [
        "a<b $x$ \N{REPLACEMENT CHARACTER} \N{REPLACEMENT CHARACTER}",
        "2.0\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}1.0", "all", "99.0",
    ]  # fmt: skip
    assert titles(root, "mean")[1].replace("\N{NO-BREAK SPACE}", " ") == "all 99.0 %, n = 5"
    (mean,) = (g for g in root.iter("g") if g.get("class") == "mean" and "all" in g[0].text)
    circle = mean.find("circle")
    assert float(circle.get("cx")) == pytest.approx(12 + 0.99 * 336, abs=0.1)
    long = ScorePlot(("network " * 20,), plot.samples[1:])
    assert texts(svg_of(long))[-2].endswith("…")


def test_curve_marks_skipped_and_chosen():
    loss = CURVES[0]
    assert loss.frame()[2] == {"iteration": 3, "loss": 7.0, "skipped": 1}
    assert titles(svg_of(loss), "skip") == ["update skipped at iteration 3"]
    assert loss.summary() == "From 1 to 0.7 at iteration 4; 1 update skipped, marked at the top."
    assert "chosen" not in texts(svg_of(loss))
    root = svg_of(CURVES[4])
    assert "chosen" in texts(root)
    assert titles(root, "dot")[1].replace("\N{NO-BREAK SPACE}", " ") == "iteration 2: 60.0 ± 1.5 %"
    best = CURVES[4].summary().replace("\N{NO-BREAK SPACE}", " ")
    assert best.startswith("60.0 ± 1.5 % at iteration 2, the best of 2 evaluations")
    assert Curve("x", "X", (1,), (math.inf,)).svg() == ""


def test_the_line_of_a_curve_goes_through_its_values():
    """A step of 1 is a quarter of the frame, from 46 to 348; values are linear between ticks."""
    root = svg_of(Curve("x", "X", (1, 2, 3, 4), (1.0, 2.0, 3.0, 4.0)))
    line = next(p for p in root.iter("path") if "stroke:var(--accent)" in p.get("style"))
    points = [tuple(map(float, pair.split())) for pair in line.get("d")[1:].split("L")]
    assert [x for x, _ in points] == pytest.approx([121.5, 197, 272.5, 348], abs=0.1)
    heights = [y for _, y in points]
    assert 20 < heights[-1] < heights[0] < 180
    assert heights[0] - heights[1] == pytest.approx(heights[2] - heights[3], abs=0.2)
    assert json.loads(root.get("data-points"))[3] == [4, "4"]
    assert root.get("data-x") == "0 4 46 348"


def test_csv_is_the_frame(run, page):
    links = [a for a in Parsed(page).all("a") if "download" in a]
    assert [a["download"] for a in links] == [
        "loss.csv", "step_size.csv", "validation.csv", "scores.csv"
    ]  # fmt: skip
    text = base64.b64decode(links[0]["href"].removeprefix("data:text/csv;base64,")).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    logged = [line for line in logged if "loss" in line]
    assert len(rows) == len(logged) == 300
    for row, line in zip(rows, logged, strict=True):
        assert int(row["iteration"]) == line["step"]
        assert float(row["loss"]) == pytest.approx(line["loss"], rel=1e-5)
        assert int(row["skipped"]) == line["skipped"]


def test_long_curves_are_thinned_and_say_so():
    steps = tuple(range(1, 100_001))
    values = tuple(1 / (1 + s / 1000) + 0.1 * math.sin(s) for s in steps)
    long = Curve("loss", "Loss", steps, values, noisy=True)
    rows, stride = long.thinned()
    assert stride == 40
    assert len(rows) == 2500
    assert len(long.frame()) == 100_000
    assert len(long.svg()) < 40_000
    assert "running median over 5001" in long.summary()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.44, 1.2, ["0.6", "0.8", "1.0", "1.2"]),
        (0.00999, 0.01085, ["0.0100", "0.0102", "0.0104", "0.0106", "0.0108"]),
        (79, 91, ["80", "85", "90"]),
        (0, 5000, ["0", "1,000", "2,000", "3,000", "4,000", "5,000"]),
        (1e-7, 3e-7, ["1.0e-07", "1.5e-07", "2.0e-07", "2.5e-07", "3.0e-07"]),
        (-4e6, 8e6, ["0", "5e+06"]),
    ],
)
def test_ticks_are_round_and_exact(low, high, expected):
    found = ticks(low, high)
    assert [text for _, text in found] == expected
    for value, text in found:
        assert float(text.replace(",", "")) == pytest.approx(value, abs=1e-9 * (high - low) + 1e-12)
        assert low - 1e-9 <= value <= high + 1e-9


def test_numbers_are_written_plainly():
    pairs = [
        (0.0, "0"), (0.0107, "0.0107"), (1297, "1,297"), (88.66, "88.7"), (0.5, "0.5"),
        (1e-6, "1.00e-6"), (99.96, "100"), (-0.25, "-0.25"), (math.nan, "not finite"),
    ]  # fmt: skip
    for value, text in pairs:
        assert number(value) == text


def test_gallery_shows_fewer_or_smaller_rather_than_more_bytes():
    pixels = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8)
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2])
    shown = gallery(pixels, labels, ("a", "b", "c"), budget=4 * 192)
    assert [(g.name, g.count, len(g.pictures)) for g in shown.groups] == [
        ("a", 6, 2), ("b", 0, 0), ("c", 6, 2)
    ]  # fmt: skip
    assert "first 2 of up to 6" in shown.note
    shown = gallery(pixels, labels, ("a", "b", "c"), budget=100)
    content = base64.b64decode(shown.groups[0].pictures[0].url.split(",")[1])
    assert Image.open(io.BytesIO(content)).size == (4, 4)
    assert "1/2 of their resolution" in shown.note
    assert shown.groups[0].pictures[0].alt == "a, 1 of 6"


def test_png_of_any_number_of_channels():
    for channels, mode in ((1, "L"), (2, "L"), (3, "RGB"), (4, "L")):
        picture = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
        image = Image.open(io.BytesIO(png(picture)))
        assert (image.mode, image.size) == (mode, (7, 5))
        if channels in (1, 3):
            found = torch.tensor(list(image.tobytes())).reshape(5, 7, channels)
            assert torch.equal(found.permute(2, 0, 1), picture.long())


def test_timeline_shrinks_large_pictures(tmp_path):
    labels = torch.arange(30) % 15
    for iteration in (0, 10, 20):
        save_tensors(
            tmp_path / f"{iteration:06d}.safetensors",
            {"images": torch.randint(0, 256, (30, 3, 96, 80), dtype=torch.uint8), "labels": labels},
            kind="snapshot", version=1, metadata={"iteration": iteration},
        )  # fmt: skip
    names = tuple(f"class {i}" for i in range(15))
    strip = timeline(tmp_path, names, limit=2, budget=30_000)
    assert [frame.iteration for frame in strip.frames] == [0, 20]
    assert strip.side == (40, 48)
    assert len(set(strip.names)) == len(strip.names) == 7
    assert "2 of 3 snapshots" in strip.note
    assert "1/2 of their resolution" in strip.note
    assert timeline(tmp_path / "none", names) is None


# -- what a score is of: chance, classes, the ceiling -------------------------------------------


@pytest.mark.parametrize(
    ("means", "sd", "chance", "end"),
    [
        ((0.8, 1.2), 0.1, 0.5, 1.5),
        ((0.2, 0.3), 0.1, 0.5, 1),
        ((1.2,), 0.9, 0.5, 3),  # 2.1 with its sd
        ((38.2, 40.0), 1.0, 10.0, 50),
        ((88.7, 68.0), 1.2, 10.0, 100),
        ((99.9,), 0.1, None, 100),
        ((30.0,), 1.0, 98.0, 100),
    ],
)
def test_the_axis_ends_above_what_is_drawn(means, sd, chance, end):
    samples = tuple(Sample(mean, sd, 5) for mean in means)
    plot = ScorePlot(("a", "b")[: len(means)], samples, chance=chance)
    assert plot.end == end
    dots = [float(g.find("circle").get("cx")) for g in svg_of(plot).iter("g")
            if g.get("class") == "mean"]  # fmt: skip
    assert dots == pytest.approx([12 + 336 * mean / end for mean in means], abs=0.1)
    words = [text.replace("\N{NO-BREAK SPACE}", " ") for text in texts(svg_of(plot))]
    assert f"{end:g} %" in [word.replace(".0 %", " %") for word in words]


def test_chance_is_a_line_through_every_score():
    plot = ScorePlot(("a", "b"), (Sample(0.8, 0.1, 5), Sample(1.2, 0.1, 5)), chance=0.5)
    root = svg_of(plot)
    lines = [g.find("path").get("d") for g in root.iter("g") if g.get("class") == "chance"]
    assert len(lines) == 2
    assert {float(line[1:].split()[0]) for line in lines} == {round(12 + 336 * 0.5 / 1.5, 1)}
    assert "chance 0.5\N{NO-BREAK SPACE}%" in texts(root)
    assert plot.summary().endswith("; chance 0.5\N{NO-BREAK SPACE}%.")
    assert "chance" not in ScorePlot(("a",), (Sample(0.8, 0.1, 5),)).svg()


def test_a_page_draws_chance_of_its_classes(page):
    assert "chance 10 %" in Parsed(page).words


def class_score(method: str, mean: float, *, tests=(), per_class=(), **more) -> dict:
    balanced = statistics.fmean(value for value in per_class if value is not None)
    known = {"balanced": balanced, "balanced_sd": 1.0, "tests": tests, "per_class": per_class}
    return score(method, mean, 0.5, **{**known, **more})


def test_a_page_of_imbalanced_classes_says_so(tmp_path):
    names = ("healthy", "rare", "never tested")
    tests = {"tests": [200, 4, 0]}
    fake_run(
        tmp_path, classes=names, side=9, iterations=12,
        scores=[
            class_score("mtt", 97.0, per_class=[99.0, 25.0, None], **tests),
            class_score("herding", 90.0, per_class=[90.0, 75.0, None], **tests),
        ],
    )  # fmt: skip
    result = json.loads((tmp_path / "result.json").read_text())
    result["data"]["counts"] = {"train": [1000, 21, 300], "test": [200, 4, 0]}
    (tmp_path / "result.json").write_text(json.dumps(result))
    page = write_report(tmp_path).read_text()
    words = Parsed(page).words
    for text in (
        "Test images of 2 of 3 classes.",
        "Largest class 98.0 % of the test images.",
        "Balanced accuracy 62.0 ± 1.0.",
        "Imbalanced classes: 1,000 training images of healthy and 21 of rare.",
        "always the largest class 98 %",
        "Balanced accuracy, the mean over the classes, is 62.0 ± 1.0 %. Lowest: rare, 25.0 %; "
        "highest: healthy, 99.0 %. 1 of 3 classes have no images to test on.",
        "healthy 99.0 rare 25.0 never tested –",
        "7.0 ± 0.7 points above herding.",
    ):
        assert text in words, text
    table = page[page.index('class="scores"') :].replace("\N{NO-BREAK SPACE}", " ")
    assert re.findall(r'data-label="balanced">(.*?)<', table) == ["82.5 ± 1.0", "62.0 ± 1.0"]
    (link,) = re.findall(r'download="classes.csv" href="(.*?)"', page)
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(link.partition(",")[2]).decode())))
    model = "ConvNet-D2 width 32 instance"
    shares = {f"mtt, {model}": "25", f"herding, {model}": "75"}
    assert rows[1] == {"class": "rare", "tests": "4", "train": "21", **shares}


def test_a_page_of_balanced_classes_is_as_ever(page):
    words = Parsed(page).words
    for text in ("By class", "Balanced", "alanced accuracy", "largest class"):
        assert text not in words


def test_of_many_classes_the_lowest_and_the_highest_are_shown():
    rows = tuple(ClassRow(f"c{k}", k / 3, 5) for k in range(300))
    many, few = ClassTable(rows, "", ()), ClassTable(rows[:20], "", ())
    assert [row.name for row in many.shown] == [f"c{k}" for k in (*range(100), *range(200, 300))]
    assert many.summary().endswith("The 100 lowest and the 100 highest are shown.")
    assert (few.shown, few.is_open, many.is_open) == (rows[:20], True, False)


def test_a_ceiling_found_later_is_what_shares_are_of(tmp_path):
    fake_run(tmp_path)
    distilled = SyntheticSet.load(tmp_path / "best")
    for name, percents in (("evaluated", (99.5,)), ("more", (99.0, 99.2))):
        found = score("ceiling", statistics.fmean(percents), 0.1, len(percents), ipc=None)
        write_result(
            tmp_path / name, command="evaluate", settings={}, seed=0, scores=[found], data=None,
            seconds=1.0, extra={"set": {"fingerprint": distilled.fingerprint}},
        )  # fmt: skip
    words = Parsed(write_report(tmp_path).read_text()).words
    assert (
        "networks trained to the end on all 1,293 training images reach 99.1 ± 0.1 % (n = 2)"
        in (words)
    )
    assert "So 0.77 % of the images carry 90 % of that accuracy." in words
    assert "Trained on all training images: test accuracy in percent" in words


def test_the_first_words_say_how_much_of_the_pictures_is_clipped(tmp_path):
    fake_run(tmp_path, iterations=12)
    distilled = SyntheticSet.load(tmp_path / "best")
    shade = 255 * (distilled.images * 0.3 + 0.4)
    share = ((shade < -0.5) | (shade > 255.5)).float().mean().item()
    assert 0.05 < share < 0.5
    words = Parsed(write_report(tmp_path).read_text()).words
    assert f"{number(100 * share, 2)} % of the pictures’ pixel values had to be clipped" in words


def test_a_long_class_name_is_clamped_and_found_whole(tmp_path):
    names = ("a_very_long_name_" * 12, "b")
    fake_run(tmp_path, classes=names, side=9, iterations=12)
    parsed = Parsed(page := write_report(tmp_path).read_text())
    clamped = [a["title"] for a in parsed.all("span") if a.get("class") == "clamp"]
    assert clamped == [*names, *names]  # below the images and below the slider
    assert "-webkit-line-clamp: 2" in page
