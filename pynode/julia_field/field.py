"""Vector fields written in Julia."""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pynode.engine.julia import function as julia_function
from pynode.errors import FieldError, InputError, unknown_name
from pynode.julia_field import networks as julia_networks
from pynode.julia_field import parameters as julia_parameters
from pynode.julia_field import trust

__all__ = ["JuliaField", "trust_julia_code"]

_VJPS = ("auto", "zygote", "reversediff", "enzyme", "forwarddiff")

# Fields of equal code share a number, and with it their kernels.
_NUMBERS: dict[tuple[Any, ...], int] = {}

# Numbers hold in the process that gave them.
_SESSION = uuid.uuid4().hex


class JuliaField(nn.Module):
    """A vector field that is a function in Julia, for `pynode.solve` and the models on the julia engine.

    Args:
        function: what dz/dt is. Julia code, as text, whose value is a function or a Lux model; or such an object of
            juliacall's or diffeqpy's. A function is `f(u, p, t)`, which returns du/dt, or `f!(du, u, p, t)`, which
            writes it. Of an `ODEProblem` the function, `p`, `u0` and `tspan` are taken.
        params: `p`. A tensor; a dict of numbers, tensors and further dicts, which Julia gets as a `ComponentArray`
            of those names; or a Julia object (array, named tuple, `ComponentArray`). Indices are the same in
            both languages: `p.W[1, 2]` in Julia is `W[0, 1]` in Python. `None`: those of the Lux model (drawn
            by Lux, with a seed of torch's generator) or of the problem, or none.
        networks: torch modules that the function calls, by name: it gets them after t, in this order,
            `f(u, p, t, network, …)`. Each takes and returns `(batch, *features)` in PyTorch and arrays with the
            dimensions in reverse in Julia, there without the batch unless `batched`. They are traced and run in
            Julia; gradients flow through them and to their parameters.
        batched: whether the function gets the whole batch, `(features…, batch)`, rather than one sample,
            `(features…,)`, at a time. By default only Lux models do.
        inplace: whether the function is of the form `f!(du, u, p, t)`; by default told by its number of arguments.
        vjp: which Julia package computes the vector-Jacobian products: `"zygote"`, `"reversediff"` (a compiled
            tape), `"enzyme"`, `"forwarddiff"`; `"auto"` takes the first that works, forward differentiation
            first where there are few numbers.
        flat: keep the parameters as one vector, in `ComponentArray`'s order, rather than by name.
        dtype: of parameters that come as numbers or from Julia; torch's default where `None`.

    A text of Julia can do whatever Python code can: read and write files, start processes. It runs when the field is
    made. A field that `torch.load` (with `weights_only=False`) or `pickle` brings from a file does not run its text:
    the first solve refuses, shows it, and asks for `trust_julia_code`. Copies, and fields that are handed to processes
    that multiprocessing spawns (workers of a `DataLoader`, `torch.multiprocessing.spawn`), need no such call.

    Attributes:
        p: the parameters: one `nn.Parameter`, or a module with one by each name (`field.p.layer_1.weight`); `None`
            where there are none.
        networks: the torch modules, by name.
        u0: `(1, *features)`, the initial state of the problem that was given, a buffer; else `None`.
        tspan: the span of time of that problem, else `None`.

    Raises:
        EngineUnavailable: Julia is not there; the message says how to get it.
        FieldError: Julia refuses the code, or it is no function of that form. Also when it is evaluated: the code
            failed, with Julia's message and the line, or the result is not of the size of the state.
        InputError: an argument is not usable.

    Source:
        C. Rackauckas et al., "Universal Differential Equations for Scientific Machine Learning", 2020, for known
        terms beside networks.
    """

    runs_on: ClassVar[str] = "julia"

    # Plain values only, so that a look at the module is enough to see that it is as it was (see `Watch`).
    number: int
    session: str
    code: str | None
    batched: bool
    inplace: bool
    vjp: str
    flat: bool
    structure: str
    u0: Tensor | None

    def __init__(
        self,
        function: Any,
        params: Any = None,
        *,
        networks: Mapping[str, nn.Module] | None = None,
        batched: bool | None = None,
        inplace: bool | None = None,
        vjp: str = "auto",
        flat: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if vjp not in _VJPS:
            raise unknown_name("vjp", vjp, _VJPS)
        if not isinstance(function, str) and not _is_julias(function):
            raise InputError(
                "function must be Julia code as text, or a Julia object of juliacall or diffeqpy, got "
                f"{type(function).__name__}. A function of torch tensors goes to pynode.solve as it is"
            )
        for name, network in (networks or {}).items():
            if not isinstance(network, nn.Module):
                raise InputError(f"networks[{name!r}] must be an nn.Module, got {type(network).__name__}")
        self.networks = nn.ModuleDict(networks)
        self.code = function if isinstance(function, str) else None
        if self.code is not None:
            trust.allow(self.code)
        self.vjp, self.flat = vjp, flat
        dtype = dtype or torch.get_default_dtype()
        with julia_function.reporting() as julia:
            seed = int(torch.randint(2**31, (), device="cpu"))  # with which Lux draws
            self.number = julia.define(function, _flag(inplace), _flag(batched), vjp, len(self.networks), seed)
            self.session = _SESSION
            facts = json.loads(julia.facts(self.number))
            self.inplace, self.batched = facts["inplace"], facts["batched"]
            if params is None:
                structure, values = facts["parameters"], None
                if structure is not None:
                    values = self._initial(julia, "parameters", structure, dtype)
                    values = julia_parameters.from_vector(structure, values)
            elif _is_julias(params):
                structure = json.loads(julia.parameter_tree(params))
                count = julia_parameters.size(structure)
                vector = julia_parameters.numbers(count, functools.partial(julia.write_numbers, params), dtype)
                values = julia_parameters.from_vector(structure, vector)
            else:
                structure, values = julia_parameters.of_python(params, dtype)
            self._set_problem(julia, facts, dtype)
        self.structure = json.dumps(structure)
        if values is None:
            self.register_parameter("p", None)
        elif flat:
            self.p = nn.Parameter(julia_parameters.flatten(structure, values).detach().clone())
        else:
            self.p = julia_parameters.module_of(values)  # type: ignore[assignment]
        self._settle()

    def _initial(self, julia: Any, what: str, structure: Any, dtype: torch.dtype) -> Tensor:
        write = functools.partial(julia.write_initial, self.number, what)
        return julia_parameters.numbers(julia_parameters.size(structure), write, dtype)

    def _set_problem(self, julia: Any, facts: Any, dtype: torch.dtype) -> None:
        u0 = None
        if facts["u0"] is not None:
            u0 = self._initial(julia, "u0", facts["u0"], dtype)
            u0 = julia_parameters.reversed_shape(u0, facts["u0"]["shape"])
            u0 = u0 if self.batched else u0.unsqueeze(0)
        self.register_buffer("u0", u0, persistent=False)
        self.start: float | None
        self.end: float | None
        self.start, self.end = facts["tspan"] or (None, None)

    def _key(self) -> tuple[Any, ...]:
        return self.code, self.inplace, self.batched, self.vjp, len(self.networks), self.structure

    def _settle(self) -> None:
        """Give the function its structure, or take the number of an equal one, whose kernels are there already."""
        key = self._key()
        if self.code is not None and key in _NUMBERS:
            self.number = _NUMBERS[key]
            return
        with julia_function.reporting() as julia:
            julia.set_structure(self.number, self.structure)
        _NUMBERS[key] = self.number

    def _number(self) -> int:
        """The function's number in this process, where it is registered now if the field was made in another one."""
        if self.session == _SESSION:
            return self.number
        key = self._key()
        if key not in _NUMBERS:
            assert self.code is not None
            trust.check(self.code)
            with julia_function.reporting() as julia:
                # No seed: the parameters that Lux would draw are here.
                number = julia.define(self.code, int(self.inplace), int(self.batched), self.vjp, len(self.networks), 0)
                julia.set_structure(number, self.structure)
            _NUMBERS[key] = number
        return _NUMBERS[key]

    @property
    def tspan(self) -> tuple[float, float] | None:
        """The span of time of the problem that was given."""
        return None if self.start is None or self.end is None else (self.start, self.end)

    def forward(self, t: Tensor, z: Tensor, *args: Tensor) -> Tensor:
        """dz/dt at `t`, 0-d, and `z`, `(batch, *features)`; the function gets `args` after the networks."""
        if z.dim() < 2:
            raise FieldError(
                f"the state of a JuliaField must be of shape (batch, *features), got {tuple(z.shape)}: give it "
                "features, e.g. with z0.unsqueeze(-1)"
            )
        for i, x in enumerate(args):
            if x.dim() == 0 or x.shape[0] != z.shape[0] or x.dtype != z.dtype:
                raise FieldError(
                    f"args[{i}] of a JuliaField must be of shape (batch, ...) and dtype {z.dtype}, as the state, got "
                    f"{tuple(x.shape)}, {x.dtype}. Expand or convert it"
                )
        number = self._number()
        p, modules, met = self.vector(z), list(self.networks.values()), set()
        recording = julia_function.is_recording(z)
        while True:
            networks = [julia_networks.find(self, k, module, z.dtype, recording) for k, module in enumerate(modules)]
            thetas = [network.theta(module, z) for network, module in zip(networks, modules, strict=True)]
            try:
                return julia_function.call(
                    [t.to(z), z, p, *thetas, *args], number, [network.kernel for network in networks]
                )
            except julia_function.UnknownNetwork as unknown:
                if unknown.index in met:
                    name = list(self.networks)[unknown.index]
                    raise FieldError(
                        f"the network {name!r} is called with inputs of different sizes, the last one of shape "
                        f"{unknown.shape}: give the function two networks"
                    ) from None
                met.add(unknown.index)
                julia_networks.learn(self, unknown.index, unknown.shape)

    def vector(self, like: Tensor) -> Tensor:
        """All of `p` as one vector of the state's dtype, in the order of Julia's `ComponentArray`; differentiable."""
        if self.p is None:
            return like.new_zeros(0)
        vector = self.p if self.flat else julia_parameters.flatten(json.loads(self.structure), self.p)
        if vector.dtype != like.dtype:
            raise FieldError(
                f"the parameters of the JuliaField are of dtype {vector.dtype} beside a state of dtype {like.dtype}: "
                "convert the field with field.to(z0.dtype), or z0"
            )
        return vector

    def component_array(self) -> Any:
        """`p` as the function gets it, with the numbers of now: a `ComponentArray` where there are names."""
        vector = self.vector(
            torch.zeros(0, dtype=next(self.parameters(), torch.zeros(0, device="cpu")).dtype, device="cpu")
        )
        number, vector = self._number(), vector.detach().double().contiguous()
        with julia_function.reporting() as julia:
            return julia.component_array(number, vector.data_ptr(), len(vector))

    def vjp_package(self) -> str:
        """The Julia package that computes the products; `"auto"` before the first one."""
        number = self._number()
        with julia_function.reporting() as julia:
            return str(julia.vjp_name(number))

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self.code is not None:
            state["signature"] = trust.signature(self.code)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        signature = state.pop("signature", None)
        super().__setstate__(state)
        if self.code is not None:
            trust.admit(self.code, signature)
        elif self.session != _SESSION:
            raise InputError(
                "a JuliaField of a Julia object cannot be loaded in another process: make it from Julia code as text"
            )

    def extra_repr(self) -> str:
        """The code and what it is called with."""
        parts = [] if self.code is None else [repr(self.code if len(self.code) < 60 else self.code[:57] + "...")]
        return ", ".join([*parts, f"batched={self.batched}", f"inplace={self.inplace}", f"vjp={self.vjp!r}"])


def trust_julia_code(model: nn.Module) -> nn.Module:
    """Let the Julia code of a model that came from a file run in this process: see `JuliaField`.

    Args:
        model: a `JuliaField`, or a module with such among its modules. `field.code` is the code.

    Returns:
        The model.

    Raises:
        InputError: it is no module.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be an nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if isinstance(module, JuliaField) and module.code is not None:
            trust.allow(module.code)
    return model


def _flag(value: bool | None) -> int:
    return -1 if value is None else int(value)


def _is_julias(x: Any) -> bool:
    return type(x).__module__.partition(".")[0] == "juliacall"
