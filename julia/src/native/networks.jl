# Networks of PyTorch that a Julia function calls.

"Network number `index` was given an input of this size and is not known yet: the caller traces it for this size."
struct UnknownNetwork <: Exception
    index::Int
    size::Vector{Int}
end

Base.showerror(io::IO, e::UnknownNetwork) =
    print(io, "network $(e.index) of the Julia field was given an input of size $(e.size), another than at its trace")

"""
A traced network for one size of its input. Its kernel is a field of two states, the input and the result, so that
kernels need no other kind of graph: the derivative of the first is zero, that of the second the network's result.
"""
struct Network{T}
    kernel::Any                # `nothing`: not known yet
    index::Int
    batched::Bool
    fields::Dict{Int,TracedField{T,Vector{T}}}
end

Network{T}(number::Int, index::Int, batched::Bool) where {T} =
    Network{T}(number == 0 ? nothing : KERNELS[number], index, batched, Dict{Int,TracedField{T,Vector{T}}}())

"The sizes of a network's input and result without the batch."
network_sizes(n::Network) = [Int[d for d in n.kernel.graph.inputs[i].shape if d isa Int] for i in inputs_of(n.kernel.graph, :z)]

function network_field(n::Network, x)
    given = collect(Int, size(x))
    n.batched && pop!(given)
    n.kernel === nothing && throw(UnknownNetwork(n.index, given))
    inner, _ = network_sizes(n)
    inner == given || throw(UnknownNetwork(n.index, given))
    batch = n.batched ? size(x, ndims(x)) : 1
    haskey(n.fields, batch) || length(n.fields) < MAX_FIELDS || empty!(n.fields)
    return get!(() -> TracedField(Workspace(n.kernel, batch)), n.fields, batch)
end

"""
    apply(network, x, θ)

The network's result for `x`: `(features…, batch)` in a batched function, else `(features…,)`.
"""
function apply(n::Network{T}, x, θ) where {T}
    f = network_field(n, x)
    load!(f, x, θ)
    f.value(zero(T))
    out = last(network_sizes(n))
    return reshape(f.du[(length(x) + 1):end], out..., (n.batched ? (size(x, ndims(x)),) : ())...)
end

function load!(f::TracedField, x, θ)
    bind!(f, θ)
    copyto!(f.u, 1, x, 1, length(x))
    return f
end

function ChainRulesCore.rrule(::typeof(apply), n::Network{T}, x, θ) where {T}
    y = apply(n, x, θ)
    function pullback(cotangent)
        f = load!(network_field(n, x), x, θ)
        fill!(f.v, 0)
        copyto!(f.v, length(x) + 1, unthunk(cotangent), 1, length(y))
        f.product(zero(T))
        dθ = fill!(similar(f.dθ, length(θ)), 0)
        copyto!(dθ, 1, f.dθ, 1, length(f.dθ))
        return NoTangent(), NoTangent(), reshape(f.dz[1:length(x)], size(x)), dθ
    end
    return y, pullback
end

"A network with its parameters, as the user's function calls it."
struct NetworkAt{N,V}
    network::N
    θ::V
end

(n::NetworkAt)(x) = apply(n.network, x, n.θ)
