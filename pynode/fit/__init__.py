"""Ways to fit a vector field to trajectories."""

from pynode.fit._multiple_shooting import multiple_shooting_loss as multiple_shooting_loss

__all__ = ["multiple_shooting_loss"]
