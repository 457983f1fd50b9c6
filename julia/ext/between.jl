# The solution between the steps of KenCarp5 and VCABM.
#
# OrdinaryDiffEq interpolates with the cubic polynomial through the values and slopes at both ends of a step. Methods of high order
# take steps that are so long that this polynomial is off by hundreds of tolerances where these are tight. Here the interpolant is
# the polynomial of degree five that also goes through the beginning of the step before, if there is one without a jump between.
# It goes by slopes, as the cubic one does, so that on very stiff fields it is no better than that.

"The largest ratio between the lengths of a step and of the one before it at which the two are interpolated together."
const MOST_UNEQUAL = 4

"The beginning of a step and its end, with the slopes there."
mutable struct Ends{T,V}
    t::T
    const u::V
    const du::V
    const u′::V
    const du′::V
end

Ends(t, u) = Ends(t, copy(u), copy(u), copy(u), copy(u))

function note!(e::Ends, x)
    e.t = x.t
    copyto!(e.u, x.uprev)
    copyto!(e.du, x.k[1])
    copyto!(e.u′, x.u)
    copyto!(e.du′, x.k[2])
    return
end

"The step that was tried last and the one that was accepted before it; `joined`: there is one, with no jump between them."
mutable struct Trail{E<:Ends}
    tried::E
    before::E
    joined::Bool
end

const TRAILS = WeakKeyDict{Any,Trail}()

"""
    between!(x) -> Bool

Prepare the interpolation of the step that was just tried, which may still be rejected, and say whether it has the polynomial of
degree five. That is the cubic one plus θ² (1 - θ)² (a + b θ), where θ runs from 0 to 1 over the step. The vectors `a` and `b`
become the third and fourth of the step's slopes, `x.k`.
"""
function between!(x)
    x.opts.calck || return true  # nobody asks for what is between its ends
    trail = get!(() -> Trail(Ends(x.t, x.uprev), Ends(x.t, x.uprev), false), TRAILS, x)::Trail
    return between!(x, trail)
end

function between!(x, trail::Trail)
    resize!(x.k, 2)
    (; tried) = trail
    if x.t != tried.t  # else that step has been rejected
        trail.joined = tried.u′ == x.uprev && tried.du′ == x.k[1]
        trail.tried, trail.before = trail.before, tried
    end
    note!(trail.tried, x)
    r = (x.t - trail.before.t) / x.dt
    joined = trail.joined && inv(MOST_UNEQUAL) <= r <= MOST_UNEQUAL
    joined && append!(x.k, beyond_cubic(trail.before, trail.tried, x.dt, r))
    x.kshortsize = length(x.k)  # else `a` and `b` are dropped before callbacks interpolate
    return joined
end

"The vectors `a` and `b` of `between!` for a step of length `h`; `r` is the length of the step before, divided by `h`."
function beyond_cubic(before::Ends, step::Ends, h, r)
    T = eltype(step.u)
    h, r = T(h), T(r)
    # θ² (1 - θ)² and its slope at -r
    w, dw = (r * (1 + r))^2, -2r * (1 + r) * (1 + 2r)
    a, b = similar(step.u), similar(step.u)
    (; u, du, u′, du′) = step
    # The cubic polynomial is u + θ h du + θ² (3d - h (2 du + du′)) + θ³ (h (du + du′) - 2d) with d = u′ - u. Its errors at
    # θ = -r, in value and slope, are what a and b have to make up for.
    @. a = before.u - u + r * h * du - r^2 * (3 * (u′ - u) - h * (2du + du′)) + r^3 * (h * (du + du′) - 2 * (u′ - u))
    @. b = h * (before.du - du) + 2r * (3 * (u′ - u) - h * (2du + du′)) - 3r^2 * (h * (du + du′) - 2 * (u′ - u))
    @. b = (b - a * (dw / w)) / w
    @. a = a / w + r * b
    return a, b
end

"The factors on `a` and `b` in the interpolant, and in its derivative."
weights(θ, h, ::Type{Val{0}}) = θ^2 * (1 - θ)^2, θ^3 * (1 - θ)^2
weights(θ, h, ::Type{Val{1}}) = 2θ * (1 - θ) * (1 - 2θ) / h, θ^2 * (1 - θ) * (3 - 5θ) / h

"""
Add to `out`, which has the cubic polynomial at `θ` or its derivative, what the polynomial of degree five has beyond it.
Derivatives of higher order, which nothing here asks for, stay those of the cubic polynomial.
"""
function add_beyond_cubic!(out, θ, h, k, indices, order::Type{Val{n}}) where {n}
    (length(k) < 4 || n > 1) && return out
    p, q = convert.(eltype(out), weights(θ, h, order))
    a, b = indices === nothing ? (k[3], k[4]) : (view(k[3], indices), view(k[4], indices))
    @. out += p * a + q * b
    return out
end

"Interpolate steps of solvers with this type of cache by the polynomial of degree five."
macro interpolated(cache)
    interpolant = :(OrdinaryDiffEqCore._ode_interpolant!)
    return esc(quote
        function $interpolant(out, θ, h, u, u′, k, cache::$cache, indices, order::Type{Val{n}}, differential) where {n}
            cubic = Tuple{Any,Any,Any,Any,Any,Any,Any,Any,Type{Val{n}},Any}
            invoke($interpolant, cubic, out, θ, h, u, u′, k, cache, indices, order, differential)
            return add_beyond_cubic!(out, θ, h, k, indices, order)
        end
    end)
end
