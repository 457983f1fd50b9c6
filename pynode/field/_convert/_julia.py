"""Functions written in Julia: `pynode::julia` and its products, see `pynode.engine.julia.function`."""

from __future__ import annotations

from pynode.field._convert._call import Call, handles


@handles("julia")
def _value(c: Call) -> int:
    operands, number, kernels = c.args
    return c.b.add("julia", operands, c.shape, number=number, kernels=kernels)


@handles("julia_products")
def _products(c: Call) -> list[int]:
    v, operands, number, kernels = c.args
    attrs = {"number": number, "kernels": kernels}
    return [c.b.add("julia_product", [v, *operands], c.b.shape(x), of=k, **attrs) for k, x in enumerate(operands)]
