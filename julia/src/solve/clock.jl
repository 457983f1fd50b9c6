# The clock of adaptive steps.

"What finds a state outside of the domain: none is. Its type marks the integrators whose clocks are exact."
inside(u, p, t) = false

const ExactClock = ODEIntegrator{
    <:Any,<:Any,<:Any,<:Any,<:Any,<:Any,<:Any,<:Any,<:Any,<:Any,<:Any,<:Any,<:Any,<:Any,
    <:DEOptions{<:Any,<:Any,<:Any,<:Any,<:Any,<:Any,<:Any,<:Any,<:Any,typeof(inside)},
}

# A step may be this fraction longer than is asked for, so that rounding in the times makes no sliver of a step.
const SLACK = 1e-3

"""
The step from `t` is as long as the time moves, which rounding makes another length than the controller's, and a step that ends
before a time to stop at does not count as one to there: for OrdinaryDiffEq, two times within a hundred roundings are the same.
Far from zero the state would be that of another time.

After a step that a time to stop at has cut, OrdinaryDiffEq takes `dtpropose` for `dt`, which is to be the step all the same: what
interpolates then, a callback or whoever asks for the state at a time, divides by it. Of the first step, and of one after a
rejected one, it was the step before it was cut, and the state of another time was found.
"""
function OrdinaryDiffEqCore.modify_dt_for_tstops!(x::ExactClock)
    invoke(OrdinaryDiffEqCore.modify_dt_for_tstops!, Tuple{Any}, x)
    exact_dt!(x)
    x.opts.adaptive && x.next_step_tstop && (x.dtpropose = x.dt)
    return
end

function exact_dt!(x)
    iszero(x.dt) && return
    if x.next_step_tstop
        left = x.tstop_target - x.t
        if abs(left) <= (1 + SLACK) * abs(x.dt)
            x.dt = left
            return
        end
        x.next_step_tstop = false
    end
    ends, forwards = x.t + x.dt, x.dt > 0
    # No longer, or one that is rejected could come again; the least that there is leads to the solver's refusal.
    x.opts.adaptive && abs(ends - x.t) > abs(x.dt) && (ends = forwards ? prevfloat(ends) : nextfloat(ends))
    ends == x.t && (ends = forwards ? nextfloat(ends) : prevfloat(ends))
    x.dt = ends - x.t
    return
end

"""
An integrator before its first step. None has been accepted yet, and OrdinaryDiffEq gives up on a step no longer than the
times' rounding after one that was not: but times may be that close.
"""
ready!(integrator) = (integrator.accept_step = true; integrator)

"`init`, but for the clock, and without warnings: how a solve ended is an `Outcome`."
started(problem, algorithm; keywords...) = ready!(init(problem, algorithm; keywords..., isoutofdomain = inside, verbose = false))
