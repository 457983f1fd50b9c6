module PyNODEZygoteExt

using PyNODE: PyNODE, JuliaCall, add_cotangent!, checked
using Zygote: pullback

function PyNODE.products!(::Val{:zygote}, outs::Tuple, h, c::JuliaCall, v, xs::Tuple)
    if c.definition.inplace
        throw(PyNODE.FieldFailure(
            "Zygote cannot differentiate a function that writes to du: return dz/dt, or use vjp=\"reversediff\", " *
            "\"enzyme\" or \"forwarddiff\"",
        ))
    end
    t, u, rest... = xs
    if all(isnothing, outs[3:end])
        y, back = pullback((t, u) -> h(t, u, rest...), t, u)
        found = (back(of_type(v, checked(c, y, size(v))))..., ntuple(_ -> nothing, length(rest))...)
    elseif all(isnothing, outs[1:2])
        y, back = pullback((rest...) -> h(t, u, rest...), rest...)
        found = (nothing, nothing, back(of_type(v, checked(c, y, size(v))))...)
    else
        y, back = pullback(h, xs...)
        found = back(of_type(v, checked(c, y, size(v))))
    end
    found === nothing || foreach(add_cotangent!, outs, found)
    return
end

"The cotangent in the type of the value, which a Float64 constant in the user's code may have widened."
of_type(v, y) = eltype(v) === eltype(y) ? v : convert(AbstractArray{eltype(y)}, v)

end
