# Interrupts: what runs for long lets Python's signal handlers run, and ends where one of them raises.
#
# Python calls its handlers on its main thread alone, between two steps of its own, and while Julia solves there are
# none. So a field asks for them as it is evaluated, a few times a second.

"A signal handler of Python's, or a field that it evaluates, has raised an exception, which waits for Python."
struct Interrupted <: Exception end

Base.showerror(io::IO, ::Interrupted) = print(io, "a signal handler of Python's, or a field, has raised an exception")

"Whether the call that is under way is to end. The threads that it runs on read this, the one that calls Python sets it."
const INTERRUPTED = Threads.Atomic{Bool}(false)

"""
Python's functions `PyGILState_Ensure`, `PyErr_CheckSignals`, `PyErr_Fetch`, `PyGILState_Release`, `PyObject_CallNoArgs`,
`Py_DecRef` and `PyErr_Clear`, where an exception goes (three addresses), and the number that Julia gives to Python's main
thread; 0 where there is no Python.
"""
mutable struct Python
    ensure::Ptr{Cvoid}
    check::Ptr{Cvoid}
    fetch::Ptr{Cvoid}
    release::Ptr{Cvoid}
    call::Ptr{Cvoid}
    decrease::Ptr{Cvoid}
    clear::Ptr{Cvoid}
    exception::Ptr{Ptr{Cvoid}}
    thread::Int
    asked::UInt64  # when its handlers could run last
    busy::Bool     # whether they run
end

const PYTHON = Python(ntuple(_ -> C_NULL, 8)..., 0, 0, false)

"""
    listen(functions, exception)

Called on Python's main thread: from now on the fields that are evaluated there let Python's handlers run. `functions` and
`exception` are as in `Python`.
"""
function listen(functions, exception::Int)
    PYTHON.ensure, PYTHON.check, PYTHON.fetch, PYTHON.release, PYTHON.call, PYTHON.decrease, PYTHON.clear =
        (Ptr{Cvoid}(Int(f)) for f in functions)
    PYTHON.exception = Ptr{Ptr{Cvoid}}(exception)
    PYTHON.thread = Threads.threadid()
    return
end

"Nanoseconds after which Python's handlers get their turn."
const PATIENCE = UInt64(100_000_000)

"Let Python's handlers run, if this is its main thread, and end the call where one of them raises."
function ask()
    INTERRUPTED[] && throw(Interrupted())
    Threads.threadid() == PYTHON.thread || return
    PYTHON.busy && return  # a handler evaluates a field
    raised() || return
    INTERRUPTED[] = true
    throw(Interrupted())
end

"Whether one of Python's handlers, which run now, has raised; its exception is put where Python finds it."
function raised()
    p = PYTHON
    p.busy = true
    # Julia's garbage collector does not wait for this thread meanwhile, which may itself wait for Python's lock.
    state = @ccall jl_gc_safe_enter()::Int8
    lock = ccall(p.ensure, Cint, ())
    failed = ccall(p.check, Cint, ()) != 0
    failed && ccall(p.fetch, Cvoid, (Ptr{Ptr{Cvoid}}, Ptr{Ptr{Cvoid}}, Ptr{Ptr{Cvoid}}), p.exception, p.exception + sizeof(Int), p.exception + 2sizeof(Int))
    ccall(p.release, Cvoid, (Cint,), lock)
    @ccall jl_gc_safe_leave(state::Int8)::Cvoid
    p.busy = false
    p.asked = time_ns()
    return failed
end

"Counts the evaluations of a field; it looks at the clock, and asks, every so many that these take some milliseconds."
mutable struct Watch
    left::Int
    every::Int
    last::UInt64
end

Watch() = Watch(1, 1, time_ns())

"Count one evaluation."
@inline function count!(w::Watch)
    w.left -= 1
    w.left <= 0 && look!(w)
    return
end

@noinline function look!(w::Watch)
    now = time_ns()
    spent = now - w.last
    w.every = spent < 2_000_000 ? min(2w.every, 4096) : spent > 20_000_000 ? max(w.every ÷ 4, 1) : w.every
    w.last, w.left = now, w.every
    observe!()
    INTERRUPTED[] && throw(Interrupted())
    Threads.threadid() == PYTHON.thread && now - PYTHON.asked > PATIENCE && ask()
    return
end

"Wait for tasks that run on other threads, and let Python's handlers run meanwhile; throws what the first to fail threw."
function wait_for(tasks)
    waits = Threads.threadid() == PYTHON.thread && !all(istaskdone, tasks)
    timer = waits ? Timer(_ -> set_interrupted!(), 0.1; interval = 0.1) : nothing
    try
        wait_all(tasks)
    finally
        timer === nothing || close(timer)
    end
    return
end

"Wait for tasks, all of them also where one fails; throws what the first to fail threw."
function wait_all(tasks)
    failures = []
    for task in tasks
        try
            wait(task)
        catch
            push!(failures, first(current_exceptions(task)).exception)
        end
    end
    isempty(failures) || throw(first(failures))
    return
end

function set_interrupted!()
    try
        ask()
    catch error
        error isa Interrupted || rethrow()
    end
    return
end
