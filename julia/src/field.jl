# A vector field as the solvers see it.

"A program that is compiled when it is run for the first time: many a solve has no use for all of them."
mutable struct Late{T}
    const make::Any  # () -> the bound program
    program::Union{Nothing,FunctionWrapper{Nothing,Tuple{T}}}

    Late{T}(make) where {T} = new{T}(make, nothing)
end

function (p::Late{T})(t::T) where {T}
    if p.program === nothing
        p.program = FunctionWrapper{Nothing,Tuple{T}}(Base.invokelatest(p.make))
    end
    p.program(t)
    return nothing
end

"""
A field whose kernel is hidden behind function pointers, so that solvers are compiled once for all fields.

Callable as `field(du, u, p, t)`. `p` is the vector `θ` of the binding: conditioning tensors, parameters, and what
else the field reads. The programs read `u` and `v` and write `du`, and `dz`, `dθ`, `dt`.
"""
struct TracedField{T,V<:AbstractVector{T}}
    prologue::Late{T}
    value::Late{T}
    product::Late{T}
    theta_product::Late{T}
    u::V
    θ::V
    v::V
    du::V
    dz::V
    dθ::V
    dt::V
    tape::Tape{T,V}
    samples::Vector{Vector{Int}}  # entries of the state that belong to each sample
    counts::Vector{Int}  # evaluations of the value, of the products; how often `θ` was bound
    functions::Dict{Symbol,Any}  # `ode_function` by its kind
    integrators::Dict{Any,Any}  # by what they are asked to do
end

"""
    TracedField(workspace; products = :joint)

`products` is `:joint` where the vector-Jacobian products are always wanted together (discrete adjoint), `:split` where
those of the state and of `θ` are wanted at different points (continuous adjoints).
"""
function TracedField(w::Workspace{T,V}; products::Symbol = :joint) where {T,V}
    k = w.kernel
    late(program) = Late{T}(() -> bind(w, program))
    joint = products === :joint
    product = late(joint ? k.vjp : k.vjp_state)
    return TracedField{T,V}(
        late(k.prologue), late(k.value), product, joint ? product : late(k.vjp_theta),
        w.u, w.θ, w.v, w.du, w.dz, w.dθ, w.dt, Tape(w), samples(w), [0, 0, 0], Dict{Symbol,Any}(), Dict{Any,Any}(),
    )
end

"Copy the values of `p` in and compute what depends on them alone."
function bind!(f::TracedField{T}, p) where {T}
    p === f.θ || copyto!(f.θ, p)
    f.counts[3] += 1
    f.prologue(zero(T))
    return f
end

"Use these values of `p` from now on; the field's own vector is bound already."
rebind!(f::TracedField, p) = p === f.θ ? f : bind!(f, p)

"""
    value!(du, field, u, t)

`du = f(t, u)` for the bound `θ`.
"""
function value!(du, f::TracedField{T}, u, t) where {T}
    f.counts[1] += 1
    f.tape.on && return record!(du, f, u, T(t))
    copyto!(f.u, u)
    f.value(T(t))
    copyto!(du, f.du)
    return nothing
end

function record!(du, f::TracedField{T}, u, t::T) where {T}
    stage = take!(f.tape)
    stage.t = t
    copyto!(stage.u, u)
    if stage.heavy
        stage.record(t)
    else
        copyto!(f.u, u)
        f.value(t)
        copyto!(stage.k, f.du)
    end
    copyto!(du, stage.k)
    return nothing
end

"""
    vjp!(field, v, stage)

The products of the cotangent `v` with the Jacobians of `f` at a recorded stage.
"""
function vjp!(f::TracedField, v, stage::Stage)
    stage.heavy || return vjp!(f, v, stage.u, stage.t)
    f.counts[2] += 1
    copyto!(f.v, v)
    stage.product(stage.t)
    return nothing
end

"""
    vjp!(field, v, u, t)

The products of the cotangent `v` with the Jacobians of `f` at `(t, u)`, left in `field.dz`, `field.dt`, and for a joint
workspace in `field.dθ`.
"""
vjp!(f::TracedField, v, u, t) = product!(f, f.product, v, u, t)

"""
    vjp_theta!(field, v, u, t)

The products of the cotangent `v` with the Jacobians of `f` in the conditioning tensors and parameters, left in
`field.dθ`.
"""
vjp_theta!(f::TracedField, v, u, t) = product!(f, f.theta_product, v, u, t)

function product!(f::TracedField{T}, program, v, u, t) where {T}
    f.counts[2] += 1
    copyto!(f.u, u)
    copyto!(f.v, v)
    program(T(t))
    return nothing
end

"The last product with the derivative of `f` in `t`."
slope(f::TracedField) = f.dt isa Array ? f.dt[1] : only(Array(f.dt))

function (f::TracedField)(du, u, p, t)
    rebind!(f, p)
    value!(du, f, u, t)
    return nothing
end

"The product of a cotangent with the state's Jacobian, as `ODEFunction(vjp = …)` has it."
struct StateProduct{F<:TracedField}
    field::F
end

function (s::StateProduct)(out, v, u, p, t)
    rebind!(s.field, p)
    vjp!(s.field, v, u, t)
    copyto!(out, s.field.dz)
    return nothing
end

"The product of a cotangent with the Jacobian in `p`, as `ODEFunction(vjp_p = …)` has it."
struct ThetaProduct{F<:TracedField}
    field::F
end

function (s::ThetaProduct)(out, v, u, p, t)
    rebind!(s.field, p)
    vjp_theta!(s.field, v, u, t)
    n = length(s.field.dθ)
    copyto!(out, 1, s.field.dθ, 1, n)
    fill!(view(out, (n + 1):length(out)), 0)
    return nothing
end

"""
The state's Jacobian from vector-Jacobian products: row by row, or, where no sample depends on another, a row of every
sample at once.
"""
struct Jacobian{T,V<:AbstractVector{T}}
    field::TracedField{T,V}
    v::V
    samples::Vector{Vector{Int}}     # entries of the state that belong to each sample
    separate::Base.RefValue{Bool}    # whether the samples' blocks are all there is
    known::Base.RefValue{Bool}
end

Jacobian(f::TracedField) = Jacobian(f, fill!(similar(f.dz), 0), f.samples, Ref(false), Ref(false))

function (j::Jacobian)(J, u, p, t)
    rebind!(j.field, p)
    length(j.samples) > 1 && !j.known[] && look!(j, u, t)
    j.separate[] ? blocks!(J, j, u, t) : rows!(J, j, u, t)
    return nothing
end

function rows!(J, j::Jacobian, u, t)
    for i in eachindex(j.v)
        fill!(j.v, 0)
        fill!(view(j.v, i:i), 1)
        vjp!(j.field, j.v, u, t)
        copyto!(view(J, i, :), j.field.dz)
    end
    return
end

function blocks!(J, j::Jacobian, u, t)
    fill!(J, 0)
    for i in eachindex(first(j.samples))
        fill!(j.v, 0)
        foreach(entries -> j.v[entries[i]] = 1, j.samples)
        vjp!(j.field, j.v, u, t)
        for entries in j.samples
            J[entries[i], entries] .= view(j.field.dz, entries)
        end
    end
    return
end

"Whether the samples' blocks are the whole Jacobian: by one product of either with an arbitrary vector."
function look!(j::Jacobian{T}, u, t) where {T}
    w = T[cos(0.7 * i) for i in eachindex(j.v)]
    vjp!(j.field, w, u, t)
    whole, J = copy(j.field.dz), zeros(T, length(w), length(w))
    all(isfinite, whole) || return
    blocks!(J, j, u, t)
    j.separate[] = isapprox(transpose(J) * w, whole; rtol = sqrt(eps(T)))
    j.known[] = true
    return
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
        vjp!(g.field, g.v, u, t)
        copyto!(view(dT, i:i), g.field.dt)
    end
    fill!(g.v, 0)
    return nothing
end

"""
    ode_function(field, solver)

A field as an in-place `ODEFunction` that carries its vector-Jacobian products, and for a solver of stiff fields its
Jacobian or, where that is not wanted, its products with a vector.
"""
function ode_function(f::TracedField, solver::AbstractString)
    kind = !isstiff(solver) ? :explicit : !ismatrixfree(solver) ? :stiff : tangent_of(f) === nothing ? :plain : :free
    return get!(() -> make_ode_function(f, Val(kind)), f.functions, kind)
end

make_ode_function(f::TracedField, ::Val; further...) =
    ODEFunction{true,FullSpecialize}(f; vjp = StateProduct(f), vjp_p = ThetaProduct(f), further...)

make_ode_function(f::TracedField, ::Val{:stiff}) =
    make_ode_function(f, Val(:explicit); jac = Jacobian(f), tgrad = TimeGradient(f, fill!(similar(f.dz), 0)))

# A field of kind `:plain` has no traced tangent: the solver takes differences.
make_ode_function(f::TracedField, ::Val{:free}) = make_ode_function(f, Val(:explicit); jvp = TangentProduct(f))

# ---- products of the Jacobian with a vector -----------------------------------------------------------------------

"The kernel of a field together with its derivative in one direction, by the kernel of the field and the batch size."
const TANGENTS = Dict{Tuple{UInt,Int},Any}()

"""
    link_tangent(kernel, batch, tangent)

Kernel number `tangent` is that of the field of kernel number `kernel` with its derivative in one direction: its state is
the field's and the direction, its other inputs are the same.
"""
link_tangent(kernel::Int, batch::Int, tangent::Int) =
    (TANGENTS[objectid(KERNELS[kernel]), batch] = KERNELS[tangent]; nothing)

tangent_of(f::TracedField) = get(TANGENTS, (objectid(f.tape.workspace.kernel), f.tape.workspace.batch), nothing)

"The product of the state's Jacobian with a vector, as `ODEFunction(jvp = …)` has it."
struct TangentProduct{F<:TracedField}
    field::F
    tangent::F
    bound::Base.RefValue{Int}  # the field's count of bindings when `tangent` was bound
end

TangentProduct(f::F) where {F<:TracedField} =
    TangentProduct{F}(f, Base.invokelatest(make_field, tangent_of(f), f.tape.workspace.batch, :joint), Ref(-1))

function (p::TangentProduct)(out, v, u, θ, t)
    f, g, n = rebind!(p.field, θ), p.tangent, length(p.field.u)
    if p.bound[] != f.counts[3]
        bind!(g, f.θ)
        p.bound[] = f.counts[3]
    end
    f.counts[1] += 1
    copyto!(g.u, 1, u, 1, n)
    copyto!(g.u, n + 1, v, 1, n)
    g.value(eltype(g.u)(t))
    copyto!(out, 1, g.du, n + 1, n)
    return nothing
end
