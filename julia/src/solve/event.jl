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

"""
    find_event(field, event, u0, ts, θ, signs, options) -> Crossing

Solve from `ts[1]` towards `ts[end]` until a value of `event` has another sign than in `signs`, where 0 stands for the
first sign that the value takes. Nothing is kept of the steps.
"""
function find_event(field::TracedField{T}, event::EventValues{T}, u0, ts::Vector{Time}, θ, signs, o::Options) where {T}
    alg = algorithm(o.solver)
    f = ode_function(field, o.solver)
    return Base.invokelatest(find_event_with, field, event, f, u0, ts, θ, signs, o, alg)
end

function find_event_with(field::TracedField{T}, event, f, u0, ts::Vector{Time}, θ, signs, o::Options, alg) where {T}
    bind!(field, θ)
    problem = ODEProblem{true}(f, u0, (first(ts), last(ts)), field.θ)
    integrator = ready!(init(problem, alg; keywords(T, ts, o)..., save_everystep = false, dense = false, calck = true))
    between = similar(u0)
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
            for i in findall(haschanged.(signs, values))
                t = bisect(event, integrator, between, left, right, signs[i], i)
                if found.index == 0 || abs(t - a) < abs(found.t - a)
                    found = Crossing(t, i)
                end
            end
            found.index == 0 || return found
            for i in eachindex(signs)
                signs[i] == 0 && (signs[i] = sign(event.values[i]))
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
