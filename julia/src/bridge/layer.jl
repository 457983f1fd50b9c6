# A traced field as other Julia packages see it: a differentiable function and a Lux layer.

"""
    evaluate(field, u, θ, t)

`f(t, u)` as a new array of `u`'s shape. Zygote and every other user of ChainRules differentiate it by the field's own
vector-Jacobian product.
"""
function evaluate(f::TracedField, u, θ, t)
    bind!(f, θ)
    du = similar(f.du)
    value!(du, f, u, t)
    return reshape(du, size(u))
end

function ChainRulesCore.rrule(::typeof(evaluate), f::TracedField, u, θ, t)
    # The field's buffers are shared: the pullback brings its own copies of the inputs back.
    state, parameters = copy(u), copy(θ)
    function pullback(cotangent)
        bind!(f, parameters)
        vjp!(f, unthunk(cotangent), state, t)
        dθ = fill!(similar(parameters), 0)
        copyto!(dθ, 1, f.dθ, 1, length(f.dθ))
        return NoTangent(), NoTangent(), reshape(copy(f.dz), size(u)), dθ, sum(f.dt)
    end
    return evaluate(f, u, θ, t), pullback
end

"""
    TracedLayer(kernel, θ; t = 0)

A traced field as a Lux layer, for DiffEqFlux's `NeuralODE`, `multiple_shoot` and the like, which pass no time: the field
is evaluated at the fixed `t`.

# Inputs
- `x`: `(features…, batch)`, of any batch size.

# Returns
- `f(t, x)`, of the shape of `x`, and the unchanged state.

# Parameters
- `θ`: conditioning tensors, parameters and buffers of the field, one after the other.
"""
struct TracedLayer{T,K<:Kernel{T}} <: LuxCore.AbstractLuxLayer
    kernel::K
    θ::Vector{T}
    t::T
    fields::Dict{Int,TracedField{T,Vector{T}}}
end

TracedLayer(k::Kernel{T}, θ; t = 0) where {T} =
    TracedLayer{T,typeof(k)}(k, Vector{T}(θ), T(t), Dict{Int,TracedField{T,Vector{T}}}())

LuxCore.initialparameters(::AbstractRNG, l::TracedLayer) = (; θ = copy(l.θ))
LuxCore.initialstates(::AbstractRNG, ::TracedLayer) = (;)
LuxCore.parameterlength(l::TracedLayer) = length(l.θ)
LuxCore.statelength(::TracedLayer) = 0

function field_of(l::TracedLayer, batch::Int)
    return get!(() -> TracedField(Workspace(l.kernel, batch)), l.fields, batch)
end

ChainRulesCore.@non_differentiable field_of(::Any, ::Any)

(l::TracedLayer)(x, ps, st) = (evaluate(field_of(l, size(x, ndims(x))), x, ps.θ, l.t), st)
