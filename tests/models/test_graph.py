"""Graph ODEs: linear fields against matrix exponentials, sparse against dense, a union against its parts."""

import copy

import networkx as nx
import pytest
import torch
from torch import nn

from pynode import solve
from pynode.errors import InputError
from pynode.models import CGNN, NODE, GraphODE
from pynode.nn import Graph, GraphConv, GraphLayer, TimeSequential

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
SLOW_ON_JULIA = ("torch", pytest.param("julia", marks=[pytest.mark.julia, pytest.mark.slow]))


def random_graph(n=5, **keywords):
    """Directed, with weights and without loops; node 0 has no edge that enters it."""
    weights = torch.rand(n, n, dtype=torch.float64) * (torch.rand(n, n) < 0.6)
    weights.fill_diagonal_(0)
    weights[:, 0] = 0
    return weights, Graph.from_adjacency(weights, **keywords)


def signals(batch=2, nodes=5, features=3):
    return torch.randn(batch, nodes, features, dtype=torch.float64)


# ---- the operator -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("normalise", ["symmetric", "row"])
def test_a_graph_in_double_is_normalised_in_double(normalise, dense):
    edges = torch.tensor([[0, 1, 2, 0], [1, 2, 0, 2]])
    graph = Graph(edges, normalise=normalise, self_loops=True, dense=dense)
    exact = Graph(edges, torch.ones(4, dtype=torch.float64), normalise=normalise, self_loops=True, dense=dense)
    z = torch.randn(1, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(graph(z), exact(z), rtol=1e-14, atol=1e-14)  # of a state in double
    again = copy.deepcopy(graph).float().double()
    torch.testing.assert_close(again(z), exact(z), rtol=1e-14, atol=1e-14)
    assert graph(z.float()).dtype == torch.float32


@pytest.mark.parametrize("dense", [True, False])
def test_weights_that_are_assigned_or_that_require_a_gradient(dense):
    """What was computed of the weights at first was used all the same."""
    edges = torch.tensor([[0, 1, 2, 0], [1, 2, 0, 2]])
    first, second = torch.rand(2, 4, dtype=torch.float64)
    how = {"normalise": "row", "self_loops": True, "dense": dense}
    z, graph, expected = signals(nodes=3), Graph(edges, first, **how), Graph(edges, nn.Parameter(second), **how)
    expected(z).square().sum().backward()
    graph.weight = second.clone()
    torch.testing.assert_close(graph(z), expected(z).detach())
    graph.weight.requires_grad_()
    graph(z).square().sum().backward()
    torch.testing.assert_close(graph.weight.grad, expected.weight.grad)
    graph.weight = nn.Parameter(second.clone())
    graph(z).square().sum().backward()
    torch.testing.assert_close(graph.weight.grad, expected.weight.grad)
    graph = Graph(edges, first, self_loops=True, dense=dense)
    graph.normalise = "row"
    torch.testing.assert_close(graph(z), Graph(edges, first, **how)(z))
    with pytest.raises(InputError, match="one number for each of the 4 edges"):
        graph.weight = torch.ones(7)


@pytest.mark.parametrize("dense", [True, False])
def test_messages_go_along_the_edges(dense):
    weights, graph = random_graph(dense=dense)
    z = signals()
    torch.testing.assert_close(graph(z), torch.einsum("ij,bif->bjf", weights, z))
    torch.testing.assert_close(graph.adjacency(), weights.T)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("learns", [True, False])
def test_normalisations_against_networkx(dense, learns):
    club = nx.karate_club_graph()
    weights = torch.from_numpy(nx.to_numpy_array(club))
    edges = weights.nonzero().T
    weight = weights[edges[0], edges[1]]
    weight = nn.Parameter(weight) if learns else weight

    def graph(normalise, **keywords):
        return Graph(edges, weight, normalise=normalise, dense=dense, **keywords)

    laplacian = torch.from_numpy(nx.normalized_laplacian_matrix(club).toarray())
    torch.testing.assert_close(graph("symmetric").adjacency(), torch.eye(34).double() - laplacian)
    z = signals(1, 34, 2)
    torch.testing.assert_close(graph("symmetric")(z), z - laplacian @ z)
    torch.testing.assert_close(graph("row")(torch.ones_like(z)), torch.ones_like(z))
    with_loops = weights + torch.eye(34).double()
    root = with_loops.sum(1).rsqrt()
    expected = root[:, None] * with_loops * root
    torch.testing.assert_close(graph("symmetric", self_loops=True).adjacency(), expected)


def test_a_node_without_neighbours_has_a_row_of_zeros():
    graph = Graph(torch.tensor([[0], [1]]), n_nodes=3, normalise="row")
    assert torch.equal(graph.adjacency(), torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0, 0]]))


def test_sparse_adjacency():
    weights, graph = random_graph()
    again = Graph.from_adjacency(weights.to_sparse_coo())
    assert torch.equal(again.adjacency(), graph.adjacency())


def test_union_is_its_parts():
    graphs = [random_graph(n, normalise="row", self_loops=loops)[1] for n, loops in ((4, True), (6, False))]
    z = signals(2, 10)
    parts = [graph(x) for graph, x in zip(graphs, z.split([4, 6], 1), strict=True)]
    torch.testing.assert_close(Graph.union(graphs)(z), torch.cat(parts, 1))


def test_small_graphs_are_dense_and_large_ones_with_few_edges_are_not():
    ring = torch.stack([torch.arange(100), (torch.arange(100) + 1) % 100])
    assert not Graph(ring).dense
    assert Graph(ring[:, :9], n_nodes=10).dense
    assert Graph(torch.ones(100, 100).nonzero().T).dense


# ---- models -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("dense", [True, False])
def test_a_linear_field_is_a_matrix_exponential(dense):
    """ż = A z W: vec z(1) = exp(A ⊗ Wᵀ) vec z(0)."""
    _, graph = random_graph(normalise="symmetric", self_loops=True, dense=dense)
    layer, z = GraphConv(graph, 3, 3, bias=False).double(), signals()
    model = GraphODE(layer, **TIGHT)
    generator = torch.kron(graph.adjacency(), layer.weight.T.contiguous())
    expected = (z.flatten(1) @ torch.linalg.matrix_exp(generator).T).reshape(z.shape)
    torch.testing.assert_close(model(z), expected, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(model(z[0]), expected[0], atol=1e-7, rtol=1e-7)
    assert model.stats.nfe > 0


def test_trajectories_of_one_signal_and_of_several():
    _, graph = random_graph()
    model, z, t = GraphODE(GraphConv(graph, 3, 3).double(), **TIGHT), signals(), torch.tensor([0.0, 0.5, 1.0])
    whole = model.trajectory(z, t)
    assert whole.shape == (3, 2, 5, 3)
    one = model.trajectory(z[1], t)
    assert one.shape == (3, 5, 3)
    torch.testing.assert_close(one, whole[:, 1], atol=1e-7, rtol=0)


def test_a_union_flows_as_its_parts():
    graphs, z = [random_graph(n)[1] for n in (4, 6)], signals(1, 10)
    weight = torch.randn(3, 3, dtype=torch.float64)

    def field(graph):
        return lambda t, z: torch.tanh(graph(z) @ weight)

    parts = [GraphODE(field(g), **TIGHT)(x) for g, x in zip(graphs, z.split([4, 6], 1), strict=True)]
    torch.testing.assert_close(GraphODE(field(Graph.union(graphs)), **TIGHT)(z), torch.cat(parts, 1))


@pytest.mark.usefixtures("engine")
def test_cgnn_has_the_solution_of_its_paper():
    """H(t) = (A - I)⁻¹ (exp((A - I) t) - I) E + exp((A - I) t) E."""
    weights, _ = random_graph(4)
    graph = Graph.from_adjacency(weights + weights.T, normalise="symmetric")
    model = CGNN(graph, 3, alpha=0.8, t=(0.0, 2.0), **TIGHT).double()
    with torch.no_grad():
        model.field.alpha.add_(torch.randn(4, 1))
    eye = torch.eye(4, dtype=torch.float64)
    a = torch.sigmoid(model.field.alpha) / 2 * (eye + graph.adjacency()) - eye
    grown, e = torch.linalg.matrix_exp(2 * a), signals(2, 4)
    torch.testing.assert_close(model(e), torch.linalg.solve(a, (grown - eye) @ e) + grown @ e, atol=1e-7, rtol=1e-7)


def test_cgnn_with_mixed_features():
    """vec Ḣ = (A ⊗ I + I ⊗ W - 2 I) vec H + vec E, with W symmetric and its eigenvalues in (0, 1)."""
    weights, _ = random_graph(4)
    graph = Graph.from_adjacency(weights + weights.T, normalise="symmetric")
    encoder = nn.Linear(2, 3).double()
    model = CGNN(graph, 3, mixed=True, input_network=encoder, **TIGHT).double()
    w, eye = model.field.mixing(), torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(w, w.T)
    assert torch.linalg.eigvalsh(w).min() > 0
    assert torch.linalg.eigvalsh(w).max() < 1
    assert torch.sigmoid(model.field.alpha)[0].item() == pytest.approx(0.9)
    a = 0.45 * (eye + graph.adjacency())
    generator = torch.kron(a, eye[:3, :3]) + torch.kron(eye, w.T.contiguous()) - 2 * torch.eye(12, dtype=torch.float64)
    x = signals(2, 4, 2)
    e = encoder(x).flatten(1).T
    grown = torch.linalg.matrix_exp(generator)
    expected = torch.linalg.solve(generator, (grown - torch.eye(12, dtype=torch.float64)) @ e) + grown @ e
    torch.testing.assert_close(model(x), expected.T.reshape(2, 4, 3), atol=1e-7, rtol=1e-7)


def graph_ode(engine, **keywords):
    _, graph = random_graph(4, dense=False)
    graph = Graph(graph.edge_index, nn.Parameter(graph.weight), n_nodes=4, normalise="symmetric", self_loops=True)
    field = TimeSequential(GraphConv(graph, 2, 3), nn.Tanh(), GraphConv(graph, 3, 2))
    keywords = keywords or {"solver": "rk4", "dt": 0.5}
    return GraphODE(field, sensitivity="discrete", engine=engine, **keywords).double()


def cgnn(engine):
    _, graph = random_graph(4, dense=False, normalise="row")
    return CGNN(graph, 2, mixed=True, solver="rk4", dt=0.5, sensitivity="discrete", engine=engine).double()


@pytest.mark.parametrize("make", [graph_ode, cgnn])
@pytest.mark.parametrize("engine", SLOW_ON_JULIA)
def test_gradcheck(make, engine):
    model = make(engine)
    names, parameters = zip(*model.named_parameters(), strict=True)

    def call(x, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    inputs = [signals(2, 4, 2).requires_grad_(), *(p.detach().requires_grad_() for p in parameters)]
    assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.julia
def test_engines_agree():
    found, x = [], signals(2, 4, 2)
    for engine in ("torch", "julia"):
        torch.manual_seed(0)
        model = graph_ode(engine, **TIGHT)
        model(x).square().sum().backward()
        found.append([model(x), *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*found, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("engine", SLOW_ON_JULIA)
def test_layers_of_pytorch_geometric(engine):
    geometric = pytest.importorskip("torch_geometric.nn", reason="PyTorch Geometric is not installed")
    weights, graph = random_graph(6, normalise="symmetric", self_loops=True)
    x = signals(2, 6, 3)
    layer = GraphLayer(geometric.GCNConv(3, 3, normalize=False).double(), graph)
    with_loops = weights.T + torch.eye(6).double()
    root = with_loops.sum(1).rsqrt()
    operator, weight = root[:, None] * with_loops * root, layer.layer.lin.weight
    known = solve(
        lambda t, z: torch.tanh(operator @ (z @ weight.T)), x, torch.tensor([0.0, 1.0]), engine="torch", **TIGHT
    )
    got = GraphODE(TimeSequential(layer, nn.Tanh()), engine=engine, **TIGHT)(x)
    torch.testing.assert_close(got, known.z[-1], atol=1e-7, rtol=1e-7)
    got.sum().backward()
    assert weight.grad.abs().max() > 0
    if engine == "torch":
        same = GraphLayer(geometric.GCNConv(3, 3).double(), Graph.from_adjacency(weights))
        same.layer.load_state_dict(layer.layer.state_dict())
        torch.testing.assert_close(same(x), layer(x))
        unweighted = GraphLayer(geometric.SAGEConv(3, 3).double(), Graph(graph.edge_index, n_nodes=6))
        assert GraphODE(unweighted, engine=engine)(x).shape == x.shape


def test_a_used_model_copies():
    model, x = graph_ode("torch"), signals(2, 4, 2)
    model(x).sum().backward()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    with torch.no_grad():
        twin.field[0].graph.weight.add_(1.0)
    assert not torch.equal(twin(x), model(x))


def test_float32_states_of_a_graph_in_double():
    _, graph = random_graph()
    assert GraphODE(GraphConv(graph, 3, 3))(signals().float()).dtype == torch.float32


# ---- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edges", "keywords", "message"),
    [
        (torch.zeros(3, 2).long(), {}, r"edge_index must be a tensor of shape \(2, edges\), got \(3, 2\)"),
        (torch.zeros(2, 2), {}, "node numbers as torch.int64, got torch.float32"),
        (torch.tensor([[0], [3]]), {"n_nodes": 3}, "node numbers from 0 to 2, got 0 to 3"),
        (torch.tensor([[-1], [3]]), {}, "node numbers from 0 to 3, got -1 to 3"),
        (torch.tensor([[0], [1]]), {"weight": torch.ones(2)}, "one number for each of the 1 edges"),
        (torch.tensor([[0], [1]]), {"weight": torch.ones(1).long()}, "floating-point dtype"),
        (torch.tensor([[0], [1]]), {"weight": torch.ones(1) / 0}, "weight must be finite"),
        (torch.tensor([[0], [1]]), {"weight": torch.ones(1).requires_grad_()}, "is not an nn.Parameter"),
        (torch.tensor([[0], [1]]), {"normalise": "rows"}, "unknown normalise 'rows'"),
    ],
)
def test_wrong_graphs(edges, keywords, message):
    with pytest.raises(InputError, match=message):
        Graph(edges, **keywords)


def test_wrong_use():
    weights, graph = random_graph()
    with pytest.raises(InputError, match="a graph of 5 nodes takes"):
        GraphODE(GraphConv(graph, 3, 3).double())(signals(2, 4))
    with pytest.raises(InputError, match=r"\(batch, nodes, features\) or \(nodes, features\), got \(5,\)"):
        GraphODE(graph)(torch.ones(5))
    with pytest.raises(InputError, match="order must be 1"):
        GraphODE(graph, order=2)
    with pytest.raises(InputError, match="square matrix"):
        Graph.from_adjacency(weights[:3])
    with pytest.raises(InputError, match="graphs with fixed weights"):
        Graph.union([Graph(torch.tensor([[0], [1]]), nn.Parameter(torch.ones(1)))])
    with pytest.raises(InputError, match="would not see the weights of the graph"):
        GraphLayer(lambda z, edge_index: z, graph)
    with pytest.raises(InputError, match="alpha must lie between 0 and 1"):
        CGNN(graph, 3, alpha=1.0)
    with pytest.raises(InputError, match="takes no control"):
        CGNN(graph, 3, control=True)
    with pytest.raises(InputError, match=r"graph must be a pynode\.nn\.Graph"):
        CGNN(weights, 3)
    for make in (lambda: GraphConv(3, 2, graph), lambda: GraphLayer(nn.Linear(2, 2), 3)):
        with pytest.raises(InputError, match=r"must be a pynode\.nn\.Graph, got int"):
            make()
    assert isinstance(CGNN(graph, 3), NODE)
