"""Ways to fit a vector field to trajectories."""

from pynode.fit._collocation import collocate as collocate
from pynode.fit._multiple_shooting import multiple_shooting_loss as multiple_shooting_loss
from pynode.fit._trainer import Trainer as Trainer
from pynode.fit._trainer import trainer as trainer

__all__ = ["Trainer", "collocate", "multiple_shooting_loss", "trainer"]
