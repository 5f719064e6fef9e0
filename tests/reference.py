"""Slow, plain twins of the hot paths: what the library computes, written the obvious way."""

import zlib

import torch
from torch.func import functional_call
from torch.nn import functional as F

from trajmatch.unroll import SGD


def plain_loss(module, vector, images, labels):
    """Cross-entropy of `module` with the parameters in `vector`, one slice per parameter."""
    parameters, offset = {}, 0
    for name, parameter in module.named_parameters():
        parameters[name] = vector[offset : offset + parameter.numel()].view(parameter.shape)
        offset += parameter.numel()
    return F.cross_entropy(functional_call(module, parameters, (images,)), labels)


def plain_update(optimizer, vector, state, gradient, step_size, n):
    """One update of an inner optimizer, by the formulas of its paper; `state` begins as (0, 0)."""
    name = type(optimizer).__name__
    if name == "SGD":
        return vector - step_size * gradient, state
    if name == "Momentum":
        moment = optimizer.momentum * state[0] + gradient
        return vector - step_size * moment, (moment, 0)
    assert name == "Adam"
    first, second = optimizer.betas
    moment = first * state[0] + (1 - first) * gradient
    square = second * state[1] + (1 - second) * gradient**2
    corrected = moment / (1 - first ** (n + 1)), square / (1 - second ** (n + 1))
    return vector - step_size * corrected[0] / (corrected[1].sqrt() + optimizer.eps), (
        moment,
        square,
    )


def plain_unroll(module, start, images, labels, step_size, schedule, augment, optimizer=None):
    """theta_N of the student, with the whole graph."""
    vector, state = start.clone().requires_grad_(), (0, 0)
    for n in range(schedule.steps):
        chosen = slice(None) if schedule.indices is None else schedule.indices[n]
        batch = images[chosen]
        if schedule.draws is not None:
            batch = augment.apply(batch, schedule.draws[n])
        loss = plain_loss(module, vector, batch, labels[chosen])
        (gradient,) = torch.autograd.grad(loss, vector, create_graph=True)
        vector, state = plain_update(optimizer or SGD(), vector, state, gradient, step_size, n)
    return vector


def plain_match(
    module, start, target, images, labels, step_size, schedule, augment, optimizer=None
):
    """Loss, end and gradients by back-propagation through the whole unroll at once."""
    images = images.clone().requires_grad_()
    soft = labels.is_floating_point()
    labels = labels.clone().requires_grad_() if soft else labels
    step_size = torch.as_tensor(step_size, dtype=start.dtype).clone().requires_grad_()
    end = plain_unroll(module, start, images, labels, step_size, schedule, augment, optimizer)
    loss = (end - target).pow(2).sum() / (start - target).pow(2).sum()
    wanted = [images, step_size, labels] if soft else [images, step_size]
    gradients = torch.autograd.grad(loss, wanted)
    return loss.detach(), end.detach(), *gradients


def plain_folded(block, line, group):
    """The folded checksum of bytes: every line is a whole number, and folding is its ^."""
    whole = len(block) // line * line
    crc, lines = zlib.crc32(block[whole:]), range(0, whole, line)
    for first in range(0, len(lines), group):
        total = 0
        for start in lines[first : first + group]:
            total ^= int.from_bytes(block[start : start + line], "little")
        crc = zlib.crc32(total.to_bytes(line, "little"), crc)
    return crc
