# Drift and diffusion as StochasticDiffEq calls them, hidden behind function pointers, so that each solver is compiled once.

struct Drift{T}
    evaluate::FunctionWrapper{Nothing,Tuple{Vector{T},Vector{T},Time}}
end

(f::Drift)(du, u, p, t) = f.evaluate(du, u, t)

"Writes the numbers of a diagonal or of `Blocks`."
struct Diffusion{T}
    evaluate::FunctionWrapper{Nothing,Tuple{Vector{T},Vector{T},Time}}
end

(g::Diffusion)(du, u, p, t) = g.evaluate(numbers(du), u, t)

"""
An SDE: two traced fields, each bound to a `θ` of its own.

The diffusion reads the first `n` numbers of the state, z; what follows them is an integral without noise. Its field gives a
diagonal, in the shape of z; or, with `channels` Brownian motions for each sample, the matrices as rates of a second state
tensor, which it does not read.
"""
struct Equation{T,F<:TracedField{T,Vector{T}},G<:TracedField{T,Vector{T}}}
    drift::F
    diffusion::G
    n::Int
    channels::Int
    batch::Int
    u::Vector{T}   # the state of the diffusion's field, of which it reads z
    du::Vector{T}  # its rates
    v::Vector{T}   # their cotangents, of which those of z's rates stay zero
end

function Equation(drift::TracedField{T}, diffusion::TracedField{T}, n, channels, batch) where {T}
    return Equation(drift, diffusion, n, channels, batch, (zeros(T, length(diffusion.u)) for _ in 1:3)...)
end

size_of(e::Equation) = length(e.drift.u)

"Memory for a diffusion."
function make_diffusion(e::Equation{T}) where {T}
    e.channels == 0 && return zeros(T, size_of(e))
    return Blocks(zeros(T, e.n * e.channels), e.channels, e.n, e.n ÷ e.batch)
end

"How many Brownian motions there are, and how many of them are drawn."
noises(e::Equation) = e.channels == 0 ? (size_of(e), e.n) : (e.channels * e.batch, e.channels * e.batch)

drift!(du, e::Equation, u, t) = value!(du, e.drift, u, t)

function diffusion!(numbers, e::Equation, u, t)
    copyto!(e.u, 1, u, 1, e.n)
    value!(e.du, e.diffusion, e.u, t)
    if e.channels == 0
        copyto!(numbers, 1, e.du, 1, e.n)
        fill!(view(numbers, (e.n + 1):length(numbers)), 0)
    else
        copyto!(numbers, 1, e.du, e.n + 1, length(numbers))
    end
    return nothing
end

"Bytes that the recorded evaluations of a step may take; those of further ones are made again for their products."
const RECORDED = 2^28

"Whether the fields record their evaluations; what they have recorded is given back."
function record!(e::Equation, on::Bool)
    for tape in (e.drift.tape, e.diffusion.tape)
        tape.on = on
        foreach(stage -> recycle!(tape, stage), tape.taken)
        empty!(tape.taken)
        tape.left = RECORDED
    end
    return
end

"""
Pull the cotangent of a diffusion's numbers back through the `i`-th of its evaluations that were recorded: the state's is added
to `ū`, that of `θ` to `θ̄`.
"""
function pull_diffusion!(ū, θ̄, e::Equation, ḡ, i)
    f = e.diffusion
    e.channels == 0 ? copyto!(e.v, 1, ḡ, 1, e.n) : copyto!(e.v, e.n + 1, ḡ, 1, length(ḡ))
    vjp!(f, e.v, f.tape.taken[i])
    view(ū, 1:(e.n)) .+= view(f.dz, 1:(e.n))
    θ̄ .+= f.dθ
    return
end

function pull_drift!(ū, θ̄, e::Equation, k̄, i)
    vjp!(e.drift, k̄, e.drift.tape.taken[i])
    ū .+= e.drift.dz
    θ̄ .+= e.drift.dθ
    return
end

"The SDE as StochasticDiffEq has it."
function problem_of(drift, diffusion, T, u0, span, noise, prototype)
    wrapped = FunctionWrapper{Nothing,Tuple{Vector{T},Vector{T},Time}}
    f, g = Drift{T}(wrapped(drift)), Diffusion{T}(wrapped(diffusion))
    matrix = prototype isa Blocks ? (; noise_rate_prototype = prototype) : (;)
    return SDEProblem(SDEFunction{true,FullSpecialize}(f, g), u0, span; noise, matrix...)
end

problem_of(e::Equation{T}, u0, span, noise) where {T} = problem_of(
    (du, u, t) -> drift!(du, e, u, t), (du, u, t) -> diffusion!(du, e, u, t), T, u0, span, noise, make_diffusion(e),
)
