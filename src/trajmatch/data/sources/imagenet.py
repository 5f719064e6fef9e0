"""ImageNet (ILSVRC 2012) and ten-class parts of it, at any resolution.

The parts are those on which dataset distillation is compared (Cazenavette et al. 2022): classes by
their number in ImageNet-1k, in the published order. They are read from the whole ImageNet, or from
any folder or .zip that holds their classes, such as fast.ai's imagenette2 and imagewoof2.

    train/<class>/<picture>   val/<class>/<picture>

val/ is the TEST split; a test/ is ignored, as ImageNet's has no labels. Where val/ has no class
folders, the classes come from LOC_val_solution.csv, which lies beside ILSVRC/ in Kaggle's download.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from trajmatch.data.dataset import ImageDataset
from trajmatch.data.sources.classes import choose
from trajmatch.data.sources.folder import (
    base_of,
    cache_place,
    class_folders,
    decode_splits,
    listed,
    pictures,
)
from trajmatch.data.sources.source import Request, Source
from trajmatch.data.sources.tree import Listed, Tree, open_tree
from trajmatch.errors import DataError

SIZE = 128
"""Default side in pixels: that of the published tables."""

NOTE = "val/ is the test split, as test pictures have no labels; validation is cut from train/"

_SUBSETS = {
    "imagenette": (0, 217, 482, 491, 497, 566, 569, 571, 574, 701),
    "imagewoof": (193, 182, 258, 162, 155, 167, 159, 273, 207, 229),
    "imagefruit": (953, 954, 949, 950, 951, 957, 952, 945, 943, 948),
    "imageyellow": (309, 986, 954, 951, 987, 779, 599, 291, 72, 11),
    "imagemeow": (281, 282, 283, 284, 285, 291, 292, 290, 289, 287),
    "imagesquawk": (84, 130, 88, 144, 145, 22, 96, 9, 100, 89),
}
# Number in ImageNet-1k (position among all 1000 folders, sorted), folder, readable name.
_CLASSES = {
    0: ("n01440764", "tench"),
    9: ("n01518878", "ostrich"),
    11: ("n01531178", "goldfinch"),
    22: ("n01614925", "bald eagle"),
    72: ("n01773157", "black and gold garden spider"),
    84: ("n01806143", "peacock"),
    88: ("n01818515", "macaw"),
    89: ("n01819313", "sulphur-crested cockatoo"),
    96: ("n01843383", "toucan"),
    100: ("n01860187", "black swan"),
    130: ("n02007558", "flamingo"),
    144: ("n02051845", "pelican"),
    145: ("n02056570", "king penguin"),
    155: ("n02086240", "Shih-Tzu"),
    159: ("n02087394", "Rhodesian ridgeback"),
    162: ("n02088364", "beagle"),
    167: ("n02089973", "English foxhound"),
    182: ("n02093754", "Border terrier"),
    193: ("n02096294", "Australian terrier"),
    207: ("n02099601", "golden retriever"),
    217: ("n02102040", "English springer"),
    229: ("n02105641", "Old English sheepdog"),
    258: ("n02111889", "Samoyed"),
    273: ("n02115641", "dingo"),
    281: ("n02123045", "tabby"),
    282: ("n02123159", "tiger cat"),
    283: ("n02123394", "Persian cat"),
    284: ("n02123597", "Siamese cat"),
    285: ("n02124075", "Egyptian cat"),
    287: ("n02127052", "lynx"),
    289: ("n02128757", "snow leopard"),
    290: ("n02128925", "jaguar"),
    291: ("n02129165", "lion"),
    292: ("n02129604", "tiger"),
    309: ("n02206856", "bee"),
    482: ("n02979186", "cassette player"),
    491: ("n03000684", "chain saw"),
    497: ("n03028079", "church"),
    566: ("n03394916", "French horn"),
    569: ("n03417042", "garbage truck"),
    571: ("n03425413", "gas pump"),
    574: ("n03445777", "golf ball"),
    599: ("n03530642", "honeycomb"),
    701: ("n03888257", "parachute"),
    779: ("n04146614", "school bus"),
    943: ("n07718472", "cucumber"),
    945: ("n07720875", "bell pepper"),
    948: ("n07742313", "Granny Smith"),
    949: ("n07745940", "strawberry"),
    950: ("n07747607", "orange"),
    951: ("n07749582", "lemon"),
    952: ("n07753113", "fig"),
    953: ("n07753275", "pineapple"),
    954: ("n07753592", "banana"),
    957: ("n07768694", "pomegranate"),
    986: ("n12057211", "yellow lady's slipper"),
    987: ("n12144580", "corn"),
}

_COMPLETE = ("imagenet", "ILSVRC/Data/CLS-LOC", "imagenet/ILSVRC/Data/CLS-LOC")
_GET = "get the training and validation pictures of ILSVRC 2012 (https://image-net.org) and unpack"
_FASTAI_PAGE = "https://github.com/fastai/imagenette"
_GET_FASTAI = f"download one of them from {_FASTAI_PAGE} and unpack it"
_PACKED = (".zip", ".tgz")
_VAL_CLASSES = "LOC_val_solution.csv"
_FASTAI_SUBSETS = ("imagenette", "imagewoof")
_FASTAI_SPLIT = "; the split is fast.ai's: part of ImageNet's validation pictures are trained on"


def _load_subset(name: str, request: Request) -> ImageDataset:
    """The published ten classes, from the first folder or .zip that has them."""
    get = f"{_GET} them, or give a folder or .zip of the ten classes"
    own: tuple[str, ...] = (name, *(f"{name}{ending}" for ending in _PACKED))
    if name in _FASTAI_SUBSETS:
        get += f", such as fast.ai's in its own split ({_FASTAI_PAGE})"
        own += _fastai(name)
    path = _find(name, (*_COMPLETE, *own, ""), get, request)
    return _load_ten(name, name, path, request)


def _load_fastai(name: str, request: Request) -> ImageDataset:
    """fast.ai's folder of the ten classes, which splits them in its own way."""
    subset = name.removesuffix("2")
    path = _find(name, (*_fastai(subset), ""), _GET_FASTAI, request)
    return _load_ten(name, subset, path, request)


def _load_ten(name: str, subset: str, path: Path, request: Request) -> ImageDataset:
    if request.classes is not None:
        raise DataError(
            f"{name} has its own ten classes; leave --classes out, or choose from all of ImageNet "
            "with --data=imagenet"
        )
    classes = [_CLASSES[number][0] for number in _SUBSETS[subset]]
    return _load(name, path, classes, request)


def _load_imagenet(request: Request) -> ImageDataset:
    """All classes of the folder, or those that `classes` names by folder or by number."""
    path = _find("imagenet", (*_COMPLETE, ""), f"{_GET} them", request)
    return _load("imagenet", path, request.classes, request)


def _load(name: str, path: Path, wanted: Sequence[str] | None, request: Request) -> ImageDataset:
    with open_tree(path) as tree:
        base = base_of(tree)
        found = class_folders(tree, f"{base}train/")
        where = f"{base}train/ of {path}"
        chosen = choose(found, wanted and [_folder(word, found, where) for word in wanted], where)
        splits = {
            "train": pictures(tree, f"{base}train/", chosen, exactly=True),
            "test": _validation(tree, base, chosen),
        }
        request = replace(request, size=request.size or SIZE)
        place = cache_place(tree, splits, request)
        mixed = any("/ILSVRC2012_val_" in file for file in splits["train"].names)
        note = NOTE + (_FASTAI_SPLIT if mixed else "")
        return decode_splits(name, splits, _readable(chosen), tree.read, request, place, note)


def _find(name: str, places: tuple[str, ...], get: str, request: Request) -> Path:
    """The first of `places` ("": the root itself) that contains train/ or is an archive."""
    files = tuple(p if p.endswith(_PACKED) else f"{p}/train".lstrip("/") for p in places)
    path = request.find(name, files, get)
    return path if path.is_file() else path.parent


def _fastai(subset: str) -> tuple[str, ...]:
    folders = (f"{subset}2", f"{subset}2-320", f"{subset}2-160")
    return (*folders, *(f"{folder}{ending}" for folder in folders for ending in _PACKED))


def _folder(word: str, found: list[str], where: str) -> str:
    """The class folder for a name or for a number, its position among all 1000."""
    if word in found or not word.isdecimal():
        return word
    if len(found) != 1000:
        raise DataError(
            f"class {word} is a number, which names a class only where all 1000 are, and {where} "
            f"has {len(found):,}; give names of folders, such as {found[0]}"
        )
    if int(word) >= 1000:
        raise DataError(f"there is no class {word} in ImageNet; give numbers in 0..999")
    return found[int(word)]


def _validation(tree: Tree, base: str, classes: tuple[str, ...]) -> Listed:
    """The pictures of val/, by class folders or by the table of their classes."""
    val = f"{base}val/"
    if "val" not in tree.folders(base):
        raise DataError(f"{tree.path} has no {val} to test on; add ImageNet's validation pictures")
    if tree.folders(val):
        return pictures(tree, val, classes, exactly=True)
    above = (tree.path / base, *list((tree.path / base).absolute().parents)[:3])
    table = next((p / _VAL_CLASSES for p in above if (p / _VAL_CLASSES).is_file()), None)
    if table is None:
        raise DataError(
            f"{val} of {tree.path} holds no class folders; sort its pictures into {val}<class>/, "
            f"or put {_VAL_CLASSES} beside it"
        )
    # ILSVRC2012_val_00000001,n03995372 85 1 499 272 ...: all boxes of a picture have one class.
    rows = (
        line.partition(",")
        for line in table.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    )
    files = ((f"{val}{picture}.JPEG", boxes.split(" ")[0]) for picture, _, boxes in rows)
    return by_table(files, classes, str(table))


def by_table(files: Iterable[tuple[str, str]], classes: tuple[str, ...], table: str) -> Listed:
    """The pictures of `classes` among (picture, class); table: the file they come from, for
    messages."""
    found: dict[str, list[str]] = {name: [] for name in classes}
    for file, name in files:
        if name in found:
            found[name].append(file)
    missing = [name for name, pictures in found.items() if not pictures]
    if missing:
        raise DataError(f"{table} has no pictures of class {missing[0]}; get that file anew")
    return listed(found, classes)


def _readable(folders: tuple[str, ...]) -> tuple[str, ...]:
    """Readable names if all classes have one here, else the folders: never a mixture."""
    names = dict(_CLASSES.values())
    return tuple(names[f] for f in folders) if names.keys() >= set(folders) else folders


_ABOUT = {
    "imagenette": "10 easy classes of ImageNet",
    "imagewoof": "10 dogs of ImageNet",
    "imagefruit": "10 fruits of ImageNet",
    "imageyellow": "10 yellow things of ImageNet",
    "imagemeow": "10 cats of ImageNet",
    "imagesquawk": "10 birds of ImageNet",
}

IMAGENET = {
    "imagenet": Source(
        _load_imagenet, "all of ImageNet, or the classes chosen", reads_classes=True
    ),
    **{
        name: Source(partial(_load_subset, name), about, reads_classes=True)
        for name, about in _ABOUT.items()
    },
    **{
        f"{name}2": Source(
            partial(_load_fastai, f"{name}2"),
            f"fast.ai's {name.capitalize()} in its own split",
            reads_classes=True,
        )
        for name in _FASTAI_SUBSETS
    },
}
"""By name. Pictures are 128 x 128 unless another size is given."""
