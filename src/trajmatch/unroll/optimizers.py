"""Inner optimizers: one update of a student's parameters, and its exact reverse.

An update maps (theta_n, state_n, g_n, alpha) to (theta_{n+1}, state_{n+1}), elementwise over the
parameters. Its reverse is the transposed derivative: it maps the adjoints of the results,
dL/dtheta_{n+1} and dL/dstate_{n+1}, to the adjoints of the four arguments. That theta_n also enters
through g_n(theta_n) is not part of it; `unroll` adds the Hessian-vector product of that path.

    optimizer   update                                       vectors saved per step (theta_n too)
    SGD         theta - alpha g                              1
    Momentum    m' = mu m + g;   theta - alpha m'            2
    Adam        m', v' = moving averages of g, g^2;          4
                theta - alpha m^ / (sqrt(v^) + eps)

A subclass of `InnerOptimizer` with these three methods can be passed to `unroll`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch

from trajmatch.config import NamedValue
from trajmatch.errors import SettingError
from trajmatch.types import Float, Tensor

Vectors = tuple[Float[Tensor, "params"], ...]
"""An optimizer's state, or the adjoint of it: one vector per moving average; () for plain SGD."""


class Update(NamedTuple):
    """The results of one update."""

    vector: Float[Tensor, "params"]
    """theta_{n+1}."""
    state: Vectors
    """state_{n+1}."""
    saved: Vectors
    """What `reverse` needs of this update; may share memory with `state`."""


class Adjoints(NamedTuple):
    """The adjoints of the arguments of one update.

    That of the gradient is kept as `scale * direction`, so that plain SGD multiplies by alpha after
    the vector-Jacobian product and not before it, where low precision would round differently.
    """

    vector: Float[Tensor, "params"]
    """Of theta_n, without the path through g_n."""
    state: Vectors
    """Of state_n."""
    direction: Float[Tensor, "params"]
    scale: Float[Tensor, ""]
    step_size: Float[Tensor, ""] | None
    """Of alpha. None: it is -<g_n, direction>, which the vector-Jacobian product computes too."""


@dataclass(frozen=True)
class InnerOptimizer(NamedValue):
    """An update rule with an exact reverse. Implementations never modify their arguments."""

    @abstractmethod
    def init(self, vector: Float[Tensor, "params"]) -> Vectors:
        """The state before the first update of `vector`."""

    @abstractmethod
    def update(
        self,
        vector: Float[Tensor, "params"],
        state: Vectors,
        gradient: Float[Tensor, "params"],
        step_size: Float[Tensor, ""],
        n: int,
    ) -> Update:
        """Update number `n`, counted from 0."""

    @abstractmethod
    def reverse(
        self,
        saved: Vectors,
        vector: Float[Tensor, "params"],
        state: Vectors,
        step_size: Float[Tensor, ""],
        n: int,
    ) -> Adjoints:
        """The adjoints before update `n`, given those after it: `vector` of theta_{n+1} and `state`
        of state_{n+1}."""


@dataclass(frozen=True)
class SGD(InnerOptimizer, name="sgd"):
    """Plain gradient descent, theta <- theta - alpha g: the student of the published method.

    Source: Cazenavette et al. 2022, algorithm 1.

    Examples:
        >>> theta, g = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
        >>> SGD().update(theta, (), g, torch.tensor(0.5), 0).vector
        tensor([0.7500, 2.5000])
    """

    def init(self, vector: Float[Tensor, "params"]) -> Vectors:
        """No state."""
        return ()

    def update(
        self,
        vector: Float[Tensor, "params"],
        state: Vectors,
        gradient: Float[Tensor, "params"],
        step_size: Float[Tensor, ""],
        n: int,
    ) -> Update:
        """One step; `n` does not matter."""
        return Update(torch.addcmul(vector, gradient, step_size, value=-1), (), ())

    def reverse(
        self,
        saved: Vectors,
        vector: Float[Tensor, "params"],
        state: Vectors,
        step_size: Float[Tensor, ""],
        n: int,
    ) -> Adjoints:
        """theta_n: unchanged; g_n: -alpha times it; alpha: -<g_n, it>."""
        return Adjoints(vector, (), vector, -step_size, None)


@dataclass(frozen=True)
class Momentum(InnerOptimizer, name="momentum"):
    """Heavy-ball descent, as torch.optim.SGD: m <- mu m + g; theta <- theta - alpha m.

    momentum: mu, at least 0 and below 1. m starts at zero.

    Raises SettingError for a momentum outside that range.

    Source: Polyak, Some methods of speeding up the convergence of iteration methods, 1964.

    Examples:
        >>> theta, g, alpha = torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor(0.5)
        >>> heavy_ball = Momentum(0.5)
        >>> once = heavy_ball.update(theta, heavy_ball.init(theta), g, alpha, 0)
        >>> heavy_ball.update(once.vector, once.state, g, alpha, 1).vector
        tensor([0.3750])
    """

    momentum: float = 0.9

    def init(self, vector: Float[Tensor, "params"]) -> Vectors:
        """(m,) = (0,)."""
        return (torch.zeros_like(vector),)

    def update(
        self,
        vector: Float[Tensor, "params"],
        state: Vectors,
        gradient: Float[Tensor, "params"],
        step_size: Float[Tensor, ""],
        n: int,
    ) -> Update:
        """One step; `n` does not matter."""
        moment = torch.add(gradient, state[0], alpha=self.momentum)
        following = torch.addcmul(vector, moment, step_size, value=-1)
        return Update(following, (moment,), (moment,))

    def reverse(
        self,
        saved: Vectors,
        vector: Float[Tensor, "params"],
        state: Vectors,
        step_size: Float[Tensor, ""],
        n: int,
    ) -> Adjoints:
        """With u the adjoint of m_{n+1}, also through theta_{n+1}: g_n: u; m_n: mu u."""
        (moment,) = saved
        d_moment = torch.addcmul(state[0], vector, step_size, value=-1)
        return Adjoints(
            vector,
            (self.momentum * d_moment,),
            d_moment,
            torch.ones_like(step_size),
            -torch.dot(vector, moment),
        )


@dataclass(frozen=True)
class Adam(InnerOptimizer, name="adam"):
    """Adam with bias correction, as torch.optim.Adam; the student's step size is its learning rate.

    betas: decay of the averages of g and g^2, each at least 0 and below 1. eps: added to the root,
    above 0.

    The derivative of an update with respect to g is up to alpha / eps where g is near zero, 1e8
    alpha by default: parameters whose gradient is rounding noise (a bias before an instance norm)
    make it inaccurate. Where all gradients so far are exactly zero it is the limit alpha / eps,
    while plain back-propagation through the square root gives NaN.

    Raises SettingError for values outside these ranges.

    Source: Kingma & Ba, Adam: a method for stochastic optimization, ICLR 2015, algorithm 1.

    Examples:
        >>> theta, g = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -3.0])
        >>> adam = Adam()
        >>> adam.update(theta, adam.init(theta), g, torch.tensor(0.25), 0).vector
        tensor([0.7500, 2.2500])
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if len(self.betas) != 2:
            raise SettingError(f"betas is {self.betas}; it must be two numbers")
        super().__post_init__()

    def init(self, vector: Float[Tensor, "params"]) -> Vectors:
        """(m, v) = (0, 0)."""
        return (torch.zeros_like(vector), torch.zeros_like(vector))

    def update(
        self,
        vector: Float[Tensor, "params"],
        state: Vectors,
        gradient: Float[Tensor, "params"],
        step_size: Float[Tensor, ""],
        n: int,
    ) -> Update:
        """One step; `n` sets the bias correction."""
        moment = torch.lerp(state[0], gradient, 1 - self.betas[0])
        square = torch.addcmul(
            self.betas[1] * state[1], gradient, gradient, value=1 - self.betas[1]
        )
        ratio, _, _ = self._ratio(moment, square, n)
        following = torch.addcmul(vector, ratio, step_size, value=-1)
        return Update(following, (moment, square), (moment, square, gradient))

    def reverse(
        self,
        saved: Vectors,
        vector: Float[Tensor, "params"],
        state: Vectors,
        step_size: Float[Tensor, ""],
        n: int,
    ) -> Adjoints:
        """The chain rule through theta_{n+1} = theta_n - alpha r and r = m^ / (sqrt(v^) + eps)."""
        moment, square, gradient = saved
        correct_moment, correct_square = self._corrections(n)
        ratio, root, denominator = self._ratio(moment, square, n)
        d_ratio = -step_size * vector
        d_moment = state[0] + d_ratio / (correct_moment * denominator)
        d_root = -d_ratio * ratio / denominator
        # At a root of zero every g so far is zero and so is m: the product with d_root vanishes.
        through_root = torch.where(root > 0, d_root / (2 * correct_square * root), 0)
        d_square = state[1] + through_root
        d_gradient = (1 - self.betas[0]) * d_moment
        d_gradient = torch.addcmul(d_gradient, gradient, d_square, value=2 * (1 - self.betas[1]))
        return Adjoints(
            vector,
            (self.betas[0] * d_moment, self.betas[1] * d_square),
            d_gradient,
            torch.ones_like(step_size),
            -torch.dot(vector, ratio),
        )

    def _corrections(self, n: int) -> tuple[float, float]:
        """1 - beta^(n+1) of both averages."""
        return 1 - self.betas[0] ** (n + 1), 1 - self.betas[1] ** (n + 1)

    def _ratio(
        self, moment: Float[Tensor, "params"], square: Float[Tensor, "params"], n: int
    ) -> tuple[Float[Tensor, "params"], Float[Tensor, "params"], Float[Tensor, "params"]]:
        """(m^ / (sqrt(v^) + eps), sqrt(v^), sqrt(v^) + eps)."""
        correct_moment, correct_square = self._corrections(n)
        root = (square / correct_square).sqrt()
        denominator = root + self.eps
        return moment / correct_moment / denominator, root, denominator
