"""A set as a data set folder for the Hugging Face hub.

The folder is a set as `SyntheticSet.save` writes it, with a card (README.md) that tells
`datasets.load_dataset(folder)` to read images/<class>/*.png. So the exact set, its whitening and
its step size travel with the pictures, and `trajmatch.load_distilled(folder)` gives it back.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trajmatch.networks import NetworkSpec
from trajmatch.storage.files import atomic_write
from trajmatch.synthetic.formats.pictures import clipped_shares
from trajmatch.synthetic.formats.released import require_absent
from trajmatch.synthetic.pictures import folder_names
from trajmatch.synthetic.set import SyntheticSet

CARD = "README.md"


def write_hub(
    made: SyntheticSet, out: Path, *, title: str = "", accuracy: str = ""
) -> dict[str, Any]:
    """The set and its card; DataError when `out` has a card or a set already.

    A compact whitening is written out in full, so that the card's lines can apply it.
    """
    require_absent(out, [CARD, "distilled.json"])
    made = dataclasses.replace(made, whitening=made.whitening.full())
    made.save(out)
    with atomic_write(out / CARD) as partial:
        partial.write_text(card(made, title=title, accuracy=accuracy), encoding="utf-8")
    textures = [] if made.canvases is None else ["textures"]
    return {"files": [CARD, "distilled.json", "distilled.safetensors", "images", *textures]}


def card(made: SyntheticSet, *, title: str = "", accuracy: str = "") -> str:
    """The data set's card: what it is, how good, and how to use it, with the hub's YAML on top.

    accuracy: on test images in percent, with n, sd and protocol, as `str` of a Score tells it.
    """
    facts = "\n".join(f"| {name} | {text} |" for name, text in _facts(made, accuracy))
    title = title or f"distilled {_data_name(made)}"
    lost = 100 * float(clipped_shares(made).max())
    names = folder_names(made.classes)
    folders = _some(sorted({names[label] for label in made.hard_labels.tolist()}))
    return f"""---
pretty_name: {json.dumps(title, ensure_ascii=False)}
license: other
task_categories:
- image-classification
size_categories:
- {_size_category(len(made))}
tags:
- dataset-distillation
configs:
- config_name: default
  data_files:
  - split: train
    path: images/**
---

# {title}

{len(made)} images that stand for a whole training set: networks are trained on them alone. They
derive from the data named below, and so does their license.

| | |
|---|---|
{facts}

## Use

The pictures in `images/` are for looking: 8 bits cut off {lost:.1f} % of the values of the one
that lost most. Train on the tensors, with plain SGD at the step size:

```python
{_snippet(made)}
```

`trajmatch.load_distilled(folder)` gives all this as one data set. `datasets.load_dataset(...)`
reads the pictures, and numbers its labels by the folders in alphabetical order: {folders}.
"""


def _facts(made: SyntheticSet, accuracy: str) -> list[tuple[str, str]]:
    """Rows of the card's table."""
    shape = "x".join(map(str, made.images.shape[1:]))
    network = made.info.get("network")
    step = "none" if made.step_size is None else f"{made.step_size:.6g}"
    labels = "probabilities, learned" if made.is_soft else "class indices"
    textures = []
    if made.canvases is not None:
        canvas = "x".join(map(str, made.canvases.shape[1:]))
        words = f"{len(made.canvases)} canvases of {canvas} that wrap around: `textures/<class>/`"
        textures = [("Textures", words)]
    return [
        ("Data", _data_name(made)),
        ("Images", f"{len(made)} of {shape}, {made.ipc} per class"),
        *textures,
        ("Classes", _some(made.classes)),
        ("Labels", labels),
        ("Made by", str(made.info.get("method", "not recorded"))),
        ("Network", NetworkSpec.from_json(network).describe() if network else "not recorded"),
        ("Test accuracy %", accuracy or "not recorded"),
        ("Step size", step),
        ("Whitening", made.whitening.name),
    ]


def _snippet(made: SyntheticSet) -> str:
    """Ten lines that need torch and safetensors only."""
    if made.whitening.name == "normalize":
        whiten = '(pictures - white["mean"].view(-1, 1, 1)) / white["std"].view(-1, 1, 1)'
    else:
        whiten = '((pictures.flatten(1) - white["mean"]) @ white["matrix"]).view_as(pictures)'
    shape = ", ".join(map(str, made.images.shape[1:]))
    step = "" if made.step_size is None else ', small["step_size"]'
    return f"""from huggingface_hub import snapshot_download
from safetensors.torch import load_file

folder = snapshot_download("NAME/OF-THIS-SET", repo_type="dataset")
small = load_file(f"{{folder}}/distilled.safetensors")
small["images"], small["labels"]{step}  # train on them as they are

white = load_file(f"{{folder}}/whitening.safetensors")
def whiten(pictures):  # [n, {shape}] in [0, 1], to be predicted
    return {whiten}"""


def _data_name(made: SyntheticSet) -> str:
    return str(made.info.get("data", {}).get("name", "images"))


def _size_category(count: int) -> str:
    """The hub's words for how many rows there are."""
    for limit, words in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K")):
        if count < limit:
            return words
    return "100K<n<1M"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f", ... ({len(names)})" if len(names) > 20 else "")
