"""A set as a data set folder for the Hugging Face hub.

The folder is a set as `SyntheticSet.save` writes it, with a card (README.md) by which
`datasets.load_dataset(folder)` reads images/<class>/*.png. It holds the exact set with whitening
and step size as well, and `trajmatch.load_distilled(folder)` loads it.
"""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trajmatch.networks import NetworkSpec
from trajmatch.synthetic.folder import WHITENING
from trajmatch.synthetic.formats.pictures import clipped_shares
from trajmatch.synthetic.formats.portable import portable
from trajmatch.synthetic.formats.publish import publish
from trajmatch.synthetic.pictures import folder_names
from trajmatch.synthetic.set import SyntheticSet

CARD = "README.md"

_TEXTURES = "Textures"


def write_hub(
    distilled: SyntheticSet, out: Path, *, title: str = "", accuracy: str = ""
) -> dict[str, Any]:
    """Write the set and its card. Raises DataError when `out` has a card and a set already.

    A compact whitening is written in full, so that the code on the card can apply it.
    """
    distilled = dataclasses.replace(portable(distilled), whitening=distilled.whitening.full())
    textures = [] if distilled.canvases is None else ["textures"]
    names = [CARD, "distilled.json", "distilled.safetensors", "images", *textures]

    def write(folder: Path) -> None:
        distilled.save(folder)
        text = card(distilled, title=title, accuracy=accuracy)
        (folder / CARD).write_text(text, encoding="utf-8")

    publish(out, [*names, WHITENING], write)
    return {"files": names}


def card(distilled: SyntheticSet, *, title: str = "", accuracy: str = "") -> str:
    """The data set's card in Markdown: facts, accuracy and use, below the hub's YAML.

    accuracy: on test images, as `str(score)` gives it.
    """
    facts = "\n".join(
        f"| {name} | {text if name == _TEXTURES else escaped(text)} |"
        for name, text in _facts(distilled, accuracy)
    )
    title = title or f"distilled {_data_name(distilled)}"
    lost = 100 * float(clipped_shares(distilled).max())
    names, count = folder_names(distilled.classes), len(distilled)
    folders = _some(sorted({names[label] for label in distilled.hard_labels.tolist()}))
    return f"""---
pretty_name: {json.dumps(title, ensure_ascii=False)}
license: other
task_categories:
- image-classification
size_categories:
- {_size_category(len(distilled))}
tags:
- dataset-distillation
configs:
- config_name: default
  data_files:
  - split: train
    path: images/**
---

# {escaped(title)}

{count} images that stand for a whole training set: networks are trained on them alone. They
derive from the data named below, and so does their license.

| | |
|---|---|
{facts}

## Use

The pictures in `images/` are for looking: 8 bits cut off {lost:.1f} % of the values of the one
that lost most. Train on the tensors, with plain SGD at the step size:

```python
{_snippet(distilled)}
```

`trajmatch.load_distilled(folder)` gives all this as one data set. `datasets.load_dataset(...)`
reads the pictures, and numbers its labels by the folders in alphabetical order: {escaped(folders)}.
"""


def escaped(text: str) -> str:
    """Text that Markdown, its tables and HTML show as it is, on one line.

    Examples:
        >>> print(escaped("a|b <img src=x> [c](d)"))
        a\\|b &lt;img src=x&gt; \\[c\\](d)
    """
    line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", line)


def _facts(distilled: SyntheticSet, accuracy: str) -> list[tuple[str, str]]:
    """Rows of the card's table."""
    shape = "x".join(map(str, distilled.images.shape[1:]))
    network = distilled.info.get("network")
    step = "none" if distilled.step_size is None else f"{distilled.step_size:.6g}"
    labels = "probabilities, learned" if distilled.is_soft else "class indices"
    textures = []
    if distilled.canvases is not None:
        canvas = "x".join(map(str, distilled.canvases.shape[1:]))
        words = (
            f"{len(distilled.canvases)} canvases of {canvas} that wrap around: `textures/<class>/`"
        )
        textures = [(_TEXTURES, words)]
    return [
        ("Data", _data_name(distilled)),
        ("Images", f"{len(distilled)} of {shape}, {distilled.ipc_words} per class"),
        *textures,
        ("Classes", _some(distilled.classes)),
        ("Labels", labels),
        ("Made by", str(distilled.info.get("method", "not recorded"))),
        ("Network", NetworkSpec.from_json(network).describe() if network else "not recorded"),
        ("Test accuracy %", accuracy or "not recorded"),
        ("Step size", step),
        ("Whitening", distilled.whitening.name),
    ]


def _snippet(distilled: SyntheticSet) -> str:
    """Code that loads the set with torch and safetensors only."""
    if distilled.whitening.name == "normalize":
        whiten = '(pictures - white["mean"].view(-1, 1, 1)) / white["std"].view(-1, 1, 1)'
    else:
        whiten = '((pictures.flatten(1) - white["mean"]) @ white["matrix"]).view_as(pictures)'
    shape = ", ".join(map(str, distilled.images.shape[1:]))
    step = "" if distilled.step_size is None else ', distilled["step_size"]'
    return f"""from huggingface_hub import snapshot_download
from safetensors.torch import load_file

folder = snapshot_download("NAME/OF-THIS-SET", repo_type="dataset")
distilled = load_file(f"{{folder}}/distilled.safetensors")
distilled["images"], distilled["labels"]{step}  # train on them as they are

white = load_file(f"{{folder}}/whitening.safetensors")
def whiten(pictures):  # [n, {shape}] in [0, 1], to be predicted
    return {whiten}"""


def _data_name(distilled: SyntheticSet) -> str:
    return str(distilled.info.get("data", {}).get("name", "images"))


def _size_category(count: int) -> str:
    """The hub's category for a number of rows."""
    for limit, words in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K")):
        if count < limit:
            return words
    return "100K<n<1M"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f", ... ({len(names)})" if len(names) > 20 else "")
