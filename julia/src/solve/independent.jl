# Independent samples: each is a batch of one with steps of its own; the threads share the samples out as they come.

"Tensors of `θ`: those with a row for each sample come with the rows, the others are in the shared vector."
struct SampleTheta{T,V<:AbstractVector{T}}
    shared::V
    offsets::Vector{Int}      # of the tensors with rows, in `θ`
    rows::Vector{Matrix{T}}   # (size, sample)
end

"Zeros in the place of the tensors with rows."
function clear_rows!(x, s::SampleTheta)
    for (offset, rows) in zip(s.offsets, s.rows)
        fill!(view(x, (offset + 1):(offset + size(rows, 1))), 0)
    end
    return
end

"Let a field have the `θ` of sample `b`."
function bind_sample!(field::TracedField, s::SampleTheta, b::Int)
    for (offset, rows) in zip(s.offsets, s.rows)
        copyto!(field.θ, offset + 1, rows, (b - 1) * size(rows, 1) + 1, size(rows, 1))
    end
    return bind!(field, field.θ)
end

"""
The solves of independent samples. The samples of `blocks[i]` were solved with field `owner[i]`, whose `θ` has to be
bound to a sample before it is used: the solves share it.
"""
struct Each{F,T,V<:AbstractVector{T}}
    forwards::Vector{F}
    blocks::Vector{UnitRange{Int}}
    owner::Vector{Int}
    θ::SampleTheta{T,V}
end

"Into how many blocks samples are parted at most: enough that threads end at about the same time."
const MAX_BLOCKS = 64

"Samples that stay together; which, does not depend on the number of threads."
blocks(n::Int) = collect(Iterators.partition(1:n, cld(n, MAX_BLOCKS)))

"The sum of what the blocks contribute, added in their order whichever comes first: it is the same every time."
mutable struct OrderedSum{V<:AbstractVector}
    const total::V
    const waiting::Dict{Int,V}  # sums of blocks that others have to come before
    const spare::Vector{V}
    const lock::ReentrantLock
    next::Int                   # block
end

OrderedSum(total::V) where {V} = OrderedSum{V}(total, Dict{Int,V}(), V[], ReentrantLock(), 1)

"A vector for the sum of a block."
new_part!(s::OrderedSum) = lock(() -> isempty(s.spare) ? similar(s.total) : pop!(s.spare), s.lock)

"Add the sum of block `i`, and those that waited for it."
function add_part!(s::OrderedSum, i::Int, part)
    lock(s.lock) do
        s.waiting[i] = part
        while haskey(s.waiting, s.next)
            first = pop!(s.waiting, s.next)
            s.total .+= first
            push!(s.spare, first)
            s.next += 1
        end
    end
    return
end

"How many of Julia's threads may work at once."
const MAX_TASKS = Ref(typemax(Int))
working_threads() = min(Threads.nthreads(), MAX_TASKS[])

"Call `work(task, take)` on each of `tasks` tasks; `take()` is the next number of `1:n`, or 0."
function share_out(work, tasks::Int, n::Int)
    next = Threads.Atomic{Int}(0)
    take() = (i = Threads.atomic_add!(next, 1) + 1; i <= n ? i : 0)
    tasks == 1 && return work(1, take)
    function run(task)
        try
            work(task, take)
        catch
            next[] = n  # the others need not go on
            rethrow()
        end
    end
    others = [Threads.@spawn run(task) for task in 2:tasks]
    try
        run(1)
    finally
        wait_for(others)  # they write to the caller's memory
    end
    return
end

"""
    forward_each!(store!, fields, u0, ts, θ, options) -> Each

Solve every sample from `u0[b]` at `ts[b]`; `store!(b, values, summary, evaluations)` takes each result.
"""
function forward_each!(store!, fields::Vector{F}, u0, ts::Vector{Vector{Time}}, θ::SampleTheta{T}, o::Options) where {T,F}
    n = length(ts)
    parts = blocks(n)
    owner, forwards = zeros(Int, length(parts)), Vector{Any}(undef, n)
    share_out(min(length(fields), length(parts)), length(parts)) do task, take
        field = fields[task]
        copyto!(field.θ, θ.shared)
        while (i = take()) != 0
            owner[i] = task
            for b in parts[i]
                bind_sample!(field, θ, b)
                before = field.counts[1]
                values = Matrix{T}(undef, length(u0[b]), length(ts[b]))
                summary, forwards[b] = integrate!(values, field, u0[b], ts[b], field.θ, o)
                store!(b, values, summary, field.counts[1] - before)
                Threads.atomic_add!(SAMPLES, 1)
            end
        end
    end
    return o.keep === :ends ? nothing : Each(identity.(forwards), parts, owner, θ)
end

"""
    pullback_each(store!, each, g; wants_t = true) -> Vector

The discrete adjoint of every sample; `g(b)` is its cotangent, `store!(b, cotangents, evaluations)` takes each result,
which the next one overwrites, and of that of `θ` the tensors with rows alone. Returns the sum over the samples of the
cotangents of the tensors that they share.
"""
function pullback_each(store!, each::Each, g; wants_t::Bool = true)
    owned = [findall(==(task), each.owner) for task in 1:maximum(each.owner)]
    sums = OrderedSum(fill!(similar(first(each.forwards).field.dθ), 0))
    share_out(min(length(owned), MAX_TASKS[]), length(owned)) do _, take
        while (task = take()) != 0
            isempty(owned[task]) || pull_blocks!(store!, each, owned[task], g, sums, wants_t)
        end
    end
    return sums.total
end

"The discrete adjoint of the samples of some blocks, which were solved with the same field."
function pull_blocks!(store!, each::Each, blocks::Vector{Int}, g, sums::OrderedSum, wants_t::Bool)
    b = first(each.blocks[first(blocks)])
    p = Pull(each.forwards[b], g(b), wants_t)
    field = p.field
    copyto!(field.θ, each.θ.shared)
    for i in blocks
        fill!(p.out.θ, 0)
        for b in each.blocks[i]
            bind_sample!(field, each.θ, b)
            before = sum(field.counts)
            clear_rows!(p.out.θ, each.θ)
            pull_back!(turn!(p, each.forwards[b], g(b)), each.forwards[b])
            store!(b, p.out, sum(field.counts) - before)
        end
        add_part!(sums, i, copyto!(new_part!(sums), p.out.θ))
    end
    return
end

"""
    find_event_each(store!, fields, events, u0, ts, θ, of_events, searches, options)

The first event of every sample, each by steps of its own; `store!(b, crossing, evaluations)` takes each result. `events`
are the event functions beside `fields`, `θ` and `of_events` what the two read.
"""
function find_event_each(
    store!, fields::Vector{F}, events, u0, ts::Vector{Vector{Time}}, θ::SampleTheta, of_events::SampleTheta, searches, o::Options
) where {F}
    parts = blocks(length(ts))
    share_out(min(length(fields), length(parts)), length(parts)) do task, take
        field, event = fields[task], events[task]
        copyto!(field.θ, θ.shared)
        copyto!(event.field.θ, of_events.shared)
        while (i = take()) != 0
            for b in parts[i]
                bind_sample!(field, θ, b)
                bind_sample!(event.field, of_events, b)
                before = field.counts[1]
                store!(b, find_event(field, event, u0[b], ts[b], searches[b], o), field.counts[1] - before)
            end
        end
    end
    return
end
