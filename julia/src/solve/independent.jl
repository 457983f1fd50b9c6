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
