# A graph lowered for one element type, and the buffers for one batch size.

"""
A vector field lowered for one element type: programs over shared inputs.

Parameters, conditioning tensors and what else the graph reads lie in one vector `θ`, the state in one vector `u`
(PyTorch's tensors one after the other). What depends on `θ` alone is computed by `prologue`, once per binding.
"""
struct Kernel{T}
    graph::Graph
    residuals::Vector{Int}  # nodes of the value's computation that the products read
    prologue::Program
    value::Program
    record::Program         # the value, and the residuals
    vjp::Program            # every product
    replay::Program         # every product, from the residuals
    vjp_state::Program      # the products with the Jacobians in the state and in t only
    vjp_theta::Program      # the products with the Jacobians in all else only
end

"The inputs whose values make up `θ`: what the gradient may be asked for comes first."
const THETA = (:arg, :parameter)
const FIXED = (:buffer, :constant)

theta_inputs(g::Graph) = [inputs_of(g, :arg); inputs_of(g, :parameter); inputs_of(g, :buffer); inputs_of(g, :constant)]

"Operations without operands."
const GIVEN = (:const, :full, :arange)

"Nodes that do not depend on `t`, the state or a cotangent and that the rest reads."
function frontier(g::Graph)
    static = falses(length(g.nodes))
    for (i, n) in enumerate(g.nodes)
        static[i] = n.op === :input ? g.inputs[n.attrs["index"] + 1].kind in (THETA..., FIXED...) :
            !(n.op in GIVEN) && all(j -> static[j] || g.nodes[j].op in GIVEN, operands(n)) &&
            any(j -> static[j], operands(n))
    end
    found = Int[]
    # A view of a parameter is left to where it is used, which may need it only transposed.
    function visit(i)
        n = g.nodes[i]
        (i in found || n.op === :input || n.op in GIVEN) && return
        n.op in (:permute, :reshape, :expand, :slice) ? foreach(visit, operands(n)) : push!(found, i)
    end
    needed = live(g, [g.value; filter(!iszero, g.vjp)], Dict{Int,Int}())
    for i in needed
        static[i] || foreach(j -> static[j] && visit(j), operands(g.nodes[i]))
        static[i] && (i in g.value || i in g.vjp) && visit(i)
    end
    return sort!(found)
end

"""
    residuals(graph, given)

What the products read of the value's computation, and what is worth keeping from one to the other: the results of all
operations but the cheap ones, which are computed again from what they read.
"""
function residuals(g::Graph, given)
    needed = live(g, filter(!iszero, g.vjp), given)
    behind = falses(length(g.nodes))  # whether a cotangent is read
    for i in needed
        n = g.nodes[i]
        behind[i] = n.op === :input ? g.inputs[n.attrs["index"] + 1].kind === :cotangent : any(j -> behind[j], operands(n))
    end
    isfree(i) = haskey(given, i) || g.nodes[i].op in GIVEN || istime(g, g.nodes[i])
    found = Int[]
    function visit(i)
        (isfree(i) || i in found) && return
        n = g.nodes[i]
        sources = unique(filter(!isfree, operands(n)))
        view = n.op in (:reshape, :permute, :slice)
        cheap = view || n.op in CHEAP || n.op === :pow
        # A sum of a product and its bias is one operation.
        spread = !view && any(j -> haskey(given, j) && g.nodes[j].shape != n.shape, operands(n))
        cheap && !spread && length(sources) <= 1 ? foreach(visit, sources) : push!(found, i)
    end
    for i in needed
        behind[i] && foreach(j -> behind[j] || visit(j), operands(g.nodes[i]))
    end
    return sort!(found)
end

"""
    Kernel{T}(graph)

Lower a graph for an element type.
"""
function Kernel{T}(g::Graph) where {T}
    z, vs, θ = inputs_of(g, :z), inputs_of(g, :cotangent), theta_inputs(g)
    differ = differentiable(g)
    # Given buffers: z, θ, cotangents, frontier, residuals, then the results: value, dz, dθ (all differentiable), dt.
    given, count = Dict{Int,Int}(), 0
    for i in [z; θ; vs]
        given[i] = (count += 1)
    end
    inputs = copy(given)
    front = [i => (count += 1) for i in frontier(g)]
    merge!(given, Dict(front))
    kept = Pair{Int,Int}[i => (count += 1) for i in residuals(g, given)]
    value = [node => (count += 1) for node in g.value]
    products = Dict{Symbol,Vector{Pair{Int,Int}}}()
    for kind in (:z, :arg, :parameter, :t), (k, position) in enumerate(differ)
        g.inputs[position].kind === kind || continue
        count += 1
        g.vjp[k] == 0 || push!(get!(products, kind, Pair{Int,Int}[]), g.vjp[k] => count)
    end
    wanted(kinds...) = reduce(vcat, (get(products, kind, Pair{Int,Int}[]) for kind in kinds))
    every = wanted(:z, :arg, :parameter, :t)
    return Kernel{T}(
        g,
        first.(kept),
        lower(g, T, inputs, count, front),
        lower(g, T, given, count, value),
        lower(g, T, given, count, [kept; value]),
        lower(g, T, given, count, every),
        lower(g, T, merge(given, Dict(kept)), count, every),
        lower(g, T, given, count, wanted(:z, :t)),
        lower(g, T, given, count, wanted(:arg, :parameter)),
    )
end

"A program with its buffers."
struct Bound{F,B<:Tuple}
    run::F
    buffers::B
    batch::Int
end

(p::Bound)(t) = p.run(p.buffers, t, p.batch)

"""
The buffers of a kernel for one batch size. `u`, `θ`, `v` are read, `du`, `dz`, `dθ`, `dt` written by the programs that
`bind` makes.
"""
struct Workspace{T,V<:AbstractVector{T}}
    kernel::Kernel{T}
    batch::Int
    like::V
    u::V
    θ::V
    v::V
    du::V
    dz::V
    dθ::V      # conditioning tensors, then parameters
    dt::V
    frontier::Vector{Any}
    scratch::Dict{Program,Vector{Any}}  # the buffers of a program's own, which every binding of it shares
end

elements(shape, batch) = prod(d -> dimsize(d, batch), shape; init = 1)

"Part of a vector as an array of a shape, over the same memory."
part_of(x::Array, offset, shape) = unsafe_wrap(Array, pointer(x, offset + 1), shape)
part_of(x::AbstractVector, offset, shape) = reshape(view(x, (offset + 1):(offset + prod(shape))), shape)

function parts!(buffers, x, shapes, batch)
    offset = 0
    for shape in shapes
        push!(buffers, part_of(x, offset, sizes(shape, batch)))
        offset += elements(shape, batch)
    end
    return buffers
end

shapes(g::Graph, ids) = [g.inputs[i].shape for i in ids]
differentiated(g::Graph) = [inputs_of(g, :arg); inputs_of(g, :parameter)]

"An array for a node's value."
room(like, n::Node, T, batch) = (E = eltype_of(n, T); fill!(similar(like, E, sizes(n.shape, batch)), zero(E)))

"""
    Workspace(kernel, batch, like = T[])

Allocate the buffers of a kernel for a batch size, with arrays like `like`.
"""
function Workspace(k::Kernel{T}, batch::Int, like = T[]) where {T}
    g = k.graph
    make(ids) = fill!(similar(like, T, sum(x -> elements(x, batch), shapes(g, ids); init = 0)), zero(T))
    z = inputs_of(g, :z)
    return Workspace(
        k, batch, like, make(z), make(theta_inputs(g)), make(inputs_of(g, :cotangent)),
        make(z), make(z), make(differentiated(g)), fill!(similar(like, T, 1), zero(T)),
        Any[room(like, g.nodes[i], T, batch) for i in frontier(g)], Dict{Program,Vector{Any}}(),
    )
end

"""
    bind(workspace, program; u, du, residuals)

A program on a workspace's buffers, or on others for the state, the value and the residuals; it does not keep the memory of
`u` and `du` alive.
"""
function bind(w::Workspace, p::Program; u = w.u, du = w.du, residuals = fill(nothing, length(w.kernel.residuals)))
    g, batch = w.kernel.graph, w.batch
    z = shapes(g, inputs_of(g, :z))
    buffers = Any[]
    parts!(buffers, u, z, batch)
    parts!(buffers, w.θ, shapes(g, theta_inputs(g)), batch)
    parts!(buffers, w.v, shapes(g, inputs_of(g, :cotangent)), batch)
    append!(buffers, w.frontier, residuals)
    parts!(buffers, du, z, batch)
    parts!(buffers, w.dz, z, batch)
    parts!(buffers, w.dθ, shapes(g, differentiated(g)), batch)
    push!(buffers, part_of(w.dt, 0, ()))
    fresh = !haskey(w.scratch, p)
    scratch = get!(() -> Any[], w.scratch, p)
    for (i, s) in enumerate(p.specs)
        fresh && push!(scratch, s.alias ? nothing : s.make(w.like, batch, buffers))
        push!(buffers, s.alias ? s.make(w.like, batch, buffers) : scratch[i])
    end
    return Bound(p.run, Tuple(buffers), batch)
end

new_residuals(w::Workspace{T}) where {T} =
    Any[room(w.like, w.kernel.graph.nodes[i], T, w.batch) for i in w.kernel.residuals]

"The entries of the state that belong to each sample."
function samples(w::Workspace)
    found, offset = [Int[] for _ in 1:(w.batch)], 0
    for shape in shapes(w.kernel.graph, inputs_of(w.kernel.graph, :z))
        n = elements(shape, w.batch)
        size = n ÷ w.batch
        foreach(b -> append!(found[b], (offset + (b - 1) * size) .+ (1:size)), 1:(w.batch))
        offset += n
    end
    return found
end
