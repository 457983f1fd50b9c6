# A graph lowered for one element type, and the buffers for one batch size.

"""
A vector field lowered for one element type: three programs over shared inputs.

Parameters, conditioning tensors and what else the graph reads lie in one vector `θ`, the state in one vector `u`
(PyTorch's tensors one after the other). What depends on `θ` alone is computed by `prologue`, once per binding.
"""
struct Kernel{T}
    graph::Graph
    prologue::Program
    value::Program
    vjp::Program          # every product
    vjp_state::Program    # the products with the Jacobians in the state and in t only
    vjp_theta::Program    # the products with the Jacobians in all else only
end

"The inputs whose values make up `θ`: what the gradient may be asked for comes first."
const THETA = (:arg, :parameter)
const FIXED = (:buffer, :constant)

theta_inputs(g::Graph) = [inputs_of(g, :arg); inputs_of(g, :parameter); inputs_of(g, :buffer); inputs_of(g, :constant)]

"Nodes that do not depend on `t`, the state or a cotangent and that the rest reads."
function frontier(g::Graph)
    static = falses(length(g.nodes))
    for (i, n) in enumerate(g.nodes)
        static[i] = n.op === :input ? g.inputs[n.attrs["index"] + 1].kind in (THETA..., FIXED...) :
            n.op !== :const && n.op !== :full && all(j -> static[j] || g.nodes[j].op in (:const, :full), operands(n)) &&
            any(j -> static[j], operands(n))
    end
    found = Int[]
    # A view of a parameter is left to where it is used, which may need it only transposed.
    function visit(i)
        n = g.nodes[i]
        (i in found || n.op === :input || n.op in (:const, :full)) && return
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
    Kernel{T}(graph)

Lower a graph for an element type.
"""
function Kernel{T}(g::Graph) where {T}
    z, vs, θ = inputs_of(g, :z), inputs_of(g, :cotangent), theta_inputs(g)
    differ = differentiable(g)
    # Given buffers: z, θ, cotangents, frontier, then the results: value, dz, dθ (all differentiable), dt.
    given, count = Dict{Int,Int}(), 0
    for i in [z; θ; vs]
        given[i] = (count += 1)
    end
    results_of_prologue = frontier(g)
    inputs = copy(given)
    front = [i => (count += 1) for i in results_of_prologue]
    merge!(given, Dict(front))
    results(nodes) = [node => (count += 1) for node in nodes]
    value = results(g.value)
    products = Dict{Symbol,Vector{Pair{Int,Int}}}()
    for kind in (:z, :arg, :parameter, :t), (k, position) in enumerate(differ)
        g.inputs[position].kind === kind || continue
        count += 1
        g.vjp[k] == 0 || push!(get!(products, kind, Pair{Int,Int}[]), g.vjp[k] => count)
    end
    wanted(kinds...) = reduce(vcat, (get(products, kind, Pair{Int,Int}[]) for kind in kinds))
    return Kernel{T}(
        g,
        lower(g, T, inputs, count, front),
        lower(g, T, given, count, value),
        lower(g, T, given, count, wanted(:z, :arg, :parameter, :t)),
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
The buffers of a kernel for one batch size. `u`, `θ`, `v` are read, `du`, `dz`, `dθ`, `dt` written by the programs.

`products` is `:joint` where the vector-Jacobian products are always wanted together (discrete adjoint), `:split`
where those of the state and of `θ` are wanted at different points (continuous adjoints).
"""
struct Workspace{T,V<:AbstractVector{T},P,Q,R,S}
    batch::Int
    u::V
    θ::V
    v::V
    du::V
    dz::V
    dθ::V      # conditioning tensors, then parameters
    dt::V
    prologue::P
    value::Q
    vjp::R         # every product, or that with the state's Jacobian
    vjp_theta::S   # `nothing` where `vjp` computes every product
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

"""
    Workspace(kernel, batch, like = T[]; products = :joint)

Allocate the buffers of a kernel for a batch size, with arrays like `like`.
"""
function Workspace(k::Kernel{T}, batch::Int, like = T[]; products::Symbol = :joint) where {T}
    g = k.graph
    shapes(ids) = [g.inputs[i].shape for i in ids]
    total(s) = sum(x -> elements(x, batch), s; init = 0)
    zs, θs, vs = shapes(inputs_of(g, :z)), shapes(theta_inputs(g)), shapes(inputs_of(g, :cotangent))
    dθs = shapes([inputs_of(g, :arg); inputs_of(g, :parameter)])
    make(n) = fill!(similar(like, T, n), zero(T))
    u, θ, v, du, dz, dθ, dt = make(total(zs)), make(total(θs)), make(total(vs)), make(total(zs)), make(total(zs)),
    make(total(dθs)), make(1)
    given = Any[]
    parts!(given, u, zs, batch)
    parts!(given, θ, θs, batch)
    parts!(given, v, vs, batch)
    for i in frontier(g)
        push!(given, fill!(similar(like, eltype_of(g.nodes[i], T), sizes(g.nodes[i].shape, batch)), 0))
    end
    parts!(given, du, zs, batch)
    parts!(given, dz, zs, batch)
    parts!(given, dθ, dθs, batch)
    push!(given, part_of(dt, 0, ()))
    function bind(p::Program)
        buffers = copy(given)
        for s in p.specs
            push!(buffers, s.make(like, batch, buffers))
        end
        return Bound(p.run, Tuple(buffers), batch)
    end
    joint = products === :joint
    return Workspace(
        batch, u, θ, v, du, dz, dθ, dt, bind(k.prologue), bind(k.value),
        bind(joint ? k.vjp : k.vjp_state), joint ? nothing : bind(k.vjp_theta),
    )
end
