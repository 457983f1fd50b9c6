module PyNODEEnzymeExt

using Enzyme: Active, Const, Duplicated, Reverse, autodiff, set_runtime_activity
using PyNODE: PyNODE, JuliaCall, Operands, add_cotangent!, evaluate!

function PyNODE.products!(::Val{:enzyme}, outs::Tuple, h::Operands, c::JuliaCall, v, xs::Tuple)
    t, rest... = xs
    shadows = map(x -> fill!(similar(x), 0), rest)
    du = fill!(similar(v), 0)
    write! = h.inplace ? evaluate! : copy_value!
    found = autodiff(
        set_runtime_activity(Reverse), write!, Const, Const(h), Duplicated(du, copy(v)), Active(t),
        map(Duplicated, map(copy, rest), shadows)...,
    )
    add_cotangent!(outs[1], first(found)[3])
    foreach(add_cotangent!, Base.tail(outs), shadows)
    return
end

function copy_value!(h::Operands, du, xs...)
    copyto!(du, h(xs...))
    return nothing
end

end
