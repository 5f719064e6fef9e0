"""The data sets that can be loaded by name."""

from __future__ import annotations

from typing import Any

from trajmatch.data.sources.cifar import load_cifar10, load_cifar100
from trajmatch.data.sources.digits import load_digits
from trajmatch.data.sources.imagenet import IMAGENET
from trajmatch.data.sources.mnist import load_fashion_mnist, load_mnist
from trajmatch.data.sources.source import Source
from trajmatch.data.sources.svhn import load_svhn
from trajmatch.data.sources.tiny_imagenet import load_tiny_imagenet
from trajmatch.plugins import Registry


def _is_source(entry: Any) -> bool:
    return isinstance(entry, Source)


SOURCES: Registry[Source] = Registry(
    "data source",
    "trajmatch.sources",
    _is_source,
    {
        "digits": Source(
            load_digits, "1,797 handwritten digits of 8x8, in scikit-learn: no files needed"
        ),
        "cifar10": Source(
            load_cifar10,
            "10 classes, 32x32; from cifar-10-batches-py/, cifar-10-batches-bin/ or their .tar.gz",
        ),
        "cifar100": Source(
            load_cifar100,
            "100 classes, 32x32; from cifar-100-python/, cifar-100-binary/ or their .tar.gz",
        ),
        "svhn": Source(
            load_svhn, "digits of house numbers, 32x32; from train_32x32.mat and test_32x32.mat"
        ),
        "mnist": Source(load_mnist, "handwritten digits, 28x28; from MNIST/raw/ or mnist/"),
        "fashion-mnist": Source(
            load_fashion_mnist,
            "10 kinds of clothing, 28x28; from FashionMNIST/raw/ or fashion-mnist/",
        ),
        "tiny-imagenet": Source(
            load_tiny_imagenet,
            "200 classes, 64x64; from tiny-imagenet-200/ or tiny-imagenet-200.zip",
            reads_classes=True,
        ),
        **IMAGENET,
    },
    option="data",
)
"""Every data set by name; other packages add theirs (docs/extending.md)."""
