# Work on several of Julia's threads: blocks of a batch, and parts of operations on large arrays.

"Operations on numbers that a thread gets at least: about 50 µs of them, beside which having it at work costs little."
const WORTH_A_THREAD = 4_000_000

"Operations on numbers in a matrix product from which on OpenBLAS uses threads."
const THREADED_PRODUCT = 2^19

"Numbers that a loop over arrays moves or computes at least where threads share it: about 50 µs of them."
const WORTH_SHARING = 2^18

"A range in `n` parts of about equal length."
parted(range, n::Int) = [part(range, i, n) for i in 1:n]

"The part `i` of these."
part(range, i::Int, n::Int) = range[((i - 1) * length(range) ÷ n + 1):(i * length(range) ÷ n)]

"""
Parts `1:n` of some work. Threads take them as they come. What is called with the number of each has any type, so that
nothing but it is compiled for every kind of work.
"""
mutable struct Parts
    const work::Any
    const n::Int
    @atomic next::Int     # the last one that was taken
    @atomic left::Int     # that are not done
    @atomic least::Int    # nanoseconds of the fastest
    @atomic failure::Any  # what the first to fail threw
    const done::Threads.Event
end

Parts(work, n::Int) = Parts(work, n, 0, n, typemax(Int), nothing, Threads.Event())

"Take parts, and do them, while there are any."
function do_parts(p::Parts)
    while (i = @atomic p.next += 1) <= p.n
        over, start = 1, time_ns()
        try
            p.work(i)
        catch error
            @atomicreplace p.failure nothing => error
            over += max(p.n - (@atomicswap p.next = p.n), 0)  # parts that none has taken are not begun
        end
        @atomic min(p.least, Int(time_ns() - start))
        (@atomic p.left -= over) == 0 && notify(p.done)
    end
    return
end

"""
Calls `f(1, arguments...)`, …, `f(n, arguments...)` on several threads. One that other programs keep from its processor is
not waited for unless it has begun with a part: this thread does what the others do not come to.
"""
function on_threads(f::F, n::Int, arguments...) where {F}
    if n == 1 || time_ns() < (@atomic :monotonic CROWD.until)
        foreach(i -> f(i, arguments...), 1:n)
    else
        do_together(Parts(i -> f(i, arguments...), n))
    end
    return
end

function do_together(p::Parts)
    first = first_of_its_kind(p.work)
    start = time_ns()
    foreach(_ -> Threads.@spawn(do_parts(p)), 2:(p.n))
    do_parts(p)
    wait_awake(p)
    wait(p.done)  # the others write to the caller's memory
    p.failure === nothing || throw(p.failure)
    first || judge!(CROWD, p.n * p.least, Int(time_ns() - start))
    return
end

"The kinds of work that were done on several threads before."
const KINDS, KINDS_LOCK = IdDict{DataType,Nothing}(), ReentrantLock()

"Whether work of its type has not been done before: then its time is mostly that of Julia's compiler."
function first_of_its_kind(work)
    kind = typeof(work)
    return @lock KINDS_LOCK !haskey(KINDS, kind) && (KINDS[kind] = nothing; true)
end

"Nanoseconds for which a thread that waits for others stays awake: getting up again takes tens of microseconds."
const AWAKE = 200_000

"Wait for parts that others do, but not for long."
function wait_awake(p::Parts)
    start = time_ns()
    while (@atomic p.left) > 0 && time_ns() - start < AWAKE
        ccall(:jl_cpu_pause, Cvoid, ())
        GC.safepoint()
    end
    return
end

"""
Whether sharing work is worth it. Where other programs keep the processors busy, a thread loses its own now and then, with a
part of the work in hand, and the others wait for milliseconds.
"""
mutable struct Crowd
    @atomic alone::Int     # nanoseconds that one thread would have taken for what was shared since it was last judged
    @atomic together::Int  # that it took
    @atomic pause::Int     # for which work is not shared when it turns out a loss once more
    @atomic until::UInt64  # when it is shared again
end

"Nanoseconds of shared work by which it is judged, and those of the first and the longest pause."
const ROUND, FIRST_PAUSE, LONGEST_PAUSE = 10_000_000, 20_000_000, 160_000_000

const CROWD = Crowd(0, 0, FIRST_PAUSE, 0)

"Note that one thread would have taken `alone` nanoseconds for what has taken several `together`."
function judge!(c::Crowd, alone::Int, together::Int)
    @atomic :monotonic c.alone += alone
    (@atomic :monotonic c.together += together) < ROUND && return
    if c.together > c.alone
        pause = @atomic :monotonic c.pause
        @atomic :monotonic c.until = time_ns() + pause
        @atomic :monotonic c.pause = min(2pause, LONGEST_PAUSE)
    else
        @atomic :monotonic c.pause = FIRST_PAUSE
    end
    @atomic :monotonic c.alone = 0
    @atomic :monotonic c.together = 0
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

"Calls `loop(arguments..., part)` with the parts of `1:n`, on several threads."
function in_parts(loop::F, threads::Int, n::Int, arguments...) where {F}
    on_threads(do_part, threads, loop, parted(1:n, threads), arguments)
    return
end

do_part(i, loop::F, parts, arguments) where {F} = loop(arguments..., parts[i])

"""
    share(loop, threads, n, arrays)

Calls `loop(part)` with `1:n`, or with parts of it on several threads where so many arrays of that length are worth it.
"""
share(loop::F, threads::Int, n::Int, arrays::Int) where {F} =
    threads == 1 || n * arrays < WORTH_SHARING ? (loop(1:n); nothing) : in_parts(loop, threads, n)

"Numbers of each vector in a piece of it, the same whatever the threads: those of a few vectors stay in a processor's cache."
const PIECE = 1024
pieces(part) = (i:min(i + PIECE - 1, last(part)) for i in first(part):PIECE:last(part))

"""
    sum_shared(term, threads, n, xs...)

The sum of `term(x[i], …)` over `1:n`, in double precision and the same order whatever the threads.
"""
function sum_shared(term::F, threads::Int, n::Int, xs::Vararg{Vector,N}) where {F,N}
    (threads == 1 || n * N < WORTH_SHARING) && return sum(piece -> sum_piece(term, piece, xs), pieces(1:n); init = 0.0)
    sums = zeros(cld(n, PIECE))
    in_parts(fill_sums!, threads, length(sums), sums, term, n, xs)
    return foldl(+, sums)
end

function fill_sums!(sums, term::F, n, xs, part) where {F}
    for p in part
        sums[p] = sum_piece(term, ((p - 1) * PIECE + 1):min(p * PIECE, n), xs)
    end
    return
end

function sum_piece(term::F, piece, xs) where {F}
    total = 0.0
    @simd for i in piece
        total += term(map(x -> Float64(@inbounds x[i]), xs)...)
    end
    return total
end

"`to .= from`, on threads."
copy_shared!(to, from, threads) = copyto!(to, from)

"Numbers up to which a loop copies them in less time than it takes to call what copies more."
const SHORT = 16

function copy_shared!(to::Vector{T}, from::Vector{T}, threads::Int) where {T}
    if length(to) == length(from) <= SHORT
        for i in eachindex(from)
            @inbounds to[i] = from[i]
        end
        return to
    end
    share(part -> copyto!(to, first(part), from, first(part), length(part)), threads, length(from), 2)
    return to
end

function copy_shared!(to::SubArray{T,1,Matrix{T},<:Tuple{Base.Slice,Int}}, from::Vector{T}, threads::Int) where {T}
    length(to) == length(from) || throw(DimensionMismatch("vectors of $(length(to)) and $(length(from)) entries"))
    matrix, before = parent(to), to.offset1
    share(part -> copyto!(matrix, before + first(part), from, first(part), length(part)), threads, length(from), 2)
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
