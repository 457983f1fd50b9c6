# Solves of independent samples, as Python calls them.

"""
    forward_each(ints, n_ints, floats) -> Int

Integers: kernel, solver, batch, number of times, what to keep, adaptive, max_steps, bytes of memory for the
steps of a sample, whether the times' cotangents are to follow, address of the times (times of each sample one after the
other), address of how many each sample has, address of the results (evaluations, accepted and rejected steps, outcome, time
reached of each sample, as floats); number of state tensors, then for each the size of a sample, its address and the address
of its results; number of tensors of `θ`, then for each its size (of a sample, if it has rows), its address, and whether it
has a row for each sample.
Floats: those of `asked_steps`.

Returns the number under which the solves are kept for `pullback_each`; 0 if nothing was to be kept.
"""
function forward_each(ints::Int, n_ints::Int, floats::Int)
    r = Reader(wrap(Int, ints, n_ints), 0)
    fields = sample_fields(next!(r))
    solver, batch, times, keep = SOLVER_NAMES[next!(r)], next!(r), next!(r), KEEP[next!(r)]
    return forward_each_typed(fields, r, wrap(Float64, floats, 8), solver, batch, times, keep)
end

function forward_each_typed(fields::Vector{<:TracedField{T}}, r::Reader, x, solver, batch, times, keep) where {T}
    adaptive, max_steps, memory, wants_t = next!(r) == 1, next!(r), next!(r), next!(r) == 1
    all_times, counts = reshape(wrap(Time, next!(r), times * batch), times, batch), wrap(Int, next!(r), batch)
    stats = reshape(wrap(Float64, next!(r), 5 * batch), 5, batch)
    states = [(next!(r), next!(r), next!(r)) for _ in 1:next!(r)]
    from = [reshape(wrap(T, address, n * batch), n, batch) for (n, address, _) in states]
    to = [reshape(wrap(T, address, n * batch * times), n, batch, times) for (n, _, address) in states]
    θ = sample_theta(first(fields), r, batch)
    u0 = [reduce(vcat, [x[:, b] for x in from]) for b in 1:batch]
    ts = [all_times[1:counts[b], b] for b in 1:batch]
    foreach(x -> fill!(x, T(NaN)), to)
    o = Options(; solver, asked_steps(x)..., adaptive, max_steps, keep, memory, wants_t)
    each = forward_each!(fields, u0, ts, θ, o) do b, values, summary, evaluations
        offset = 0
        for x in to
            n = size(x, 1)
            copyto!(view(x, :, b, 1:size(values, 2)), view(values, (offset + 1):(offset + n), :))
            offset += n
        end
        stats[1, b], stats[2, b], stats[3, b] = evaluations, summary.accepted, summary.rejected
        stats[4, b], stats[5, b] = Int(summary.outcome), summary.reached
    end
    return each === nothing ? 0 : enter!(each)
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
    dts = wants_t ? reshape(wrap(Time, dt_address, times * batch), times, batch) : zeros(0, 0)
    size = sum(first, states; init = 0)
    given = [from == 0 ? nothing : reshape(wrap(T, from, n * batch * times), n, batch, times) for (n, from, _) in states]
    function g(b)
        count = length(each.forwards[b].ts)
        to, offset = Matrix{T}(undef, size, count), 0
        for ((n, _, _), x) in zip(states, given)
            of_state = view(to, (offset + 1):(offset + n), :)
            x === nothing ? fill!(of_state, 0) : copyto!(of_state, view(x, :, b, 1:count))
            offset += n
        end
        return to
    end
    total = pullback_each(each, g; wants_t) do b, c, count
        evaluations[b] = count
        wants_t && copyto!(view(dts, 1:length(c.ts), b), c.ts)
        place!(c.u0, ((n, to) for (n, _, to) in states), b, batch)
        place!(c.θ, ((n, has_rows ? to : 0) for (n, to, has_rows) in others), b, batch)
    end
    place!(total, ((n, has_rows ? 0 : to) for (n, to, has_rows) in others), 1, 1)
    return 0
end

"Copy the parts of `x`, each of a size and for an address, to row `b` of `batch` rows there; address 0: not wanted."
function place!(x::AbstractVector{T}, parts, b::Int, batch::Int) where {T}
    offset = 0
    for (n, to) in parts
        to == 0 || copyto!(wrap(T, to, n * batch), (b - 1) * n + 1, x, offset + 1, n)
        offset += n
    end
    return
end

"""
    find_event_each(ints, n_ints, floats) -> Int

Integers: kernel, kernel of the event function, number of its values, addresses of their signs, sample after sample, and
directions (floats), solver, batch, number of times, adaptive, max_steps, address of the times (times of each sample one
after the other), address of how many each sample has, address of the results (evaluations, the time of the event, and
the position of its value as in `find_event`, of each sample, as floats); number of state tensors, then for each the size of
a sample and its address; then twice, for the field and for the event function: number of tensors of `θ`, then for each
its size (of a sample, if it has rows), its address, and whether it has a row for each sample.
Floats: those of `asked_steps`.
"""
function find_event_each(ints::Int, n_ints::Int, floats::Int)
    r = Reader(wrap(Int, ints, n_ints), 0)
    fields, of_events, m = sample_fields(next!(r)), sample_fields(next!(r)), next!(r)
    return find_event_each_typed(fields, [EventValues(f, m, 1) for f in of_events], r, wrap(Float64, floats, 8), m)
end

function find_event_each_typed(fields::Vector{<:TracedField{T}}, events, r::Reader, x, m::Int) where {T}
    signs, directions, solver, batch, times = next!(r), next!(r), SOLVER_NAMES[next!(r)], next!(r), next!(r)
    adaptive, max_steps = next!(r) == 1, next!(r)
    all_times, counts = reshape(wrap(Time, next!(r), times * batch), times, batch), wrap(Int, next!(r), batch)
    results = reshape(wrap(Float64, next!(r), 3 * batch), 3, batch)
    states = [(next!(r), next!(r)) for _ in 1:next!(r)]
    from = [reshape(wrap(T, address, n * batch), n, batch) for (n, address) in states]
    θ, of_events = sample_theta(first(fields), r, batch), sample_theta(first(events).field, r, batch)
    u0 = [reduce(vcat, [x[:, b] for x in from]) for b in 1:batch]
    ts = [all_times[1:counts[b], b] for b in 1:batch]
    searches = [search_of(first(fields), m, signs, directions, b) for b in 1:batch]
    o = Options(; solver, asked_steps(x)..., adaptive, max_steps)
    find_event_each(fields, events, u0, ts, θ, of_events, searches, o) do b, found, evaluations
        results[:, b] .= (evaluations, found.t, found.index)
    end
    return 0
end
