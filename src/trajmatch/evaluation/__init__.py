"""Fresh networks on a small set: how good the set is, in one honest number."""

from trajmatch.evaluation.protocol import Score, evaluate_images
from trajmatch.evaluation.train import accuracy, is_finite, train_network

__all__ = ["Score", "accuracy", "evaluate_images", "is_finite", "train_network"]
