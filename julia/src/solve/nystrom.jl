# Runge–Kutta–Nyström methods, for equations of the second order.
#
# The state is (q, v), two halves of one shape, of a field with dq/dt = v and dv/dt = f(t, q, v). A step is
#
#     Q_i = q + c_i h v + h² Σ_j ā_ij f_j,  V_i = v + h Σ_j a_ij f_j,  f_i = f(t + c_i h, Q_i, V_i),
#     q⁺ = q + h v + h² Σ_i b̄_i f_i,        v⁺ = v + h Σ_i b_i f_i.

"""
The coefficients of a method of `s` stages.

# Fields
- `P`, `A`: ā and a; a is zero where the method is for fields that do not read v.
- `c`, `p`, `b`: c, b̄ and b.
- `ep`, `eb`: the same combinations of the stages for the estimate of a step's error, empty for a method of fixed steps.
- `order`: of the method that the estimate compares with.
"""
struct Nystrom{T} <: Scheme{T}
    s::Int
    P::Matrix{T}
    A::Matrix{T}
    c::Vector{T}
    p::Vector{T}
    b::Vector{T}
    ep::Vector{T}
    eb::Vector{T}
    order::Int
    fsal::Bool
    calls::Int
end

"A strictly lower triangular matrix of its rows, after the first."
function below(rows...)
    matrix = zeros(BigFloat, length(rows) + 1, length(rows) + 1)
    foreach(((i, row),) -> matrix[i + 1, 1:length(row)] .= row, enumerate(rows))
    return matrix
end

Nystrom(P, A, c, p, b, ep = BigFloat[], eb = BigFloat[], order = 0) =
    Nystrom{BigFloat}(length(c), P, A, c, p, b, ep, eb, order, false, length(c))

convert_tableau(T, x::Nystrom) =
    Nystrom{T}(x.s, T.(x.P), T.(x.A), T.(x.c), T.(x.p), T.(x.b), T.(x.ep), T.(x.eb), x.order, x.fsal, x.calls)

"E. J. Nyström, Acta Soc. Sci. Fenn. 50 (1925): order 4, as in Hairer, Nørsett and Wanner, section II.14."
nystrom4() = Nystrom(
    below([1 // 8], [1 // 8, 0], [0, 0, 1 // 2]), below([1 // 2], [0, 1 // 2], [0, 0, 1]),
    big.([0, 1 // 2, 1 // 2, 1]), big.([1, 1, 1, 0] .// 6), big.([1, 2, 2, 1] .// 6),
)

"J. M. Fine, Computing 38 (1987): order 5, with an estimate of order 4, for fields that read v."
fine5() = Nystrom(
    below(
        [32 // 1521], [4 // 169, 4 // 169], [175 // 5184, 0, 1625 // 5184],
        [-342497279 // 5618900760, 6827067 // 46824173, 35048741 // 102161832, -2201514 // 234120865],
        [-7079 // 52152, 767 // 2173, 14027 // 52152, 30 // 2173],
        [4817 // 51600, 0, 388869 // 1216880, 3276 // 23575, -1142053 // 22015140],
    ),
    below(
        [8 // 39], [1 // 13, 3 // 13], [7385 // 6912, -9425 // 2304, 13325 // 3456],
        [223324757 // 91364240, -174255393 // 18272848, 382840094 // 46824173, -39627252 // 234120865],
        [108475 // 36464, -9633 // 848, 7624604 // 806183, 8100 // 49979, -4568212 // 19446707],
        [4817 // 51600, 0, 1685099 // 3650640, 19656 // 23575, -53676491 // 88060560, 53 // 240],
    ),
    big.([0, 8 // 39, 4 // 13, 5 // 6, 43 // 47, 1, 1]),
    big.([4817 // 51600, 0, 388869 // 1216880, 3276 // 23575, -1142053 // 22015140, 0, 0]),
    big.([4817 // 51600, 0, 1685099 // 3650640, 19656 // 23575, -53676491 // 88060560, 53 // 240, 0]),
    big.([8151 // 2633750, 0, -1377519 // 186334750, 586872 // 28879375, -36011118 // 2247378875, 0, 0]),
    big.([
        8151 // 2633750, 0, -5969249 // 559004250, 3521232 // 28879375, -846261273 // 4494757750, 4187 // 36750, -1 // 25
    ]),
    4,
)

"J. R. Dormand and P. J. Prince, Comput. Math. Appl. 13 (1987), RKN6(4)6FD: for fields that do not read v."
function dprkn6()
    R = sqrt(big(8581))
    q = [329 // 4212, 0, (84119543 + 366727R) / 409622616, (84119543 - 366727R) / 409622616, 200 // 17901, 0]
    v = [
        329 // 4212, 0, (389225579 + 96856R) / 1024056540, (389225579 - 96856R) / 1024056540, 2000 // 17901, 1 // 20
    ]
    of_q = [(2701 + 23R) / 4563, -(9829 + 131R) / 9126, 5 * (1798 + 17R) / 9126, 0, 0, 0]
    of_v = [
        115 // 2106, 0, (84119543 + 366727R) / 256014135, (84119543 - 366727R) / 256014135, 6950 // 17901, -1 // 10
    ]
    P = below(
        [(26131 - 209R) / 810000],
        [(26131 - 209R) / 607500, (26131 - 209R) / 303750],
        [
            (980403512254 + 7781688431R) / 11694469921875, -(1262884486208 + 15385481287R) / 11694469921875,
            (7166233891441 + 78694563299R) / 46777879687500,
        ],
        [
            -9 * (329260 + 3181R) / 27040000, 27 * (35129 + 3331R) / 13520000,
            -27 * (554358343 + 31040327R) / 464060480000, 153 * (8555257 - 67973R) / 2745920000,
        ],
        q[1:5],
    )
    c = [0, (209 - R) / 900, (209 - R) / 450, (209 + R) / 450, 9 // 10, 1]
    return Nystrom(P, zero(P), c, q, v, q .- of_q, v .- of_v, 4)
end

const NYSTROM_SCHEMES = Dict("Nystrom4" => nystrom4(), "FineRKN5" => fine5(), "DPRKN6" => dprkn6())
const NYSTROM = sort!(collect(keys(NYSTROM_SCHEMES)))

"Whether the steps are PyNODE's own, without OrdinaryDiffEq's integrator."
isown(name) = name in SYMPLECTIC || name in NYSTROM

for (name, x) in NYSTROM_SCHEMES, T in (Float32, Float64)
    TABLEAUS[(name, T)] = convert_tableau(T, x)
end

"The state at which stage `i` of a step is evaluated."
function stage_at!(Y, u, k, x::Nystrom{T}, i::Int, h::T) where {T}
    q, v, Q, V = half(u, false), half(u, true), half(Y, false), half(Y, true)
    Q .= q .+ (x.c[i] * h) .* v
    V .= v
    for j in 1:(i - 1)
        f = half(k[j], true)
        iszero(x.P[i, j]) || (Q .+= (h * h * x.P[i, j]) .* f)
        iszero(x.A[i, j]) || (V .+= (h * x.A[i, j]) .* f)
    end
    return Y
end

"`h² Σ p_j f_j` and `h Σ b_j f_j`, added to the halves of `y`."
function add_stages!(y, k, p, b, h)
    for j in eachindex(p)
        f = half(k[j], true)
        iszero(p[j]) || (half(y, false) .+= (h * h * p[j]) .* f)
        iszero(b[j]) || (half(y, true) .+= (h * b[j]) .* f)
    end
    return y
end

"One step from `t` to `ends`: the state after it, in `y`; its stages are left in `k`."
function nystrom_step!(y, u, k, Y, field::TracedField{T}, x::Nystrom{T}, t::Time, ends::Time) where {T}
    step = ends - t
    h = T(step)
    for i in 1:(x.s)
        value!(k[i], field, stage_at!(Y, u, k, x, i, h), t + x.c[i] * step)
    end
    copyto!(y, u)
    half(y, false) .+= h .* half(u, true)
    return add_stages!(y, k, x.p, x.b, h)
end

"A solve by a Nyström method, on its way: what `step_through!` asks of an integrator."
mutable struct Nystromer{T,V<:AbstractVector{T},F<:TracedField{T,V}}
    const field::F
    const scheme::Nystrom{T}
    const grid::Vector{Time}  # where steps end in any case
    const options::Options
    const u::V
    const uprev::V
    const new::V
    const error::V
    const Y::V
    const k::Vector{V}
    const stats::StepCounts
    t::Time
    dt::Time
    next::Int  # entry of the grid
end

function Nystromer(field::TracedField{T}, u0, ts::Vector{Time}, o::Options) where {T}
    scheme = tableau(o.solver, T)::Nystrom{T}
    grid = o.adaptive ? ts[2:end] : fixed_grid(ts, o.dt, o.max_steps)
    make() = similar(u0)
    x = Nystromer(
        field, scheme, grid, o, copy(u0), copy(u0), make(), make(), make(), [make() for _ in 1:(scheme.s)], StepCounts(0, 0),
        first(ts), o.dt, 1,
    )
    if o.adaptive
        span = last(ts) - first(ts)
        x.dt = copysign(clamp(o.dt > 0 ? o.dt : first_step(x, span), bounds(o)...), span)
    end
    return x
end

"The least and the greatest step."
bounds(o::Options) = o.control === nothing ? (0.0, Inf) : (or(o.control.dtmin, 0.0), or(o.control.dtmax, Inf))

"One step from `t` to `ends` as `new`."
attempt!(x::Nystromer, ends::Time) = nystrom_step!(x.new, x.u, x.k, x.Y, x.field, x.scheme, x.t, ends)

function accept!(x::Nystromer, ends::Time)
    copyto!(x.u, x.new)
    allfinite(x.u, length(x.u)) || return ReturnCode.Unstable
    x.t = ends
    x.next += ends == x.grid[x.next]
    x.stats.naccept += 1
    return ReturnCode.Default
end

function SciMLBase.step!(x::Nystromer)
    copyto!(x.uprev, x.u)
    x.options.adaptive && return adaptive_step!(x)
    x.next > x.options.max_steps && return ReturnCode.MaxIters
    ends = x.grid[x.next]
    x.dt = ends - x.t
    attempt!(x, ends)
    return accept!(x, ends)
end

"Steps until one has an error within the tolerances; each is cut to end on a time of the grid, and not much before one."
function adaptive_step!(x::Nystromer{T}) where {T}
    o, least, most = x.options, bounds(x.options)...
    while true
        x.stats.naccept + x.stats.nreject < o.max_steps || return ReturnCode.MaxIters
        left = x.grid[x.next] - x.t
        h = abs(x.dt)
        (h >= least && h > 4 * eps(abs(x.t))) || abs(left) <= h || return ReturnCode.DtLessThanMin
        ends = abs(left) <= (1 + SLACK) * h ? x.grid[x.next] : x.t + copysign(h, left)
        attempt!(x, ends)
        ratio = error_ratio(x, T(ends - x.t))
        taken = abs(ends - x.t)
        factor = isfinite(ratio) ? factor_of(o, ratio, x.scheme.order) : 0.1
        if ratio <= 1
            # A step that was cut says nothing against a longer one.
            x.dt = copysign(clamp(max(taken * factor, taken < h ? h : 0.0), least, most), left)
            return accept!(x, ends)
        end
        x.stats.nreject += 1
        x.dt = copysign(taken * min(factor, 0.9), left)
    end
end

"The next step over the last one, of the elementary controller."
function factor_of(o::Options, ratio, order)
    c = o.control
    safety, low, high = c === nothing ? (0.9, 0.2, 10.0) : (or(c.safety, 0.9), or(c.qmin, 0.2), or(c.qmax, 10.0))
    return clamp(safety * ratio^(-1 / (order + 1)), low, high)
end

"The estimate of a step's error, over what the tolerances allow: 1 is just right."
function error_ratio(x::Nystromer{T}, h::T) where {T}
    add_stages!(fill!(x.error, 0), x.k, x.scheme.ep, x.scheme.eb, h)
    rtol, atol = tolerances(x)
    x.error ./= atol .+ rtol .* max.(abs.(x.u), abs.(x.new))
    return Float64(norm_of(x, x.error))
end

function tolerances(x::Nystromer{T}) where {T}
    o, c = x.options, x.options.control
    c === nothing && return T(o.rtol), T(o.atol)
    return c.rtol === nothing ? T(o.rtol) : T.(c.rtol), c.atol === nothing ? T(o.atol) : T.(c.atol)
end

norm_of(x::Nystromer, e) =
    x.options.control === nothing || x.options.control.norm === nothing ? sqrt(sum(abs2, e) / length(e)) :
    x.options.control.norm(e, x.t)

"The length of a first step: E. Hairer, S. P. Nørsett and G. Wanner, section II.4."
function first_step(x::Nystromer{T}, span::Time) where {T}
    f, rates, scaled = x.field, x.k[1], x.error
    rtol, atol = tolerances(x)
    size(y) = Float64(norm_of(x, scaled .= y ./ (atol .+ rtol .* abs.(x.u))))
    value!(rates, f, x.u, x.t)
    d0, d1 = size(x.u), size(rates)
    h0 = min(d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * d0 / d1, abs(span))
    h = copysign(h0, span)
    value!(x.k[2], f, x.Y .= x.u .+ T(h) .* rates, x.t + h)
    x.new .= x.k[2] .- rates
    d2 = size(x.new) / h0
    h1 = max(d1, d2) <= 1e-15 ? max(1e-6, 1e-3 * h0) : (0.01 / max(d1, d2))^(1 / (x.scheme.order + 1))
    return isfinite(h1) ? min(100h0, h1, abs(span)) : h0
end
