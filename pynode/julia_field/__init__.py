"""Fields written in Julia."""

from pynode.julia_field.field import JuliaField as JuliaField

__all__ = ["JuliaField"]
