"""Comparison of solvers, sensitivities, engines and packages on equal terms."""

from pynode.errors import NotComparable as NotComparable
from pynode.errors import StudyError as StudyError
from pynode.study.adapter import Adapter as Adapter
from pynode.study.adapter import Counts as Counts
from pynode.study.adapter import Gradient as Gradient
from pynode.study.adapter import Solved as Solved
from pynode.study.adapters import contenders as contenders
from pynode.study.comparison import Comparison as Comparison
from pynode.study.comparison import compare as compare
from pynode.study.contender import Contender as Contender
from pynode.study.defaults import default_contenders as default_contenders
from pynode.study.library import problem as problem
from pynode.study.library import problems as problems
from pynode.study.problem import Problem as Problem
from pynode.study.reference import Reference as Reference
from pynode.study.reporting import report as report
from pynode.study.result import Result as Result
from pynode.study.setting import Setting as Setting
from pynode.study.store import Store as Store
from pynode.study.study import Study as Study
from pynode.study.training import Training as Training

__all__ = [
    "Adapter",
    "Comparison",
    "Contender",
    "Counts",
    "Gradient",
    "NotComparable",
    "Problem",
    "Reference",
    "Result",
    "Setting",
    "Solved",
    "Store",
    "Study",
    "StudyError",
    "Training",
    "compare",
    "contenders",
    "default_contenders",
    "problem",
    "problems",
    "report",
]
