# Forward solves.

"What a solve is asked to do."
struct Request
    solver::String
    stratonovich::Bool
    adaptive::Bool
    sensitivity::Symbol  # :none, :discrete or :backsolve
    max_steps::Int
    seed::Int
    rtol::Float64
    atol::Float64
    dt::Float64  # 0: automatic
end

"""
The accepted steps of a solve: their starts and lengths and the noise, one step after the other; with the states at the
starts for the transpose of the steps, and with those at the times asked for for the backward solve.
"""
struct Path{T}
    t::Vector{Time}
    h::Vector{Time}
    u::Vector{T}
    dW::Vector{T}
    dZ::Vector{T}
    ends::Vector{Int}  # for each time asked for, but for the first, how many steps it took
end

"A solve with its steps, for the gradient."
struct StochasticSolve{T,E<:Equation{T}}
    equation::E
    θ::Tuple{Vector{T},Vector{T}}
    bound::Tuple{Int,Int}  # the fields' counts of bindings
    request::Request
    path::Path{T}
    times::Int
end

struct Outcomes
    outcome::Outcome
    reached::Time
    accepted::Int
    rejected::Int
end

"""
    solve!(values, equation, u0, ts, request) -> Outcomes, Path

Solve with the `θ` that are bound, stepping exactly to each entry of `ts`, and write the states there to the columns of
`values`; those that were not reached are NaN, but for the last, which is the state that was.
"""
function solve!(values, e::Equation{T}, u0, ts::Vector{Time}, q::Request) where {T}
    total, drawn = noises(e)
    noise = brownian(T, first(ts), total, drawn, q.solver in TWICE, q.seed, q.adaptive)
    problem = problem_of(e, u0, (first(ts), last(ts)), noise)
    # Fixed steps are led along their grid: each, a little too long, is cut at the next point.
    dt = q.adaptive && q.dt == 0 && e.channels > 0 ? first_step(e, u0, ts, q) : q.dt
    steps = q.adaptive ? (; reltol = T(q.rtol), abstol = T(q.atol), (dt > 0 ? (; dt) : (;))...) : (; dt = 1.01dt)
    integrator = started(
        problem, algorithm_of(q.solver, q.stratonovich); adaptive = q.adaptive, maxiters = q.max_steps,
        tstops = Stops(q.adaptive ? ts : fixed_grid(ts, q.dt, q.max_steps)), save_everystep = false, save_start = false,
        save_end = false, save_noise = false, dense = false, steps...,
    )
    path = Path{T}(Time[], Time[], T[], T[], T[], Int[])
    summary = Base.invokelatest(step_through!, values, integrator, path, ts, q)::Outcomes
    return summary, path
end

"""
The length of the first of adaptive steps, where the diffusion is matrices, which StochasticDiffEq takes for one matrix there: a
hundredth of the time in which the state changes by as much as it is (E. Hairer, S. P. Nørsett, G. Wanner, "Solving Ordinary
Differential Equations I", section II.4), at the drift and three times the size of the noise.
"""
function first_step(e::Equation, u0, ts, q::Request)
    f, g, span = similar(u0), make_diffusion(e), abs(last(ts) - first(ts))
    drift!(f, e, u0, first(ts))
    diffusion!(numbers(g), e, u0, first(ts))
    scale = q.atol .+ q.rtol .* abs.(u0)
    size, rate = norm(u0 ./ scale), norm((abs.(f) .+ 3 .* row_norms(g, length(f))) ./ scale)
    step = size / rate / 100
    return isfinite(step) && size > 1e-5sqrt(length(u0)) ? min(step, span) : 1e-6span
end

function step_through!(values, integrator, path::Path{T}, ts, q::Request) where {T}
    copyto!(view(values, :, 1), integrator.u)
    q.sensitivity === :backsolve && append!(path.u, integrator.u)
    column, taken = 2, 0
    while column <= length(ts)
        before = integrator.t
        code = step!(integrator)
        if !(code === ReturnCode.Default || successful_retcode(code)) || !all(isfinite, integrator.u)
            fill!(view(values, :, column:length(ts)), T(NaN))
            copyto!(view(values, :, length(ts)), integrator.uprev)
            outcome = outcome_of(code, all(isfinite, integrator.u) ? integrator.uprev : integrator.u)
            return Outcomes(outcome, before, taken, max(integrator.iter - taken - 1, 0))
        end
        taken += 1
        q.sensitivity === :none || keep!(path, integrator, before, q.sensitivity)
        if integrator.t == ts[column]
            copyto!(view(values, :, column), integrator.u)
            push!(path.ends, taken)
            q.sensitivity === :backsolve && append!(path.u, integrator.u)
            column += 1
        end
    end
    return Outcomes(success, last(ts), taken, integrator.iter - taken)
end

function keep!(path::Path, integrator, start, sensitivity)
    push!(path.t, start)
    push!(path.h, integrator.dt)
    append!(path.dW, integrator.W.dW)
    sensitivity === :discrete || return
    append!(path.u, integrator.uprev)
    integrator.W.dZ === nothing || append!(path.dZ, integrator.W.dZ)
    return
end
