# Fields that Python evaluates: a field whose programs are calls of Python's functions.
#
# Python has the numbers in tensors over memory that it shares with Julia, once for all calls, so that a call has no
# arguments and nothing is copied on the way.

"""
What Python's functions compute, in the order of their addresses: the value; the value, keeping its graph; all products,
those of the state, those of `θ`; all products from a graph that was kept; a graph at a point, and products of the state
from it; the derivative along a direction, and along the time. The last one drops a graph that was kept.
"""
@enum PythonFunction begin
    value_function = 1
    record_function
    product_function
    state_product_function
    theta_product_function
    replay_function
    open_function
    row_function
    tangent_function
    slope_function
    drop_function
end

"""
A field that Python evaluates, for one batch size: what `Workspace` is for one that was lowered.

# Fields
- `functions`: of Python's, see `PythonFunction`.
- `call`: Python's memory of two integers: the number of the graph that is meant, and whether the derivatives that Python
  has are all there are of the field; 0 where a part of it is hidden from autograd.
- `time`, `u`, `v`, `du`, `dz`, `dθ`, `dt`: Python's memory.
- `sizes`: of each state tensor how many numbers a sample has.
- `bytes`: what the graph of an evaluation takes, about.
"""
struct Callback{T}
    functions::Vector{Ptr{Cvoid}}
    call::Vector{Int}
    time::Vector{Time}
    u::Vector{T}
    v::Vector{T}
    du::Vector{T}
    dz::Vector{T}
    dθ::Vector{T}
    dt::Vector{T}
    batch::Int
    sizes::Vector{Int}
    bytes::Int
    graphs::Base.RefValue{Int}  # how many have been kept so far
end

"Have Python compute something; where it raises, the call that is under way ends."
function call!(c::Callback, f::PythonFunction)
    if !called(c.functions[Int(f)])
        INTERRUPTED[] = true
        throw(Interrupted())
    end
    return nothing
end

"Whether a function of Python's has returned; else its exception is put where Python finds it, unless one is there."
function called(f::Ptr{Cvoid})
    p = PYTHON
    state = @ccall jl_gc_safe_enter()::Int8  # as in `raised`
    lock = ccall(p.ensure, Cint, ())
    result = ccall(p.call, Ptr{Cvoid}, (Ptr{Cvoid},), f)
    if result != C_NULL
        ccall(p.decrease, Cvoid, (Ptr{Cvoid},), result)
    elseif INTERRUPTED[]
        ccall(p.clear, Cvoid, ())
    else
        ccall(p.fetch, Cvoid, (Ptr{Ptr{Cvoid}}, Ptr{Ptr{Cvoid}}, Ptr{Ptr{Cvoid}}), p.exception, p.exception + sizeof(Int), p.exception + 2sizeof(Int))
    end
    ccall(p.release, Cvoid, (Cint,), lock)
    @ccall jl_gc_safe_leave(state::Int8)::Cvoid
    return result != C_NULL
end

"A function of Python's as a program of a field."
struct PythonProgram{T}
    callback::Callback{T}
    f::PythonFunction
end

(p::PythonProgram)(_) = call!(p.callback, p.f)

"As `PythonProgram`, of a stage whose graph is number `n`; `u` is its state."
struct GraphProgram{T}
    callback::Callback{T}
    f::PythonFunction
    n::Int
    u::Vector{T}
end

function (p::GraphProgram)(_)
    c = p.callback
    c.call[1] = p.n
    p.f === record_function && copyto!(c.u, p.u)
    return call!(c, p.f)
end

"Let Python drop the graph of a number, unless it has forgotten all of them; this may run after an error."
function drop!(c::Callback, n::Int)
    isempty(c.functions) && return
    c.call[1] = n
    called(c.functions[Int(drop_function)]) || (INTERRUPTED[] = true)
    return
end

"Whether autograd sees all of the field."
hasproducts(c::Callback) = c.call[2] == 1

function samples(c::Callback)
    found, offset = [Int[] for _ in 1:(c.batch)], 0
    for size in c.sizes
        foreach(b -> append!(found[b], (offset + (b - 1) * size) .+ (1:size)), 1:(c.batch))
        offset += c.batch * size
    end
    return found
end
