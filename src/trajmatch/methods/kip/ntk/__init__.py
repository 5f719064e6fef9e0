"""Kernels of infinitely wide networks, and regression with them."""

from trajmatch.methods.kip.ntk.convolutional import Convolutional
from trajmatch.methods.kip.ntk.dense import Dense
from trajmatch.methods.kip.ntk.kernel import Kernel
from trajmatch.methods.kip.ntk.regression import Regression, centered

__all__ = ["Convolutional", "Dense", "Kernel", "Regression", "centered"]
