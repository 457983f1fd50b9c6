# Forward solves.

"What a solve is asked to do."
Base.@kwdef struct Options
    solver::String
    rtol::Float64 = 1e-3
    atol::Float64 = 1e-6
    dt::Float64 = 0.0           # 0: automatic
    adaptive::Bool = true
    max_steps::Int = 10_000
    keep::Symbol = :ends        # of the steps: nothing (:ends, :saved), :stages (discrete adjoint), or :dense
end

"Whether nothing but the states at the times asked for is stored."
only_saved(o::Options) = o.keep === :ends || o.keep === :saved

"How a solve ended, in the order that Python's `Retcode` is mapped from."
@enum Outcome success max_steps step_underflow non_finite failure

"""
A solve: the values at the times asked for, and what the pullback needs.

`values` is `(state, time)`; times that were not reached are NaN.
"""
struct Forward{T,V<:AbstractVector{T},S,F<:TracedField{T,V}}
    field::F
    θ::V
    ts::Vector{T}
    solution::S
    options::Options
    outcome::Outcome
    reached::T
end

"""
    forward!(values, field, u0, ts, θ, options) -> Forward

Solve from `u0` at `ts[1]` and write the state at every entry of `ts` to the columns of `values`.

Fixed-step solvers step by `dt` from each entry of `ts` and land on the next one. Adaptive explicit solvers interpolate
at the entries of `ts`, except those whose interpolant needs further stages, which land on them where the discrete
adjoint is to follow.
"""
function forward!(values, field::TracedField{T}, u0, ts::Vector{T}, θ, o::Options) where {T}
    alg = algorithm(o.solver; dense = o.keep === :dense)
    return Base.invokelatest(forward_with!, values, field, ode_function(field, isstiff(o.solver)), u0, ts, θ, o, alg)
end

function forward_with!(values, field::TracedField{T}, f, u0, ts::Vector{T}, θ, o::Options, alg) where {T}
    bind!(field, θ)
    solution, outcome, reached = integrate!(values, field, f, u0, ts, o, alg)
    return Forward(field, copy(field.θ), ts, solution, o, outcome, reached)
end

"The solution for the bound `θ`, how it ended, and where; `values` as `forward!` writes them."
function integrate!(values, field::TracedField{T}, f, u0, ts::Vector{T}, o::Options, alg) where {T}
    problem = ODEProblem{true}(f, u0, (first(ts), last(ts)), field.θ)
    ends = only_saved(o)
    solution = solve(problem, alg; keywords(ts, o, ends ? ts : T[])..., save_everystep = !ends, dense = !ends)
    outcome, reached = outcome_of(solution, ts, o)
    fill_values!(values, solution, ts, reached, o)
    return solution, outcome, reached
end

"How `solve` is to step and where to save; the types are the same whatever the options, so that it is compiled once."
function keywords(ts::Vector{T}, o::Options, saveat::Vector{T}) where {T}
    span = last(ts) - first(ts)
    # A fixed-step solver is led along its grid: each step, a little too long, is cut at the next point.
    dt = !o.adaptive ? T(1.01 * o.dt) : o.dt > 0 ? T(o.dt) : nothing
    return (;
        reltol = T(o.rtol),
        abstol = T(o.atol),
        dt = dt === nothing ? nothing : copysign(dt, span),
        adaptive = o.adaptive,
        maxiters = o.max_steps,
        saveat,
        tstops = !o.adaptive ? fixed_grid(ts, T(o.dt), o.max_steps) : lands_on_times(o) ? ts : T[],
        verbose = false,
    )
end

# A step may be this fraction longer than `dt`, so that rounding in the times makes no sliver of a step.
const SLACK = 1e-3

"""
The times at which a fixed-step solver stands: from each entry of `ts` in steps of `dt`, the last of which is cut to end on
the next entry. No more than `limit + 1` of them.
"""
function fixed_grid(ts::Vector{T}, dt::T, limit::Int) where {T}
    grid = T[]
    for i in 1:(length(ts) - 1)
        a, b = ts[i], ts[i + 1]
        n = min(max(1.0, ceil(abs(b - a) / dt - SLACK)), limit - length(grid) + 1)
        append!(grid, (a + copysign(k * dt, b - a) for k in 1:(n - 1)))
        push!(grid, b)
    end
    return grid
end

"Solvers whose interpolant needs no stages beyond those of the step."
const INTERPOLATED = ("Tsit5", "DP5", "BS3")

"Whether the solver steps exactly to every entry of `ts`."
lands_on_times(o::Options) = !o.adaptive || (o.keep === :stages && !(o.solver in INTERPOLATED))

function outcome_of(solution, ts, o::Options)
    reached = last(solution.t)
    finite = all(isfinite, last(solution.u))
    code = solution.retcode
    outcome = if !finite
        non_finite
    elseif successful_retcode(code)
        success
    elseif code === ReturnCode.MaxIters
        max_steps
    elseif code === ReturnCode.DtLessThanMin
        step_underflow
    elseif code in (ReturnCode.Unstable, ReturnCode.DtNaN)
        non_finite
    else
        failure
    end
    return outcome, reached
end

function fill_values!(values, solution, ts::Vector{T}, reached, o::Options) where {T}
    forwards = last(ts) >= first(ts)
    saved = solution.t
    at = 1
    for (i, t) in enumerate(ts)
        column = view(values, :, i)
        if forwards ? t > reached : t < reached
            fill!(column, T(NaN))
            continue
        end
        while at < length(saved) && (forwards ? saved[at] < t : saved[at] > t)
            at += 1
        end
        if saved[at] == t
            copyto!(column, solution.u[at])
        elseif only_saved(o)
            fill!(column, T(NaN))
        else
            solution(column, t)
        end
    end
    return values
end
