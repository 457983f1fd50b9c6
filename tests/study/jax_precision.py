"""JAX in double precision or not, by whichever name the installed version has for that."""

import jax


def double_precision(on=True):
    """A context; `jax.experimental` has it in earlier versions, such as the last for Python 3.10."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(on)
    from jax.experimental import enable_x64

    return enable_x64(on)
