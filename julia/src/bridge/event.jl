# The search for an event, as Python calls it.

"""
    find_event(ints, n_ints, floats) -> Int

Integers: device, kernel, kernel of the event function, number of its values, addresses of their signs and directions
(the processor's, floats); then those of `forward` from the solver on; then number of tensors of the event function's `θ`, and for each its size and
address.
Floats: those of `asked_steps`; on return evaluations, the time of the event, and the position of the value that changed its sign,
from 1; 0 if none did, -1 if the solve failed, -2 if a value is NaN, at the time of the event then.
"""
function find_event(ints::Int, n_ints::Int, floats::Int)
    r = Reader(wrap(Int, ints, n_ints), 0)
    device, kernel, event, m, signs, directions, solver, batch, times, _, products = (next!(r) for _ in 1:11)
    x = wrap(Float64, floats, 8)
    return on(DEVICES[device]) do
        field = field_for(kernel, batch, products == 0 ? :joint : :split, device)
        values = EventValues(field_for(event, batch, :joint, device), m, batch)
        search = search_of(field, m, signs, directions)
        find_event_typed(DEVICES[device], field, values, r, x, search, SOLVER_NAMES[solver], times)
    end
end

"The search for `m` values, from the addresses of floats; of sample `b` where the signs are those of several."
search_of(::TracedField{T}, m::Int, signs::Int, directions::Int, b::Int = 1) where {T} =
    Search{T}(wrap(Float64, signs, b * m)[((b - 1) * m + 1):(b * m)], wrap(Float64, directions, m))

function find_event_typed(device, field::TracedField{T}, event, r::Reader, x, search, solver, times) where {T}
    adaptive, max_steps, _, _ = next!(r) == 1, next!(r), next!(r), next!(r)
    ts = copy(wrap(Time, next!(r), times))
    states = [(next!(r), next!(r), next!(r)) for _ in 1:next!(r)]
    u0 = gather!(similar(field.u), device, [(n, from) for (n, from, _) in states])
    for f in (field, event.field)
        read_theta!(f, device, r)
        bind!(f, f.θ)
    end
    options = Options(; solver, asked_steps(x)..., adaptive, max_steps)
    before = field.counts[1]
    found = find_event(field, event, u0, ts, search, options)
    x[1:3] .= (field.counts[1] - before, found.t, found.index)
    return 0
end
