# Diffusions that are matrices, one for each sample.

"""
The matrices `(features, channels)` of a batch, as the map from the Brownian motions of all samples, one after the other, to
the state. `entries` are those of a torch tensor `(batch, features, channels)`; `rows`, `(batch · features)`, may be fewer than
the state has numbers, and the others get zero. To broadcasts, which see a sample's columns beside another's, it is its entries
in any order.
"""
struct Blocks{T} <: AbstractMatrix{T}
    entries::Vector{T}
    channels::Int
    rows::Int
    features::Int
end

Base.size(B::Blocks) = (B.features, B.channels * (B.rows ÷ B.features))
Base.IndexStyle(::Type{<:Blocks}) = IndexLinear()
Base.@propagate_inbounds Base.getindex(B::Blocks, i::Int) = B.entries[i]
Base.@propagate_inbounds Base.setindex!(B::Blocks, x, i::Int) = (B.entries[i] = x)
Base.similar(B::Blocks, ::Type{T}, ::Dims{2}) where {T} = Blocks{T}(similar(B.entries, T), B.channels, B.rows, B.features)
Base.copy(B::Blocks) = Blocks(copy(B.entries), B.channels, B.rows, B.features)

"`y = α G x + β y`, a sample's matrix times its Brownian motions."
function LinearAlgebra.mul!(y::Vector, G::Blocks{T}, x::Vector, α::Number, β::Number) where {T}
    m = G.channels
    for r in eachindex(y)
        sum = zero(T)
        if r <= G.rows
            b = (r - 1) ÷ G.features * m
            @simd for j in 1:m
                @inbounds sum = muladd(G.entries[(r - 1) * m + j], x[b + j], sum)
            end
        end
        y[r] = iszero(β) ? α * sum : α * sum + β * y[r]
    end
    return y
end

LinearAlgebra.mul!(y::Vector, G::Blocks, x::Vector) = mul!(y, G, x, true, false)

# What a diffusion is, a diagonal or `Blocks`, as its numbers, and its product with Brownian motions; each added to.

numbers(g::Vector) = g
numbers(G::Blocks) = G.entries

"`y += α g ∘ ξ`."
add_product!(y, g::Vector, ξ, α) = (y .+= α .* g .* ξ; y)
add_product!(y, G::Blocks, ξ, α) = mul!(y, G, ξ, α, true)

"The norms of `n` rows, of which those that there are not have none."
function row_norms(G::Blocks{T}, n) where {T}
    m = G.channels
    return [r <= G.rows ? norm(view(G.entries, ((r - 1) * m + 1):(r * m))) : zero(T) for r in 1:n]
end

"The cotangent of `g` in `⟨λ, α g ∘ ξ⟩`, added to."
add_cotangent!(ḡ::Vector, λ, ξ, α) = (ḡ .+= α .* λ .* ξ; ḡ)

function add_cotangent!(Ḡ::Blocks, λ, ξ, α)
    m = Ḡ.channels
    for r in 1:(Ḡ.rows)
        b = (r - 1) ÷ Ḡ.features * m
        @simd for j in 1:m
            @inbounds Ḡ.entries[(r - 1) * m + j] += α * λ[r] * ξ[b + j]
        end
    end
    return Ḡ
end
