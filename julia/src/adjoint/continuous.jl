# Continuous adjoints, which the extension `PyNODESensitivityExt` computes with SciMLSensitivity.

"How a continuous adjoint is to be computed; a tolerance of 0 means that of the forward solve."
Base.@kwdef struct Adjoint
    name::Symbol           # :backsolve, :interpolating, :quadrature, :gauss
    rtol::Float64 = 0.0
    atol::Float64 = 0.0
    checkpointing::Int = -1  # -1: the method's default
end

"How far from the path, relative to its largest number, backsolve's state may be at a time that was asked for."
const DRIFT = 0.1

"Whether a method goes on from several steps, after a jump as though there were none."
is_multistep(algorithm) = false

"""
    adjoint_solve(forward, g, adjoint) -> (du0, dθ)

The cotangents of the initial state (without `g`'s own first column) and of `θ`. Throws a `SolveFailure` where a solve
on the way, or a quadrature, did not get to its end.
"""
function adjoint_solve end

"""
    continuous_pullback(forward, g, adjoint; wants_t = true) -> Cotangents

The gradient of the solution by a continuous adjoint. `g` is `(state, time)`: the cotangents of `forward`'s values.
"""
function continuous_pullback(fw::Dense{T,V}, g, a::Adjoint; wants_t::Bool = true) where {T,V}
    load(SENSITIVITY_PACKAGES)
    field, ts = rebind!(fw.field, fw.θ), fw.ts
    λ, dp = Base.invokelatest(adjoint_solve, fw, g, a)
    dts = zeros(length(ts))
    if wants_t
        # The solution moves along the field: dz(t_i)/dt_i = f(t_i, z(t_i)), and dz/dt_0 is the transported -f(t_0, z_0).
        du = similar(λ)
        for i in 2:length(ts)
            value!(du, field, fw.solution(ts[i]), ts[i])
            dts[i] = dot(view(g, :, i), du)
        end
        value!(du, field, fw.solution.u[1], ts[1])
        dts[1] = -dot(λ, du)
    end
    λ .+= view(g, :, 1)
    return Cotangents{T,V}(λ, dp[1:length(field.dθ)], dts)
end
