# The estimate of the error of a step by an SDIRK method.

"Methods whose estimate of a step's error is smoothed by (I - γ dt J)⁻¹."
const Smoothed = Union{TRBDF2,KenCarp3,KenCarp4,KenCarp5}

"The γ dt of the matrix by which the last estimate was smoothed, which may be that of an earlier step."
smoothed_by(integrator) = abs(integrator.cache.nlsolver.cache.W_γdt)

"""
How many times as large an estimate becomes where the Jacobian is zero and smoothing ought to change nothing, and how large it
would be by the matrix of Newton's method, J - I / (γ dt).
"""
function smoothing(solver)
    still = ODEFunction{true}((du, u, p, t) -> (du .= cos(3t); nothing); jac = (J, u, p, t) -> (J .= 0; nothing))
    estimates = map((true, false)) do smooth_est
        integrator = init(
            ODEProblem{true}(still, zeros(2), (0.0, 1.0)), solver(; autodiff = AutoFiniteDiff(), smooth_est);
            dt = 0.25, reltol = 1.0, abstol = 1.0,
        )
        step!(integrator)
        integrator.EEst, smoothed_by(integrator)
    end
    return estimates[1][1] / estimates[2][1], estimates[1][2]
end

"""
What is smoothed: `:rightly`; `:scaled`, by the matrix of Newton's method, so that the estimate is γ dt times what it should be,
depends on the unit of time, and is far too small where steps are (OrdinaryDiffEq.jl, issue 2902); or `:unknown`. It is found out
when this extension is compiled, with the packages that it is compiled with.
"""
const SMOOTHING = try
    found = map(smoothing, (TRBDF2, KenCarp3, KenCarp4, KenCarp5))
    if all(((times, _),) -> isapprox(times, 1; rtol = 1e-6), found)
        :rightly
    elseif all(((times, by),) -> isapprox(times, by; rtol = 1e-6), found)
        :scaled
    else
        :unknown
    end
catch
    :unknown
end

"""
Newton's method remembers how fast it converged. Once it was exact, as for a linear field, it would take its first iterate for the
solution from then on, with the matrix of an earlier step too; so it has to find out in each step.
"""
function forget_rate!(newton)
    hasfield(typeof(newton), :prev_θ) && (newton.prev_θ = one(newton.prev_θ))
    return
end

@interpolated KenCarp5Cache

"""
The factor on the estimate of a step that has the cubic interpolant alone, as at the start and after a jump: with it, a method of
order five takes steps of a quarter of the length, for which that is exact enough.
"""
const ALONE = 4.0^5

# It is called after each step, accepted or not, before the estimate is looked at.
function OrdinaryDiffEqCore.stepsize_controller!(x::ExactClock, alg::Smoothed)
    SMOOTHING === :scaled && alg.smooth_est && (x.EEst /= smoothed_by(x))
    forget_rate!(x.cache.nlsolver)
    alg isa KenCarp5 && !between!(x) && (x.EEst *= ALONE)
    return invoke(OrdinaryDiffEqCore.stepsize_controller!, Tuple{Any,Any}, x, alg)
end
