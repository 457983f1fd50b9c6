# Work on several of Julia's threads: blocks of a batch, and parts of operations on large arrays.

"Operations on numbers that a thread gets at least: about 100 µs of them, beside which having it at work costs little."
const WORTH_A_THREAD = 8_000_000

"Numbers that a loop over arrays moves or computes at least where threads share it: about 50 µs of them."
const WORTH_SHARING = 2^18

"A range in `n` parts of about equal length."
parted(range, n::Int) = [range[((i - 1) * length(range) ÷ n + 1):(i * length(range) ÷ n)] for i in 1:n]

"Calls `f(1, arguments...)`, …, `f(n, arguments...)`, each on a thread."
function on_threads(f::F, n::Int, arguments...) where {F}
    tasks = [Threads.@spawn(f(i, arguments...)) for i in 2:n]
    try
        f(1, arguments...)
    finally
        wait_all(tasks)  # they write to the caller's memory
    end
    return
end

"Calls `loop(arrays..., t, batch, part)` with the parts of `1:n`, each on a thread."
function shared(loop::F, threads::Int, n::Int, arrays, t, batch) where {F}
    on_threads(run_loop, threads, loop, parted(1:n, threads), arrays, t, batch)
    return
end

run_loop(thread, loop::F, parts, arrays, t, batch) where {F} = loop(arrays..., t, batch, parts[thread])
