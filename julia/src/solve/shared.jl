# The sums of a solver's stages on several threads. SciML's explicit methods write them as broadcasts, and leave to their
# argument `thread` how these are run; those here have the same numbers whatever the threads.

"How the broadcasts of a solver are run: by so many of Julia's threads, where the state is large."
struct Team
    threads::Int
end

# Without a team the types are as ever, for which all is compiled in advance.
team(threads::Int) = threads == 1 ? (;) : (; thread = Team(threads))

"The options by which an explicit method reads the whole state of a field: on a processor, by the threads of the field."
whole_state(field::TracedField{T,Vector{T}}) where {T} =
    (; internalnorm = RootMeanSquare(field.threads), unstable_check = Unstable(field.threads))
whole_state(::TracedField) = (;)

"SciML's norm of errors."
struct RootMeanSquare <: Function
    threads::Int
end

(::RootMeanSquare)(u::Number, t) = abs(u)
(r::RootMeanSquare)(u::Vector{T}, t) where {T} = T(sqrt(sum_shared(abs2, r.threads, length(u), u) / max(length(u), 1)))

"SciML's test whether a state has numbers that are not finite."
struct Unstable <: Function
    threads::Int
end

(c::Unstable)(dt, u, p, t) = !allfinite(u, length(u), c.threads)

Base.@propagate_inbounds function FastBroadcast.fast_materialize!(team::Team, to::Vector, bc::Broadcasted)
    n = length(to)
    fits(bc, n) || return FastBroadcast.fast_materialize!(Serial(), to, bc)
    share(team.threads, n, 1 + vectors(bc)) do part
        @simd ivdep for i in part
            @inbounds to[i] = entry(bc, i)
        end
    end
    return to
end

Base.@propagate_inbounds FastBroadcast.fast_materialize!(::Team, to, bc) = FastBroadcast.fast_materialize!(Serial(), to, bc)

"Whether all vectors in a broadcast have `n` entries, and there is nothing else but numbers, and functions such as norms."
fits(bc::Broadcasted, n) = all(x -> fits(x, n), bc.args)
fits(x::Vector, n) = length(x) == n
fits(x::Union{Number,Base.RefValue{<:Union{Number,Function}}}, n) = true
fits(x, n) = false

vectors(bc::Broadcasted) = sum(vectors, bc.args)
vectors(x) = x isa Vector ? 1 : 0

# Not by `map`, whose closure inference gives up on.
@inline entry(bc::Broadcasted, i) = bc.f(entries(bc.args, i)...)
@inline entries(::Tuple{}, i) = ()
@inline entries(xs::Tuple, i) = (entry(first(xs), i), entries(Base.tail(xs), i)...)
@inline entry(x::Vector, i) = @inbounds x[i]
@inline entry(x::Base.RefValue, i) = x[]
@inline entry(x::Number, i) = x

# The errors of a step, relative to the tolerances.
function DiffEqBase.calculate_residuals!(out, ũ, u₀, u₁, α, ρ, norm, t, team::Team)
    @.. broadcast = false thread = team out = DiffEqBase.calculate_residuals(ũ, u₀, u₁, α, ρ, norm, t)
    return nothing
end
