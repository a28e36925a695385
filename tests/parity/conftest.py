"""How our networks are compared with those of transformers and diffusers.

`strong` gives the reference values that leave no part hidden, `adopt` gives ours the same weights, `agree` holds
one against the other. With the libraries' own initialisation and a loose tolerance a BLOOM without ALiBi passes:
never weaken either.
"""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qkv.core.record import first_difference, record
from qkv.weights.load import load_weights
from qkv.weights.tables import Table

Run = Callable[[Any, torch.dtype], Tensor]  # a model and the type to compute in -> what is compared


def strong(module: nn.Module, seed: int = 0) -> Any:
    """Re-initialises every parameter: weights std 0.3, biases 0.1, norm gains 1 with 0.3."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                noise = torch.randn(parameter.shape, generator=draw)
                gain = "Norm" in type(part).__name__ and name == "weight"
                parameter.copy_(1 + 0.3 * noise if gain else noise * (0.1 if name.endswith("bias") else 0.3))
    return module.eval()


def adopt(ours: nn.Module, table: Table, theirs: nn.Module) -> Any:
    """Our network with copies of the reference's weights."""
    load_weights(ours, {name: tensor.clone() for name, tensor in table.ours(theirs.state_dict()).items()})
    return ours.eval()


def counterparts(table: Table, theirs: nn.Module) -> dict[str, str]:
    """Our modules by name, with the reference's module whose weights they hold: most are views, which tells whose."""
    state = theirs.state_dict()
    owner = {tensor.untyped_storage().data_ptr(): name for name, tensor in state.items()}
    pairs = {name: owner.get(tensor.untyped_storage().data_ptr()) for name, tensor in table.ours(state).items()}
    return {ours.rpartition(".")[0]: published.rpartition(".")[0] for ours, published in pairs.items() if published}


def gap(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def agree(ours: nn.Module, theirs: nn.Module, run_ours: Run, run_theirs: Run, table: Table | None = None) -> None:
    """Fails unless both agree to 1e-5 in float32, or to 1e-6 in float64 where the reference's own float32 is too far
    from it. With `table` the message names the first layer that differs, and norms must have the same epsilon, which
    hardly shows in numbers as large as these."""
    names = counterparts(table, theirs) if table is not None else {}
    for name, published in names.items():
        mine, other = (
            getattr(model.get_submodule(of), "eps", None) for model, of in ((ours, name), (theirs, published))
        )
        if mine != other and other is not None:
            pytest.fail(f"parity: {name} has eps={mine}, {published} has {other}")
    with torch.no_grad():
        exact = run_theirs(copy.deepcopy(theirs).double(), torch.float64)
        expected, dtype, tolerance = run_theirs(theirs, torch.float32), torch.float32, 1e-5
        if gap(expected, exact) > 3e-6:
            ours, theirs = copy.deepcopy(ours).double(), copy.deepcopy(theirs).double()
            expected, dtype, tolerance = exact, torch.float64, 1e-6
        with record(ours) as mine:
            result = run_ours(ours, dtype)
        assert result.shape == expected.shape
        difference = gap(result, expected)
        if difference <= tolerance:
            return
        with record(theirs) as other:
            run_theirs(theirs, dtype)
    same = {name: other[published] for name, published in names.items() if name in mine and published in other}
    same = {name: value for name, value in same.items() if value.shape == mine[name].shape}  # not tokens and pixels
    first = first_difference(mine, same, tolerance)
    pytest.fail(f"parity: differs by {difference:.2e} in {dtype}; first: {first}")


@pytest.fixture(scope="session")
def parity() -> SimpleNamespace:
    return SimpleNamespace(strong=strong, adopt=adopt, counterparts=counterparts, gap=gap, agree=agree)
