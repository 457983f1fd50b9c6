# The solution between the steps of SDIRK, Rosenbrock and stabilized methods and of VCABM.
#
# OrdinaryDiffEq interpolates a step by the slopes at its ends or by the method's stages. On a very stiff field these are those of the
# error, which decays at once; and for methods of high order, whose steps are long, two slopes are too few. The states at the ends of
# the steps are right, however. So polynomials through those of the last steps are tried as well, and of these and the solver's own
# interpolant the one is taken that is estimated to be off by least. Where no estimate is within the tolerances, the step is too long.

"How many steps polynomials go through, beside the one that is interpolated."
const REACH = 7

"An estimate, in tolerances, at which no other interpolant is tried."
const ENOUGH = 0.1

"How many times as long the step before may be as one that is tried again, shorter, for it to tell something of that."
const SHRUNK = 3

"Where the last steps began, the latest first, with the slopes there if these are asked for, and the end of the one that was tried last."
mutable struct Trail{V}
    const times::Vector{Float64}
    const states::Vector{V}
    const slopes::Vector{V}
    const ended::V
    const term::V  # for computations
    const size::V
    again::Bool    # whether the step is tried again
end

Trail(u) = Trail(Float64[], typeof(u)[], typeof(u)[], similar(u), similar(u), similar(u), false)

const TRAILS = WeakKeyDict{Any,Trail}()

"Note the step that was just tried; one that does not begin where the last one ended, after a jump, begins a new trail."
function note!(trail::Trail, x, slopes)
    (; times, states) = trail
    trail.again = !isempty(times) && times[1] == x.t && states[1] == x.uprev
    if !trail.again
        if !isempty(times) && trail.ended != x.uprev
            foreach(empty!, (times, states, trail.slopes))
        end
        pushfirst!(times, x.t)
        length(times) > REACH + 1 && pop!(times)
        begin_with!(states, x.uprev)
        slopes && begin_with!(trail.slopes, x.k[1])
    end
    copyto!(trail.ended, x.u)
    return
end

"Put a copy of `v` before the others, in the place of the last one if there are enough."
begin_with!(vs, v) = pushfirst!(vs, copyto!(length(vs) > REACH ? pop!(vs) : similar(v), v))

"Whether somebody may look into each step: not where there are times to report, or nothing but the steps is kept."
function looks_everywhere(x)
    o = x.opts
    (; continuous_callbacks, discrete_callbacks) = o.callback
    called = !isempty(continuous_callbacks) || !isempty(discrete_callbacks)
    return o.dense || called || (!o.save_everystep && isempty(o.saveat_cache))
end

"How many vectors of a step's, `x.k`, the solver's own interpolant takes; see `@interpolated`."
function own_vectors end

"""
    between!(x, cache; slopes = false) -> estimate

Prepare the interpolation of the step that was just tried, which may still be rejected, and return the estimate of its error in
tolerances. A polynomial adds vectors to those of the step that the solver's own interpolant takes, `x.k`: over the
step, with θ from 0 to 1, it is (1 - θ) u + θ u′ + θ (1 - θ) g(θ) with g(θ) = c₁ + c₂ θ + …. With `slopes`, for fields that are not
stiff, it has the slopes at the ends of steps as well, and there is no estimate for the solver's own.
"""
function between!(x, cache; slopes = false)
    x.kshortsize = own_vectors(cache)
    resize!(x.k, x.kshortsize)
    everywhere, reported = looks_everywhere(x), x.opts.saveat
    x.opts.calck && (everywhere || !isempty(reported)) || return 0.0  # nobody will ask for what is between its ends
    trail = get!(() -> Trail(x.u), TRAILS, x)::Trail{typeof(x.u)}
    note!(trail, x, slopes)
    everywhere || x.tdir * (x.t + x.dt) > first(reported) || return 0.0
    points = slopes ? osculating(x, trail) : through_ends(x, trail)
    estimate = best!(x, trail, points, slopes ? 2 : 1, slopes ? Inf : own_error(x, trail, cache))
    x.kshortsize = length(x.k)  # else what has been added is dropped before callbacks interpolate
    return estimate
end

"Prepare the interpolation of a step, which is as exact as that is."
function look_between!(x, cache)
    x.EEst = max(x.EEst, between!(x, cache))
    return
end

"""
How many of the states on the trail tell something of the step. Where one is tried again that was far too long, after a sharp change,
those before it do not.
"""
function known(x, trail::Trail)
    n = length(trail.times)
    return n > 1 && trail.again && θ_at(x, trail, 2) < -SHRUNK ? 1 : n
end

"θ of a state on the trail."
θ_at(x, trail::Trail, i) = (trail.times[i] - x.t) / x.dt

"Of the ends of earlier steps θ and g(θ)."
through_ends(x, trail::Trail) = ((θ_at(x, trail, i), value_of_g(x, trail, i), nothing) for i in 2:known(x, trail))

function value_of_g(x, trail::Trail, i)
    θ = θ_at(x, trail, i)
    return @. (trail.states[i] - x.uprev - θ * (x.u - x.uprev)) / (θ * (1 - θ))
end

"Of the ends of the step θ and g(θ), as the slopes there have it, and of those of up to four steps before θ, g(θ), and its slope."
function osculating(x, trail::Trail)
    rise = x.u - x.uprev
    ends = ((0.0, x.dt * x.k[1] - rise, nothing), (1.0, rise - x.dt * x.k[2], nothing))
    earlier = map(2:min(5, known(x, trail))) do i
        θ, g = θ_at(x, trail, i), value_of_g(x, trail, i)
        (θ, g, @. (x.dt * trail.slopes[i] - rise - (1 - 2θ) * g) / (θ * (1 - θ)))
    end
    return Iterators.flatten((ends, earlier))
end

"""
Add to `x.k` the coefficients of the polynomial that is estimated to be off by least, from the `least` number of them on; none if
the solver's own interpolant, which is off by `best`, is better. Return the estimate.
"""
function best!(x, trail::Trail, points, least, best)
    # Newton's polynomials for g: to each is added the divided difference of all points so far, multiplied by the product of
    # θ - θᵢ for those before.
    θs, differences, terms, factors = Float64[], typeof(x.u)[], typeof(x.u)[], [[1.0]]
    taken, before = 0, 0.0
    for (θ, value, slope) in points, twice in (false, true)
        twice && slope === nothing && continue
        push!(θs, θ)
        push!(differences, copy(value))
        for i in (length(θs) - 1):-1:1
            gap, d = θs[i] - θ, differences[i]
            iszero(gap) ? copyto!(d, slope) : (@. d = (d - differences[i + 1]) / gap)
        end
        push!(terms, copy(differences[1]))
        # What is added tells how far the polynomial before it is off, unless it vanishes by chance, as two in turn do not.
        added = highest(factors[end]) * size_of(x, terms[end], trail.size)
        if length(terms) > least && max(before, added) < best
            taken, best = length(terms) - 1, max(before, added)
            best < ENOUGH && break
        end
        before = added
        push!(factors, times_root(factors[end], θ))
    end
    for i in 1:taken
        c = terms[i]
        for j in (i + 1):taken
            @. c += factors[j][i] * terms[j]
        end
        push!(x.k, c)
    end
    return best
end

"""
How far the solver's own interpolant is off, from what it has at the beginnings of the two steps before. Where these are close beside
the step's length, they say little of its end; then it is compared in the middle with a parabola as well.
"""
function own_error(x, trail::Trail, cache)
    (; states, term) = trail
    own!(θ) =
        OrdinaryDiffEqCore._ode_interpolant!(term, θ, x.dt, x.uprev, x.u, x.k, cache, nothing, Val{0}, x.differential_vars)
    last = min(3, known(x, trail))
    error = maximum(2:last; init = 0.0) do i
        θ = θ_at(x, trail, i)
        own!(θ)
        @. term -= states[i]
        size_of(x, term, trail.size) / (8 * θ^2 * (1 - θ))
    end
    r = -θ_at(x, trail, last)
    r >= 0.5 && return error
    own!(0.5)
    @. term -= (x.uprev + x.u) / 2
    if last > 1  # through the farther of the two
        @. term += (r * (x.u - x.uprev) - (x.uprev - states[last])) / (4 * r * (1 + r))
    elseif x.f.mass_matrix isa UniformScaling  # with the slope at the beginning
        @. term += ((x.u - x.uprev) - x.dt * x.fsalfirst) / 4
    end
    return max(error, size_of(x, term, trail.size))
end

"The norm of an error of the step in tolerances, which are written to `scaled`."
function size_of(x, error, scaled)
    o = x.opts
    calculate_residuals!(scaled, error, x.uprev, x.u, o.abstol, o.reltol, o.internalnorm, x.t)
    return o.internalnorm(scaled, x.t)
end

"The coefficients, the lowest first, of a polynomial multiplied by θ - r."
times_root(c, r) = [-r .* c; 0] .+ [0; c]

"The greatest value of θ (1 - θ) |c₁ + c₂ θ + …| within the step."
highest(c) = maximum(θ * (1 - θ) * abs(evalpoly(θ, c)) for θ in range(0, 1, 21))

"The polynomial of `between!`, or its derivative, with the coefficients `c`."
function polynomial!(out, θ, h, u, u′, c, ::Type{Val{0}})
    @. out = (1 - θ) * u + θ * u′
    for i in eachindex(c)
        weight = θ^i * (1 - θ)
        @. out += weight * c[i]
    end
    return out
end

function polynomial!(out, θ, h, u, u′, c, ::Type{Val{1}})
    @. out = (u′ - u) / h
    for i in eachindex(c)
        weight = θ^(i - 1) * (i - (i + 1) * θ) / h
        @. out += weight * c[i]
    end
    return out
end

"""
Interpolate steps of solvers with this type of cache, whose own interpolant takes `own` vectors, by the polynomial where there is one.
"""
macro interpolated(cache, own)
    return esc(quote
        $(@__MODULE__).own_vectors(::$cache) = $own

        function $(OrdinaryDiffEqCore).ode_interpolant!(
            out, θ, h, u, u′, k, cache::$cache, indices, order::Type{Val{n}}, differential
        ) where {n}
            length(k) > $own ||
                return $(OrdinaryDiffEqCore)._ode_interpolant!(out, θ, h, u, u′, k, cache, indices, order, differential)
            of(v) = indices === nothing ? v : view(v, indices)
            return $(polynomial!)(out, θ, h, of(u), of(u′), map(of, k[($own + 1):end]), order)
        end

        function $(OrdinaryDiffEqCore).ode_interpolant(
            θ, h, u, u′, k, cache::$cache, indices, order::Type{Val{n}}, differential
        ) where {n}
            out = $(OrdinaryDiffEqCore).ode_interpolant!(similar(u), θ, h, u, u′, k, cache, nothing, order, differential)
            return indices === nothing ? out : out[indices]
        end
    end)
end
