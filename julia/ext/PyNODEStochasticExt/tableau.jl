# The coefficients of the methods, read off the solvers themselves.
#
# All of them evaluate drift and diffusion at states of one form, with h the step, and √h and functions of the step's noise as
# random factors ξ, and end on such a state:
#
#     Y = u + h Σ_j a_j k_j + Σ_j g_j ∘ Σ_m b_mj ξ_m,    k = f(t + c h, Y) or g = g(t + c h, Y).

const FACTORS = 5

"""
The random factors of a step: √h, ΔW, I₁₁/√h, I₁₀/h and I₁₁₁/h, with the iterated integrals I of Itô's calculus.

Source: A. Rößler, "Runge-Kutta methods for the strong approximation of solutions of stochastic differential equations",
SIAM J. Numer. Anal. 48 (2010).
"""
function factors!(ξ, h, dW, dZ)
    T = eltype(ξ)
    s, third = sqrt(h), sqrt(3one(h))
    @inbounds for i in eachindex(dW)
        w, z = dW[i], dZ[i]
        ξ[1, i] = T(s)
        ξ[2, i] = w
        ξ[3, i] = T((w^2 - h) / 2s)
        ξ[4, i] = T((w + z / third) / 2)
        ξ[5, i] = T((w^3 - 3w * h) / 6h)
    end
    return ξ
end

"A state at which a step evaluates, or on which it ends: its coefficients of the drifts and diffusions before it."
struct Point{T}
    drift::Bool     # what is evaluated there
    c::T
    a::Vector{T}
    b::Matrix{T}    # (factor, diffusion)
end

struct StochasticTableau{T}
    stages::Vector{Point{T}}
    last::Point{T}
    drifts::Int
    diffusions::Int
end

const ITO, STRATONOVICH = SciMLBase.AlgorithmInterpretation.Ito, SciMLBase.AlgorithmInterpretation.Stratonovich

const ALGORITHMS = Dict(
    "EM" => EM(),
    "EulerHeun" => EulerHeun(),
    "SRIW1" => SRIW1(),
    "SOSRI" => SOSRI(),
    "SRA1" => SRA1(),
    "SOSRA" => SOSRA(),
)

"Those that need a second process beside the noise."
const TWICE = ("SRIW1", "SOSRI", "SRA1", "SOSRA")

algorithm_of(solver, stratonovich) = solver == "RKMil" ? RKMil(; interpretation = stratonovich ? STRATONOVICH : ITO) : ALGORITHMS[solver]

const TABLEAUS = Dict{Tuple{String,Bool,DataType},StochasticTableau}()

"""
    stochastic_tableau(solver, stratonovich, T)

The coefficients of a solver, by steps of length 1 whose `i`-th evaluation of a kind returns a unit vector of its own: states
then consist of the coefficients, times the random factors, which differ from step to step as the noise does.
"""
stochastic_tableau(solver, stratonovich, ::Type{T}) where {T} =
    get!(() -> probe(solver, stratonovich, T), TABLEAUS, (solver, stratonovich, T))::StochasticTableau{T}

const PROBES = [(cos(2.0k), sin(3.0k + 1)) for k in 1:9]  # increments of W and Z
const LIMIT = 8  # more evaluations of a kind than a step has

function probe(solver, stratonovich, ::Type{T}) where {T}
    points = [probe_step(solver, stratonovich, w, z) for (w, z) in PROBES]
    ξ = zeros(FACTORS, length(PROBES))
    for (k, (w, z)) in enumerate(PROBES)
        factors!(view(ξ, :, k:k), 1.0, [w], [z])
    end
    kinds, times = [p.drift for p in points[1]], [p.t for p in points[1]]
    all(p -> [x.drift for x in p] == kinds && [x.t for x in p] == times, points) || error("$solver takes steps of different forms")
    stages = map(eachindex(kinds)) do i
        a = points[1][i].y[1:count(kinds[1:(i - 1)])]
        n = count(!, kinds[1:(i - 1)])
        found = reduce(hcat, [p[i].y[(LIMIT + 1):(LIMIT + n)] for p in points])  # (diffusion, probe)
        b = Matrix((found / ξ)')
        all(p -> isapprox(p[i].y[1:length(a)], a; atol = 1e-12), points) && isapprox(b' * ξ, found; atol = 1e-12) ||
            error("a step of $solver is not of the expected form")
        b[abs.(b) .< 1e-13] .= 0
        Point{T}(kinds[i], T(times[i]), T.(a), T.(b))
    end
    last = pop!(stages)
    return StochasticTableau{T}(stages, last, count(p -> p.drift, stages), count(p -> !p.drift, stages))
end

"The states at which one step evaluates, and that on which it ends, with their times."
function probe_step(solver, stratonovich, w, z)
    points = @NamedTuple{drift::Bool, t::Float64, y::Vector{Float64}}[]
    function evaluate(drift)
        return function (du, u, t)
            push!(points, (; drift, t, y = copy(u)))
            fill!(du, 0)
            du[(drift ? 0 : LIMIT) + count(p -> p.drift == drift, points)] = 1
            return nothing
        end
    end
    set(dW, W, dt, u, p, t, rng) = fill!(dW, dW === W.dZ ? z : w)
    zero_() = zeros(2LIMIT)
    plain = (; rng = Xoshiro(0), reseed = false, save_everystep = false, rswm = RSWM(adaptivealg = :RSwM1))
    noise = NoiseProcess{true}(0.0, zero_(), zero_(), set, nothing; plain...)
    problem = problem_of(evaluate(true), evaluate(false), Float64, zero_(), (0.0, 8.0), noise, nothing)
    integrator = init(problem, algorithm_of(solver, stratonovich); dt = 1.0, adaptive = false, save_everystep = false)
    empty!(points)
    step!(integrator)
    push!(points, (; drift = true, t = 1.0, y = copy(integrator.u)))
    return points
end
