"""The page in a headless Chromium: what its script does, and what it never does."""

from __future__ import annotations

import html
import json
import re
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from test_report import HOSTILE, fake_run

from trajmatch.report import write_report

pytestmark = pytest.mark.browser

_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


def chromium(page: Path, tmp_path: Path, *flags: str) -> str:
    """The document as text after its scripts ran; skips where there is no Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(names)} is installed")
    command = [
        found, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000",
        "--window-size=1280,1000", *flags, "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def act(page: Path, tmp_path: Path, script: str, *flags: str) -> dict:
    """What `script` (the body of an async function) returns in a copy without the policy."""
    driver = f"""<script>
      const wait = (ms) => new Promise((go) => setTimeout(go, ms));
      const at = (id) => document.getElementById(id);
      const acted = (async () => {{ {script} }})();
      acted.catch((error) => ({{ error: String(error) }})).then((found) => {{
        const result = document.createElement("pre");
        result.id = "result";
        result.textContent = JSON.stringify(found);
        document.body.append(result);
      }});
    </script>"""
    text, count = _POLICY.subn("", page.read_text(encoding="utf-8"))
    assert count == 1
    copy = tmp_path / "driven.html"
    copy.write_text(text.replace("</body>", driver + "</body>"), encoding="utf-8")
    dom = chromium(copy, tmp_path, *flags)
    found = json.loads(html.unescape(re.search(r'<pre id="result">(.*?)</pre>', dom, re.S)[1]))
    assert "error" not in found, found
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    return write_report(fake_run(tmp_path_factory.mktemp("run")))


def test_page_runs_under_its_own_policy(page, tmp_path):
    dom = chromium(page, tmp_path)
    assert 'id="player"' in dom
    assert not re.search(r'id="player"[^>]*hidden', dom)
    assert 'data-painted="6"' in dom  # the last of seven snapshots is on the canvases
    assert re.search(r'<output id="iteration"[^>]*>iteration 300</output>', dom)


def test_slider_moves_images_and_charts(page, tmp_path):
    script = """
      const pixels = () => [...document.querySelectorAll("#stage canvas")].map((canvas) =>
        [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data].join());
      await wait(300);
      const before = pixels();
      at("slider").value = 2;
      at("slider").dispatchEvent(new Event("input"));
      await wait(300);
      const after = pixels();
      return {
        changed: before.filter((text, i) => text !== after[i]).length,
        blank: after.filter((text) => !/[1-9]/.test(text.replaceAll(",255", ""))).length,
        label: at("iteration").textContent,
        spoken: at("slider").getAttribute("aria-valuetext"),
        readouts: [...document.querySelectorAll(".readout")].map((e) => e.textContent),
        cursors: [...document.querySelectorAll(".cursor")].map((e) => e.getAttribute("visibility")),
      };
    """
    found = act(page, tmp_path, script)
    assert found["changed"] == 10
    assert found["blank"] == 0
    assert found["label"] == found["spoken"] == "iteration 100"
    assert found["cursors"] == ["visible"] * 3
    assert all(text.endswith("at iteration 100") for text in found["readouts"])
    assert re.match(r"\d\d\.\d\s±\s\d\.\d\s% at", found["readouts"][2])


def test_play_runs_to_the_end_and_pauses(page, tmp_path):
    script = """
      at("play").click();
      const started = [at("play").textContent, at("iteration").textContent];
      await wait(1000);
      at("play").click();
      const paused = Number(at("slider").value);
      await wait(1500);
      const still = Number(at("slider").value);
      at("play").click();
      await wait(4000);
      const end = Number(at("slider").value);
      return { started, paused, still, end, label: at("play").textContent };
    """
    found = act(page, tmp_path, script)
    assert found["started"] == ["Pause", "iteration 0"]
    assert 0 < found["paused"] == found["still"] < 6
    assert found["end"] == 6
    assert found["label"] == "Play"


def test_class_filter_and_show_all(tmp_path):
    names = (*(f"kind {i}" for i in range(17)), "Löwe")
    run = fake_run(tmp_path / "run", classes=names, ipc=2, iterations=12, side=9)
    script = """
      const seen = () => [...document.querySelectorAll("[data-class]")]
        .filter((group) => group.getClientRects().length).map((group) => group.dataset.class);
      const first = seen().length;
      at("filter").value = "löw";
      at("filter").dispatchEvent(new Event("input"));
      const some = seen(), said = at("matches").textContent;
      at("filter").value = "";
      at("filter").dispatchEvent(new Event("input"));
      return { first, some, said, all: seen().length };
    """
    found = act(write_report(run), tmp_path, script)
    assert found == {"first": 12, "some": ["Löwe"], "said": "1 of 18 classes", "all": 18}


@pytest.mark.parametrize("width", [390, 768])
def test_nothing_is_wider_than_the_screen(tmp_path, width):
    """Measured in a frame: a headless window itself is never narrower than some 500 pixels."""
    names = (HOSTILE, "Averyveryverylongclassnamewithoutanyspaceinit" * 2, "c", "d")
    run = fake_run(tmp_path / "run", classes=names, ipc=8, channels=3, side=32, iterations=12)
    page = _POLICY.sub("", write_report(run).read_text(encoding="utf-8"))
    harness = tmp_path / "harness.html"
    harness.write_text(
        f'<body><iframe style="width:{width}px;height:800px;border:0" '
        f'srcdoc="{html.escape(page)}"></iframe><script>onload = () => {{'
        "const inner = document.querySelector('iframe').contentDocument.documentElement;"
        "document.body.dataset.found = `${inner.scrollWidth} ${inner.scrollHeight}`; };</script>",
        encoding="utf-8",
    )
    dom = chromium(harness, tmp_path, "--hide-scrollbars")
    found = re.search(r'data-found="(\d+) (\d+)"', dom)
    assert int(found[1]) == width
    assert int(found[2]) > 2000


def test_dark_and_light_follow_the_system(page, tmp_path):
    script = "return { ground: getComputedStyle(document.body).backgroundColor };"
    light = act(page, tmp_path, script, "--blink-settings=preferredColorScheme=1")
    dark = act(page, tmp_path, script, "--blink-settings=preferredColorScheme=0")
    assert light["ground"] == "rgb(255, 255, 255)"
    assert dark["ground"] == "rgb(16, 20, 23)"


def test_policy_stops_foreign_scripts_and_every_request(page, tmp_path):
    """Even were something smuggled in, it would neither run nor call out."""
    heard: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{server.getsockname()[1]}"

    def listen() -> None:
        try:
            while True:
                connection, _ = server.accept()
                heard.append(connection.recv(100))
                connection.close()
        except OSError:
            return

    threading.Thread(target=listen, daemon=True).start()
    smuggled = (
        f'<script>document.title = "smuggled"</script><img src="{address}/a.png" '
        f'onerror="document.title = 1"><link rel="stylesheet" href="{address}/b.css">'
    )
    bad = tmp_path / "bad.html"
    text = page.read_text(encoding="utf-8")
    bad.write_text(text.replace("</body>", smuggled + "</body>"), encoding="utf-8")
    assert "<title>digits, 1 image per class · trajmatch</title>" in chromium(bad, tmp_path)
    assert heard == []
    bad.write_text(_POLICY.sub("", bad.read_text(encoding="utf-8")), encoding="utf-8")
    assert "<title>digits" not in chromium(bad, tmp_path)  # the check itself can fail
    assert heard
    server.close()
