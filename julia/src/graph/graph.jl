# The graph of a vector field, as Python's `FieldGraph.to_dict()` gives it.

"A dimension: a number, or `(a, b)` for `a * batch + b`."
const Dim = Union{Int,Tuple{Int,Int}}

"The size that a dimension stands for at a batch size."
dimsize(d::Int, ::Int) = d
dimsize(d::Tuple{Int,Int}, batch::Int) = d[1] * batch + d[2]

"A number as an operand."
struct Literal
    value::Union{Bool,Int,Float64}
end

"The size of a dimension as an operand."
struct SizeOf
    dim::Tuple{Int,Int}
end

"""
One operation of the graph.

Operands are earlier nodes by position (from 1), `Literal`s, or `SizeOf`s. `shape` lists dimensions in Julia's
order: the reverse of PyTorch's, over the same memory.
"""
struct Node
    op::Symbol
    inputs::Vector{Any}
    shape::Vector{Dim}
    dtype::Symbol
    attrs::Dict{String,Any}
end

"One input of the graph; see Python's `pynode.field.Input`."
struct Input
    kind::Symbol
    name::String
    shape::Vector{Dim}
end

"""
The graph of a vector field: the value and the vector-Jacobian products.

`value` holds the node of each state tensor's derivative, `vjp` the node of each differentiable input's
cotangent (`0` where there is none), in the order of the inputs.
"""
struct Graph
    inputs::Vector{Input}
    nodes::Vector{Node}
    value::Vector{Int}
    vjp::Vector{Int}
end

const GRAPH_VERSION = 1

todim(d::Integer) = Int(d)
todim(d) = (Int(d[1]), Int(d[2]))
toshape(dims) = Dim[todim(d) for d in Iterators.reverse(dims)]

"A number of the graph; those that JSON lacks come as strings."
number(x::AbstractString) = parse(Float64, x)
number(x::Union{Bool,Int,Float64}) = x

tooperand(x::Integer) = Int(x) + 1
function tooperand(x)
    value = x["number"]
    value isa AbstractVector && return SizeOf((Int(value[1]), Int(value[2])))
    return Literal(number(value))
end

"""
    Graph(json::AbstractString)

Read a graph. Throws an `ArgumentError` for another version than `$GRAPH_VERSION`.
"""
function Graph(json::AbstractString)
    data = JSON.parse(json)
    version = data["version"]
    version == GRAPH_VERSION ||
        throw(ArgumentError("expected a graph of version $GRAPH_VERSION, got $version: update PyNODE or pynode"))
    inputs = [Input(Symbol(i["kind"]), i["name"], toshape(i["shape"])) for i in data["inputs"]]
    nodes = [
        Node(
            Symbol(n["op"]),
            Any[tooperand(x) for x in n["in"]],
            toshape(n["shape"]),
            Symbol(n["dtype"]),
            Dict{String,Any}(String(k) => v for (k, v) in pairs(n["attrs"])),
        ) for n in data["nodes"]
    ]
    vjp = [v === nothing ? 0 : Int(v) + 1 for v in data["vjp"]]
    return Graph(inputs, nodes, [Int(v) + 1 for v in data["value"]], vjp)
end

"The nodes among an operation's operands."
operands(n::Node) = Int[i for i in n.inputs if i isa Int]

"The differentiable inputs, in the order of `vjp`."
differentiable(g::Graph) = findall(i -> i.kind in (:t, :z, :arg, :parameter), g.inputs)

"Positions of the inputs of a kind."
inputs_of(g::Graph, kinds::Symbol...) = findall(i -> i.kind in kinds, g.inputs)
