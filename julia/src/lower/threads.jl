# Work on several of Julia's threads: blocks of a batch, and parts of operations on large arrays.

"Operations on numbers that a thread gets at least: about 50 µs of them, beside which having it at work costs little."
const WORTH_A_THREAD = 4_000_000

"Operations on numbers in a matrix product from which on OpenBLAS uses threads."
const THREADED_PRODUCT = 2^19

"Numbers that a loop over arrays moves or computes at least where threads share it: about 50 µs of them."
const WORTH_SHARING = 2^18

"Nanoseconds for which a thread that waits for others stays awake: getting up again takes tens of microseconds."
const AWAKE = 200_000

"A range in `n` parts of about equal length."
parted(range, n::Int) = [range[((i - 1) * length(range) ÷ n + 1):(i * length(range) ÷ n)] for i in 1:n]

"Calls `f(1, arguments...)`, …, `f(n, arguments...)`, each on a thread."
function on_threads(f::F, n::Int, arguments...) where {F}
    tasks = [Threads.@spawn(f(i, arguments...)) for i in 2:n]
    try
        f(1, arguments...)
    finally
        wait_awake(tasks)
        wait_all(tasks)  # they write to the caller's memory
    end
    return
end

"Wait for tasks, but not for long."
function wait_awake(tasks)
    start = time_ns()
    while !all(istaskdone, tasks) && time_ns() - start < AWAKE
        ccall(:jl_cpu_pause, Cvoid, ())
        GC.safepoint()
    end
    return
end

"Calls `f(arguments...)`, in which matrix products have one thread each."
function products_alone(f::F, arguments...) where {F}
    threads = BLAS.get_num_threads()
    threads == 1 && return f(arguments...)
    BLAS.set_num_threads(1)
    try
        return f(arguments...)
    finally
        BLAS.set_num_threads(threads)
    end
end

"Calls `loop(arrays..., t, batch, part)` with the parts of `1:n`, each on a thread."
function shared(loop::F, threads::Int, n::Int, arrays, t, batch) where {F}
    on_threads(run_loop, threads, loop, parted(1:n, threads), arrays, t, batch)
    return
end

run_loop(thread, loop::F, parts, arrays, t, batch) where {F} = loop(arrays..., t, batch, parts[thread])

"""
    share(loop, threads, n, arrays)

Calls `loop(part)` with `1:n`, or with parts of it, each on a thread, where there are several and so many arrays of that
length are worth it.
"""
function share(loop::F, threads::Int, n::Int, arrays::Int) where {F}
    if threads == 1 || n * arrays < WORTH_SHARING
        loop(1:n)
    else
        on_threads(run_part, threads, loop, parted(1:n, threads))
    end
    return
end

run_part(thread, loop::F, parts) where {F} = loop(parts[thread])

"`to .= from`, on threads."
copy_shared!(to, from, threads) = copyto!(to, from)

function copy_shared!(to::Vector{T}, from::Vector{T}, threads::Int) where {T}
    share(part -> copyto!(to, first(part), from, first(part), length(part)), threads, length(from), 2)
    return to
end

"`y .+= x`, on threads."
add_shared!(y, x, threads) = (y .+= x)

function add_shared!(y::Vector{T}, x::AbstractVector{T}, threads::Int) where {T}
    length(x) == length(y) || throw(DimensionMismatch("vectors of $(length(y)) and $(length(x)) entries"))
    share(threads, length(y), 3) do part
        @simd ivdep for i in part
            @inbounds y[i] += x[i]
        end
    end
    return y
end
