# The next step of a BDF method where time runs backwards.

"""
An integrator, the steps of which are taken for positive. FBDF and QNDF compare the steps that might come next with their signs, so
that backwards in time the longest counts as the shortest: QNDF took tens of times as many, and a step of FBDF that was rejected
might never get shorter (OrdinaryDiffEq.jl, pull requests 4519 and 4529).
"""
struct Forwards{I}
    integrator::I
end

function Base.getproperty(x::Forwards, name::Symbol)
    value = getproperty(getfield(x, :integrator), name)
    return name === :dt ? abs(value) : value
end

function Base.setproperty!(x::Forwards, name::Symbol, value)
    integrator = getfield(x, :integrator)
    return setproperty!(integrator, name, name === :dt ? copysign(value, integrator.dt) : value)
end

SciMLBase.u_modified!(x::Forwards, modified::Bool) = SciMLBase.u_modified!(getfield(x, :integrator), modified)
@static if isdefined(SciMLBase, :derivative_discontinuity!)
    SciMLBase.derivative_discontinuity!(x::Forwards, modified::Bool) =
        SciMLBase.derivative_discontinuity!(getfield(x, :integrator), modified)
end

function OrdinaryDiffEqCore.step_accept_controller!(x::ExactClock, alg::QNDF, q)
    return copysign(invoke(OrdinaryDiffEqCore.step_accept_controller!, Tuple{Any,QNDF,Any}, Forwards(x), alg, q), x.dt)
end

OrdinaryDiffEqCore.step_reject_controller!(x::ExactClock, alg::QNDF) =
    invoke(OrdinaryDiffEqCore.step_reject_controller!, Tuple{Any,QNDF}, Forwards(x), alg)

OrdinaryDiffEqCore.step_reject_controller!(x::ExactClock, alg::FBDF) =
    invoke(OrdinaryDiffEqCore.step_reject_controller!, Tuple{Any,FBDF}, Forwards(x), alg)
