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

"For each node whether it depends on parameters and their like, and neither on `t` nor on the state or a cotangent."
function static_nodes(g::Graph)
    static = falses(length(g.nodes))
    for (i, n) in enumerate(g.nodes)
        static[i] = n.op === :input ? g.inputs[n.attrs["index"] + 1].kind in (THETA..., FIXED...) :
            !(n.op in GIVEN) && all(j -> static[j] || g.nodes[j].op in GIVEN, operands(n)) &&
            any(j -> static[j], operands(n))
    end
    return static
end

"The static nodes that the rest reads, and what is made of parameters once for it."
function frontier(g::Graph)
    static, found, turned = static_nodes(g), Int[], turned_weights(g)
    # Other views of a parameter are left to where they are used.
    function visit(i)
        n = g.nodes[i]
        (i in found || n.op === :input || n.op in GIVEN) && return
        !(i in turned) && n.op in (:permute, :reshape, :expand, :slice) ? foreach(visit, operands(n)) : push!(found, i)
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
    Kernel{T}(graph; batch = 0, threads = 1)

Lower a graph for an element type; for several threads, which share operations on large arrays, and then for a batch size.
"""
function Kernel{T}(g::Graph; batch::Int = 0, threads::Int = 1) where {T}
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
    turned = turned_weights(g)
    program(given, count, outputs) = lower(g, T, given, count, outputs; turned, batch, threads)
    return Kernel{T}(
        g,
        first.(kept),
        program( inputs, count, front),
        program( given, count, value),
        program( given, count, [kept; value]),
        program( given, count, every),
        program( merge(given, Dict(kept)), count, every),
        program( given, count, wanted(:z, :t)),
        program( given, count, wanted(:arg, :parameter)),
    )
end
