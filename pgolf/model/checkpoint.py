"""Weights under the submissions' names, in banks or layer by layer, and depth recurrence untied."""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from pgolf.config import ModelSettings
from pgolf.model.build import empty_network
from pgolf.model.network import Network
from pgolf.model.parameters import BANKS, parameter, slice_names


def unbank(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights with every slice of a bank under its layer's name; the slices share the banks' memory. Which layers
    have a mixer follows from the other names."""
    scans = {int(name.split(".")[1]) for name in state if name.startswith("blocks.") and name.endswith(".mixer_scale")}
    layered = {}
    for name, tensor in state.items():
        count = len(tensor) // len(BANKS[name]) if name in BANKS and tensor.dim() else 0
        if not count or (BANKS[name][0].mamba and count != len(scans)):
            layered[name] = tensor
            continue
        others = [layer for layer in range(count + len(scans)) if layer not in scans]
        layers = sorted(scans) if BANKS[name][0].mamba else others
        for part, row in enumerate(BANKS[name]):
            for place, layer in enumerate(layers[:count]):
                layered[f"blocks.{layer}.{row.name}"] = tensor[part * count + place]
    return layered


def rebank(state: Mapping[str, Tensor], settings: ModelSettings) -> dict[str, Tensor]:
    """The inverse of `unbank` for a network of these settings."""
    slices = slice_names(settings)
    missing = [name for names in slices.values() for name in names if name not in state]
    if missing:
        raise ValueError(f"the weights lack {_listed(missing)}")
    used = {name for names in slices.values() for name in names}
    banked = {name: tensor for name, tensor in state.items() if name not in used}
    return banked | {bank: torch.stack([state[name] for name in names]) for bank, names in slices.items()}


def submission_state(model: Network) -> dict[str, Tensor]:
    """The network's weights under the submissions' per-layer names, without the heads that only training uses."""
    return {name: tensor for name, tensor in unbank(model.state_dict()).items() if parameter(name).packed}


@torch.no_grad()
def import_checkpoint(model: Network, state: Mapping[str, Tensor]) -> None:
    """Load weights that carry the submissions' names, in banks or layer by layer. All of them or, with an error, none.

    "module." and "_orig_mod." before a name are ignored. Heads that only training uses may be there or not.
    """
    given = {}
    for name, tensor in state.items():
        while name.startswith(("module.", "_orig_mod.")):
            name = name.partition(".")[2]
        if not isinstance(tensor, Tensor):
            raise ValueError(f"checkpoint does not fit: {name} is {type(tensor).__name__}, not a tensor")
        given[name] = tensor
    own = unbank(model.state_dict())
    given = {name: tensor for name, tensor in unbank(given).items() if name in own or parameter(name).packed}
    missing = [name for name in own if name not in given and parameter(name).packed]
    unexpected = [name for name in given if name not in own]
    misshapen = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    flaws = [f"missing {_listed(missing)}"] * bool(missing) + [f"unexpected {_listed(unexpected)}"] * bool(unexpected)
    flaws += [f"wrong shape {_listed(misshapen)}"] * bool(misshapen)
    if flaws:
        raise ValueError(f"checkpoint does not fit: {'; '.join(flaws)}")
    for name, tensor in given.items():
        own[name].copy_(tensor)


def _listed(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@torch.no_grad()
def untie(model: Network) -> Network:
    """A network in which every executed layer has matrices of its own, and which computes the same function."""
    settings, order = model.settings, list(model.settings.virtual_layers)
    if settings.loop_layers:
        raise ValueError("a loop shares all of a layer's parameters, so its passes cannot be untied as a recurrence's")
    free = empty_network(dataclasses.replace(settings, layers=len(order), recurrence=()))
    free.activation, free.operators, free.rounding = model.activation, model.operators, model.rounding
    state = {}
    for name, tensor in model.state_dict().items():
        if name in BANKS and settings.recurrence:
            rows = [part * settings.layers + layer for part in range(len(BANKS[name])) for layer in order]
            state[name] = tensor[rows]
        else:
            state[name] = tensor.clone()
    free.load_state_dict(state, assign=True)
    return free.train(model.training)
