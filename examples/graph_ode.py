"""Which group a node belongs to, from few that are known: graph ODEs against a graph convolutional network.

Two real graphs: the members of a karate club that split in two (Zachary 1977, in networkx, which PyTorch brings), and
the neurons of the mushroom body of a fly's larva, of four kinds (Eichler et al. 2017), which is in the package
graspologic (`pip install --no-deps graspologic`) and is left out where that is not installed. Nodes have no features
but their own number. The networks are those of Kipf and Welling, and the same with an ODE in the place of the middle
layer, with equally many parameters; CGNN has a linear ODE between two linear layers.

    python examples/graph_ode.py

After M. Poli et al., "Graph Neural Ordinary Differential Equations", 2019, section 4.1, and L.-P. Xhonneux, M. Qu,
J. Tang, "Continuous Graph Neural Networks", ICML 2020.
"""

from __future__ import annotations

import statistics
from importlib.util import find_spec
from pathlib import Path

import networkx as nx
import numpy as np
import torch
from _shared import arguments, minimise, write
from torch import nn
from torch.nn.functional import cross_entropy

from pynode import plot
from pynode.models import CGNN, GraphODE
from pynode.nn import Graph, GraphConv, TimeSequential

WIDTH = 16


def karate():
    """The adjacency matrix and who went with the officer."""
    club = nx.karate_club_graph()
    groups = [club.nodes[i]["club"] == "Officer" for i in club]
    return torch.tensor(nx.to_numpy_array(club), dtype=torch.float32), torch.tensor(groups).long()


def mushroom_body():
    """Synapses between the neurons of the right half, in both directions, and the kinds of neurons."""
    folder = Path(find_spec("graspologic").submodule_search_locations[0]) / "datasets" / "drosophila"
    synapses = torch.from_numpy(np.loadtxt(folder / "right_adjacency.csv")).float()
    kinds = np.unique(np.loadtxt(folder / "right_cell_labels.csv", dtype=str), return_inverse=True)[1]
    return synapses + synapses.T, torch.from_numpy(kinds).long()


GRAPHS = {"karate club": karate} | ({"mushroom body": mushroom_body} if find_spec("graspologic") else {})


class Dropped(nn.Module):
    """Half of the features are left out in training, before the last layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, z):
        """The layer, of what is left."""
        return self.layer(nn.functional.dropout(z, 0.5, self.training))


def gcn(graph, n_in, n_out, **keywords):
    layers = GraphConv(graph, n_in, WIDTH), nn.Tanh(), GraphConv(graph, WIDTH, WIDTH), nn.Tanh()
    return nn.Sequential(*layers, Dropped(GraphConv(graph, WIDTH, n_out)))


def gde(graph, n_in, n_out, **keywords):
    first = nn.Sequential(GraphConv(graph, n_in, WIDTH), nn.Tanh())
    field = TimeSequential(GraphConv(graph, WIDTH, WIDTH), nn.Tanh())
    last = Dropped(GraphConv(graph, WIDTH, n_out))
    return GraphODE(field, input_network=first, output_network=last, **keywords)


def cgnn(graph, n_in, n_out, **keywords):
    last = Dropped(nn.Linear(WIDTH, n_out))
    return CGNN(graph, WIDTH, input_network=nn.Linear(n_in, WIDTH), output_network=last, t=(0.0, 5.0), **keywords)


MODELS = {"GCN": gcn, "GDE": gde, "CGNN": cgnn}


def accuracy(make, graph, x, y, known, seed, label, iterations, keywords):
    """Of the nodes whose group was not known in training."""
    torch.manual_seed(seed)
    model = make(graph, x.shape[1], int(y.max()) + 1, **keywords)
    first = next(p for p in model.parameters() if x.shape[1] in p.shape)

    def loss():  # as in Kipf and Welling: the weights of the first layer are kept small
        return cross_entropy(model(x[None])[0][known], y[known]) + 2.5e-4 * first.square().sum()

    minimise(model.parameters(), loss, iterations, label, 0.01)
    model.eval()
    with torch.no_grad():
        right = model(x[None])[0].argmax(1) == y
    others = torch.ones(len(y), dtype=torch.bool)
    others[known] = False
    return right[others].float().mean().item(), sum(p.numel() for p in model.parameters())


def some_of_each(y, n, seed):
    """The numbers of n nodes of each group."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[y[order] == k][:n] for k in range(int(y.max()) + 1)])


def run(out, engine="auto", seed=0, seeds=5, iterations=100):
    torch.set_num_threads(1)  # graphs of some hundred nodes are too small to share between threads
    keywords = {"rtol": 1e-2, "atol": 1e-3, "engine": engine}
    results = {}
    for name, load in GRAPHS.items():
        adjacency, y = load()
        graph = Graph.from_adjacency(adjacency, normalise="symmetric", self_loops=True)
        plain = Graph.from_adjacency(adjacency, normalise="symmetric")
        x, n = torch.eye(len(y)), 2 if name == "karate club" else 5
        results[name] = {"nodes": len(y), "edges": plain.n_edges, "known_of_each_group": n, "models": {}}
        for model, make in MODELS.items():
            found = []
            for s in range(seed, seed + seeds):
                which = plain if model == "CGNN" else graph
                known = some_of_each(y, n, s)
                found.append(accuracy(make, which, x, y, known, s, f"{name}, {model}, {s}", iterations, keywords))
            right = [a for a, _ in found]
            results[name]["models"][model] = {
                "parameters": found[0][1],
                "accuracy": right,
                "mean": statistics.mean(right),
                "standard_error": statistics.stdev(right) / len(right) ** 0.5 if seeds > 1 else None,
            }

    print(f"graph          known  model  parameters  accuracy on the others, mean of {seeds} seeds ± standard error")
    for name, r in results.items():
        for model, m in r["models"].items():
            spread = "" if m["standard_error"] is None else f" ± {m['standard_error']:.3f}"
            row = f"{name:<13}  {r['known_of_each_group']:>5}  {model:<5}  {m['parameters']:>10}"
            print(f"{row}  {m['mean']:>8.3f}{spread}")

    def figures():
        panels = {
            f"accuracy, {name}": {
                model: (list(range(1, seeds + 1)), sorted(m["accuracy"])) for model, m in r["models"].items()
            }
            for name, r in results.items()
        }
        return {"accuracy.png": plot.lines(panels, xlabel="rank among the seeds")}

    write(out, results, figures, engine=engine, seed=seed)
    return results


if __name__ == "__main__":
    parser = arguments(__doc__, "graph_ode", on_torch="20 seconds", on_julia="40 seconds")
    parser.add_argument("--seed", type=int, default=0, help="the first seed: of parameters and of what is known")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--iterations", type=int, default=100, help="steps of the optimizer")
    run(**vars(parser.parse_args()))
