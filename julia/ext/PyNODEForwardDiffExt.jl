module PyNODEForwardDiffExt

using ForwardDiff: gradient
using LinearAlgebra: dot
using PyNODE: PyNODE, JuliaCall, add_cotangent!, checked

# The product is the gradient of ⟨v, f⟩ in the operands that are wanted, side by side in one vector.
function PyNODE.products!(::Val{:forwarddiff}, outs::Tuple, h, c::JuliaCall, v, xs::Tuple)
    wanted = map(!isnothing, outs)
    x = reduce(vcat, [numbers(x) for (x, w) in zip(xs, wanted) if w])
    cotangent = vec(v)
    g = gradient(x) do x
        return dot(cotangent, vec(checked(c, h(unpacked(x, xs, wanted)...), size(v))))
    end
    from = 0
    for (out, x) in zip(outs, xs)
        out === nothing && continue
        add_cotangent!(out, view(g, (from + 1):(from + length(x))))
        from += length(x)
    end
    return
end

numbers(x::Number) = [x]
numbers(x::AbstractArray) = vec(x)

function unpacked(x, xs::Tuple, wanted)
    offsets = cumsum((0, map((x, w) -> w ? length(x) : 0, xs, wanted)...))
    return ntuple(length(xs)) do k
        wanted[k] || return xs[k]
        part = x[(offsets[k] + 1):offsets[k + 1]]
        return xs[k] isa Number ? only(part) : reshape(part, size(xs[k]))
    end
end

end
