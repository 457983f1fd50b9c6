# Events: where a function of time and state changes its sign.

# Places within a step, besides its end, at which the signs are looked at.
const CHECKS = 4

"""
The values of an event function, traced like a field: its state is that of the solve followed by one row of `m` values
for each sample, all equal, and its "derivative" of those rows is the values.
"""
struct EventValues{T,V<:AbstractVector{T},F<:TracedField{T,V}}
    field::F
    state::V
    rates::V
    values::Vector{T}
    n::Int  # numbers of the state that the function reads; what follows them, a running cost, it does not
end

function EventValues(field::TracedField, m::Int, batch::Int)
    make() = fill!(similar(field.dz), 0)
    return EventValues(field, make(), make(), zeros(eltype(field.dz), m), length(field.dz) - m * batch)
end

function (e::EventValues)(u, t)
    copyto!(e.state, 1, u, 1, e.n)
    value!(e.rates, e.field, e.state, t)
    copyto!(e.values, 1, e.rates, e.n + 1, length(e.values))
    return e.values
end

"Where a value first changed its sign; `index` is 0 where none did, -1 where the solve failed, -2 where a value is NaN."
struct Crossing
    t::Time
    index::Int
end

haschanged(sign, value) = sign != 0 && sign * value <= 0

"What is looked for: for each value its sign so far, 0 where that is not known yet, and which changes count: 0 all, else
those to the sign given."
struct Search{T}
    signs::Vector{T}
    directions::Vector{Int}
end

ismet(s::Search, i::Int, value) = haschanged(s.signs[i], value) && s.directions[i] * s.signs[i] <= 0

"""
    find_event(field, event, u0, ts, search, options) -> Crossing

Solve with the `θ` that are bound from `ts[1]` towards `ts[end]` until a value of `event` changes its sign, in a direction
that counts. Nothing is kept of the steps; the signs of `search` become those at the end.
"""
function find_event(field::TracedField{T}, event::EventValues{T}, u0, ts::Vector{Time}, search::Search{T}, o::Options) where {T}
    alg = algorithm(o.solver; field.threads)
    f = ode_function(field, o.solver)
    return Base.invokelatest(find_event_with, field, event, f, u0, ts, search, o, alg)::Crossing
end

function find_event_with(field::TracedField{T}, event, f, u0, ts::Vector{Time}, search::Search{T}, o::Options, alg) where {T}
    problem = ODEProblem{true}(f, u0, (first(ts), last(ts)), field.θ)
    integrator = integrator_of(field, problem, alg, ts, o; save_everystep = false, dense = false, calck = true)
    PROGRESS.integrator = integrator
    between, changed = similar(u0), fill(false, length(search.signs))
    while integrator.t != last(ts)
        a = integrator.t
        step!(integrator)
        b = integrator.t
        (b == a || !successful_retcode(integrator.sol.retcode)) && return Crossing(a, -1)
        left = a
        for k in 1:(CHECKS + 1)
            right = k > CHECKS ? b : a + (b - a) * (k / (CHECKS + 1))
            values = event(k > CHECKS ? integrator.u : integrator(between, right), right)
            any(isnan, values) && return Crossing(right, -2)
            found = Crossing(right, 0)
            changed .= ismet.(Ref(search), eachindex(values), values)
            for i in eachindex(changed)
                changed[i] || continue
                t = bisect(event, integrator, between, left, right, search.signs[i], i)
                if found.index == 0 || abs(t - a) < abs(found.t - a)
                    found = Crossing(t, i)
                end
            end
            found.index == 0 || return found
            for (i, value) in enumerate(event.values)
                value == 0 || (search.signs[i] = sign(value))
            end
            left = right
        end
    end
    return Crossing(last(ts), 0)
end

"The time between `left` and `right` from which value `i` no longer has the sign `s`."
function bisect(event, integrator, between, left, right, s, i)
    while true
        middle = (left + right) / 2
        (middle == left || middle == right) && return right
        if haschanged(s, event(integrator(between, middle), middle)[i])
            right = middle
        else
            left = middle
        end
    end
end
