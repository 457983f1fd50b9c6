# The operations `julia` and `julia_product` in a graph.

kernels_of(n::Node) = Tuple(parse(Int, k) for k in split(n.attrs["kernels"], ','; keepempty = false))

function call_of!(l::Lowering, n::Node)
    T, number, kernels = l.T, Int(n.attrs["number"]), kernels_of(n)
    return newbuffer!(l, (_, _, _) -> JuliaCall{T}(number, kernels); contiguous = false, alias = false)
end

julia_operand!(l::Lowering, i::Int) =
    istime(l.graph, l.graph.nodes[i]) ? :t : bufsym(materialise!(l, i; contiguous = true))

function lower_op!(l::Lowering, ::Val{:julia}, i, n, into)
    operands = [julia_operand!(l, j) for j in n.inputs]
    call = call_of!(l, n)
    b = destination!(l, n, into)
    emit!(l, :(julia_value!($(bufsym(b)), $(bufsym(call)), ($(operands...),))))
    l.buffer[i] = b
end

# The products at the same operands are computed together, at the first of them.
function lower_op!(l::Lowering, ::Val{:julia_product}, i, n, into)
    haskey(l.buffer, i) && return
    outs = Any[nothing for _ in 2:length(n.inputs)]
    for j in sort!(collect(keys(l.users)))
        m = l.graph.nodes[j]
        (m.op === :julia_product && m.inputs == n.inputs && m.attrs["number"] == n.attrs["number"]) || continue
        haskey(l.given, j) && continue
        l.buffer[j] = j == i ? destination!(l, m, into) : own!(l, m)
        outs[m.attrs["of"] + 1] = bufsym(l.buffer[j])
    end
    v, operands... = [julia_operand!(l, j) for j in n.inputs]
    emit!(l, :(julia_products!(($(outs...),), $(bufsym(call_of!(l, n))), $v, ($(operands...),))))
end
