"""Slow, plain twins of the hot paths: what the library computes, written the obvious way."""

import zlib

import torch
from torch.func import functional_call
from torch.nn import functional as F


def plain_loss(module, vector, images, labels):
    """Cross-entropy of `module` with the parameters in `vector`, one slice per parameter."""
    parameters, offset = {}, 0
    for name, parameter in module.named_parameters():
        parameters[name] = vector[offset : offset + parameter.numel()].view(parameter.shape)
        offset += parameter.numel()
    return F.cross_entropy(functional_call(module, parameters, (images,)), labels)


def plain_walk(module, start, images, labels, step_size, schedule, augment):
    """theta_N of the student, with the whole graph."""
    vector = start.clone().requires_grad_()
    for n in range(schedule.steps):
        chosen = slice(None) if schedule.indices is None else schedule.indices[n]
        batch = images[chosen]
        if schedule.draws is not None:
            batch = augment.apply(batch, schedule.draws[n])
        loss = plain_loss(module, vector, batch, labels[chosen])
        (gradient,) = torch.autograd.grad(loss, vector, create_graph=True)
        vector = vector - step_size * gradient
    return vector


def plain_match(module, start, target, images, labels, step_size, schedule, augment):
    """Loss, end and gradients by back-propagation through the whole walk at once."""
    images = images.clone().requires_grad_()
    soft = labels.is_floating_point()
    labels = labels.clone().requires_grad_() if soft else labels
    step_size = torch.as_tensor(step_size, dtype=start.dtype).clone().requires_grad_()
    end = plain_walk(module, start, images, labels, step_size, schedule, augment)
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
