module PyNODESensitivityExt

using PyNODE: PyNODE, Adjoint, Dense, algorithm
using SciMLSensitivity:
    BacksolveAdjoint, GaussAdjoint, InterpolatingAdjoint, QuadratureAdjoint, ZygoteVJP, adjoint_sensitivities

# The field carries its products (`ODEFunction(vjp, vjp_p)`), which SciMLSensitivity prefers to `autojacvec`.
function sensealg(a::Adjoint, rtol, atol)
    checkpoints = a.checkpointing < 0 ? (;) : (; checkpointing = a.checkpointing == 1)
    a.name === :backsolve && return BacksolveAdjoint(; autojacvec = ZygoteVJP(), checkpoints...)
    a.name === :interpolating && return InterpolatingAdjoint(; autojacvec = ZygoteVJP(), checkpoints...)
    a.name === :quadrature && return QuadratureAdjoint(; autojacvec = ZygoteVJP(), abstol = atol, reltol = rtol)
    a.name === :gauss && return GaussAdjoint(; autojacvec = ZygoteVJP(), checkpoints...)
    throw(ArgumentError("unknown sensitivity $(a.name)"))
end

function PyNODE.adjoint_solve(fw::Dense{T}, g, a::Adjoint) where {T}
    rtol = T(a.rtol > 0 ? a.rtol : fw.options.rtol)
    atol = T(a.atol > 0 ? a.atol : fw.options.atol)
    dgdu!(out, u, p, t, i) = (copyto!(out, view(g, :, i + 1)); nothing)
    step = fw.options.dt > 0 ? (; dt = -copysign(fw.options.dt, last(fw.ts) - first(fw.ts)), adaptive = fw.options.adaptive) : (;)
    du0, dp = adjoint_sensitivities(
        fw.solution, algorithm(fw.options.solver);
        t = fw.ts[2:end], dgdu_discrete = dgdu!, sensealg = sensealg(a, rtol, atol),
        abstol = atol, reltol = rtol, maxiters = fw.options.max_steps, step...,
    )
    return copy(vec(du0)), copy(vec(dp))
end

end
