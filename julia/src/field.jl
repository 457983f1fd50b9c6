# A vector field as the solvers see it.

"""
A field whose kernel is hidden behind function pointers, so that solvers are compiled once for all fields.

Callable as `field(du, u, p, t)`. `p` is the vector `θ` of the binding: conditioning tensors, parameters, and what
else the field reads.
"""
struct TracedField{T,V<:AbstractVector{T}}
    value::FunctionWrapper{Nothing,Tuple{V,V,T}}        # du, u, t
    vjp::FunctionWrapper{Nothing,Tuple{V,V,T}}          # v, u, t -> dz (dθ, dt)
    vjp_theta::FunctionWrapper{Nothing,Tuple{V,V,T}}    # v, u, t -> dθ
    bind::FunctionWrapper{Nothing,Tuple{V}}
    θ::V
    dz::V
    dθ::V
    dt::V
    counts::Vector{Int}
end

function TracedField(w::Workspace{T,V}) where {T,V}
    theta = w.vjp_theta === nothing ? (v, u, t) -> vjp!(w, v, u, t) : (v, u, t) -> vjp_theta!(w, v, u, t)
    return TracedField{T,V}(
        (du, u, t) -> value!(du, w, u, t),
        (v, u, t) -> vjp!(w, v, u, t),
        theta,
        θ -> (bind!(w, θ); nothing),
        w.θ, w.dz, w.dθ, w.dt, w.counts,
    )
end

"Use these values of `p` from now on."
function rebind!(f::TracedField, p)
    p === f.θ || f.bind(p)
    return f
end

function (f::TracedField)(du, u, p, t)
    rebind!(f, p)
    f.value(du, u, t)
    return nothing
end

"The product of a cotangent with the state's Jacobian, as `ODEFunction(vjp = …)` has it."
struct StateProduct{F<:TracedField}
    field::F
end

function (s::StateProduct)(out, v, u, p, t)
    rebind!(s.field, p)
    s.field.vjp(v, u, t)
    copyto!(out, s.field.dz)
    return nothing
end

"The product of a cotangent with the Jacobian in `p`, as `ODEFunction(vjp_p = …)` has it."
struct ThetaProduct{F<:TracedField}
    field::F
end

function (s::ThetaProduct)(out, v, u, p, t)
    rebind!(s.field, p)
    s.field.vjp_theta(v, u, t)
    n = length(s.field.dθ)
    copyto!(out, 1, s.field.dθ, 1, n)
    fill!(view(out, (n + 1):length(out)), 0)
    return nothing
end

"The state's Jacobian, row by row from vector-Jacobian products."
struct Jacobian{F<:TracedField,V}
    field::F
    v::V
end

function (j::Jacobian)(J, u, p, t)
    rebind!(j.field, p)
    for i in eachindex(j.v)
        fill!(j.v, 0)
        fill!(view(j.v, i:i), 1)
        j.field.vjp(j.v, u, t)
        copyto!(view(J, i, :), j.field.dz)
    end
    fill!(j.v, 0)
    return nothing
end

"The derivative of a field in `t`, entry by entry from vector-Jacobian products."
struct TimeGradient{F<:TracedField,V}
    field::F
    v::V
end

function (g::TimeGradient)(dT, u, p, t)
    rebind!(g.field, p)
    for i in eachindex(g.v)
        fill!(g.v, 0)
        fill!(view(g.v, i:i), 1)
        g.field.vjp(g.v, u, t)
        copyto!(view(dT, i:i), g.field.dt)
    end
    fill!(g.v, 0)
    return nothing
end

"""
    ode_function(field; stiff = false)

A field as an in-place `ODEFunction` that carries its vector-Jacobian products, and for `stiff` solvers its Jacobian.
"""
function ode_function(f::TracedField; stiff::Bool = false)
    products = (; vjp = StateProduct(f), vjp_p = ThetaProduct(f))
    stiff || return ODEFunction{true,FullSpecialize}(f; products...)
    n = similar(f.dz)
    fill!(n, 0)
    return ODEFunction{true,FullSpecialize}(f; products..., jac = Jacobian(f, n), tgrad = TimeGradient(f, copy(n)))
end
