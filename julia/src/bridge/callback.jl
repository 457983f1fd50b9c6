# Fields that Python evaluates, as it makes them known and forgets them.

"""
    register_callback(dtype, ints, n_ints) -> Int

The number, as that of a kernel, of a field that Python evaluates.

Integers: batch, bytes of a graph, number of functions, their addresses; addresses of the integers and the time of a call;
of `u`, `v`, `du`, `dz`, `dθ` and `dt`; the length of `dθ`; number of state tensors, and for each the size of a sample.
The memory is Python's, which keeps it until it has forgotten the field and every solve of it.
"""
function register_callback(dtype, ints::Int, n_ints::Int)
    T = element_type(string(dtype))
    r = Reader(copy(wrap(Int, ints, n_ints)), 0)
    batch, bytes = next!(r), next!(r)
    functions = [Ptr{Cvoid}(next!(r)) for _ in 1:next!(r)]
    call, time = wrap(Int, next!(r), 2), wrap(Time, next!(r), 1)
    u, v, du, dz, dθ, dt = (next!(r) for _ in 1:6)
    m = next!(r)
    sizes = [next!(r) for _ in 1:next!(r)]
    n = batch * sum(sizes)
    memory(address, n) = n == 0 ? T[] : wrap(T, address, n)
    c = Callback{T}(
        functions, call, time, memory(u, n), memory(v, n), memory(du, n), memory(dz, n), memory(dθ, m), memory(dt, 1),
        batch, sizes, bytes, Ref(0),
    )
    push!(KERNELS, c)
    return length(KERNELS)
end

make_field(c::Callback, batch, products, ::Processor = Processor(), threads = 1) = TracedField(c; products)

"Forget a field that Python evaluates; of its solves, some may still be kept, but none is used any more."
function forget_callback(kernel::Int)
    empty!(KERNELS[kernel].functions)
    KERNELS[kernel] = nothing
    forget_fields!(kernel)
    return
end
