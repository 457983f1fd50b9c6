# Independent samples: each is a batch of one with steps of its own; the threads share the samples out as they come.

"Tensors of `θ`: those with a row for each sample come with the rows, the others are in the shared vector."
struct SampleTheta{T,V<:AbstractVector{T}}
    shared::V
    offsets::Vector{Int}      # of the tensors with rows, in `θ`
    rows::Vector{Matrix{T}}   # (size, sample)
end

"Let a field have the `θ` of sample `b`."
function bind_sample!(field::TracedField, s::SampleTheta, b::Int)
    for (offset, rows) in zip(s.offsets, s.rows)
        copyto!(field.θ, offset + 1, rows, (b - 1) * size(rows, 1) + 1, size(rows, 1))
    end
    return bind!(field, field.θ)
end

"""
The solves of independent samples. `forwards[b]` was made with field `owner[b]`, whose `θ` has to be bound to the
sample before it is used: the solves share it.
"""
struct Each{F,T,V<:AbstractVector{T}}
    forwards::Vector{F}
    owner::Vector{Int}
    θ::SampleTheta{T,V}
end

const SAMPLE_FIELDS = Dict{Int,Vector{Any}}()

"Fields for one sample, one for each thread; those of at most `MAX_FIELDS` kernels are kept."
function sample_fields(kernel::Int)
    haskey(SAMPLE_FIELDS, kernel) || length(SAMPLE_FIELDS) < MAX_FIELDS || empty!(SAMPLE_FIELDS)
    fields = get!(() -> Any[], SAMPLE_FIELDS, kernel)
    while length(fields) < Threads.nthreads()
        push!(fields, Base.invokelatest(make_field, KERNELS[kernel], 1, :joint))
    end
    return identity.(fields)  # of the fields' own type
end

"Call `work(task, take)` on each of `tasks` tasks; `take()` is the next number of `1:n`, or 0."
function share_out(work, tasks::Int, n::Int)
    next = Threads.Atomic{Int}(0)
    take() = (i = Threads.atomic_add!(next, 1) + 1; i <= n ? i : 0)
    tasks == 1 && return work(1, take)
    @sync for task in 1:tasks
        Threads.@spawn work(task, take)
    end
    return
end

"""
    forward_each!(store!, fields, u0, ts, θ, options) -> Each

Solve every sample from `u0[b]` at `ts[b]`; `store!(b, values, summary, evaluations)` takes each result.
"""
function forward_each!(store!, fields::Vector{F}, u0, ts::Vector{Vector{T}}, θ::SampleTheta{T}, o::Options) where {T,F}
    n = length(ts)
    owner, forwards = zeros(Int, n), Vector{Any}(undef, n)
    share_out(min(length(fields), n), n) do task, take
        field = fields[task]
        copyto!(field.θ, θ.shared)
        while (b = take()) != 0
            bind_sample!(field, θ, b)
            before = field.counts[1]
            values = Matrix{T}(undef, length(u0[b]), length(ts[b]))
            summary, forwards[b] = integrate!(values, field, u0[b], ts[b], field.θ, o)
            owner[b] = task
            store!(b, values, summary, field.counts[1] - before)
        end
    end
    return o.keep === :ends ? nothing : Each(identity.(forwards), owner, θ)
end

"""
    pullback_each(store!, each, g; wants_t = true)

The discrete adjoint of every sample; `g(b)` is its cotangent, `store!(task, b, cotangents, evaluations)` takes each
result.
"""
function pullback_each(store!, each::Each, g; wants_t::Bool = true)
    owned = [findall(==(task), each.owner) for task in 1:maximum(each.owner)]
    share_out(length(owned), length(owned)) do _, take
        while (task = take()) != 0
            for (i, b) in enumerate(owned[task])
                forward = each.forwards[b]
                i == 1 && copyto!(forward.field.θ, each.θ.shared)
                bind_sample!(forward.field, each.θ, b)
                before = sum(forward.field.counts)
                c = pull_back(forward, g(b); wants_t)
                store!(task, b, c, sum(forward.field.counts) - before)
            end
        end
    end
    return length(owned)
end

# ---- what Python calls ------------------------------------------------------------------------------------------

"""
    forward_each(ints, n_ints, floats) -> Int

Integers: kernel, solver, batch, number of times, what to keep, adaptive, max_steps, bytes of memory for
the steps of a sample, address of the times (times of each
sample one after the other), address of how many each sample has, address of the results (evaluations, accepted and
rejected steps, outcome, time reached of each sample, as floats); number of state tensors, then for each the size of a
sample, its address and the address of its results; number of tensors of `θ`, then for each its size (of a sample, if it
has rows), its address, and whether it has a row for each sample.
Floats: rtol, atol, dt.

Returns the number under which the solves are kept for `pullback_each`; 0 if nothing was to be kept.
"""
function forward_each(ints::Int, n_ints::Int, floats::Int)
    r = Reader(wrap(Int, ints, n_ints), 0)
    fields = sample_fields(next!(r))
    solver, batch, times, keep = SOLVER_NAMES[next!(r)], next!(r), next!(r), KEEP[next!(r)]
    return forward_each_typed(fields, r, wrap(Float64, floats, 8), solver, batch, times, keep)
end

function forward_each_typed(fields::Vector{<:TracedField{T}}, r::Reader, x, solver, batch, times, keep) where {T}
    adaptive, max_steps, memory = next!(r) == 1, next!(r), next!(r)
    all_times, counts = reshape(wrap(T, next!(r), times * batch), times, batch), wrap(Int, next!(r), batch)
    stats = reshape(wrap(Float64, next!(r), 5 * batch), 5, batch)
    states = [(next!(r), next!(r), next!(r)) for _ in 1:next!(r)]
    from = [reshape(wrap(T, address, n * batch), n, batch) for (n, address, _) in states]
    to = [reshape(wrap(T, address, n * batch * times), n, batch, times) for (n, _, address) in states]
    θ = sample_theta(first(fields), r, batch)
    u0 = [reduce(vcat, [x[:, b] for x in from]) for b in 1:batch]
    ts = [all_times[1:counts[b], b] for b in 1:batch]
    foreach(x -> fill!(x, T(NaN)), to)
    o = Options(; solver, rtol = x[1], atol = x[2], dt = x[3], adaptive, max_steps, keep, memory)
    each = forward_each!(fields, u0, ts, θ, o) do b, values, summary, evaluations
        offset = 0
        for x in to
            n = size(x, 1)
            copyto!(view(x, :, b, 1:size(values, 2)), view(values, (offset + 1):(offset + n), :))
            offset += n
        end
        stats[:, b] .= (evaluations, summary.accepted, summary.rejected, Int(summary.outcome), summary.reached)
    end
    each === nothing && return 0
    KEPT[NEXT[] += 1] = each
    return NEXT[]
end

function sample_theta(field::TracedField{T}, r::Reader, batch) where {T}
    shared, offset = similar(field.θ), 0
    offsets, rows = Int[], Matrix{T}[]
    for _ in 1:next!(r)
        n, address, has_rows = next!(r), next!(r), next!(r) == 1
        if has_rows
            push!(offsets, offset)
            push!(rows, copy(reshape(wrap(T, address, n * batch), n, batch)))
        else
            copyto!(shared, offset + 1, wrap(T, address, n), 1, n)
        end
        offset += n
    end
    return SampleTheta(shared, offsets, rows)
end

"""
    pullback_each(kept, ints, n_ints) -> Int

Integers: address for the times' cotangents, times of each sample one after the other (0: not wanted), number of times,
address for the evaluations of each sample (floats); number of state tensors, then for each the size of a sample, the
address of its cotangents and the address for its initial value's cotangent; number of conditioning tensors and
parameters, then for each its size (of a sample, if it has rows), the address for its cotangent, and whether it has
rows. Address 0: a zero cotangent, or one that is not wanted.
"""
pullback_each(kept::Int, ints::Int, n_ints::Int) =
    pullback_each_typed(KEPT[kept], Reader(wrap(Int, ints, n_ints), 0))

give_back!(each::Each) = foreach(give_back!, each.forwards)

function pullback_each_typed(each::Each{F,T}, r::Reader) where {F,T}
    batch = length(each.forwards)
    dt_address, times, evaluations = next!(r), next!(r), wrap(Float64, next!(r), batch)
    states = [(next!(r), next!(r), next!(r)) for _ in 1:next!(r)]
    others = [(next!(r), next!(r), next!(r) == 1) for _ in 1:next!(r)]
    wants_t = dt_address != 0
    dts = wants_t ? reshape(wrap(T, dt_address, times * batch), times, batch) : zeros(T, 0, 0)
    given = [from == 0 ? nothing : reshape(wrap(T, from, n * batch * times), n, batch, times) for (n, from, _) in states]
    function g(b)
        count = length(each.forwards[b].ts)
        parts = zip(states, given)
        return reduce(vcat, [x === nothing ? zeros(T, n, count) : x[:, b, 1:count] for ((n, _, _), x) in parts])
    end
    # Each task sums the cotangents of what the samples share.
    sums = [zeros(T, sum(first, others; init = 0)) for _ in 1:maximum(each.owner)]
    pullback_each(each, g; wants_t) do task, b, c, count
        evaluations[b] = count
        wants_t && copyto!(view(dts, 1:length(c.ts), b), c.ts)
        offset = 0
        for (n, _, to) in states
            to == 0 || copyto!(wrap(T, to, n * batch), (b - 1) * n + 1, c.u0, offset + 1, n)
            offset += n
        end
        offset = 0
        for (n, to, has_rows) in others
            has_rows && to != 0 && copyto!(wrap(T, to, n * batch), (b - 1) * n + 1, c.θ, offset + 1, n)
            offset += n
        end
        sums[task] .+= c.θ
    end
    total = reduce(+, sums)
    offset = 0
    for (n, to, has_rows) in others
        has_rows || to == 0 || copyto!(wrap(T, to, n), 1, total, offset + 1, n)
        offset += n
    end
    return 0
end
