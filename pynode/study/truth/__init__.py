"""What is right: references of problems, in double precision, by ways that are independent of each other."""

from pynode.study.truth.agreed import reference as reference

__all__ = ["reference"]
