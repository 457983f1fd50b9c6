"""Fields written in Julia."""

from pynode.julia_field.field import JuliaField as JuliaField
from pynode.julia_field.field import trust_julia_code as trust_julia_code

__all__ = ["JuliaField", "trust_julia_code"]
