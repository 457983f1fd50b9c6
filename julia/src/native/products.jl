# Products of a cotangent with the Jacobians of a user's function.

"""
    julia_products!(outs, call, v, operands)

Write the products of the cotangent `v` with the Jacobians in those operands for which `outs` has an array, not `nothing`.
"""
function julia_products!(outs::Tuple, c::JuliaCall, v, xs::Tuple)
    xs = (scalar(xs[1]), Base.tail(xs)...)
    foreach(o -> o === nothing || fill!(o, 0), outs)
    d = c.definition
    failing(c, xs; differentiating = true) do
        d.vjp === :auto && choose!(c, outs, v, xs)
        haskey(PACKAGES, d.vjp) && need(d.vjp)
        Base.invokelatest(product_loop!, Val(d.vjp), outs, c.h, c, v, xs)
    end
    return
end

function product_loop!(how, outs, h, c::JuliaCall, v, xs)
    c.definition.batched && return products!(how, outs, h, c, v, xs)
    for b in axes(v, ndims(v))
        parts = ntuple(k -> outs[k] === nothing || !persample(c, k) ? outs[k] : selectdim(outs[k], ndims(outs[k]), b), Val(length(outs)))
        products!(how, parts, h, c, copy(selectdim(v, ndims(v), b)), samples_of(c, xs, b))
    end
    return
end

"""
    products!(Val(package), outs, h, call, v, xs)

Add the products of `v` with the Jacobians of `h` at the operands `xs` to the arrays in `outs`. The extensions define it.
"""
function products! end

"Operands beyond this many numbers are not left to forward differentiation, whose cost grows with them."
const FORWARD = 48

function candidates(c::JuliaCall, xs)
    c.networks > 0 && return (:zygote,)
    n = sum(length, xs) - (c.definition.batched ? 0 : length(xs[2]) ÷ size(xs[2], ndims(xs[2])) * (size(xs[2], ndims(xs[2])) - 1))
    short = !c.definition.batched && n <= FORWARD
    c.definition.inplace && return short ? (:forwarddiff, :reversediff, :enzyme) : (:reversediff, :enzyme, :forwarddiff)
    return short ? (:forwarddiff, :zygote, :reversediff, :enzyme) : (:zygote, :reversediff, :enzyme, :forwarddiff)
end

"Settle on the first package that is there and can differentiate the function here."
function choose!(c::JuliaCall, outs, v, xs)
    errors = String[]
    for how in candidates(c, xs)
        Base.locate_package(PACKAGES[how]) === nothing && continue
        try
            need(how)
            Base.invokelatest(product_loop!, Val(how), map(o -> o === nothing ? o : zero(o), outs), c.h, c, v, xs)
            c.definition.vjp = how
            return
        catch error
            error isa Interrupted && rethrow()
            push!(errors, "$how: $(told(error))")
        end
    end
    isempty(errors) && throw(FieldFailure(
        "none of the Julia packages that differentiate a field is in Julia's environment. Add one: using Pkg; Pkg.add(\"Zygote\")",
    ))
    throw(FieldFailure("the Julia field cannot be differentiated:\n" * join(errors, "\n")))
end

"Add a cotangent, however a package gives it, to an array."
add_cotangent!(::Nothing, ::Union{Nothing,Number,AbstractArray}) = nothing
add_cotangent!(out::AbstractArray, ::Nothing) = nothing
add_cotangent!(out::AbstractArray, g::Number) = (out .+= g; nothing)
add_cotangent!(out::AbstractArray, g::AbstractArray) = (out .+= reshape(g, size(out)); nothing)
