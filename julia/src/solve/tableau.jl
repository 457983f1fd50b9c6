# Butcher tableaus and interpolants, read off the solvers themselves.

"The coefficients of a method whose steps the discrete adjoint can transpose."
abstract type Scheme{T} end

"""
The coefficients of an explicit Runge–Kutta method with `s` stages.

`weights(θ)[i]` is the polynomial `Σ_m W[i, m + 1] θ^m` of stage `i` in the interpolant `u_n + h Σ_i w_i(θ) k_i`.
`fsal`: the last stage is the derivative at the new state, which is the next step's first stage. `calls`: the
evaluations that a step ends with, which are its last stages.
"""
struct Tableau{T} <: Scheme{T}
    s::Int
    A::Matrix{T}
    b::Vector{T}
    c::Vector{T}
    W::Matrix{T}
    fsal::Bool
    calls::Int
end

const DEGREE = 5
const TABLEAUS = Dict{Tuple{String,DataType},Scheme}()

"""
    tableau(solver, T) -> Scheme

The coefficients of a solver. Those of a Runge–Kutta method are found by one step of length 1 on a right-hand side whose `i`-th evaluation
returns the `i`-th unit vector: the states at which it is evaluated are then the rows of `A`, the new state is `b`,
and the interpolated states are the interpolant's weights.
"""
tableau(solver::String, T::DataType) = TABLEAUS[(solver, T)]::Scheme{T}

function probe(solver::String)
    limit = 40
    rows, times = Vector{BigFloat}[], BigFloat[]
    function f!(du, u, p, t)
        push!(rows, copy(u))
        push!(times, t)
        fill!(du, 0)
        du[length(rows)] = 1
        return nothing
    end
    problem = ODEProblem{true,FullSpecialize}(f!, zeros(BigFloat, limit), (big(0.0), big(8.0)))
    settings = (; adaptive = false, dense = false, save_everystep = false, calck = solver in INTERPOLATED)
    integrator = init(problem, algorithm(solver); dt = big(1.0), settings...)
    before = length(rows)
    step!(integrator)
    # The step evaluates its first stage itself, or that is the evaluation before it.
    fsal = times[before + 1] != 0
    stages = (fsal ? before : before + 1):length(rows)
    s, b = length(stages), integrator.u
    isapprox(sum(b[stages]), 1; atol = 1e-12) && (!fsal || rows[end] == b) || error("$solver is not a Runge–Kutta method of the expected form")
    nodes = [big(m) / DEGREE for m in 0:DEGREE]
    values = solver in INTERPOLATED ? [integrator(θ)[i] for i in stages, θ in nodes] : zeros(BigFloat, s, DEGREE + 1)
    W = values / [θ^m for m in 0:DEGREE, θ in nodes]
    W[abs.(W) .< 1e-30] .= 0
    A = [rows[i][j] for i in stages, j in stages]
    return Tableau{BigFloat}(s, A, b[stages], times[stages], W, fsal, fsal ? s - 1 : s)
end

convert_tableau(T, x::Tableau) = Tableau{T}(x.s, T.(x.A), T.(x.b), T.(x.c), T.(x.W), x.fsal, x.calls)

function add_tableau!(solver, exact::Tableau)
    for T in (Float32, Float64)
        TABLEAUS[(solver, T)] = convert_tableau(T, exact)
    end
    return
end

foreach(solver -> add_tableau!(solver, probe(solver)), EXPLICIT)

"The tableaus of an extension's solvers, for `add_explicit!` once it is loaded."
function probe_all(solvers)
    merge!(SOLVERS, Dict(solvers...))
    return [name => probe(name) for (name, _) in solvers]
end

"Add an extension's explicit Runge–Kutta methods."
function add_explicit!(solvers, tableaus)
    merge!(SOLVERS, Dict(solvers...))
    foreach(((name, exact),) -> add_tableau!(name, exact), tableaus)
    return
end

"The weights of the interpolant at `θ`, and their derivatives in `θ`."
function weights!(w, dw, tab::Tableau{T}, θ::T) where {T}
    for i in 1:(tab.s)
        value, slope = zero(T), zero(T)
        for m in size(tab.W, 2):-1:1
            slope = slope * θ + value
            value = value * θ + tab.W[i, m]
        end
        w[i], dw[i] = value, slope
    end
    return nothing
end

"The second derivatives in `θ` of the weights of the interpolant."
function curvature!(ddw, tab::Tableau{T}, θ::T) where {T}
    for i in 1:(tab.s)
        ddw[i] = sum(m * (m - 1) * tab.W[i, m + 1] * θ^(m - 2) for m in 2:(size(tab.W, 2) - 1); init = zero(T))
    end
    return nothing
end
