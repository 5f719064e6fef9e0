"""Coresets: a few real images of each class, chosen by one of several rules.

A rule is a frozen class with `choose`, one file each, registered in `registry.py`.
"""

from trajmatch.methods.coresets.base import Coreset, class_members
from trajmatch.methods.coresets.features import embeddings
from trajmatch.methods.coresets.forgetting import Forgetting, forgetting_counts
from trajmatch.methods.coresets.herding import Herding
from trajmatch.methods.coresets.kcenter import KCenter
from trajmatch.methods.coresets.kmeans import KMeans
from trajmatch.methods.coresets.random import Random
from trajmatch.methods.coresets.registry import BASELINES, CORESETS, coreset_of
from trajmatch.methods.coresets.select import Share, require_enough, select_coreset

__all__ = [
    "BASELINES",
    "CORESETS",
    "Coreset",
    "Forgetting",
    "Herding",
    "KCenter",
    "KMeans",
    "Random",
    "Share",
    "class_members",
    "coreset_of",
    "embeddings",
    "forgetting_counts",
    "require_enough",
    "select_coreset",
]
