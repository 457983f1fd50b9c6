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
        p.program(t)
        ask()  # compiling takes long, and nothing else can be done meanwhile
    else
        p.program(t)
    end
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
    time::Vector{Time}             # at which it is evaluated, unrounded
    tape::Tape{T,V}
    samples::Vector{Vector{Int}}  # entries of the state that belong to each sample
    counts::Vector{Int}  # evaluations of the value, of the products; how often `θ` was bound
    watch::Watch
    threads::Int                  # that share sums and copies of states
    probes::Vector{V}             # see `first_step`
    direct::Dict{NTuple{2,Ptr{T}},FunctionWrapper{Nothing,Tuple{T}}}  # see `direct`
    functions::Dict{Symbol,Any}  # `ode_function` by its kind
    integrators::Dict{Any,Any}  # by what they are asked to do
    pulls::Dict{Any,Any}        # likewise, of the last gradient; see `Pull`
end

"Vectors of which the stages of a step are sums, in methods of order five: those of a large state are shared by threads."
const MOST_SUMMED = 8

"""
    TracedField(workspace; products = :joint, threads = 1)

`products` is `:joint` where the vector-Jacobian products are always wanted together (discrete adjoint), `:split` where
those of the state and of `θ` are wanted at different points (continuous adjoints). Threads share the sums of a large state.
"""
function TracedField(w::Workspace{T,V}; products::Symbol = :joint, threads::Int = 1) where {T,V}
    k = w.kernel
    late(program) = Late{T}(() -> bind(w, program))
    joint = products === :joint
    product = late(joint ? k.vjp : k.vjp_state)
    return TracedField{T,V}(
        late(k.prologue), late(k.value), product, joint ? product : late(k.vjp_theta),
        w.u, w.θ, w.v, w.du, w.dz, w.dθ, w.dt, [zero(Time)], Tape(w), samples(w), [0, 0, 0], Watch(),
        MOST_SUMMED * length(w.u) < WORTH_SHARING ? 1 : threads, V[],
        Dict{NTuple{2,Ptr{T}},FunctionWrapper{Nothing,Tuple{T}}}(), Dict{Symbol,Any}(), Dict{Any,Any}(), Dict{Any,Any}(),
    )
end

"""
    TracedField(callback; products = :joint)

A field that Python evaluates. Its `θ` has the place of the gradient's numbers, and zeros for values.
"""
function TracedField(c::Callback{T}; products::Symbol = :joint) where {T}
    late(f) = Late{T}(() -> PythonProgram(c, f))
    joint = products === :joint
    product = late(joint ? product_function : state_product_function)
    return TracedField{T,Vector{T}}(
        Late{T}(() -> identity_of), late(value_function), product, joint ? product : late(theta_product_function),
        c.u, zeros(T, length(c.dθ)), c.v, c.du, c.dz, c.dθ, c.dt, c.time, Tape(c), samples(c), [0, 0, 0], Watch(), 1, Vector{T}[],
        Dict{NTuple{2,Ptr{T}},FunctionWrapper{Nothing,Tuple{T}}}(), Dict{Symbol,Any}(), Dict{Any,Any}(), Dict{Any,Any}(),
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

`du = f(t, u)` for the bound `θ`. The programs get the time in the state's type.
"""
function value!(du, f::TracedField{T}, u, t) where {T}
    f.counts[1] += 1
    count!(f.watch)
    f.time[1] = t
    f.tape.on && return record!(du, f, u, t)
    program = direct(f, du, u)
    if program !== nothing
        program(T(t))
        return nothing
    end
    copy_shared!(f.u, u, f.threads)
    f.value(T(t))
    copy_shared!(du, f.du, f.threads)
    return nothing
end

"Numbers of a state from which on it is not copied for an evaluation, and programs that are kept for that."
const WORTH_BINDING, MOST_DIRECT = 2^15, 32

"""
The program of the value that reads and writes these vectors themselves, for a state that is large and not in blocks. Programs
are found again by where the vectors lie: whatever lies there at a later call is what that call is about.
"""
direct(f::TracedField, du, u) = nothing

function direct(f::TracedField{T,Vector{T}}, du::Vector{T}, u::Vector{T}) where {T}
    n, w = length(f.u), f.tape.workspace
    n >= WORTH_BINDING && length(u) == length(du) == n && w isa Workspace && isempty(w.blocks) || return nothing
    at = (pointer(u), pointer(du))
    found = get(f.direct, at, nothing)
    found === nothing || return found
    length(f.direct) < MOST_DIRECT || empty!(f.direct)
    return f.direct[at] = FunctionWrapper{Nothing,Tuple{T}}(Base.invokelatest(bind, w, w.kernel.value; u, du))
end

function record!(du, f::TracedField{T}, u, t) where {T}
    stage = take!(f.tape)
    stage.t = t
    copy_shared!(stage.u, u, f.threads)
    if stage.heavy
        stage.record(T(t))
    else
        copy_shared!(f.u, u, f.threads)
        f.value(T(t))
    end
    isempty(stage.k) || copy_shared!(stage.k, f.du, f.threads)
    copy_shared!(du, f.du, f.threads)
    return nothing
end

"""
    vjp!(field, v, stage)

The products of the cotangent `v` with the Jacobians of `f` at a recorded stage.
"""
function vjp!(f::TracedField{T}, v, stage::Stage) where {T}
    stage.heavy || return vjp!(f, v, stage.u, stage.t)
    f.counts[2] += 1
    count!(f.watch)
    v === f.v || copy_shared!(f.v, v, f.threads)
    stage.product(T(stage.t))
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
    count!(f.watch)
    f.time[1] = t
    copy_shared!(f.u, u, f.threads)
    v === f.v || copy_shared!(f.v, v, f.threads)
    program(T(t))
    return nothing
end

"Bytes of the arrays that a field holds for the next solve, its integrators' among them; those that wait in its tape are `spare`."
bytes_held(f::TracedField) =
    (seen = Base.IdSet{Any}(); sum(x -> bytes_held(x, seen), (f.tape.workspace, f.integrators, f.probes, f.pulls)))

bytes_held(x, seen) = 0
bytes_held(x::AbstractArray{<:Number}, seen) = x in seen ? 0 : (push!(seen, x); sizeof(x))
bytes_held(xs::Union{Tuple,AbstractArray}, seen) = sum(x -> bytes_held(x, seen), xs; init = 0)
bytes_held(d::AbstractDict, seen) = sum(x -> bytes_held(x, seen), values(d); init = 0)
bytes_held(x::Union{Rows,DenseWaves,FastWaves}, seen) = bytes_held(contents(x), seen)
bytes_held(i::ODEIntegrator, seen) = bytes_held((i.u, i.uprev, i.k, contents(i.cache)), seen)
contents(x) = ntuple(n -> getfield(x, n), nfields(x))

function bytes_held(w::Workspace, seen)
    return bytes_held((w.u, w.θ, w.v, w.du, w.dz, w.dθ, w.shared, w.frontier, w.scratch, w.blocks), seen)
end

"Whether no sample of a field depends on another, as far as the operations tell."
samples_apart(f::TracedField) = samples_apart(f.tape.workspace)
samples_apart(w::Workspace) = samples_apart(w.kernel.graph)
samples_apart(::Callback) = false

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
