"""Ways to fit a vector field to trajectories."""

from pynode.fit._collocation import collocate as collocate
from pynode.fit._multiple_shooting import multiple_shooting_loss as multiple_shooting_loss

__all__ = ["collocate", "multiple_shooting_loss"]
