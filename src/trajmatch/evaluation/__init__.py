"""The accuracy of fresh networks that are trained on a small set alone."""

from trajmatch.evaluation.protocol import evaluate_sets, training_work
from trajmatch.evaluation.train import TrainingSettings, accuracy, is_finite, train_network
from trajmatch.evaluation.training_set import TestSet, TrainingSet
from trajmatch.storage.results import Score, Trained

__all__ = ["Score", "TestSet", "Trained", "TrainingSet", "TrainingSettings", "accuracy"]
__all__ += ["evaluate_sets", "is_finite", "train_network", "training_work"]
