# The estimate of the error of a step, where OrdinaryDiffEq has it wrong.

# ---- SDIRK methods ---------------------------------------------------------------------------------------------

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

# ---- Rosenbrock23 ----------------------------------------------------------------------------------------------

"""
Whether the estimate of Rosenbrock23 counts the field's derivative by time, ∂f/∂t, with dt in the place of γ dt (Shampine and
Reichelt, SIAM J. Sci. Comput. 18, 1997, section 4.1), so that the estimate is one of the second order, on which stiff fields
that depend on time took hundreds of times as many steps. It is found out from du/dt = t, which the method solves exactly.
"""
const WHOLE_STEP = let
    field = ODEFunction{true}(
        (du, u, p, t) -> (du .= t; nothing); jac = (J, u, p, t) -> (J .= 0; nothing), tgrad = (d, u, p, t) -> (d .= 1; nothing)
    )
    problem = ODEProblem{true}(field, zeros(2), (0.0, 1.0))
    x = init(problem, Rosenbrock23(; autodiff = AutoFiniteDiff()); dt = 0.25, reltol = 0.0, abstol = 1.0)
    step!(x)
    isapprox(x.EEst, (1 - x.cache.tab.d) * 0.25^2 / 6; rtol = 1e-6)
end

"Estimate the error with γ dt."
function count_time!(x, cache::Rosenbrock23Cache)
    WHOLE_STEP && x.opts.adaptive || return
    (; k₁, k₂, k₃, dT, linsolve_tmp, linsolve, tmp, atmp) = cache
    all(iszero, dT) && return
    h, γh = x.dt, x.dt * cache.tab.d
    @. linsolve_tmp = (h - γh) * dT
    linsolve.b = vec(linsolve_tmp)
    excess = reshape(solve!(linsolve).u, size(k₃))  # for the matrix J - I / γh
    @. k₃ += excess / γh
    @. tmp = h / 6 * (k₁ - 2 * k₂ + k₃)
    x.EEst = size_of(x, tmp, atmp)
    return
end

# ---- FBDF ------------------------------------------------------------------------------------------------------

"""
Whether the estimate of FBDF's first step depends on the time at which that begins: for the times before, of which there are none,
it takes zero, so that far from there steps of any length would do. It is found out from du/dt = 1.
"""
const FROM_ZERO = let
    field = ODEFunction{true}((du, u, p, t) -> (du .= 1; nothing); jac = (J, u, p, t) -> (J .= 0; nothing))
    estimates = map((0.0, 1000.0)) do t
        problem = ODEProblem{true}(field, zeros(2), (t, t + 1))
        x = init(problem, FBDF(; autodiff = AutoFiniteDiff()); dt = 0.25, reltol = 0.0, abstol = 1.0)
        step!(x)
        x.EEst
    end
    !isapprox(estimates...; rtol = 1e-3, atol = 1e-6)
end

"""
Estimate the error of the first step, by the implicit Euler method, from the slopes at its ends, as CVODE does. With a mass matrix the
least that M takes to the difference of M u' from the field: algebraic equations have no slopes.
"""
function estimate_first!(x, cache::FBDFCache)
    FROM_ZERO && x.opts.adaptive && cache.iters_from_event == 0 || return
    (; tmp, atmp) = cache
    M = x.f.mass_matrix
    @. tmp = x.u - x.uprev
    if M isa UniformScaling
        @. tmp = (tmp - x.dt * x.fsalfirst) / 2
    else
        tmp .= qr(M, ColumnNorm()) \ ((M * tmp .- x.dt .* x.fsalfirst) ./ 2)
    end
    x.EEst = size_of(x, tmp, atmp)
    return
end
