"""Figures of training, flows and fits. Needs matplotlib: `pip install "pynode-sciml[plot]"`.

Every function returns a `matplotlib.figure.Figure`, which belongs to no window; `figure.savefig(path)`
writes it.
"""

from pynode.plot._figures import bands as bands
from pynode.plot._figures import densities as densities
from pynode.plot._figures import fit as fit
from pynode.plot._figures import flow as flow
from pynode.plot._figures import history as history
from pynode.plot._figures import images as images
from pynode.plot._figures import lines as lines
from pynode.plot._figures import paths as paths
from pynode.plot._figures import phase as phase
from pynode.plot._figures import points as points
from pynode.plot._figures import surface as surface
from pynode.plot._figures import trajectories as trajectories
from pynode.plot._plane import density_on_grid as density_on_grid
from pynode.plot._plane import on_grid as on_grid
from pynode.plot._plane import principal_plane as principal_plane
from pynode.plot._style import COLOURS as COLOURS
from pynode.plot._style import HOW_TO_GET as HOW_TO_GET
from pynode.plot._style import available as available

__all__ = [
    "COLOURS",
    "HOW_TO_GET",
    "available",
    "bands",
    "densities",
    "density_on_grid",
    "fit",
    "flow",
    "history",
    "images",
    "lines",
    "on_grid",
    "paths",
    "phase",
    "points",
    "principal_plane",
    "surface",
    "trajectories",
]
