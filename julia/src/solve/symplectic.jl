# Symplectic methods: they move positions and momenta in turn.
#
# The state is (q, p), two halves of one shape, of a field with dq/dt = g(t, p) and dp/dt = f(t, q). A drift moves q along
# g with p held, a kick moves p along f with q held; each is exact for the half that it moves, and their composition is a
# symplectic map. Time goes with the halves: what a kick reads has moved as far as the drifts before it, and vice versa,
# which keeps the order where the field depends on time.

"""
A method of `s` substeps: substep `j` moves one half by `w[j]` of the step, along its derivative at the part `c[j]` of it.

The last substep and the next step's first one move the same half along the same derivative, which is evaluated once:
that is what `fsal` and `calls` say, as those of `Tableau`.
"""
struct Splitting{T} <: Scheme{T}
    s::Int
    kicks::Vector{Bool}  # whether a substep moves the momenta
    w::Vector{T}
    c::Vector{T}
    fsal::Bool
    calls::Int
end

"""
The composition of Störmer–Verlet steps of lengths `γ`, each of which begins and ends with half a kick, or half a drift;
what follows one another and moves the same half is one substep.
"""
function compose(γ, kick_first::Bool)
    ends = [0; γ] .+ [γ; 0]
    w = [isodd(j) ? ends[(j + 1) ÷ 2] / 2 : γ[j ÷ 2] for j in 1:(2length(γ) + 1)]
    s = length(w)
    c = [sum(w[i] for i in (j - 1):-2:1; init = big(0.0)) for j in 1:s]
    return Splitting{BigFloat}(s, [isodd(j) == kick_first for j in 1:s], w, c, true, s - 1)
end

"Lengths that read the same backwards, `γ` and the one in the middle that makes their sum 1."
symmetric(γ...) = [γ...; 1 - 2sum(γ); reverse(γ)...]

"""
Symplectic methods, under the names of the same methods in OrdinaryDiffEqSymplecticRK.

Sources: L. Verlet, Phys. Rev. 159 (1967); E. Forest and R. D. Ruth, Physica D 43 (1990), with J. Candy and W. Rozmus,
J. Comput. Phys. 92 (1991); H. Yoshida, Phys. Lett. A 150 (1990), solution A of order 6; W. Kahan and R.-C. Li, Math. Comp.
66 (1997), 17 stages of order 8.
"""
const SPLITTINGS = Dict(
    "VelocityVerlet" => compose([big(1.0)], true),
    "CandyRoz4" => compose(symmetric(1 / (2 - cbrt(big(2.0)))), true),
    "Yoshida6" => compose(
        symmetric(big"0.78451361047755726382", big"0.23557321335935813368", big"-1.17767998417887100695"), false
    ),
    "KahanLi8" => compose(
        symmetric(
            big"0.13020248308889008087881763", big"0.56116298177510838456196441", big"-0.38947496264484728640807860",
            big"0.15884190655515560089621075", big"-0.39590389413323757733623154", big"0.18453964097831570709183254",
            big"0.25837438768632204729397911", big"0.29501172360931029887096624",
        ),
        false,
    ),
)
const SYMPLECTIC = sort!(collect(keys(SPLITTINGS)))

for (name, x) in SPLITTINGS, T in (Float32, Float64)
    TABLEAUS[(name, T)] = Splitting{T}(x.s, x.kicks, T.(x.w), T.(x.c), x.fsal, x.calls)
end

"The momenta of a state, or its positions."
half(z, kicked::Bool) = (n = length(z) ÷ 2; view(z, kicked ? ((n + 1):(2n)) : (1:n)))

"One step from `t` to `ends`: moves `u` and leaves in `k` what it finds there at the start, the last derivative evaluated."
function substeps!(u::AbstractVector{T}, k, field::TracedField, scheme::Splitting, t::Time, ends::Time) where {T}
    step, s = ends - t, scheme.s
    for j in 1:s
        j == 1 || value!(k, field, u, j == s ? ends : t + scheme.c[j] * step)
        half(u, scheme.kicks[j]) .+= (T(step) * scheme.w[j]) .* half(k, scheme.kicks[j])
    end
    return
end

mutable struct StepCounts
    naccept::Int
    nreject::Int
end

"A solve by a symplectic method, on its way: what `step_through!` asks of an integrator."
mutable struct Splitter{T,V<:AbstractVector{T},F<:TracedField{T,V}}
    const field::F
    const scheme::Splitting{T}
    const grid::Vector{Time}
    const limit::Int
    const u::V
    const uprev::V
    const k::V
    const stats::StepCounts
    t::Time
    dt::Time
end

function Splitter(field::TracedField{T}, u0, ts::Vector{Time}, o::Options) where {T}
    k = similar(u0)
    value!(k, field, u0, first(ts))
    grid = fixed_grid(ts, o.dt, o.max_steps)
    return Splitter(
        field, tableau(o.solver, T)::Splitting{T}, grid, o.max_steps, copy(u0), copy(u0), k, StepCounts(0, 0), first(ts), o.dt
    )
end

function SciMLBase.step!(x::Splitter)
    copyto!(x.uprev, x.u)
    n = x.stats.naccept + 1
    n > x.limit && return ReturnCode.MaxIters
    ends = x.grid[n]
    x.dt = ends - x.t
    substeps!(x.u, x.k, x.field, x.scheme, x.t, ends)
    allfinite(x.u, length(x.u)) || return ReturnCode.Unstable
    x.t, x.stats.naccept = ends, n
    return ReturnCode.Default
end
