module PyNODEAdamsExt

using OrdinaryDiffEqAdamsBashforthMoulton: OrdinaryDiffEqAdamsBashforthMoulton, VCABM
using OrdinaryDiffEqCore: OrdinaryDiffEqCore
using PyNODE: PyNODE, @interpolated, SOLVERS, ExactClock, ODEProblem, between!, init, step!

const VCABMCache = OrdinaryDiffEqAdamsBashforthMoulton.VCABMCache

"Whether the first step of VCABM, of order 1, goes twice as far as it should: both predictor and corrector are added."
const DOUBLED = let integrator = init(ODEProblem{true}((du, u, p, t) -> du .= 1, [0.0], (0.0, 1.0)), VCABM(); dt = 0.1)
    step!(integrator)
    integrator.u[1] > 1.5 * integrator.t
end

function OrdinaryDiffEqCore.perform_step!(x::ExactClock, cache::VCABMCache, repeat_step = false)
    first = cache.order == 1
    invoke(OrdinaryDiffEqCore.perform_step!, Tuple{Any,VCABMCache,Any}, x, cache, repeat_step)
    x.EEst <= 1 || return
    if DOUBLED && first  # with the slopes at both ends added, half of the sum is the trapezoidal rule
        @. x.u = (x.uprev + x.u) / 2
        x.f(x.fsallast, x.u, x.p, x.t + x.dt)
        OrdinaryDiffEqCore.increment_nf!(x.stats, 1)
    end
    between!(x, cache; slopes = true)
    return
end

@interpolated VCABMCache 2

PyNODE.is_multistep(::VCABM) = true

function __init__()
    SOLVERS["VCABM"] = VCABM
    return
end

end
