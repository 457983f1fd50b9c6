# The length of the first step, where it is the solver's to choose.

"Three vectors like the state, in which the length of the first step is found."
function probes!(field::TracedField)
    while length(field.probes) < 3
        push!(field.probes, similar(field.u))
    end
    return field.probes
end

"""
    first_step(field, alg, u0, ts, options) -> step

The first step from `u0` at `ts[1]` towards `ts[end]`, signed, of an explicit method that chooses its steps: by the field and its change along a
short step of Euler's (Hairer, Nørsett and Wanner, Solving Ordinary Differential Equations I, section II.4, with OrdinaryDiffEq's bounds).
A hundredth of that where the field is not finite at its end, where OrdinaryDiffEq's own is NaN and ends the solve.
OrdinaryDiffEq's own has one thread, and takes memory for three states at every solve. `nothing` where it is left to that: where the states
are not a processor's, and where more is asked of the steps.
"""
first_step(field, alg, u0, ts, o::Options) = nothing

function first_step(field::TracedField{T,Vector{T}}, alg, u0::Vector{T}, ts::Vector{Time}, o::Options) where {T}
    o.control === nothing && o.solver in EXPLICIT || return nothing
    f₀, f₁, u₁ = probes!(field)
    n, threads, rtol, atol = length(u0), field.threads, Float64(T(o.rtol)), Float64(T(o.atol))
    mean(term, xs...) = sqrt(sum_shared(term, threads, n, xs...) / max(n, 1))
    t, span, towards = first(ts), abs(last(ts) - first(ts)), sign(last(ts) - first(ts))
    least = nextfloat(eps(t))
    short = max(least, 1e-6)
    value!(f₀, field, u0, t)
    state = mean(u -> abs2(u / (atol + rtol * abs(u))), u0)
    slope = mean((u, f) -> abs2(f / (atol + rtol * abs(u))), u0, f₀)
    isnan(slope) && return towards * least
    probe = min(state < 1e-5 || slope < 1e-5 ? short : state / slope / 100, span)
    probe < 10eps(Time) && return towards * short
    h = towards * probe
    value!(f₁, field, combine!(u₁, u0, h, (1.0,), (f₀,), 1, threads), t + h)
    change = mean((u, f, g) -> abs2((g - f) / (atol + rtol * abs(u))), u0, f₀, f₁) / probe
    isfinite(change) || return towards * max(least, probe / 100)  # the field ends on the way
    n > 0 && change == 0 && return towards * max(least, 100probe)
    most = max(slope, change)
    step = most <= 1e-15 ? max(1e-6, probe / 1000) : 10.0^(-(2 + log10(most)) / alg_order(alg))
    return towards * max(least, min(100probe, step, span))
end
