"""Kernels of infinitely wide networks, and regression with them."""

from trajmatch.kernels.convolutional import Convolutional
from trajmatch.kernels.dense import Dense
from trajmatch.kernels.kernel import Kernel
from trajmatch.kernels.regression import Regression, centered

__all__ = ["Convolutional", "Dense", "Kernel", "Regression", "centered"]
