# What Python calls: numbers and addresses in, numbers out. Nothing here touches Python, and the calls that a solve makes
# are plain C functions (`write_entry_points`), so that a call costs a microsecond and Python's lock is free meanwhile.
#
# A call's integers and floats come in two arrays of Python's, read and written in place; see `pynode/engine/julia/call.py`.

const KERNELS = Any[]
const KERNEL_INDEX = Dict{Tuple{String,DataType},Int}()
const KEPT = Dict{Int,Any}()
const NEXT = Ref(0)

"Where the number of the solve stands that was kept last, until Python has taken it; nowhere if there is no Python."
const UNCLAIMED = Ref{Ptr{Int}}(C_NULL)

"Keep a solve, and return its number."
function enter!(solved)
    KEPT[NEXT[] += 1] = solved
    if UNCLAIMED[] != C_NULL
        release(unsafe_load(UNCLAIMED[]))  # an interrupt came before Python had taken it
        unsafe_store!(UNCLAIMED[], NEXT[])
    end
    return NEXT[]
end

element_type(name::AbstractString) = name == "float32" ? Float32 : name == "float64" ? Float64 :
    throw(ArgumentError("expected float32 or float64, got $name"))

"""
    register(key, dtype, json) -> Int

The number of the kernel for a graph; a graph of the same key and type is lowered once.
"""
function register(key, dtype, json)
    T = element_type(string(dtype))
    return get!(KERNEL_INDEX, (string(key), T)) do
        push!(KERNELS, Base.invokelatest(Kernel{T}, Graph(string(json))))
        length(KERNELS)
    end
end

"How many kernels have been lowered."
kernel_count() = length(KERNELS)

const SOLVER_NAMES =
    (EXPLICIT..., STIFF..., STRONG_STABILITY..., LOW_STORAGE..., STABILIZED..., ADAMS..., SYMPLECTIC..., NYSTROM...)
const SENSITIVITIES = (:discrete, :backsolve, :interpolating, :quadrature, :gauss)
const KEEP = (:ends, :stages, :dense, :saved, :times)

solver_number(name) = findfirst(==(string(name)), SOLVER_NAMES)
sensitivity_number(name) = findfirst(==(Symbol(string(name))), SENSITIVITIES)

"A cursor over the integers of a call."
mutable struct Reader
    data::Vector{Int}
    at::Int
end

next!(r::Reader) = r.data[r.at += 1]

"""
    forward(ints, n_ints, floats) -> Int

One forward solve.

Integers: device, kernel, solver, batch, number of times, what to keep, products (0 joint, 1 split), adaptive, max_steps,
bytes of memory for the steps, whether the times' cotangents are to follow, address of the times; number of state tensors,
then for each its size, address and the address of its results; number of tensors of `θ`, then for each its size and
address. The times, and their cotangents, are the processor's and of type `Time`, all else is the device's and of the state's
type.
Floats: those of `asked_steps`, whether `set_mass` and `set_split` were called for this; on return
evaluations, accepted and rejected steps, outcome, the time reached. Outcome -1: the state, a conditioning tensor or a
parameter is not finite, and nothing was solved.

Returns the number under which the solve is kept for `pullback` and `interpolate`; 0 if nothing was to be kept.
"""
function forward(ints::Int, n_ints::Int, floats::Int)
    r = Reader(wrap(Int, ints, n_ints), 0)
    device, kernel, solver, batch, times, keep, products = (next!(r) for _ in 1:7)
    x = wrap(Float64, floats, 8)
    return on(DEVICES[device]) do
        field = field_for(kernel, batch, products == 0 ? :joint : :split, device)
        forward_typed(DEVICES[device], field, r, x, SOLVER_NAMES[solver], times, KEEP[keep])
    end
end

function forward_typed(device, field::TracedField{T}, r::Reader, x, solver, times, keep) where {T}
    adaptive, max_steps, memory, wants_t = next!(r) == 1, next!(r), next!(r), next!(r) == 1
    ts = copy(wrap(Time, next!(r), times))
    states = [(next!(r), next!(r), next!(r)) for _ in 1:next!(r)]
    field.counts[3] += 1
    read_theta!(field, device, r)
    u0 = gather!(similar(field.u), device, [(n, from) for (n, from, _) in states])
    allfinite(u0, length(u0), field.threads) && allfinite(field.θ, length(field.dθ)) || (x[4] = -1; return 0)
    mass, split = x[7] == 1 ? MASS[] : nothing, x[8] == 1 ? SPLIT[] : nothing
    options = Options(; solver, asked_steps(x)..., adaptive, max_steps, keep, memory, wants_t, mass, split)
    before = evaluations(field, split)
    # The results of a single tensor are written where they belong.
    single = length(states) == 1
    values = if single
        reshape(wrap(device, T, states[1][3], length(u0) * times), :, times)
    else
        similar(u0, T, length(u0), times)
    end
    summary, solved = forward!(values, field, u0, ts, field.θ, options)
    single || scatter(device, values, [(n, to) for (n, _, to) in states])
    x[1:5] .= (evaluations(field, split) - before, summary.accepted, summary.rejected, Int(summary.outcome), summary.reached)
    return solved === nothing ? 0 : enter!(solved)
end

"Of the options what Python's floats say: rtol, atol, dt, number and address of the kinks, whether steps are controlled."
asked_steps(x) = (;
    rtol = x[1], atol = x[2], dt = x[3], kinks = x[4] > 0 ? copy(wrap(Time, Int(x[5]), Int(x[4]))) : Time[],
    control = x[6] == 1 ? STEP_CONTROL[] : nothing,
)

"Copy the tensors of `θ`, each given by its size and address after their number, to where a field reads them."
read_theta!(f::TracedField, device, r::Reader) = gather!(f.θ, device, [(next!(r), next!(r)) for _ in 1:next!(r)])

"Copy parts, each given by its size and address, one after the other to a vector."
function gather!(x::AbstractVector{T}, device, parts) where {T}
    offset = 0
    for (n, from) in parts
        n == 0 || copyto!(x, offset + 1, wrap(device, T, from, n), 1, n)
        offset += n
    end
    return x
end

"Copy the rows of `(state, time)` values to the memory of each state tensor, `(size, time)`."
function scatter(device, values::AbstractMatrix{T}, parts) where {T}
    offset = 0
    for (n, to) in parts
        if to != 0 && n != 0
            reshape(wrap(device, T, to, n * size(values, 2)), n, :) .= view(values, (offset + 1):(offset + n), :)
        end
        offset += n
    end
    return
end

"""
    pullback(kept, ints, n_ints, floats)

The cotangents of a kept solve.

Integers: device, sensitivity, checkpointing (-1: the method's default), address for the times' cotangents; number of state
tensors, then for each its size, the address of its cotangents and the address for its initial value's cotangent; number
of conditioning tensors and parameters, then for each its size and the address for its cotangent. Address 0: a zero
cotangent, or one that is not wanted.
Floats: rtol and atol of a continuous adjoint (0: those of the forward solve); on return evaluations of the field and its
products.
"""
function pullback(kept::Int, ints::Int, n_ints::Int, floats::Int)
    r, x = Reader(wrap(Int, ints, n_ints), 0), wrap(Float64, floats, 8)
    device = DEVICES[next!(r)]
    return on(() -> pullback_typed(device, KEPT[kept], r, x), device)
end

function pullback_typed(device, fw::Solved{T}, r::Reader, x) where {T}
    sensitivity, checkpointing, dt_address = SENSITIVITIES[next!(r)], next!(r), next!(r)
    times = length(fw.ts)
    states = [(next!(r), next!(r), next!(r)) for _ in 1:next!(r)]
    others = [(next!(r), next!(r)) for _ in 1:next!(r)]
    if length(states) == 1 && states[1][2] != 0
        g = reshape(wrap(device, T, states[1][2], states[1][1] * times), states[1][1], times)
    else
        g = fill!(similar(fw.field.u, T, length(fw.field.u), times), zero(T))
        offset = 0
        for (n, from, _) in states
            if from != 0 && n != 0
                view(g, (offset + 1):(offset + n), :) .= reshape(wrap(device, T, from, n * times), n, times)
            end
            offset += n
        end
    end
    before = sum(fw.field.counts)
    wants_t = dt_address != 0
    c = if sensitivity === :discrete
        discrete_pullback(fw, g; wants_t)
    else
        how = Adjoint(; name = sensitivity, rtol = x[1], atol = x[2], checkpointing)
        (fw.options.mass === nothing ? continuous_pullback : mass_pullback)(fw, g, how; wants_t)
    end
    scatter(device, reshape(c.u0, :, 1), [(n, to) for (n, _, to) in states])
    scatter(device, reshape(c.θ, :, 1), others)
    wants_t && copyto!(wrap(Time, dt_address, times), c.ts)
    x[1] = sum(fw.field.counts) - before
    return 0
end

"""
    tangent(kept, ints, n_ints) -> Int

The derivative of a kept solve in one direction.

Integers: device, kernel of the field together with its derivative, batch, whether to keep, address of how the times move
(the processor's; 0: they do not); number of state tensors, then for each its size, address and the address of its results
(0: not wanted); number of tensors of `θ`, then for each its size and address.

Returns the number under which it is kept for `pullback`, whose gradient is the second derivative; 0 if it is not.
"""
function tangent(kept::Int, ints::Int, n_ints::Int)
    r = Reader(wrap(Int, ints, n_ints), 0)
    device, kernel, batch = (next!(r) for _ in 1:3)
    return on(DEVICES[device]) do
        tangent_typed(DEVICES[device], KEPT[kept], field_for(kernel, batch, :joint, device), r)
    end
end

function tangent_typed(device, fw::Stepped{T}, field::TracedField{T}, r::Reader) where {T}
    keep, dts, times = next!(r) == 1, next!(r), length(fw.ts)
    states = [(next!(r), next!(r), next!(r)) for _ in 1:next!(r)]
    read_theta!(field, device, r)
    bind!(field, field.θ)
    u0 = gather!(similar(field.u), device, [(n, from) for (n, from, _) in states])
    moves = dts == 0 ? nothing : Moves(fw, copy(wrap(Time, dts, times)))
    values = similar(u0, T, length(u0), times)
    solved = follow!(values, field, fw, u0, moves, keep)
    scatter(device, values, [(n, to) for (n, _, to) in states])
    return solved === nothing ? 0 : enter!(solved)
end

"""
    interpolate(kept, ints, n_ints)

A kept dense solve at other times. Integers: device, number of times, their address (the processor's); number of state
tensors, then for each its size and the address for its values.
"""
function interpolate(kept::Int, ints::Int, n_ints::Int)
    r = Reader(wrap(Int, ints, n_ints), 0)
    device = DEVICES[next!(r)]
    return on(() -> interpolate_typed(device, dense(KEPT[kept]), r), device)
end

function interpolate_typed(device, fw::Dense{T}, r::Reader) where {T}
    n = next!(r)
    ts = wrap(Time, next!(r), n)
    values = similar(fw.field.u, T, length(fw.field.u), n)
    rebind!(fw.field, fw.θ)
    for (i, t) in enumerate(ts)
        fw.solution(view(values, :, i), t)
    end
    scatter(device, values, [(next!(r), next!(r)) for _ in 1:next!(r)])
    return 0
end

"The times at which the steps of a kept solve began or ended."
step_times(kept::Int) = step_times(KEPT[kept])
step_times(fw::Stepped) = isown(fw.options.solver) ? fw.steps.t : step_times(dense(fw))
step_times(fw::Dense) = fw.solution.t

"Let at most this many of Julia's threads work, and BLAS so many of its own if it is not the user's to say."
function set_threads(n::Int, blas::Bool)
    MAX_TASKS[] = n
    blas && BLAS.set_num_threads(n)
    return
end

"Forget a kept solve."
function release(kept::Int)
    give_back!(pop!(KEPT, kept, nothing))
    return 0
end

give_back!(::Any) = nothing
give_back!(fw::Stepped) = empty_record!(fw.steps.stages)
