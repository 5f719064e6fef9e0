"""Fresh networks on a small set: how good the set is, in one honest number."""

from trajmatch.evaluation.protocol import (
    TrainingSet,
    evaluate_images,
    evaluate_sets,
    training_work,
)
from trajmatch.evaluation.score import Score, Trained
from trajmatch.evaluation.train import accuracy, is_finite, train_network

__all__ = ["Score", "TrainingSet", "accuracy", "evaluate_images", "evaluate_sets", "is_finite"]
__all__ += ["Trained", "train_network", "training_work"]
