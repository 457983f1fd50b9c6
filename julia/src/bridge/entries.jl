# The C functions that Python calls, and how it learns of what went wrong.

"What crosses the bridge, and how. Python has the same number (`BRIDGE` in runtime.py); both change when that changes."
const BRIDGE = 12

const LAST_ERROR = Ref("")
const LAST_FAILURE = Ref(SolveFailure("", success, 0.0))

"The text of the error that the last call of an entry point ended with."
last_error() = LAST_ERROR[]

"Of the last call of an entry point that ended with -3: what failed, its outcome, and the time that was reached."
last_failure() = (LAST_FAILURE[].what, Int(LAST_FAILURE[].outcome), LAST_FAILURE[].reached)

# An exception must not unwind into C: it is kept, and the call returns -1, -2 where the user's code failed, -3 where a
# solve did, or -4 where a signal handler of Python's raised.
function guarded(f::F, arguments...) where {F}
    if PYTHON.busy
        LAST_ERROR[] = "a solve is under way, which waits for this signal handler: solve after it has returned"
        return -1
    end
    code = caught(f, arguments...)
    PROGRESS.integrator = nothing
    INTERRUPTED[] || return code
    INTERRUPTED[] = false
    return -4
end

function caught(f::F, arguments...) where {F}
    try
        return f(arguments...)
    catch error
        INTERRUPTED[] && return -4
        if error isa SolveFailure
            LAST_FAILURE[] = error
            return -3
        end
        users = error isa FieldFailure
        LAST_ERROR[] = users ? error.message : sprint(showerror, error, catch_backtrace())
        return users ? -2 : -1
    end
end

forward_entry(ints::Int, n::Int, floats::Int)::Int = guarded(forward, ints, n, floats)
pullback_entry(kept::Int, ints::Int, n::Int, floats::Int)::Int = guarded(pullback, kept, ints, n, floats)
interpolate_entry(kept::Int, ints::Int, n::Int)::Int = guarded(interpolate, kept, ints, n)
tangent_entry(kept::Int, ints::Int, n::Int)::Int = guarded(tangent, kept, ints, n)
forward_each_entry(ints::Int, n::Int, floats::Int)::Int = guarded(forward_each, ints, n, floats)
pullback_each_entry(kept::Int, ints::Int, n::Int)::Int = guarded(pullback_each, kept, ints, n)
find_event_entry(ints::Int, n::Int, floats::Int)::Int = guarded(find_event, ints, n, floats)
find_event_each_entry(ints::Int, n::Int, floats::Int)::Int = guarded(find_event_each, ints, n, floats)
train_entry(ints::Int, n::Int, floats::Int)::Int = guarded(train, ints, n, floats)
release_entry(kept::Int)::Int = guarded(release, kept)

"""
    write_entry_points(address)

Write the addresses of the C functions that Python calls, all of integers and less than 0 after an error, to an array of
integers, in the order of `_ENTRIES` in call.py.
"""
function write_entry_points(address::Int)
    pointers = (
        @cfunction(forward_entry, Int, (Int, Int, Int)),
        @cfunction(pullback_entry, Int, (Int, Int, Int, Int)),
        @cfunction(interpolate_entry, Int, (Int, Int, Int)),
        @cfunction(release_entry, Int, (Int,)),
        @cfunction(tangent_entry, Int, (Int, Int, Int)),
        @cfunction(forward_each_entry, Int, (Int, Int, Int)),
        @cfunction(pullback_each_entry, Int, (Int, Int, Int)),
        @cfunction(find_event_entry, Int, (Int, Int, Int)),
        @cfunction(find_event_each_entry, Int, (Int, Int, Int)),
        @cfunction(train_entry, Int, (Int, Int, Int)),
    )
    for (k, pointer) in enumerate(pointers)
        unsafe_store!(Ptr{Int}(address), Int(pointer), k)
    end
    return
end

"""
    evaluate_code(code, n, answer, room) -> Int

Evaluate Python's code, of `n` bytes. What its value prints, or the beginning of that, is written to the `room` bytes at `answer`.
Returns the number of bytes.
"""
function evaluate_code(code::Int, n::Int, answer::Int, room::Int)
    said = string(Core.eval(Main, Meta.parse(unsafe_string(Ptr{UInt8}(code), n))))
    written = min(sizeof(said), room)
    GC.@preserve said unsafe_copyto!(Ptr{UInt8}(answer), pointer(said), written)
    return written
end

# Also while a signal handler of Python's runs, which may ask for the text of an error.
evaluate_entry(code::Int, n::Int, answer::Int, room::Int)::Int = caught(evaluate_code, code, n, answer, room)

"The address of the C function `evaluate_code`, less than 0 after an error."
evaluate_entry_point() = Int(@cfunction(evaluate_entry, Int, (Int, Int, Int, Int)))

"""
    serve(functions, exception, unclaimed)

Called once by Python, on its main thread; see `listen` and `UNCLAIMED`.
"""
function serve(functions, exception::Int, unclaimed::Int)
    listen(functions, exception)
    UNCLAIMED[] = Ptr{Int}(unclaimed)
    keep_child_handler!()
    return
end

"Whether Julia runs on several threads, but may not stop them when it collects its garbage."
cannot_stop_threads() =
    Threads.nthreads(:default) + Threads.nthreads(:interactive) > 1 && Base.JLOptions().handle_signals == 0
